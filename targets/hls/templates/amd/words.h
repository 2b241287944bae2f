// Between the words of a bus and the values of the design. A word holds BUS / BITS values, the first in its lowest bits; each
// is the value's own bits, extended with its sign to BITS.

#ifndef GATEWRIGHT_WORDS_H_
#define GATEWRIGHT_WORDS_H_

#include "ap_int.h"
#include "hls_stream.h"

namespace gatewright {

// A tensor in registers: a word a cycle.
template <class value_T, unsigned SIZE, unsigned BITS, unsigned BUS>
void unpack(hls::stream<ap_uint<BUS> > &words, value_T values[SIZE]) {
    const unsigned lanes = BUS / BITS;
Unpack:
    for (unsigned i = 0; i < SIZE; i += lanes) {
        #pragma HLS PIPELINE II=1
        ap_uint<BUS> word = words.read();
    UnpackLanes:
        for (unsigned lane = 0; lane < lanes; lane++) {
            #pragma HLS UNROLL
            if (i + lane < SIZE)
                values[i + lane].range(value_T::width - 1, 0) = word.range(lane * BITS + value_T::width - 1, lane * BITS);
        }
    }
}

// A tensor that streams in packs: a value a cycle.
template <class pack_T, unsigned SIZE, unsigned BITS, unsigned BUS>
void unpack(hls::stream<ap_uint<BUS> > &words, hls::stream<pack_T> &values) {
    typedef typename pack_T::value_type value_T;
    ap_uint<BUS> word = 0;
    pack_T pack;
    unsigned lane = 0, place = 0;
Unpack:
    for (unsigned i = 0; i < SIZE; i++) {
        #pragma HLS PIPELINE II=1
        if (lane == 0)
            word = words.read();
        else
            word >>= BITS;
        lane = lane == BUS / BITS - 1 ? 0 : lane + 1;
        value_T value;
        value.range(value_T::width - 1, 0) = word.range(value_T::width - 1, 0);
        pack[place] = value;
        if (place == pack_T::size - 1) {
            values.write(pack);
            place = 0;
        } else {
            place++;
        }
    }
}

template <class value_T, unsigned BITS, bool SIGNED> ap_uint<BITS> contained(value_T value) {
    #pragma HLS INLINE
    ap_uint<value_T::width> raw = value.range(value_T::width - 1, 0);
    ap_uint<BITS> wide = 0;
    if (SIGNED && raw[value_T::width - 1])
        wide = ~wide;
    wide.range(value_T::width - 1, 0) = raw;
    return wide;
}

template <class value_T, unsigned SIZE, unsigned BITS, unsigned BUS, bool SIGNED>
void pack(value_T values[SIZE], hls::stream<ap_uint<BUS> > &words) {
    const unsigned lanes = BUS / BITS;
Pack:
    for (unsigned i = 0; i < SIZE; i += lanes) {
        #pragma HLS PIPELINE II=1
        ap_uint<BUS> word = 0;
    PackLanes:
        for (unsigned lane = 0; lane < lanes; lane++) {
            #pragma HLS UNROLL
            if (i + lane < SIZE)
                word.range(lane * BITS + BITS - 1, lane * BITS) = contained<value_T, BITS, SIGNED>(values[i + lane]);
        }
        words.write(word);
    }
}

template <class pack_T, unsigned SIZE, unsigned BITS, unsigned BUS, bool SIGNED>
void pack(hls::stream<pack_T> &values, hls::stream<ap_uint<BUS> > &words) {
    typedef typename pack_T::value_type value_T;
    ap_uint<BUS> word = 0;
    pack_T held;
    unsigned lane = 0, place = 0;
Pack:
    for (unsigned i = 0; i < SIZE; i++) {
        #pragma HLS PIPELINE II=1
        if (place == 0)
            held = values.read();
        word >>= BITS;
        word.range(BUS - 1, BUS - BITS) = contained<value_T, BITS, SIGNED>(held[place]);
        place = place == pack_T::size - 1 ? 0 : place + 1;
        if (lane == BUS / BITS - 1) {
            words.write(word);
            lane = 0;
        } else {
            lane++;
        }
    }
    // The last word is not full: what is in it moves down to its lowest bits.
    if (lane != 0)
        words.write(word >> (BUS - lane * BITS));
}

} // namespace gatewright

#endif
