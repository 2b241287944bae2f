#include "design_axi.h"

@SAMPLE@

static void enter(hls::stream<beat_t> &taken, hls::stream<word_t> &words, hls::stream<ap_uint<1> > &ends) {
Enter:
    for (unsigned i = 0; i < BEATS_IN; i++) {
        #pragma HLS PIPELINE II=1
        beat_t beat = taken.read();
        words.write(beat.data);
        if (i == BEATS_IN - 1)
            ends.write(beat.last);
    }
}

static void leave(hls::stream<word_t> &words, hls::stream<ap_uint<1> > &ends, hls::stream<beat_t> &given) {
Leave:
    for (unsigned i = 0; i < BEATS_OUT; i++) {
        #pragma HLS PIPELINE II=1
        beat_t beat;
        beat.data = words.read();
        beat.keep = -1;
        beat.strb = -1;
        beat.user = 0;
        beat.id = 0;
        beat.dest = 0;
        beat.last = 0;
        if (i == BEATS_OUT - 1)
            beat.last = ends.read();
        given.write(beat);
    }
}

void design_axi(hls::stream<beat_t> &taken, hls::stream<beat_t> &given) {
    #pragma HLS INTERFACE axis port=taken
    #pragma HLS INTERFACE axis port=given
    #pragma HLS INTERFACE ap_ctrl_none port=return
    #pragma HLS DATAFLOW
    hls::stream<word_t> words_in("words_in"), words_out("words_out");
    hls::stream<ap_uint<1> > ends("ends");
    #pragma HLS STREAM variable=ends depth=16
    enter(taken, words_in, ends);
    sample(words_in, words_out);
    leave(words_out, ends, given);
}
