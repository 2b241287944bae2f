// Runs the design on tb_data/inputs.txt and compares with tb_data/expected.txt (one sample a line, in ref's exact values).
// The exit code is 0 where every value is equal.

#include "firmware/design.h"
@SHELL@
#include "firmware/nnet_utils/nnet_helpers.h"
#include <cstdio>
#include <fstream>
#include <map>
#include <string>

namespace nnet {
bool trace_enabled = false;
std::map<std::string, void *> *trace_outputs = NULL;
size_t trace_type_size = sizeof(double);
} // namespace nnet

namespace {

std::ifstream inputs("tb_data/inputs.txt"), expected("tb_data/expected.txt");
unsigned compared = 0, different = 0;

bool read_all(double *to, size_t bytes) {
    for (size_t i = 0; i < bytes / sizeof(double); i++)
        if (!(inputs >> to[i]))
            return false;
    return true;
}

void write_all(const double *from, size_t bytes) {
    for (size_t i = 0; i < bytes / sizeof(double); i++) {
        double value = 0;
        if (!(expected >> value) || value != from[i]) {
            std::printf("value %u: the design gives %.17g, ref gives %.17g\n", compared, from[i], value);
            different++;
        }
        compared++;
    }
}

@BUFFERS@

void *samples() {
@QUEUE@
    for (;;) {
@READ@
@CALL@
@WRITE@
    }
    return NULL;
}

} // namespace

@HELPERS@

@MAIN@ {
    if (!inputs || !expected) {
        std::printf("tb_data/inputs.txt and tb_data/expected.txt are not here: run in the artifact's folder\n");
        @RETURN@(2);
    }
    samples();
    std::printf("%u values compared, %u different\n", compared, different);
    @RETURN@(different || !compared ? 1 : 0);
}
