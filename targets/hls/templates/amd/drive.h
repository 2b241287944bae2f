// For emulator.cpp and testbench.cpp: real values into words of the bus, through the top function, and back.

#ifndef GATEWRIGHT_DRIVE_H_
#define GATEWRIGHT_DRIVE_H_

#include "firmware/@TOP@.h"
#include <cmath>
#include <cstdio>
#include <cstdlib>

namespace gatewright {

inline void fill(word_t *words, const double *values, unsigned size, unsigned bits, int exponent) {
    const unsigned lanes = @BUS@ / bits;
    for (unsigned i = 0; i < size; i++) {
        long long whole = std::llround(std::ldexp(values[i], -exponent));
        if (i % lanes == 0)
            words[i / lanes] = 0;
        words[i / lanes].range(i % lanes * bits + bits - 1, i % lanes * bits) = ap_uint<64>(whole);
    }
}

inline void drain(const word_t *words, double *values, unsigned size, unsigned bits, int exponent, bool is_signed) {
    const unsigned lanes = @BUS@ / bits;
    for (unsigned i = 0; i < size; i++) {
        word_t moved = words[i / lanes] >> (i % lanes * bits);
        unsigned long long raw = moved.to_uint64() & (bits == 64 ? ~0ull : (1ull << bits) - 1);
        if (is_signed && bits < 64 && raw >> (bits - 1))
            raw |= ~0ull << bits;
        values[i] = std::ldexp(double((long long)raw), exponent);
    }
}

@RUN@

} // namespace gatewright

#endif
