// The network, clocked cycle by cycle. stdin: blocks of a sample count (uint32) and so many samples of IN_WORDS words;
// stdout: OUT_WORDS words per sample. argv: seed of the handshake's pauses (0: none), file of the waves ("-": none).
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>
#include "model.h"

constexpr uint32_t IN_WORDS = @IN_WORDS@, OUT_WORDS = @OUT_WORDS@, MOST_IDLE_CYCLES = 1u << 20;

static void read_all(void *into, size_t bytes) {
  if (fread(into, 1, bytes, stdin) != bytes) exit(3);
}

int main(int argc, char **argv) {
  uint32_t pauses = argc > 1 ? strtoul(argv[1], nullptr, 10) : 0, random = pauses | 1;
  start();
  Top top;
  std::unique_ptr<Waves> waves;
  if (argc > 2 && argv[2][0] != '-') waves = std::make_unique<Waves>(top, argv[2]);
  uint64_t cycle = 0;
  // Between the edges: a falling clock settles the logic, so that ready and data are read before the rising one takes them.
  auto fall = [&] { drive_bit(top.PORT(clk), false); settle(top); if (waves) waves->sample(cycle * 10); };
  auto rise = [&] { drive_bit(top.PORT(clk), true); settle(top); if (waves) waves->sample(cycle * 10 + 5); cycle++; };
  auto pause = [&] {
    random = random * 1664525u + 1013904223u;
    return pauses && (random >> 30) == 0;
  };
  drive_bit(top.PORT2(in, valid), false);
  drive_bit(top.PORT2(out, ready), false);
  drive_bit(top.PORT(rst), true);
  fall(); rise();
  drive_bit(top.PORT(rst), false);
  const std::vector<uint32_t> nothing(IN_WORDS + 1);
  std::vector<uint32_t> result(OUT_WORDS + 1);
  uint32_t count;
  while (fread(&count, sizeof count, 1, stdin) == 1) {
    std::vector<uint32_t> given(size_t(count) * IN_WORDS + 1), got(size_t(count) * OUT_WORDS);
    read_all(given.data(), (given.size() - 1) * 4);
    uint32_t sent = 0, received = 0, idle = 0;
    while (received < count) {
      bool offer = sent < count && !pause(), take = !pause();
      drive_bit(top.PORT2(in, valid), offer);
      drive_words(top.PORT2(in, data), offer ? &given[size_t(sent) * IN_WORDS] : nothing.data());
      drive_bit(top.PORT2(out, ready), take);
      fall();
      bool gives = read_bit(top.PORT2(out, valid)) && take;
      if (gives) {
        read_words(top.PORT2(out, data), result.data());
        std::memcpy(&got[size_t(received) * OUT_WORDS], result.data(), OUT_WORDS * 4);
      }
      bool takes = offer && read_bit(top.PORT2(in, ready));
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
