/* What this machine reaches at best, for comparison: multiply-adds per second from registers, and bytes per second read.
   Compiled with -march=native. Arguments: threads, then bytes that each thread reads in one pass, any number of sizes.
   Prints one line per figure: "float32 OPS", "int8 OPS" (where there is a dot-product or multiply-add instruction), "read SIZE BYTES". */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
#define BYTES 64
#define SUMS 12
#elif defined(__AVX__)
#define BYTES 32
#define SUMS 12
#else
#define BYTES 16
#define SUMS 12
#endif
#define ROUNDS 9

typedef float Floats __attribute__((vector_size(BYTES)));
typedef uint64_t Words __attribute__((vector_size(BYTES)));

static pthread_barrier_t barrier;
static volatile uint64_t sink;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

/* Operations of `count` passes. Each returns something of its result, so that none of it can be left out. */
static double floats(long count, uint64_t *seen) {
    Floats sums[SUMS], x, y;
    for (int i = 0; i < BYTES / 4; i++) x[i] = 0.999f, y[i] = 1e-3f * (float)(*seen & 1);
    for (int i = 0; i < SUMS; i++) sums[i] = x;
    for (long n = 0; n < count; n++)
#pragma GCC unroll 32
        for (int i = 0; i < SUMS; i++) sums[i] = sums[i] * x + y;
    for (int i = 1; i < SUMS; i++) sums[0] += sums[i];
    *seen += (uint64_t)sums[0][0];
    return 2.0 * SUMS * (BYTES / 4) * count;
}

static double bytes8(long count, uint64_t *seen) {
#if defined(__AVX512VNNI__) && defined(__AVX512F__)
    __m512i sums[SUMS], a = _mm512_set1_epi8(1 + (char)(*seen & 1)), b = _mm512_set1_epi8(1);
    for (int i = 0; i < SUMS; i++) sums[i] = a;
    for (long n = 0; n < count; n++)
#pragma GCC unroll 32
        for (int i = 0; i < SUMS; i++) sums[i] = _mm512_dpbusd_epi32(sums[i], a, b);
    for (int i = 1; i < SUMS; i++) sums[0] = _mm512_add_epi32(sums[0], sums[i]);
    *seen += (uint64_t)_mm512_reduce_add_epi32(sums[0]);
    return 2.0 * SUMS * 64 * count;
#elif defined(__AVX2__)
    __m256i sums[SUMS], a = _mm256_set1_epi16(1 + (short)(*seen & 1)), b = _mm256_set1_epi16(1);
    for (int i = 0; i < SUMS; i++) sums[i] = a;
    for (long n = 0; n < count; n++) {
        __asm__ volatile("" : "+x"(a)); /* the product is not to be taken out of the loop */
#pragma GCC unroll 32
        for (int i = 0; i < SUMS; i++) sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(_mm256_xor_si256(sums[i], a), b));
    }
    for (int i = 1; i < SUMS; i++) sums[0] = _mm256_add_epi32(sums[0], sums[i]);
    *seen += (uint64_t)_mm256_extract_epi32(sums[0], 0);
    return 2.0 * SUMS * 16 * count; /* vpmaddwd: int8 widened to 16 bits */
#elif defined(__ARM_FEATURE_DOTPROD)
    int32x4_t sums[SUMS];
    int8x16_t a = vdupq_n_s8(1 + (signed char)(*seen & 1)), b = vdupq_n_s8(1);
    for (int i = 0; i < SUMS; i++) sums[i] = vdupq_n_s32(1);
    for (long n = 0; n < count; n++)
#pragma GCC unroll 32
        for (int i = 0; i < SUMS; i++) sums[i] = vdotq_s32(sums[i], a, b);
    for (int i = 1; i < SUMS; i++) sums[0] = vaddq_s32(sums[0], sums[i]);
    *seen += (uint64_t)vgetq_lane_s32(sums[0], 0);
    return 2.0 * SUMS * 16 * count;
#else
    (void)count, (void)seen;
    return 0;
#endif
}

static double reads(const Words *buffer, size_t size, long count, uint64_t *seen) {
    Words sums[8] = {0};
    size_t words = size / BYTES & ~(size_t)7;
    for (long n = 0; n < count; n++) {
        __asm__ volatile("" ::: "memory"); /* every pass reads anew */
        for (size_t i = 0; i < words; i += 8)
#pragma GCC unroll 8
            for (int k = 0; k < 8; k++) sums[k] += buffer[i + k];
    }
    for (int k = 1; k < 8; k++) sums[0] += sums[k];
    *seen += sums[0][0];
    return (double)words * BYTES * count;
}

typedef struct {
    int kind; /* 0 floats, 1 int8, 2 reads */
    size_t size;
    long count;
    double done;
    double began, ended;
    uint64_t seen;
    Words *buffer;
} Job;

static void *work(void *argument) {
    Job *job = argument;
    pthread_barrier_wait(&barrier);
    job->began = now();
    job->done = job->kind == 0 ? floats(job->count, &job->seen)
              : job->kind == 1 ? bytes8(job->count, &job->seen)
                               : reads(job->buffer, job->size, job->count, &job->seen);
    job->ended = now();
    return NULL;
}

/* The best rate of all threads together: a disturbed round only ever looks slower. */
static double rate(int threads, int kind, size_t size, Job *jobs) {
    double best = 0;
    long count = kind == 2 ? 1 : 1000;
    for (int round = 0; round < ROUNDS;) {
        pthread_t ids[64];
        pthread_barrier_init(&barrier, NULL, threads);
        for (int i = 0; i < threads; i++) {
            jobs[i].kind = kind, jobs[i].size = size, jobs[i].count = count;
            pthread_create(&ids[i], NULL, work, &jobs[i]);
        }
        double began = 1e300, ended = 0, done = 0;
        for (int i = 0; i < threads; i++) {
            pthread_join(ids[i], NULL);
            if (jobs[i].began < began) began = jobs[i].began;
            if (jobs[i].ended > ended) ended = jobs[i].ended;
            done += jobs[i].done;
            sink += jobs[i].seen;
        }
        pthread_barrier_destroy(&barrier);
        if (done == 0) return 0;
        if (ended - began < 0.01) {
            count *= 4; /* too short to be read from a clock */
            continue;
        }
        if (done / (ended - began) > best) best = done / (ended - began);
        round++;
    }
    return best;
}

int main(int count, char **words) {
    int threads = count > 1 ? atoi(words[1]) : 1;
    if (threads < 1 || threads > 64) return 2;
    Job jobs[64] = {{0}};
    printf("float32 %.6e\n", rate(threads, 0, 0, jobs));
    printf("int8 %.6e\n", rate(threads, 1, 0, jobs));
    for (int i = 2; i < count; i++) {
        size_t size = strtoull(words[i], NULL, 10);
        for (int k = 0; k < threads; k++) {
            if (posix_memalign((void **)&jobs[k].buffer, 64, size + 64)) return 3;
            for (size_t n = 0; n < size / 8; n++) ((uint64_t *)jobs[k].buffer)[n] = n;
        }
        printf("read %zu %.6e\n", size, rate(threads, 2, size, jobs));
        for (int k = 0; k < threads; k++) free(jobs[k].buffer);
    }
    return 0;
}
