// The design as Verilator wrote it, under the names that the harnesses use. Registers start at random values, always the same.
#include <cstdint>
#include <cstring>
#include "Vdesign.h"
#include "verilated.h"
#if @TRACED@
#include "@TRACE_HEADER@"
#endif

#define PORT(a) a
#define PORT2(a, b) a##_##b
#define PORT3(a, b, c) a##_##b##_##c
using Top = Vdesign;

template <class P> bool read_bit(const P &port) { return port & 1; }
template <class P> void read_words(const P &port, void *into) { std::memcpy(into, &port, sizeof port); }
template <class P> void drive_bit(P &port, bool value) { port = value; }
template <class P> void drive_words(P &port, const void *from) { std::memcpy(&port, from, sizeof port); }

inline void start() {
  Verilated::traceEverOn(@TRACED@);
  Verilated::randReset(2);
  Verilated::randSeed(1);
}
inline void settle(Top &top) { top.eval(); }

#if @TRACED@
struct Waves {
  @TRACE_CLASS@ writer;
  Waves(Top &top, const char *path) {
    top.trace(&writer, 99);
    writer.open(path);
  }
  void sample(uint64_t time) { writer.dump(time); }
  ~Waves() { writer.close(); }
};
#else
struct Waves {
  Waves(Top &, const char *) {}
  void sample(uint64_t) {}
};
#endif
