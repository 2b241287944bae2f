#include "design_kernel.h"

@SAMPLE@

static void fetch(const word_t *taken, hls::stream<word_t> &words, unsigned samples) {
Fetch:
    for (unsigned i = 0; i < samples * BEATS_IN; i++) {
        #pragma HLS PIPELINE II=1
        words.write(taken[i]);
    }
}

static void every(hls::stream<word_t> &words_in, hls::stream<word_t> &words_out, unsigned samples) {
Every:
    for (unsigned i = 0; i < samples; i++)
        sample(words_in, words_out);
}

static void store(hls::stream<word_t> &words, word_t *given, unsigned samples) {
Store:
    for (unsigned i = 0; i < samples * BEATS_OUT; i++) {
        #pragma HLS PIPELINE II=1
        given[i] = words.read();
    }
}

extern "C" void design_kernel(const word_t *taken, word_t *given, unsigned samples) {
    #pragma HLS INTERFACE m_axi port=taken offset=slave bundle=gmem0
    #pragma HLS INTERFACE m_axi port=given offset=slave bundle=gmem1
    #pragma HLS INTERFACE s_axilite port=taken
    #pragma HLS INTERFACE s_axilite port=given
    #pragma HLS INTERFACE s_axilite port=samples
    #pragma HLS INTERFACE s_axilite port=return
    #pragma HLS DATAFLOW
    hls::stream<word_t> words_in("words_in"), words_out("words_out");
    fetch(taken, words_in, samples);
    every(words_in, words_out, samples);
    store(words_out, given, samples);
}
