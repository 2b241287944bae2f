/* Runs a compiled model: maps its constants, keeps its threads and its memory, and calls its kernels one after the other.
 *
 * Needs libc, libm and POSIX threads. The kernels come from TVM's code generator and expect four functions of a runtime: to
 * run a loop on all threads, to borrow memory and give it back, and to report a failed check. They are here too. */
#define _GNU_SOURCE
#include "runner.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

#define LINE 64                     /* bytes: a cache line, and the widest vector load */
#define HUGE_PAGE (2u << 20)        /* memory from twice this size on is asked for in huge pages */
#define STACK (8u << 20)            /* of a thread: kernels keep their small buffers there */
#define SPIN_NS 2000000             /* how long a thread without work stays awake: waking one takes some 50 us */
#define MOST_THREADS 1024
#define BLOCKS 16                   /* buffers that a kernel may have borrowed at a time, per thread */
#define DL_TENSOR 7                 /* kTVMFFIDLTensorPtr */
#define DL_CPU 1                    /* kDLCPU */

/* TVM's FTVMParallelLambda and TVMParallelGroupEnv: one of `tasks` equal parts of a loop. */
typedef struct {
    void *sync;
    int32_t tasks;
} group;
typedef int (*part)(int task, group *env, void *data);

typedef struct {
    void *memory;
    size_t bytes;
    int busy;
} block;

struct pool;

typedef struct {
    _Alignas(LINE) _Atomic uint64_t claimed; /* the last launch whose part of this thread somebody took */
    struct pool *pool;
    pthread_t thread;
    int index;
    int inside; /* in a part of a parallel loop */
    block blocks[BLOCKS];
} worker;

typedef struct pool {
    _Alignas(LINE) _Atomic uint64_t launch; /* how many there were */
    _Alignas(LINE) _Atomic int pending;     /* parts of the present one that are not done */
    _Atomic int failed, sleeping, stop;
    part body;
    void *data;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    int threads;
    pid_t owner; /* a forked child has none of the threads: its caller then does all parts itself */
    worker *workers;
} pool;

struct gwr_model {
    const gwr_program *program;
    void *constants, *arena;
    void **staging; /* per input and output: memory for callers whose own is not aligned, made when it is first needed */
    gwr_tensor *tensors;
    gwr_argument *arguments;
    int64_t *strides;
    pool *pool;
};

/* The thread that runs a kernel: the kernels' calls of the functions below carry no context. */
static _Thread_local worker *self;

static void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void *take(size_t bytes) {
    size_t unit = bytes >= 2 * (size_t)HUGE_PAGE ? HUGE_PAGE : LINE;
    size_t rounded = (bytes + unit - 1) / unit * unit;
    void *memory = aligned_alloc(unit, rounded ? rounded : unit);
#ifdef MADV_HUGEPAGE
    if (memory && unit == HUGE_PAGE) madvise(memory, rounded, MADV_HUGEPAGE);
#endif
    return memory;
}

/* ---- threads ---- */

/* Do one part of the present launch, unless somebody has taken it. A part is taken by moving its thread's `claimed` from the
 * launch before to this one, so a thread that comes late, with an old launch in hand, takes nothing. */
static void do_part(pool *p, worker *as, int task, uint64_t launch) {
    uint64_t before = launch - 1;
    if (!atomic_compare_exchange_strong(&p->workers[task].claimed, &before, launch)) return;
    group env = {NULL, p->threads};
    as->inside = 1;
    if (p->body(task, &env, p->data)) atomic_store_explicit(&p->failed, 1, memory_order_relaxed);
    as->inside = 0;
    atomic_fetch_sub_explicit(&p->pending, 1, memory_order_release);
}

static uint64_t wait_for_launch(pool *p, uint64_t seen) {
    int64_t until = 0;
    for (unsigned turn = 0;; turn++) {
        uint64_t launch = atomic_load_explicit(&p->launch, memory_order_acquire);
        if (launch != seen) return launch;
        relax();
        if (turn % 256 == 255) {
            int64_t t = now_ns();
            if (!until) until = t + SPIN_NS;
            else if (t > until) break;
        }
    }
    pthread_mutex_lock(&p->mutex);
    atomic_fetch_add(&p->sleeping, 1);
    while (atomic_load(&p->launch) == seen) pthread_cond_wait(&p->wake, &p->mutex);
    atomic_fetch_sub(&p->sleeping, 1);
    pthread_mutex_unlock(&p->mutex);
    return atomic_load(&p->launch);
}

