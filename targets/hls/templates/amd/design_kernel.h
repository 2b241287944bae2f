// The design as a kernel of the XRT: samples lie in the card's memory, @BEATS_IN@ words of @BUS@ bits each, results @BEATS_OUT@.

#ifndef DESIGN_KERNEL_H_
#define DESIGN_KERNEL_H_

#include "design.h"
#include "words.h"

static const unsigned BEATS_IN = @BEATS_IN@, BEATS_OUT = @BEATS_OUT@;
typedef ap_uint<@BUS@> word_t;

extern "C" void design_kernel(const word_t *taken, word_t *given, unsigned samples);

#endif
