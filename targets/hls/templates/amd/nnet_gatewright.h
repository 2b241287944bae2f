// Layers that hls4ml lacks, for AMD's ap_fixed types. Each is exact: the types of its arguments hold every value it makes.

#ifndef NNET_GATEWRIGHT_H_
#define NNET_GATEWRIGHT_H_

#include "hls_stream.h"
#include "nnet_common.h"

namespace nnet {

// v -> clamp(round_half_even(v * scale + bias), lowest, highest); wide_t rounds, and holds every result before the clamp.
// scale and bias have n_scale entries, used in turn: one per channel, or one per element.
template <class data_T, typename CONFIG_T>
typename CONFIG_T::wide_t requantized(data_T value, typename CONFIG_T::scale_t scale, typename CONFIG_T::bias_t bias) {
    #pragma HLS INLINE
    const typename CONFIG_T::wide_t lowest = CONFIG_T::lowest();
    const typename CONFIG_T::wide_t highest = CONFIG_T::highest();
    typename CONFIG_T::wide_t wide = value * scale + bias;
    if (wide < lowest)
        return lowest;
    if (wide > highest)
        return highest;
    return wide;
}

template <class data_T, class res_T, typename CONFIG_T>
void requantize(data_T data[CONFIG_T::n_in], res_T res[CONFIG_T::n_in], typename CONFIG_T::scale_t scale[CONFIG_T::n_scale],
                typename CONFIG_T::bias_t bias[CONFIG_T::n_scale]) {
    #pragma HLS PIPELINE II=CONFIG_T::reuse_factor
    #pragma HLS ARRAY_PARTITION variable=scale complete
    #pragma HLS ARRAY_PARTITION variable=bias complete
    #pragma HLS ALLOCATION operation instances=mul limit=CONFIG_T::multipliers

Requantize:
    for (unsigned i = 0; i < CONFIG_T::n_in; i++) {
        #pragma HLS UNROLL
        res[i] = requantized<data_T, CONFIG_T>(data[i], scale[i % CONFIG_T::n_scale], bias[i % CONFIG_T::n_scale]);
    }
}

template <class data_T, class res_T, typename CONFIG_T>
void requantize(hls::stream<data_T> &data, hls::stream<res_T> &res, typename CONFIG_T::scale_t scale[CONFIG_T::n_scale],
                typename CONFIG_T::bias_t bias[CONFIG_T::n_scale]) {
    #pragma HLS ALLOCATION operation instances=mul limit=CONFIG_T::multipliers
RequantizePacks:
    for (unsigned i = 0; i < CONFIG_T::n_in / data_T::size; i++) {
        #pragma HLS PIPELINE II=CONFIG_T::reuse_factor
        data_T in = data.read();
        res_T out;
        PRAGMA_DATA_PACK(out)
    RequantizePack:
        for (unsigned j = 0; j < data_T::size; j++) {
            #pragma HLS UNROLL
            unsigned index = (i * data_T::size + j) % CONFIG_T::n_scale;
            out[j] = requantized<typename data_T::value_type, CONFIG_T>(in[j], scale[index], bias[index]);
        }
        res.write(out);
    }
}

// v -> table[the bits of v read as a whole number]; the table has 2^width entries.
template <class data_T, class res_T, typename CONFIG_T>
void lookup(data_T data[CONFIG_T::n_in], res_T res[CONFIG_T::n_in], typename CONFIG_T::table_t table[CONFIG_T::n_table]) {
    #pragma HLS PIPELINE II=CONFIG_T::reuse_factor

Lookup:
    for (unsigned i = 0; i < CONFIG_T::n_in; i++) {
        #pragma HLS UNROLL
        ap_uint<data_T::width> index = data[i].range(data_T::width - 1, 0);
        res[i] = table[index];
    }
}

template <class data_T, class res_T, typename CONFIG_T>
void lookup(hls::stream<data_T> &data, hls::stream<res_T> &res, typename CONFIG_T::table_t table[CONFIG_T::n_table]) {
LookupPacks:
    for (unsigned i = 0; i < CONFIG_T::n_in / data_T::size; i++) {
        #pragma HLS PIPELINE
        data_T in = data.read();
        res_T out;
        PRAGMA_DATA_PACK(out)
    LookupPack:
        for (unsigned j = 0; j < data_T::size; j++) {
            #pragma HLS UNROLL
            ap_uint<data_T::value_type::width> index = in[j].range(data_T::value_type::width - 1, 0);
            out[j] = table[index];
        }
        res.write(out);
    }
}

// The sum over all positions, channel by channel: the exact half of a global average.
template <class data_T, class res_T, typename CONFIG_T>
void global_sum(data_T data[CONFIG_T::n_positions * CONFIG_T::n_chan], res_T res[CONFIG_T::n_chan]) {
    #pragma HLS PIPELINE II=CONFIG_T::reuse_factor

SumChannels:
    for (unsigned c = 0; c < CONFIG_T::n_chan; c++) {
        #pragma HLS UNROLL
        res_T sum = 0;
    SumPositions:
        for (unsigned p = 0; p < CONFIG_T::n_positions; p++) {
            #pragma HLS UNROLL
            sum += data[p * CONFIG_T::n_chan + c];
        }
        res[c] = sum;
    }
}

template <class data_T, class res_T, typename CONFIG_T>
void global_sum(hls::stream<data_T> &data, hls::stream<res_T> &res) {
    typename res_T::value_type sum[CONFIG_T::n_chan];
    #pragma HLS ARRAY_PARTITION variable=sum complete

SumReset:
    for (unsigned c = 0; c < CONFIG_T::n_chan; c++) {
        #pragma HLS UNROLL
        sum[c] = 0;
    }
SumPositions:
    for (unsigned p = 0; p < CONFIG_T::n_positions; p++) {
        #pragma HLS PIPELINE
        data_T in = data.read();
    SumChannels:
        for (unsigned c = 0; c < CONFIG_T::n_chan; c++) {
            #pragma HLS UNROLL
            sum[c] += in[c];
        }
    }
    res_T out;
    PRAGMA_DATA_PACK(out)
SumResult:
    for (unsigned c = 0; c < CONFIG_T::n_chan; c++) {
        #pragma HLS UNROLL
        out[c] = sum[c];
    }
    res.write(out);
}

// Elements in another order, some left out or repeated: res[i] = data[source[i]]. Streamed, the whole tensor is held.
template <class data_T, class res_T, typename CONFIG_T>
void gather(data_T data[CONFIG_T::n_in], res_T res[CONFIG_T::n_source], typename CONFIG_T::source_t source[CONFIG_T::n_source]) {
    #pragma HLS PIPELINE
    #pragma HLS ARRAY_PARTITION variable=source complete

Gather:
    for (unsigned i = 0; i < CONFIG_T::n_source; i++) {
        #pragma HLS UNROLL
        res[i] = data[source[i].to_uint()];
    }
}

template <class data_T, class res_T, typename CONFIG_T>
void gather(hls::stream<data_T> &data, hls::stream<res_T> &res, typename CONFIG_T::source_t source[CONFIG_T::n_source]) {
    typename data_T::value_type held[CONFIG_T::n_in];
GatherHold:
    for (unsigned i = 0; i < CONFIG_T::n_in / data_T::size; i++) {
        #pragma HLS PIPELINE
        data_T in = data.read();
    GatherUnpack:
        for (unsigned j = 0; j < data_T::size; j++) {
            #pragma HLS UNROLL
            held[i * data_T::size + j] = in[j];
        }
    }
GatherGive:
    for (unsigned i = 0; i < CONFIG_T::n_source / res_T::size; i++) {
        #pragma HLS PIPELINE
        res_T out;
        PRAGMA_DATA_PACK(out)
    GatherPack:
        for (unsigned j = 0; j < res_T::size; j++) {
            #pragma HLS UNROLL
            out[j] = held[source[i * res_T::size + j].to_uint()];
        }
        res.write(out);
    }
}

// Maximum over windows. hls4ml's pools take only windows side by side when streamed, and pad unsigned values wrongly. What
// lies outside the image never wins: it is the least value of the type. Streamed, the last pool_height rows are kept.
template <class data_T, class res_T, typename CONFIG_T>
void window_max(data_T data[CONFIG_T::in_height * CONFIG_T::in_width * CONFIG_T::n_filt],
                res_T res[CONFIG_T::out_height * CONFIG_T::out_width * CONFIG_T::n_filt]) {
    #pragma HLS PIPELINE

MaxPositions:
    for (unsigned p = 0; p < CONFIG_T::out_height * CONFIG_T::out_width; p++) {
    MaxChannels:
        for (unsigned c = 0; c < CONFIG_T::n_filt; c++) {
            data_T best = CONFIG_T::lowest();
        MaxWindow:
            for (unsigned k = 0; k < CONFIG_T::pool_height * CONFIG_T::pool_width; k++) {
                int y = int(p / CONFIG_T::out_width * CONFIG_T::stride_height + k / CONFIG_T::pool_width) - int(CONFIG_T::pad_top);
                int x = int(p % CONFIG_T::out_width * CONFIG_T::stride_width + k % CONFIG_T::pool_width) - int(CONFIG_T::pad_left);
                if (y >= 0 && y < int(CONFIG_T::in_height) && x >= 0 && x < int(CONFIG_T::in_width)) {
                    data_T value = data[(y * CONFIG_T::in_width + x) * CONFIG_T::n_filt + c];
                    if (value > best)
                        best = value;
                }
            }
            res[p * CONFIG_T::n_filt + c] = best;
        }
    }
}

template <class data_T, class res_T, typename CONFIG_T> void window_max(hls::stream<data_T> &data, hls::stream<res_T> &res) {
    typedef typename data_T::value_type value_T;
    const unsigned height = CONFIG_T::in_height + CONFIG_T::pad_top + CONFIG_T::pad_bottom;
    const unsigned width = CONFIG_T::in_width + CONFIG_T::pad_left + CONFIG_T::pad_right;
    static data_T rows[CONFIG_T::pool_height][width];
    #pragma HLS ARRAY_PARTITION variable=rows complete dim=1

MaxRows:
    for (unsigned y = 0; y < height; y++) {
    MaxColumns:
        for (unsigned x = 0; x < width; x++) {
            #pragma HLS LOOP_FLATTEN
            #pragma HLS PIPELINE
            data_T pack;
            if (y >= CONFIG_T::pad_top && y < CONFIG_T::pad_top + CONFIG_T::in_height && x >= CONFIG_T::pad_left &&
                x < CONFIG_T::pad_left + CONFIG_T::in_width) {
                pack = data.read();
            } else {
            MaxOutside:
                for (unsigned c = 0; c < CONFIG_T::n_filt; c++) {
                    #pragma HLS UNROLL
                    pack[c] = CONFIG_T::lowest();
                }
            }
            rows[y % CONFIG_T::pool_height][x] = pack;
            bool row_ends = y + 1 >= CONFIG_T::pool_height && (y + 1 - CONFIG_T::pool_height) % CONFIG_T::stride_height == 0;
            bool column_ends = x + 1 >= CONFIG_T::pool_width && (x + 1 - CONFIG_T::pool_width) % CONFIG_T::stride_width == 0;
            bool inside = (y + 1 - CONFIG_T::pool_height) / CONFIG_T::stride_height < CONFIG_T::out_height &&
                          (x + 1 - CONFIG_T::pool_width) / CONFIG_T::stride_width < CONFIG_T::out_width;
            if (row_ends && column_ends && inside) {
                res_T out;
                PRAGMA_DATA_PACK(out)
            MaxChannels:
                for (unsigned c = 0; c < CONFIG_T::n_filt; c++) {
                    #pragma HLS UNROLL
                    value_T best = rows[y % CONFIG_T::pool_height][x][c];
                MaxWindow:
                    for (unsigned k = 0; k < CONFIG_T::pool_height * CONFIG_T::pool_width; k++) {
                        #pragma HLS UNROLL
                        value_T value = rows[(y - k / CONFIG_T::pool_width) % CONFIG_T::pool_height][x - k % CONFIG_T::pool_width][c];
                        if (value > best)
                            best = value;
                    }
                    out[c] = best;
                }
                res.write(out);
            }
        }
    }
}

} // namespace nnet

#endif
