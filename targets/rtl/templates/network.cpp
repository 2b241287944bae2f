// The network in CXXRTL, clocked cycle by cycle. stdin: blocks of a sample count (uint32) and so many samples of IN_WORDS words;
// stdout: OUT_WORDS words per sample. argv: seed of the handshake's pauses (0: none), VCD file ("-": none).
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <vector>
#include "design.cc"
#include <cxxrtl/cxxrtl_vcd.h>

constexpr uint32_t IN_WORDS = @IN_WORDS@, OUT_WORDS = @OUT_WORDS@, MOST_IDLE_CYCLES = 1u << 20;

template <size_t N> const cxxrtl::value<N> &now(const cxxrtl::value<N> &v) { return v; }
template <size_t N> const cxxrtl::value<N> &now(const cxxrtl::wire<N> &w) { return w.curr; }

static void read_all(void *into, size_t bytes) {
  if (fread(into, 1, bytes, stdin) != bytes) exit(3);
}

int main(int argc, char **argv) {
  uint32_t pauses = argc > 1 ? strtoul(argv[1], nullptr, 10) : 0, random = pauses | 1;
  bool traced = argc > 2 && argv[2][0] != '-';
  cxxrtl_design::p_network top;
  cxxrtl::vcd_writer vcd;
  std::ofstream waves;
  uint64_t cycle = 0;
  if (traced) {
    cxxrtl::debug_items items;
    top.debug_info(&items, nullptr, "");
    vcd.timescale(1, "ns");
    vcd.add(items);
    waves.open(argv[2]);
  }
  auto sample = [&](uint64_t time) {
    if (!traced) return;
    vcd.sample(time);
    waves << vcd.buffer;
    vcd.buffer.clear();
  };
  // Between the edges: a falling clock settles the logic, so that ready and data are read before the rising one takes them.
  auto fall = [&] { top.p_clk.set<bool>(false); top.step(); sample(cycle * 10); };
  auto rise = [&] { top.p_clk.set<bool>(true); top.step(); sample(cycle++ * 10 + 5); };
  auto pause = [&] {
    random = random * 1664525u + 1013904223u;
    return pauses && (random >> 30) == 0;
  };
  top.p_in__valid.set<bool>(false);
  top.p_out__ready.set<bool>(false);
  top.p_rst.set<bool>(true);
  fall(); rise();
  top.p_rst.set<bool>(false);
  uint32_t count;
  while (fread(&count, sizeof count, 1, stdin) == 1) {
    std::vector<uint32_t> given(size_t(count) * IN_WORDS), got(size_t(count) * OUT_WORDS);
    read_all(given.data(), given.size() * 4);
    uint32_t sent = 0, received = 0, idle = 0;
    while (received < count) {
      bool offer = sent < count && !pause(), take = !pause();
      top.p_in__valid.set<bool>(offer);
      for (uint32_t w = 0; w < IN_WORDS; w++) top.p_in__data.data[w] = offer ? given[size_t(sent) * IN_WORDS + w] : 0;
      top.p_out__ready.set<bool>(take);
      fall();
      bool gives = now(top.p_out__valid).template get<bool>() && take;
      if (gives)
        for (uint32_t w = 0; w < OUT_WORDS; w++) got[size_t(received) * OUT_WORDS + w] = now(top.p_out__data).data[w];
      bool takes = offer && now(top.p_in__ready).template get<bool>();
      rise();
      sent += takes;
      received += gives;
      idle = gives || takes ? 0 : idle + 1;
      if (idle > MOST_IDLE_CYCLES) { fprintf(stderr, "the design does not answer\n"); return 4; }
    }
    fwrite(got.data(), 4, got.size(), stdout);
    fflush(stdout);
  }
  return 0;
}
