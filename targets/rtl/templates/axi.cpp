// The network between its two AXI4-Streams. stdin: packets, each a number of beats to send and of beats to expect (uint32) and the beats
// (uint64); stdout: the beats that came. Ends with 4 where nothing comes, with 5 where tlast is not on the last beat and on no other, with
// 6 where a beat changes before it was taken. argv: seed of the pauses at both ends (0: none), file of the waves ("-": none).
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>
#include "model.h"

constexpr uint32_t MOST_IDLE_CYCLES = 1u << 16;

int main(int argc, char **argv) {
  uint32_t pauses = argc > 1 ? strtoul(argv[1], nullptr, 10) : 0, random = pauses | 1;
  start();
  Top top;
  std::unique_ptr<Waves> waves;
  if (argc > 2 && argv[2][0] != '-') waves = std::make_unique<Waves>(top, argv[2]);
  uint64_t cycle = 0;
  auto fall = [&] { drive_bit(top.PORT(aclk), false); settle(top); if (waves) waves->sample(cycle * 10); };
  auto rise = [&] { drive_bit(top.PORT(aclk), true); settle(top); if (waves) waves->sample(cycle * 10 + 5); cycle++; };
  auto pause = [&] {
    random = random * 1664525u + 1013904223u;
    return pauses && (random >> 31) == 0;
  };
  drive_bit(top.PORT3(s, axis, tvalid), false);
  drive_bit(top.PORT3(m, axis, tready), false);
  drive_bit(top.PORT(aresetn), false);
  fall(); rise(); fall(); rise();
  drive_bit(top.PORT(aresetn), true);
  uint32_t counts[2];
  while (fread(counts, sizeof counts, 1, stdin) == 1) {
    std::vector<uint64_t> given(counts[0] + 1), got(counts[1]);
    if (fread(given.data(), 8, counts[0], stdin) != counts[0]) return 3;
    uint32_t sent = 0, received = 0, idle = 0;
    bool offered = false, waiting = false, last_held = false;
    uint64_t held = 0;
    while (sent < counts[0] || received < counts[1]) {
      // A beat once offered stays until it is taken: that is the sender's rule, too.
      bool offer = sent < counts[0] && (offered || !pause()), take = !pause();
      drive_bit(top.PORT3(s, axis, tvalid), offer);
      drive_words(top.PORT3(s, axis, tdata), &given[offer ? sent : counts[0]]);
      drive_bit(top.PORT3(s, axis, tlast), offer && sent + 1 == counts[0]);
      drive_bit(top.PORT3(m, axis, tready), take);
      fall();
      bool valid = read_bit(top.PORT3(m, axis, tvalid)), last = read_bit(top.PORT3(m, axis, tlast));
      uint64_t beat = 0;
      read_words(top.PORT3(m, axis, tdata), &beat);
      if (waiting && (!valid || beat != held || last != last_held)) { fprintf(stderr, "a beat changed before it was taken\n"); return 6; }
      waiting = valid && !take, held = beat, last_held = last;
      bool takes = offer && read_bit(top.PORT3(s, axis, tready)), gives = valid && take;
      if (gives) {
        if (received == counts[1] || last != (received + 1 == counts[1])) { fprintf(stderr, "tlast is on beat %u\n", received); return 5; }
        got[received] = beat;
      }
      rise();
      offered = offer && !takes;
      sent += takes, received += gives;
      idle = gives || takes ? 0 : idle + 1;
      if (idle > MOST_IDLE_CYCLES) { fprintf(stderr, "the design does not answer\n"); return 4; }
    }
    fwrite(got.data(), 8, got.size(), stdout);
    fflush(stdout);
  }
  return 0;
}