static void wake_all(pool *p) {
    if (!atomic_load(&p->sleeping)) return;
    pthread_mutex_lock(&p->mutex);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->mutex);
}

static void *work(void *argument) {
    self = argument;
    pool *p = self->pool;
    for (uint64_t seen = 0;;) {
        seen = wait_for_launch(p, seen);
        if (atomic_load(&p->stop)) return NULL;
        do_part(p, self, self->index, seen);
    }
}

/* TVMBackendParallelLaunch. The caller does its own part, then those that no thread has begun: a thread that sleeps, or that
 * the system runs something else on, delays nothing. */
static int launch(part body, void *data, int count) {
    (void)count; /* 0: as many as there are threads; the generated code asks for nothing else */
    worker *me = self;
    pool *p = me->pool;
    if (p->threads == 1 || me->inside) {
        group env = {NULL, 1};
        return body(0, &env, data);
    }
    p->body = body;
    p->data = data;
    atomic_store_explicit(&p->failed, 0, memory_order_relaxed);
    atomic_store_explicit(&p->pending, p->threads, memory_order_relaxed);
    uint64_t number = atomic_fetch_add(&p->launch, 1) + 1;
    wake_all(p);
    for (int task = 0; task < p->threads; task++) do_part(p, me, task, number);
    for (unsigned turn = 0; atomic_load_explicit(&p->pending, memory_order_acquire); turn++) {
        if (turn < 2000) relax();
        else sched_yield();
    }
    return atomic_load_explicit(&p->failed, memory_order_relaxed) ? -1 : 0;
}

static void end_pool(pool *p, int started) {
    if (p->owner == getpid()) {
        atomic_store(&p->stop, 1);
        atomic_fetch_add(&p->launch, 1);
        wake_all(p);
        for (int i = 1; i < started; i++) pthread_join(p->workers[i].thread, NULL);
    }
    for (int i = 0; i < p->threads; i++)
        for (int b = 0; b < BLOCKS; b++) free(p->workers[i].blocks[b].memory);
    pthread_cond_destroy(&p->wake);
    pthread_mutex_destroy(&p->mutex);
    free(p->workers);
    free(p);
}

static int begin_pool(int threads, pool **made) {
    pool *p = take(sizeof(pool));
    worker *workers = take(sizeof(worker) * (size_t)threads);
    if (!p || !workers) {
        free(p);
        free(workers);
        return GWR_NO_MEMORY;
    }
    memset(p, 0, sizeof(pool));
    memset(workers, 0, sizeof(worker) * (size_t)threads);
    p->threads = threads;
    p->workers = workers;
    p->owner = getpid();
    pthread_mutex_init(&p->mutex, NULL);
    pthread_cond_init(&p->wake, NULL);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK);
    int started = 1;
    for (int i = 0; i < threads; i++) workers[i].pool = p, workers[i].index = i;
    while (started < threads && !pthread_create(&workers[started].thread, &attributes, work, &workers[started])) started++;
    pthread_attr_destroy(&attributes);
    if (started < threads) {
        end_pool(p, started);
        return GWR_NO_THREAD;
    }
    *made = p;
    return GWR_OK;
}

/* ---- what the kernels call ---- */

/* TVMBackendAllocWorkspace. Memory of a thread is kept for the next kernel; NULL makes the kernel fail. */
static void *borrow(int device_type, int device, uint64_t bytes, int code, int bits) {
    (void)device_type, (void)device, (void)code, (void)bits;
    block *best = NULL, *largest = NULL;
    for (int i = 0; i < BLOCKS; i++) {
        block *b = &self->blocks[i];
        if (b->busy) continue;
        if (b->bytes >= bytes && (!best || b->bytes < best->bytes)) best = b;
        if (!largest || b->bytes > largest->bytes) largest = b;
    }
    if (!best && (best = largest)) {
        free(best->memory);
        best->memory = take(bytes);
        best->bytes = best->memory ? bytes : 0;
    }
    if (!best || !best->memory) return NULL;
    best->busy = 1;
    return best->memory;
}

