// What host.cpp uses of XRT's C++ API, over a kernel that is compiled beside it, so that g++ parses and runs it without a card.
// Define GATEWRIGHT_KERNEL(in, out, samples) for the latter. Not for a card: XRT has its own headers.

#ifndef GATEWRIGHT_XRT_
#define GATEWRIGHT_XRT_

#include <cstddef>
#include <cstring>
#include <string>
#include <vector>

enum xclBOSyncDirection { XCL_BO_SYNC_BO_TO_DEVICE = 0, XCL_BO_SYNC_BO_FROM_DEVICE };

#ifndef GATEWRIGHT_KERNEL
#define GATEWRIGHT_KERNEL(in, out, samples)
#endif

namespace xrt {
struct uuid {};
struct device {
    explicit device(unsigned) {}
    uuid load_xclbin(const std::string &) { return {}; }
};
struct bo {
    std::vector<unsigned char> bytes;
    bo(const device &, size_t size, unsigned) : bytes(size) {}
    void write(const void *from) { std::memcpy(bytes.data(), from, bytes.size()); }
    void read(void *to) { std::memcpy(to, bytes.data(), bytes.size()); }
    void sync(xclBOSyncDirection) {}
};
struct run {
    void wait() {}
};
struct kernel {
    kernel(const device &, const uuid &, const std::string &) {}
    unsigned group_id(int) { return 0; }
    run operator()(bo &in, bo &out, unsigned samples) {
        (void)in, (void)out, (void)samples;
        GATEWRIGHT_KERNEL(in.bytes.data(), out.bytes.data(), samples);
        return {};
    }
};
} // namespace xrt

#endif
