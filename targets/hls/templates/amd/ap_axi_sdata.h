// What g++ needs of AMD's header of this name: the signals of an AXI4-Stream beat. Not for synthesis; AMD's tools have their own.

#ifndef GATEWRIGHT_AP_AXI_SDATA_
#define GATEWRIGHT_AP_AXI_SDATA_

#include "ap_int.h"

template <int D, int U, int TI, int TD> struct ap_axiu {
    ap_uint<D> data;
    ap_uint<(D + 7) / 8> keep, strb;
    ap_uint<U> user;
    ap_uint<1> last;
    ap_uint<TI> id;
    ap_uint<TD> dest;
};

#endif