/* TVMBackendFreeWorkspace. */
static int give_back(int device_type, int device, void *memory) {
    (void)device_type, (void)device;
    for (int i = 0; i < BLOCKS; i++)
        if (self->blocks[i].memory == memory) return self->blocks[i].busy = 0;
    return -1;
}

/* The kernels call through these variables, of which they bring empty, weak definitions. */
int (*__TVMBackendParallelLaunch)(part, void *, int) = launch;
void *(*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int) = borrow;
int (*__TVMBackendFreeWorkspace)(int, int, void *) = give_back;

/* A failed check of a kernel's arguments, which are all made below: the status that gwr_run returns says enough. */
void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
    (void)kind, (void)parts, (void)count;
}

/* ---- models ---- */

static int cpu_has(const char *feature) {
#if defined(__x86_64__)
#define HAS(llvm, gcc) if (!strcmp(feature, llvm)) return __builtin_cpu_supports(gcc) != 0;
    HAS("sse3", "sse3") HAS("ssse3", "ssse3") HAS("sse4.1", "sse4.1") HAS("sse4.2", "sse4.2") HAS("popcnt", "popcnt") HAS("avx", "avx")
    HAS("avx2", "avx2") HAS("fma", "fma") HAS("bmi", "bmi") HAS("bmi2", "bmi2") HAS("avx512f", "avx512f") HAS("avx512bw", "avx512bw")
    HAS("avx512cd", "avx512cd") HAS("avx512dq", "avx512dq") HAS("avx512vl", "avx512vl") HAS("avx512vnni", "avx512vnni")
#elif defined(__aarch64__) && defined(__linux__)
#define HAS(llvm, kind, bit) if (!strcmp(feature, llvm)) return (int)(getauxval(kind) >> bit & 1); /* asm/hwcap.h */
    HAS("fullfp16", AT_HWCAP, 10) HAS("dotprod", AT_HWCAP, 20) HAS("sve", AT_HWCAP, 22) HAS("i8mm", AT_HWCAP2, 13)
    HAS("bf16", AT_HWCAP2, 14)
#endif
    return 1; /* not known how to ask */
}

/* The file of constants, mapped: processes that run the same model share its pages. */
static int map_constants(const gwr_program *program, const char *path, void **mapped) {
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return GWR_NO_FILE;
    struct stat found;
    int status = GWR_OK;
    if (fstat(file, &found) || (uint64_t)found.st_size != program->constant_bytes) status = GWR_WRONG_FILE;
    else if ((*mapped = mmap(NULL, program->constant_bytes, PROT_READ, MAP_PRIVATE, file, 0)) == MAP_FAILED) {
        *mapped = NULL;
        status = GWR_NO_MEMORY;
    } else if (memcmp((const char *)*mapped + program->constant_bytes - 32, program->stamp, 32)) status = GWR_WRONG_FILE;
    close(file);
    return status;
}

static int make_tensors(gwr_model *m) {
    const gwr_program *p = m->program;
    size_t arguments = 0, dimensions = 0;
    for (uint32_t i = 0; i < p->call_count; i++) arguments += p->calls[i].count;
    for (uint32_t i = 0; i < p->value_count; i++) dimensions += (size_t)p->values[i].rank;
    m->tensors = calloc(p->value_count + 1, sizeof(gwr_tensor));
    m->arguments = calloc(arguments + 1, sizeof(gwr_argument));
    m->strides = calloc(dimensions + 1, sizeof(int64_t));
    m->staging = calloc(p->input_count + p->output_count + 1, sizeof(void *));
    if (!m->tensors || !m->arguments || !m->strides || !m->staging) return GWR_NO_MEMORY;
    int64_t *strides = m->strides;
    for (uint32_t i = 0; i < p->value_count; i++) {
        const gwr_value *v = &p->values[i];
        gwr_tensor *t = &m->tensors[i];
        *t = (gwr_tensor){.device_type = DL_CPU, .rank = v->rank, .code = v->code, .bits = v->bits, .lanes = 1};
        t->shape = v->shape, t->strides = strides;
        int64_t step = 1;
        for (int32_t d = v->rank - 1; d >= 0; d--) strides[d] = step, step *= v->shape[d];
        strides += v->rank;
        if (v->place == GWR_CONSTANT) t->data = (char *)m->constants + v->offset;
        if (v->place == GWR_INNER) t->data = (char *)m->arena + v->offset;
    }
    for (size_t i = 0; i < arguments; i++) m->arguments[i] = (gwr_argument){DL_TENSOR, 0, &m->tensors[p->arguments[i]]};
    return GWR_OK;
}

