// Layers that hls4ml lacks, for the ac_fixed types of Intel's compiler. Each is exact: the types hold every value it makes.

#ifndef NNET_GATEWRIGHT_H_
#define NNET_GATEWRIGHT_H_

#include "nnet_common.h"
#include "nnet_types.h"

namespace nnet {

// v -> clamp(round_half_even(v * scale + bias), lowest, highest); wide_t rounds, and holds every result before the clamp.
// scale and bias have n_scale entries, used in turn: one per channel, or one per element.
template <class data_T, typename CONFIG_T>
typename CONFIG_T::wide_t requantized(data_T value, typename CONFIG_T::scale_t scale, typename CONFIG_T::bias_t bias) {
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
void requantize(data_T data[CONFIG_T::n_in], res_T res[CONFIG_T::n_in], const typename CONFIG_T::scale_t scale[CONFIG_T::n_scale],
                const typename CONFIG_T::bias_t bias[CONFIG_T::n_scale]) {
Requantize:
    #pragma unroll
    for (unsigned i = 0; i < CONFIG_T::n_in; i++) {
        res[i] = requantized<data_T, CONFIG_T>(data[i], scale[i % CONFIG_T::n_scale], bias[i % CONFIG_T::n_scale]);
    }
}

template <class data_T, class res_T, typename CONFIG_T>
void requantize(stream<data_T> &data, stream<res_T> &res, const typename CONFIG_T::scale_t scale[CONFIG_T::n_scale],
                const typename CONFIG_T::bias_t bias[CONFIG_T::n_scale]) {
RequantizePacks:
    #pragma ii CONFIG_T::reuse_factor
    for (unsigned i = 0; i < CONFIG_T::n_in / data_T::size; i++) {
        data_T in = data.read();
        res_T out;
    RequantizePack:
        #pragma unroll
        for (unsigned j = 0; j < data_T::size; j++) {
            unsigned index = (i * data_T::size + j) % CONFIG_T::n_scale;
            out[j] = requantized<typename data_T::value_type, CONFIG_T>(in[j], scale[index], bias[index]);
        }
        res.write(out);
    }
}

// v -> table[the bits of v read as a whole number]; the table has 2^width entries.
template <class data_T> unsigned bits_of(data_T value) {
    ac_int<data_T::width, false> bits = value.template slc<data_T::width>(0);
    return bits.to_uint();
}

template <class data_T, class res_T, typename CONFIG_T>
void lookup(data_T data[CONFIG_T::n_in], res_T res[CONFIG_T::n_in], const typename CONFIG_T::table_t table[CONFIG_T::n_table]) {
Lookup:
    #pragma unroll
    for (unsigned i = 0; i < CONFIG_T::n_in; i++) {
        res[i] = table[bits_of<data_T>(data[i])];
    }
}

template <class data_T, class res_T, typename CONFIG_T>
void lookup(stream<data_T> &data, stream<res_T> &res, const typename CONFIG_T::table_t table[CONFIG_T::n_table]) {
LookupPacks:
    #pragma ii 1
    for (unsigned i = 0; i < CONFIG_T::n_in / data_T::size; i++) {
        data_T in = data.read();
        res_T out;
    LookupPack:
        #pragma unroll
        for (unsigned j = 0; j < data_T::size; j++) {
            out[j] = table[bits_of<typename data_T::value_type>(in[j])];
        }
        res.write(out);
    }
}

// The sum over all positions, channel by channel: the exact half of a global average.
template <class data_T, class res_T, typename CONFIG_T>
void global_sum(data_T data[CONFIG_T::n_positions * CONFIG_T::n_chan], res_T res[CONFIG_T::n_chan]) {
SumChannels:
    #pragma unroll
    for (unsigned c = 0; c < CONFIG_T::n_chan; c++) {
        hls_register res_T sum = 0;
    SumPositions:
        #pragma unroll
        for (unsigned p = 0; p < CONFIG_T::n_positions; p++) {
            sum += data[p * CONFIG_T::n_chan + c];
        }
        res[c] = sum;
    }
}

template <class data_T, class res_T, typename CONFIG_T> void global_sum(stream<data_T> &data, stream<res_T> &res) {
    hls_register typename res_T::value_type sum[CONFIG_T::n_chan];
SumReset:
    #pragma unroll
    for (unsigned c = 0; c < CONFIG_T::n_chan; c++) {
        sum[c] = 0;
    }
SumPositions:
    #pragma ii 1
    for (unsigned p = 0; p < CONFIG_T::n_positions; p++) {
        data_T in = data.read();
    SumChannels:
        #pragma unroll
        for (unsigned c = 0; c < CONFIG_T::n_chan; c++) {
            sum[c] += in[c];
        }
    }
    res_T out;
SumResult:
    #pragma unroll
    for (unsigned c = 0; c < CONFIG_T::n_chan; c++) {
        out[c] = sum[c];
    }
    res.write(out);
}

// Elements in another order, some left out or repeated: res[i] = data[source[i]]. Streamed, the whole tensor is held.
template <class data_T, class res_T, typename CONFIG_T>
void gather(data_T data[CONFIG_T::n_in], res_T res[CONFIG_T::n_source], const typename CONFIG_T::source_t source[CONFIG_T::n_source]) {
Gather:
    #pragma unroll
    for (unsigned i = 0; i < CONFIG_T::n_source; i++) {
        res[i] = data[source[i].to_uint()];
    }
}

template <class data_T, class res_T, typename CONFIG_T>
void gather(stream<data_T> &data, stream<res_T> &res, const typename CONFIG_T::source_t source[CONFIG_T::n_source]) {
    typename data_T::value_type held[CONFIG_T::n_in];
GatherHold:
    #pragma ii 1
    for (unsigned i = 0; i < CONFIG_T::n_in / data_T::size; i++) {
        data_T in = data.read();
    GatherUnpack:
        #pragma unroll
        for (unsigned j = 0; j < data_T::size; j++) {
            held[i * data_T::size + j] = in[j];
        }
    }
GatherGive:
    #pragma ii 1
    for (unsigned i = 0; i < CONFIG_T::n_source / res_T::size; i++) {
        res_T out;
    GatherPack:
        #pragma unroll
        for (unsigned j = 0; j < res_T::size; j++) {
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
MaxPositions:
    #pragma unroll
    for (unsigned p = 0; p < CONFIG_T::out_height * CONFIG_T::out_width; p++) {
    MaxChannels:
        #pragma unroll
        for (unsigned c = 0; c < CONFIG_T::n_filt; c++) {
            data_T best = CONFIG_T::lowest();
        MaxWindow:
            #pragma unroll
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

template <class data_T, class res_T, typename CONFIG_T> void window_max(stream<data_T> &data, stream<res_T> &res) {
    typedef typename data_T::value_type value_T;
    const unsigned height = CONFIG_T::in_height + CONFIG_T::pad_top + CONFIG_T::pad_bottom;
    const unsigned width = CONFIG_T::in_width + CONFIG_T::pad_left + CONFIG_T::pad_right;
    static data_T rows[CONFIG_T::pool_height][width];

MaxRows:
    for (unsigned y = 0; y < height; y++) {
    MaxColumns:
        for (unsigned x = 0; x < width; x++) {
            data_T pack;
            if (y >= CONFIG_T::pad_top && y < CONFIG_T::pad_top + CONFIG_T::in_height && x >= CONFIG_T::pad_left &&
                x < CONFIG_T::pad_left + CONFIG_T::in_width) {
                pack = data.read();
            } else {
            MaxOutside:
                #pragma unroll
                for (unsigned c = 0; c < CONFIG_T::n_filt; c++) {
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
            MaxChannels:
                #pragma unroll
                for (unsigned c = 0; c < CONFIG_T::n_filt; c++) {
                    value_T best = rows[y % CONFIG_T::pool_height][x][c];
                MaxWindow:
                    #pragma unroll
                    for (unsigned k = 0; k < CONFIG_T::pool_height * CONFIG_T::pool_width; k++) {
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
