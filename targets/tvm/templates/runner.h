/* Between model.c, which is generated and says what a model is made of, and runner.c, which runs any model. Not for users: they
 * include the model's own header. */
#ifndef GATEWRIGHT_RUNNER_H
#define GATEWRIGHT_RUNNER_H

#include <stdint.h>

/* DLPack's DLTensor, field by field; the kernels check it and read it. */
typedef struct {
    void *data;
    int32_t device_type, device_id;
    int32_t rank;
    uint8_t code, bits;
    uint16_t lanes;
    const int64_t *shape, *strides;
    uint64_t byte_offset;
} gwr_tensor;

/* TVM's TVMFFIAny: an argument of a kernel. */
typedef struct {
    int32_t kind;
    uint32_t padding;
    void *pointer;
} gwr_argument;

/* TVM's TVMFFISafeCallType. */
typedef int32_t (*gwr_kernel)(void *self, const gwr_argument *arguments, int32_t count, gwr_argument *result);

typedef enum { GWR_INPUT, GWR_CONSTANT, GWR_OUTPUT, GWR_INNER } gwr_place;

typedef struct {
    gwr_place place;
    uint64_t offset; /* in the constants or in the arena, bytes */
    uint64_t bytes;
    int32_t rank;
    uint8_t code, bits; /* DLPack's type code and width */
    const int64_t *shape;
} gwr_value;

typedef struct {
    gwr_kernel kernel;
    uint32_t first, count; /* its arguments, in gwr_program.arguments; the last one is what it writes */
} gwr_call;

typedef struct {
    const gwr_value *values; /* inputs, constants, outputs, inner values, in this order */
    const gwr_call *calls;
    const uint32_t *arguments;           /* indices of values */
    const char *const *features;         /* instructions that the code may use, NULL at the end */
    const uint8_t *stamp;                /* the last 32 bytes of the constants' file */
    uint64_t constant_bytes;             /* size of that file */
    uint64_t arena_bytes;                /* of the values between kernels */
    uint32_t value_count, input_count, output_first, output_count, call_count, default_threads;
} gwr_program;

typedef struct gwr_model gwr_model;
typedef void (*gwr_watch)(void *context, uint32_t call, const void *written, uint64_t bytes);

/* What the functions below return; the model's header gives them names of its own. */
enum { GWR_OK, GWR_BAD_ARGUMENT, GWR_NO_MEMORY, GWR_NO_FILE, GWR_WRONG_FILE, GWR_NO_THREAD, GWR_OTHER_CPU, GWR_KERNEL };

int gwr_create(const gwr_program *program, const char *constants, int threads, gwr_model **model);
int gwr_run(gwr_model *model, const void *const *inputs, void *const *outputs, gwr_watch watch, void *context);
void gwr_destroy(gwr_model *model);
const char *gwr_text(int status);

#endif