static int usable_cpus(void) {
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) ? 1 : CPU_COUNT(&set);
}

int gwr_create(const gwr_program *program, const char *constants, int threads, gwr_model **model) {
    if (!model || !constants || threads < 0 || threads > MOST_THREADS) return GWR_BAD_ARGUMENT;
    *model = NULL;
    for (const char *const *feature = program->features; *feature; feature++)
        if (!cpu_has(*feature)) return GWR_OTHER_CPU;
    if (!threads) {
        int cpus = usable_cpus();
        threads = (int)program->default_threads < cpus ? (int)program->default_threads : cpus;
    }
    gwr_model *m = calloc(1, sizeof(gwr_model));
    if (!m) return GWR_NO_MEMORY;
    m->program = program;
    int status = map_constants(program, constants, &m->constants);
    if (!status && !(m->arena = take(program->arena_bytes))) status = GWR_NO_MEMORY;
    if (!status) status = make_tensors(m);
    if (!status) status = begin_pool(threads, &m->pool);
    if (status) gwr_destroy(m);
    else *model = m;
    return status;
}

void gwr_destroy(gwr_model *m) {
    if (!m) return;
    if (m->pool) end_pool(m->pool, m->pool->threads);
    if (m->constants) munmap(m->constants, m->program->constant_bytes);
    for (uint32_t i = 0; m->staging && i < m->program->input_count + m->program->output_count; i++) free(m->staging[i]);
    free(m->arena);
    free(m->staging);
    free(m->tensors);
    free(m->arguments);
    free(m->strides);
    free(m);
}

/* The caller's memory where it is aligned, else the model's own. */
static void *place(gwr_model *m, uint32_t slot, void *given, uint64_t bytes) {
    if ((uintptr_t)given % LINE == 0) return given;
    if (!m->staging[slot]) m->staging[slot] = take(bytes);
    return m->staging[slot];
}

int gwr_run(gwr_model *m, const void *const *inputs, void *const *outputs, gwr_watch watch, void *context) {
    const gwr_program *p = m->program;
    for (uint32_t i = 0; i < p->input_count; i++) {
        if (!inputs[i]) return GWR_BAD_ARGUMENT;
        uint64_t bytes = p->values[i].bytes;
        void *own = place(m, i, (void *)(uintptr_t)inputs[i], bytes);
        if (!own) return GWR_NO_MEMORY;
        if (own != inputs[i]) memcpy(own, inputs[i], bytes);
        m->tensors[i].data = own;
    }
    for (uint32_t i = 0; i < p->output_count; i++) {
        if (!outputs[i]) return GWR_BAD_ARGUMENT;
        void *own = place(m, p->input_count + i, outputs[i], p->values[p->output_first + i].bytes);
        if (!own) return GWR_NO_MEMORY;
        m->tensors[p->output_first + i].data = own;
    }
    worker *before = self;
    self = &m->pool->workers[0];
    int status = GWR_OK;
    for (uint32_t i = 0; i < p->call_count && !status; i++) {
        const gwr_call *c = &p->calls[i];
        gwr_argument result = {0, 0, NULL};
        if (c->kernel(NULL, m->arguments + c->first, (int32_t)c->count, &result)) status = GWR_KERNEL;
        else if (watch) {
            uint32_t written = p->arguments[c->first + c->count - 1];
            watch(context, i, m->tensors[written].data, p->values[written].bytes);
        }
    }
    self = before;
    for (uint32_t i = 0; i < p->output_count && !status; i++) {
        void *own = m->tensors[p->output_first + i].data;
        if (own != outputs[i]) memcpy(outputs[i], own, p->values[p->output_first + i].bytes);
    }
    return status;
}

const char *gwr_text(int status) {
    static const char *const texts[] = {
        "no error",
        "an argument is missing or out of range",
        "out of memory",
        "the file of constants cannot be opened",
        "the file of constants is not the one that was made with this library",
        "a thread cannot be started",
        "this CPU lacks instructions that the code uses",
        "a kernel failed",
    };
    return status >= 0 && status < (int)(sizeof texts / sizeof *texts) ? texts[status] : "not a status of this library";
}
