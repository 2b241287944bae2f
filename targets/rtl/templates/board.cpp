// The whole board in CXXRTL: its clock, and its serial line as bytes. stdin: what the host sends; stdout: what the board answers.
// Ends with its input, once nothing is under way any more.
#include <cstdint>
#include <cstdio>
#include <deque>
#include <poll.h>
#include <unistd.h>
#include "design.cc"

constexpr unsigned DIVIDER = @DIVIDER@;

template <size_t N> const cxxrtl::value<N> &now(const cxxrtl::value<N> &v) { return v; }
template <size_t N> const cxxrtl::value<N> &now(const cxxrtl::wire<N> &w) { return w.curr; }

int main() {
  cxxrtl_design::p_simulated top;
  std::deque<uint8_t> waiting;
  unsigned sent_bit = 0, sent_cycles = 0, got_bit = 0, got_cycles = 0, quiet = 0;
  uint16_t sending = 0;
  uint8_t got = 0;
  bool ended = false;
  top.p_uart__rx.set<bool>(true);
  for (uint64_t cycle = 0;; cycle++) {
    // Look for input now and then. The design's patience with half a frame is 4,096 bit times: past that nothing can happen by itself,
    // and the simulation sleeps until there is input.
    bool idle = quiet > 5000 * DIVIDER && waiting.empty() && sent_bit == 0 && got_bit == 0;
    if (ended && idle) return 0;
    if (!ended && (idle || cycle % DIVIDER == 0)) {
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
    top.p_uart__rx.set<bool>(sent_bit == 0 || (sending & 1));
    if (sent_bit && --sent_cycles == 0) sending >>= 1, sent_bit--, sent_cycles = DIVIDER;
    top.p_clk__in.set<bool>(false);
    top.step();
    top.p_clk__in.set<bool>(true);
    top.step();
    bool line = now(top.p_uart__tx).template get<bool>();
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
