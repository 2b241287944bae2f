// The design as Yosys' CXXRTL wrote it, under the names that the harnesses use.
#include <cstdint>
#include <cstring>
#include <fstream>
#include "design.cc"
#include <cxxrtl/cxxrtl_vcd.h>

#define PORT(a) p_##a
#define PORT2(a, b) p_##a##__##b
#define PORT3(a, b, c) p_##a##__##b##__##c
using Top = cxxrtl_design::p_@MANGLED@;

template <size_t N> const cxxrtl::value<N> &now(const cxxrtl::value<N> &v) { return v; }
template <size_t N> const cxxrtl::value<N> &now(const cxxrtl::wire<N> &w) { return w.curr; }
template <class P> bool read_bit(const P &port) { return now(port).data[0] & 1; }
template <class P> void read_words(const P &port, void *into) { std::memcpy(into, now(port).data, sizeof now(port).data); }
template <size_t N> void drive_bit(cxxrtl::value<N> &port, bool value) { port.data[0] = value; }
template <size_t N> void drive_words(cxxrtl::value<N> &port, const void *from) { std::memcpy(port.data, from, sizeof port.data); }

inline void start() {}
inline void settle(Top &top) { top.step(); }

struct Waves {
  cxxrtl::vcd_writer writer;
  std::ofstream file;
  Waves(Top &top, const char *path) : file(path) {
    cxxrtl::debug_items items;
    top.debug_info(&items, nullptr, "");
    writer.timescale(1, "ns");
    writer.add(items);
  }
  void sample(uint64_t time) {
    writer.sample(time);
    file << writer.buffer;
    writer.buffer.clear();
  }
};
