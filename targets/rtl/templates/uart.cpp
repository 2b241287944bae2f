// The whole board: its clock, and its serial line as bytes. stdin: what the host sends; stdout: what the board answers.
// Ends with its input, once nothing is under way any more. argv: file of the waves ("-": none).
#include <cstdint>
#include <cstdio>
#include <deque>
#include <memory>
#include <poll.h>
#include <unistd.h>
#include "model.h"

constexpr unsigned DIVIDER = @DIVIDER@;
constexpr uint64_t AWAKE = 64;  // cycles: the design resets itself for 16 after power-on, and hears nothing in them

int main(int argc, char **argv) {
  start();
  Top top;
  std::unique_ptr<Waves> waves;
  if (argc > 1 && argv[1][0] != '-') waves = std::make_unique<Waves>(top, argv[1]);
  std::deque<uint8_t> waiting;
  unsigned sent_bit = 0, sent_cycles = 0, got_bit = 0, got_cycles = 0, quiet = 0;
  uint16_t sending = 0;
  uint8_t got = 0;
  bool ended = false;
  drive_bit(top.PORT2(uart, rx), true);
  for (uint64_t cycle = 0;; cycle++) {
    // Look for input now and then. The design's patience with half a frame is 4,096 bit times: past that nothing can happen by itself,
    // and the simulation sleeps until there is input.
    bool idle = quiet > 5000 * DIVIDER && waiting.empty() && sent_bit == 0 && got_bit == 0;
    if (ended && idle) return 0;
    if (!ended && cycle >= AWAKE && (idle || cycle % DIVIDER == 0)) {
      pollfd input{0, POLLIN, 0};
      if (poll(&input, 1, idle ? 50 : 0) > 0) {
        uint8_t block[4096];
        ssize_t count = read(0, block, sizeof block);
        if (count <= 0) ended = true;
        else waiting.insert(waiting.end(), block, block + count);
      }
    }
    if (sent_bit == 0 && !waiting.empty()) {
      sending = uint16_t(0x200 | waiting.front() << 1);  // stop bit, data, start bit
      waiting.pop_front();
      sent_bit = 10, sent_cycles = DIVIDER;
    }
    drive_bit(top.PORT2(uart, rx), sent_bit == 0 || (sending & 1));
    if (sent_bit && --sent_cycles == 0) sending >>= 1, sent_bit--, sent_cycles = DIVIDER;
    drive_bit(top.PORT2(clk, in), false);
    settle(top);
    if (waves) waves->sample(cycle * 10);
    drive_bit(top.PORT2(clk, in), true);
    settle(top);
    if (waves) waves->sample(cycle * 10 + 5);
    bool line = read_bit(top.PORT2(uart, tx));
    quiet = line && !sent_bit ? quiet + 1 : 0;
    if (got_bit == 0) {
      if (!line) got_bit = 10, got_cycles = DIVIDER / 2;
    } else if (--got_cycles == 0) {
      got_cycles = DIVIDER;
      got_bit--;
      if (got_bit == 9 && line) got_bit = 0;
      else if (got_bit > 0 && got_bit < 9) got = uint8_t(got >> 1 | line << 7);
      else if (got_bit == 0 && line && write(1, &got, 1) != 1) return 3;
    }
  }
}
