// The design behind AXI4-Stream: @BEATS_IN@ words of @BUS@ bits in and @BEATS_OUT@ out per sample. TLAST of a sample's last
// word comes back on the last word of its result, so one transfer carries any number of samples.

#ifndef DESIGN_AXI_H_
#define DESIGN_AXI_H_

#include "design.h"
#include "ap_axi_sdata.h"
#include "words.h"

static const unsigned BEATS_IN = @BEATS_IN@, BEATS_OUT = @BEATS_OUT@;
typedef ap_uint<@BUS@> word_t;
typedef ap_axiu<@BUS@, 1, 1, 1> beat_t;

void design_axi(hls::stream<beat_t> &taken, hls::stream<beat_t> &given);

#endif
