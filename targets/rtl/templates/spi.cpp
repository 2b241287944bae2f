// The whole board: its clock, and its SPI lines as bytes. stdin: blocks of a byte count (uint32) and so many bytes, which are sent
// within one selection; stdout: the byte that came back with each. argv: file of the waves ("-": none).
#include <cstdint>
#include <cstdio>
#include <memory>
#include <vector>
#include "model.h"

constexpr unsigned HALF = @DIVIDER@ / 2;

int main(int argc, char **argv) {
  start();
  Top top;
  std::unique_ptr<Waves> waves;
  if (argc > 1 && argv[1][0] != '-') waves = std::make_unique<Waves>(top, argv[1]);
  uint64_t cycle = 0;
  auto run = [&](unsigned cycles) {
    for (; cycles; cycles--, cycle++) {
      drive_bit(top.PORT2(clk, in), false);
      settle(top);
      if (waves) waves->sample(cycle * 10);
      drive_bit(top.PORT2(clk, in), true);
      settle(top);
      if (waves) waves->sample(cycle * 10 + 5);
    }
  };
  drive_bit(top.PORT2(spi, cs), true);
  drive_bit(top.PORT2(spi, sck), false);
  drive_bit(top.PORT2(spi, mosi), false);
  run(64);
  uint32_t count;
  while (fread(&count, sizeof count, 1, stdin) == 1) {
    std::vector<uint8_t> bytes(count);
    if (fread(bytes.data(), 1, count, stdin) != count) return 3;
    drive_bit(top.PORT2(spi, cs), false);
    run(HALF);
    for (auto &byte : bytes) {
      uint8_t back = 0;
      for (int bit = 7; bit >= 0; bit--) {
        drive_bit(top.PORT2(spi, mosi), byte >> bit & 1);
        run(HALF);
        back = uint8_t(back << 1 | read_bit(top.PORT2(spi, miso)));
        drive_bit(top.PORT2(spi, sck), true);
        run(HALF);
        drive_bit(top.PORT2(spi, sck), false);
      }
      byte = back;
    }
    run(HALF);
    drive_bit(top.PORT2(spi, cs), true);
    run(2 * HALF);
    fwrite(bytes.data(), 1, count, stdout);
    fflush(stdout);
  }
  return 0;
}
