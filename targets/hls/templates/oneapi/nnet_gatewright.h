// Layers that hls4ml lacks, for oneAPI: ac_fixed types in nnet::array, streams as pipes. Each is exact: the types hold every
// value it makes. Constants come as nnet::array too.

#ifndef NNET_GATEWRIGHT_H_
#define NNET_GATEWRIGHT_H_

#include "nnet_common.h"
#include "nnet_types.h"

namespace nnet {

// v -> clamp(round_half_even(v * scale + bias), lowest, highest); wide_t rounds, and holds every result before the clamp.
// scale and bias have n_scale entries, used in turn: one per channel, or one per element.
template <class data_T, class scale_T, class bias_T, typename CONFIG_T>
typename CONFIG_T::wide_t requantized(data_T value, scale_T scale, bias_T bias) {
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
void requantize_part(const data_T &data, res_T &res, const typename CONFIG_T::scale_t &scale, const typename CONFIG_T::bias_t &bias,
                     unsigned start) {
    using scale_T = typename CONFIG_T::scale_t::value_type;
    using bias_T = typename CONFIG_T::bias_t::value_type;
RequantizePart:
    #pragma unroll
    for (unsigned j = 0; j < std::tuple_size<data_T>::value; j++) {
        unsigned index = (start + j) % CONFIG_T::n_scale;
        res[j] = requantized<typename data_T::value_type, scale_T, bias_T, CONFIG_T>(data[j], scale[index], bias[index]);
    }
}

template <class data_T, class res_T, typename CONFIG_T>
void requantize(const data_T &data, res_T &res, const typename CONFIG_T::scale_t &scale, const typename CONFIG_T::bias_t &bias) {
    requantize_part<data_T, res_T, CONFIG_T>(data, res, scale, bias, 0);
}

template <class data_pipe, class res_pipe, typename CONFIG_T>
void requantize_stream(typename CONFIG_T::scale_t scale, typename CONFIG_T::bias_t bias) {
    using data_T = typename ExtractPipeType<data_pipe>::value_type;
    using res_T = typename ExtractPipeType<res_pipe>::value_type;
    constexpr unsigned pack = std::tuple_size<data_T>::value;
RequantizePacks:
    [[intel::initiation_interval(CONFIG_T::reuse_factor)]] for (unsigned i = 0; i < CONFIG_T::n_in / pack; i++) {
        data_T in = data_pipe::read();
        res_T out;
        requantize_part<data_T, res_T, CONFIG_T>(in, out, scale, bias, i * pack);
        res_pipe::write(out);
    }
}

// v -> table[the bits of v read as a whole number]; the table has 2^width entries.
template <class data_T> unsigned bits_of(data_T value) {
    ac_int<data_T::width, false> bits = value.template slc<data_T::width>(0);
    return bits.to_uint();
}

template <class data_T, class res_T, typename CONFIG_T>
void lookup(const data_T &data, res_T &res, const typename CONFIG_T::table_t &table) {
Lookup:
    #pragma unroll
    for (unsigned i = 0; i < std::tuple_size<data_T>::value; i++) {
        res[i] = table[bits_of<typename data_T::value_type>(data[i])];
    }
}

template <class data_pipe, class res_pipe, typename CONFIG_T> void lookup_stream(typename CONFIG_T::table_t table) {
    using data_T = typename ExtractPipeType<data_pipe>::value_type;
    using res_T = typename ExtractPipeType<res_pipe>::value_type;
LookupPacks:
    [[intel::initiation_interval(1)]] for (unsigned i = 0; i < CONFIG_T::n_in / std::tuple_size<data_T>::value; i++) {
        data_T in = data_pipe::read();
        res_T out;
        lookup<data_T, res_T, CONFIG_T>(in, out, table);
        res_pipe::write(out);
    }
}

// The sum over all positions, channel by channel: the exact half of a global average.
template <class data_T, class res_T, typename CONFIG_T> void global_sum(const data_T &data, res_T &res) {
SumChannels:
    #pragma unroll
    for (unsigned c = 0; c < CONFIG_T::n_chan; c++) {
        [[intel::fpga_register]] typename res_T::value_type sum = 0;
    SumPositions:
        #pragma unroll
        for (unsigned p = 0; p < CONFIG_T::n_positions; p++) {
            sum += data[p * CONFIG_T::n_chan + c];
        }
        res[c] = sum;
    }
}

template <class data_pipe, class res_pipe, typename CONFIG_T> void global_sum_stream() {
    using data_T = typename ExtractPipeType<data_pipe>::value_type;
    using res_T = typename ExtractPipeType<res_pipe>::value_type;
    [[intel::fpga_register]] res_T sum;
SumReset:
    #pragma unroll
    for (unsigned c = 0; c < CONFIG_T::n_chan; c++) {
        sum[c] = 0;
    }
SumPositions:
    [[intel::initiation_interval(1)]] for (unsigned p = 0; p < CONFIG_T::n_positions; p++) {
        data_T in = data_pipe::read();
    SumChannels:
        #pragma unroll
        for (unsigned c = 0; c < CONFIG_T::n_chan; c++) {
            sum[c] += in[c];
        }
    }
    res_pipe::write(sum);
}

// Elements in another order, some left out or repeated: res[i] = data[source[i]]. Streamed, the whole tensor is held.
template <class data_T, class res_T, typename CONFIG_T>
void gather(const data_T &data, res_T &res, const typename CONFIG_T::source_t &source) {
Gather:
    #pragma unroll
    for (unsigned i = 0; i < CONFIG_T::n_source; i++) {
        res[i] = data[source[i].to_uint()];
    }
}

template <class data_pipe, class res_pipe, typename CONFIG_T> void gather_stream(typename CONFIG_T::source_t source) {
    using data_T = typename ExtractPipeType<data_pipe>::value_type;
    using res_T = typename ExtractPipeType<res_pipe>::value_type;
    constexpr unsigned in_pack = std::tuple_size<data_T>::value, out_pack = std::tuple_size<res_T>::value;
    typename data_T::value_type held[CONFIG_T::n_in];
GatherHold:
    [[intel::initiation_interval(1)]] for (unsigned i = 0; i < CONFIG_T::n_in / in_pack; i++) {
        data_T in = data_pipe::read();
    GatherUnpack:
        #pragma unroll
        for (unsigned j = 0; j < in_pack; j++) {
            held[i * in_pack + j] = in[j];
        }
    }
GatherGive:
    [[intel::initiation_interval(1)]] for (unsigned i = 0; i < CONFIG_T::n_source / out_pack; i++) {
        res_T out;
    GatherPack:
        #pragma unroll
        for (unsigned j = 0; j < out_pack; j++) {
            out[j] = held[source[i * out_pack + j].to_uint()];
        }
        res_pipe::write(out);
    }
}

// Maximum over windows. What lies outside the image never wins: it is the least value of the type. Streamed, the last
// pool_height rows are kept.
template <class data_T, class res_T, typename CONFIG_T> void window_max(const data_T &data, res_T &res) {
    using value_T = typename data_T::value_type;
MaxPositions:
    #pragma unroll
    for (unsigned p = 0; p < CONFIG_T::out_height * CONFIG_T::out_width; p++) {
    MaxChannels:
        #pragma unroll
        for (unsigned c = 0; c < CONFIG_T::n_filt; c++) {
            [[intel::fpga_register]] value_T best = CONFIG_T::lowest();
        MaxWindow:
            #pragma unroll
            for (unsigned k = 0; k < CONFIG_T::pool_height * CONFIG_T::pool_width; k++) {
                int y = int(p / CONFIG_T::out_width * CONFIG_T::stride_height + k / CONFIG_T::pool_width) - int(CONFIG_T::pad_top);
                int x = int(p % CONFIG_T::out_width * CONFIG_T::stride_width + k % CONFIG_T::pool_width) - int(CONFIG_T::pad_left);
                if (y >= 0 && y < int(CONFIG_T::in_height) && x >= 0 && x < int(CONFIG_T::in_width)) {
                    value_T value = data[(y * CONFIG_T::in_width + x) * CONFIG_T::n_filt + c];
                    if (value > best)
                        best = value;
                }
            }
            res[p * CONFIG_T::n_filt + c] = best;
        }
    }
}

template <class data_pipe, class res_pipe, typename CONFIG_T> void window_max_stream() {
    using data_T = typename ExtractPipeType<data_pipe>::value_type;
    using res_T = typename ExtractPipeType<res_pipe>::value_type;
    using value_T = typename data_T::value_type;
    constexpr unsigned height = CONFIG_T::in_height + CONFIG_T::pad_top + CONFIG_T::pad_bottom;
    constexpr unsigned width = CONFIG_T::in_width + CONFIG_T::pad_left + CONFIG_T::pad_right;
    data_T rows[CONFIG_T::pool_height][width];

MaxRows:
    for (unsigned y = 0; y < height; y++) {
    MaxColumns:
        for (unsigned x = 0; x < width; x++) {
            data_T pack;
            if (y >= CONFIG_T::pad_top && y < CONFIG_T::pad_top + CONFIG_T::in_height && x >= CONFIG_T::pad_left &&
                x < CONFIG_T::pad_left + CONFIG_T::in_width) {
                pack = data_pipe::read();
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
                res_pipe::write(out);
            }
        }
    }
}

} // namespace nnet

#endif
