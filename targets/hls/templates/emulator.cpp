// Runs the design on samples from standard input: all inputs of one sample as doubles in, all outputs as doubles out.
// Every value is a multiple of its type's step below 2^53, so doubles carry it exactly. Compiled with GATEWRIGHT_TRACE
// it also gives every layer's output, in the order of interface.json.

@WEIGHTS@

@SAVERS@

#ifdef GATEWRIGHT_TRACE
#include "traced.cpp"
#else
#include "firmware/design.cpp"
#endif
@SHELL@
#include "nnet_utils/nnet_helpers.h"
#include <cstdio>
#include <fstream>
#include <pthread.h>
#include <unistd.h>
#include <vector>

namespace nnet {
bool trace_enabled = false;
std::map<std::string, void *> *trace_outputs = NULL;
size_t trace_type_size = sizeof(double);
} // namespace nnet

namespace {

int results;

bool read_all(void *to, size_t bytes) {
    char *at = static_cast<char *>(to);
    while (bytes > 0) {
        ssize_t got = read(0, at, bytes);
        if (got <= 0)
            return false;
        at += got;
        bytes -= got;
    }
    return true;
}

void write_all(const void *from, size_t bytes) {
    const char *at = static_cast<const char *>(from);
    while (bytes > 0) {
        ssize_t put = write(results, at, bytes);
        if (put <= 0)
            _exit(3);
        at += put;
        bytes -= put;
    }
}

#ifdef GATEWRIGHT_TRACE
void write_traced(const char *name, size_t count) {
    write_all((*nnet::trace_outputs)[name], count * sizeof(double));
}
#endif

// Weights from ./weights, for designs whose headers hold them as initializers.
template <class T> void load(T *to, size_t count, const char *path) {
    std::ifstream file(path);
    for (size_t i = 0; i < count; i++) {
        double value;
        char comma;
        if (!(file >> value)) {
            std::fprintf(stderr, "%s has fewer than %zu numbers\n", path, count);
            _exit(5);
        }
        to[i] = value;
        file >> comma;
    }
}

@BUFFERS@

void *samples(void *) {
    for (;;) {
@READ@
@CALL@
@WRITE@
#ifdef GATEWRIGHT_TRACE
@TRACED@
#endif
    }
    return NULL;
}

} // namespace

int main() {
    // Whatever the headers print goes to the log; standard output carries results only.
    results = dup(1);
    dup2(2, 1);
@LOAD@
#ifdef GATEWRIGHT_TRACE
    nnet::trace_enabled = true;
    nnet::trace_outputs = new std::map<std::string, void *>;
@ALLOCATE@
#endif
    // Unrolled layers keep their products on the stack.
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, size_t(512) << 20);
    pthread_t thread;
    if (pthread_create(&thread, &attributes, samples, NULL) != 0)
        return 4;
    pthread_join(thread, NULL);
    return 0;
}
