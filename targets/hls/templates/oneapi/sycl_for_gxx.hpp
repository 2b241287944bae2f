// A stand-in for what oneAPI designs use of SYCL and Intel's FPGA extensions, so that g++ runs and checks them without icpx.
// Pipes are unbounded queues and a task runs to its end when it is started, which is a legal order: every task of a design
// reads only what tasks before it have written. Not for synthesis; icpx has its own headers.

#ifndef GATEWRIGHT_SYCL_FOR_GXX_
#define GATEWRIGHT_SYCL_FOR_GXX_

#include "ac_types/ac_fixed.h"
#include "ac_types/ac_int.h"
#include <array>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <string>

#define SYCL_EXTERNAL

namespace sycl {

struct exception_list {};

namespace aspect {
static const int usm_host_allocations = 0;
}

namespace property {
namespace queue {
struct enable_profiling {};
} // namespace queue
} // namespace property

struct queue {
    template <class... A> explicit queue(A...) {}
    template <class K> queue &single_task(K kernel) {
        kernel();
        return *this;
    }
    void wait() {}
};

namespace ext {
namespace oneapi {
namespace experimental {
struct properties {
    template <class... A> constexpr properties(A...) {}
};
struct properties_tag {};
} // namespace experimental
} // namespace oneapi

namespace intel {
static const int fpga_emulator_selector_v = 0, fpga_simulator_selector_v = 1, fpga_selector_v = 2;

namespace experimental {
template <int N> constexpr int ready_latency = N;
template <int... N> constexpr int streaming_interface = 0;
template <int... N> constexpr int pipelined = 0;
struct no_properties {};

template <class Name, class T, int32_t capacity = 0, class Properties = no_properties, class... Rest> class pipe {
  public:
    static std::deque<T> &held() {
        static std::deque<T> values;
        return values;
    }
    static T read() {
        if (held().empty()) {
            std::fprintf(stderr, "a task reads a pipe that is empty: it would wait for ever\n");
            std::abort();
        }
        T value = held().front();
        held().pop_front();
        return value;
    }
    static T read(sycl::queue &) { return read(); }
    static void write(const T &value) { held().push_back(value); }
    static void write(sycl::queue &, const T &value) { write(value); }
};

template <auto &function> struct task_sequence {
    template <class... A> void async(A... arguments) { function(arguments...); }
};
} // namespace experimental
} // namespace intel
} // namespace ext
} // namespace sycl

#endif
