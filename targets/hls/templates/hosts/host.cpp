// Runs the kernel on a card through XRT.
//
//   ./host design.xclbin --verify                     the vectors of tb_data/, compared value by value
//   ./host design.xclbin inputs.i32 outputs.i32       the model's integers as int32: sample after sample, input after input
//
// host_ports.h says how each input and output lies in the words of a sample. XRT 2.8 or later.

#include "host_ports.h"
#include "xrt/xrt_bo.h"
#include "xrt/xrt_device.h"
#include "xrt/xrt_kernel.h"
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

namespace {

constexpr size_t word_bytes = BUS_BITS / 8, bytes_at_once = size_t(64) << 20;

size_t sample_bytes(const std::vector<Port> &ports) {
    size_t words = 0;
    for (const Port &port : ports)
        words += port.beats;
    return words * word_bytes;
}

size_t sample_values(const std::vector<Port> &ports) {
    size_t values = 0;
    for (const Port &port : ports)
        values += port.size;
    return values;
}

// Where in ONNX's layout the value lies that is number ``index`` in the design's.
size_t place(const Port &port, size_t index) {
    size_t strides[8] = {}, found = 0, stride = 1;
    for (int axis = port.rank - 1; axis >= 0; axis--) {
        strides[axis] = stride;
        stride *= port.shape[axis];
    }
    for (int axis = port.rank - 1; axis >= 0; axis--) {
        const int from = port.axes[axis];
        found += index % port.shape[from] * strides[from];
        index /= port.shape[from];
    }
    return found;
}

void put(uint8_t *to, const Port &port, size_t index, int64_t value) { std::memcpy(to + index * port.bits / 8, &value, port.bits / 8); }

int64_t get(const uint8_t *from, const Port &port, size_t index) {
    uint64_t raw = 0;
    std::memcpy(&raw, from + index * port.bits / 8, port.bits / 8);
    if (port.is_signed && port.bits < 64 && raw >> (port.bits - 1))
        raw |= ~uint64_t(0) << port.bits;
    return int64_t(raw);
}

// Samples, as bytes, through the card.
std::vector<uint8_t> run(const std::string &binary, const std::vector<uint8_t> &taken, size_t samples) {
    xrt::device device(0);
    auto kernel = xrt::kernel(device, device.load_xclbin(binary), "design_kernel");
    const size_t in = sample_bytes(INPUTS), out = sample_bytes(OUTPUTS), step = std::max<size_t>(1, bytes_at_once / std::max(in, out));
    std::vector<uint8_t> given(samples * out);
    for (size_t first = 0; first < samples; first += step) {
        const size_t count = std::min(step, samples - first);
        xrt::bo buffer_in(device, count * in, kernel.group_id(0)), buffer_out(device, count * out, kernel.group_id(1));
        buffer_in.write(taken.data() + first * in);
        buffer_in.sync(XCL_BO_SYNC_BO_TO_DEVICE);
        const auto started = std::chrono::steady_clock::now();
        auto running = kernel(buffer_in, buffer_out, unsigned(count));
        running.wait();
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - started;
        std::printf("%zu samples in %.3f ms\n", count, took.count() * 1e3);
        buffer_out.sync(XCL_BO_SYNC_BO_FROM_DEVICE);
        buffer_out.read(given.data() + first * out);
    }
    return given;
}

std::vector<double> numbers(const char *path) {
    std::ifstream file(path);
    std::vector<double> found;
    for (double value; file >> value;)
        found.push_back(value);
    return found;
}

int verify(const std::string &binary) {
    const std::vector<double> inputs = numbers("tb_data/inputs.txt"), expected = numbers("tb_data/expected.txt");
    const size_t samples = inputs.size() / sample_values(INPUTS);
    if (samples == 0 || expected.size() != samples * sample_values(OUTPUTS)) {
        std::printf("tb_data/inputs.txt and tb_data/expected.txt are not here: run in the folder of the design\n");
        return 2;
    }
    std::vector<uint8_t> taken(samples * sample_bytes(INPUTS));
    const double *value = inputs.data();
    for (size_t s = 0, at = 0; s < samples; s++)
        for (const Port &port : INPUTS) {
            for (size_t i = 0; i < port.size; i++)
                put(taken.data() + at, port, i, std::llround(std::ldexp(*value++, -port.exponent)));
            at += port.beats * word_bytes;
        }
    const std::vector<uint8_t> given = run(binary, taken, samples);
    size_t different = 0, compared = 0;
    for (size_t s = 0, at = 0; s < samples; s++)
        for (const Port &port : OUTPUTS) {
            for (size_t i = 0; i < port.size; i++)
                different += std::ldexp(double(get(given.data() + at, port, i)), port.exponent) != expected[compared++];
            at += port.beats * word_bytes;
        }
    std::printf("%zu values compared, %zu different\n", compared, different);
    return different ? 1 : 0;
}

int convert(const std::string &binary, const char *from, const char *to) {
    std::ifstream file(from, std::ios::binary | std::ios::ate);
    const size_t values = sample_values(INPUTS), bytes = file ? size_t(file.tellg()) : 0, samples = bytes / 4 / values;
    if (samples == 0 || bytes % (4 * values)) {
        std::printf("%s holds %zu bytes, no multiple of a sample's %zu\n", from, bytes, 4 * values);
        return 2;
    }
    std::vector<int32_t> q(samples * values);
    file.seekg(0);
    file.read(reinterpret_cast<char *>(q.data()), bytes);
    std::vector<uint8_t> taken(samples * sample_bytes(INPUTS));
    const int32_t *sample = q.data();
    for (size_t s = 0, at = 0; s < samples; s++)
        for (const Port &port : INPUTS) {
            for (size_t i = 0; i < port.size; i++)
                put(taken.data() + at, port, i, int64_t(sample[place(port, i)]) - port.zero_point);
            at += port.beats * word_bytes;
            sample += port.size;
        }
    const std::vector<uint8_t> given = run(binary, taken, samples);
    std::vector<int32_t> results(samples * sample_values(OUTPUTS));
    int32_t *result = results.data();
    for (size_t s = 0, at = 0; s < samples; s++)
        for (const Port &port : OUTPUTS) {
            for (size_t i = 0; i < port.size; i++)
                result[place(port, i)] = int32_t(get(given.data() + at, port, i) + port.zero_point);
            at += port.beats * word_bytes;
            result += port.size;
        }
    std::ofstream(to, std::ios::binary).write(reinterpret_cast<const char *>(results.data()), results.size() * 4);
    return 0;
}

} // namespace

int main(int argc, char **argv) {
    if (argc == 3 && std::string(argv[2]) == "--verify")
        return verify(argv[1]);
    if (argc == 4)
        return convert(argv[1], argv[2], argv[3]);
    std::printf("usage: %s design.xclbin --verify | inputs.i32 outputs.i32\n", argv[0]);
    return 2;
}
