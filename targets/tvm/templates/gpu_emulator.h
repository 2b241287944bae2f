/* What the generated kernels include when they run on a CPU: CUDA's words, and the threads of a block as fibers of one thread.
 *
 * A kernel without barriers is called once per thread. In others each thread has a stack of its own and runs up to the next
 * barrier, so a barrier that is missing shows: a thread reads what its neighbours have not yet written. Barriers that only some
 * threads of a block, or lanes of a warp, reach end the program. Fragments of tensor cores are whole matrices in the first lane. */
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>
#include <vector>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)
#define __forceinline__ inline
#define uint unsigned int
#define uchar unsigned char
#define ushort unsigned short

#define CUDART_INF_F HUGE_VALF
#define CUDART_NAN_F NAN
#define CUDART_INF HUGE_VAL
#define CUDART_NAN double(NAN)

struct GpuIndex { unsigned x, y, z; };
static GpuIndex threadIdx, blockIdx, blockDim, gridDim;

namespace gpu {

typedef void (*Body)(void **);
enum Reason { RAN, WARP_BARRIER, BLOCK_BARRIER, DONE };
constexpr size_t STACK = 256 << 10;
constexpr unsigned LANES = 32;

struct Fiber {
    char *stack = nullptr;
    void *at = nullptr;
    GpuIndex index{};
    Reason reason = RAN;
#if !defined(__x86_64__)
    ucontext_t context;
#endif
};

static std::vector<Fiber> fibers;
static Fiber *running = nullptr;
static void *scheduler = nullptr;
static Body body = nullptr;
static void **arguments = nullptr;
static unsigned lane = 0;
static uint64_t slots[LANES];

[[noreturn]] static void fail(const char *what) {
    std::fprintf(stderr, "%s in block (%u, %u, %u)\n", what, blockIdx.x, blockIdx.y, blockIdx.z);
    std::exit(3);
}

#if defined(__x86_64__)
/* Saves the registers that a call keeps, changes stacks, restores them. */
extern "C" void gpu_switch(void **from, void *to);
asm(".text\n.globl gpu_switch\ngpu_switch:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp, (%rdi)\nmovq %rsi, %rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n");
static void leave(Reason reason) {
    running->reason = reason;
    gpu_switch(&running->at, scheduler);
}
static void enter(Fiber &fiber) {
    running = &fiber;
    gpu_switch(&scheduler, fiber.at);
}
static void begin() {
    body(arguments);
    leave(DONE);
    std::abort();
}
static void prepare(Fiber &fiber) {
    void **top = reinterpret_cast<void **>(fiber.stack + STACK) - 2;
    *top = nullptr;
    *--top = reinterpret_cast<void *>(&begin);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    fiber.at = top;
}
#else
static ucontext_t main_context;
static void leave(Reason reason) {
    running->reason = reason;
    swapcontext(&running->context, &main_context);
}
static void enter(Fiber &fiber) {
    running = &fiber;
    swapcontext(&main_context, &fiber.context);
}
static void begin() {
    body(arguments);
    leave(DONE);
    std::abort();
}
static void prepare(Fiber &fiber) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = STACK;
    makecontext(&fiber.context, begin, 0);
}
#endif

/* All lanes of a warp up to a barrier of the block, or to their end. */
static Reason run_warp(unsigned first, unsigned last) {
    for (;;) {
        Reason reason = RAN;
        for (unsigned i = first; i < last; ++i) {
            lane = i - first;
            threadIdx = fibers[i].index;
            enter(fibers[i]);
            if (i > first && fibers[i].reason != reason) fail("lanes of a warp part at a barrier");
            reason = fibers[i].reason;
        }
        if (reason != WARP_BARRIER) return reason;
    }
}

static void run_block(unsigned threads) {
    for (unsigned i = 0; i < threads; ++i) prepare(fibers[i]);
    for (;;) {
        Reason reason = RAN;
        for (unsigned first = 0; first < threads; first += LANES) {
            Reason found = run_warp(first, first + LANES < threads ? first + LANES : threads);
            if (first && found != reason) fail("warps part at a barrier");
            reason = found;
        }
        if (reason == DONE) return;
    }
}

/* One launch. `barriers`: whether the kernel has any. */
static void launch(Body kernel, void **given, GpuIndex grid, GpuIndex block, bool barriers) {
    body = kernel, arguments = given, gridDim = grid, blockDim = block;
    unsigned threads = block.x * block.y * block.z;
    if (barriers && fibers.size() < threads) {
        size_t before = fibers.size();
        fibers.resize(threads);
        for (size_t i = before; i < threads; ++i) {
            void *stack = mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            if (stack == MAP_FAILED) fail("no memory for a thread's stack");
            fibers[i].stack = static_cast<char *>(stack);
        }
    }
    unsigned number = 0;
    if (barriers)
        for (unsigned z = 0; z < block.z; ++z)
            for (unsigned y = 0; y < block.y; ++y)
                for (unsigned x = 0; x < block.x; ++x) fibers[number++].index = {x, y, z};
    for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z)
        for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
            for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) {
                if (barriers) {
                    run_block(threads);
                    continue;
                }
                for (threadIdx.z = 0; threadIdx.z < block.z; ++threadIdx.z)
                    for (threadIdx.y = 0; threadIdx.y < block.y; ++threadIdx.y)
                        for (threadIdx.x = 0; threadIdx.x < block.x; ++threadIdx.x) kernel(given);
            }
}

/* Another lane's value, between two barriers of the warp. */
template <typename T> static T exchanged(T value, unsigned from) {
    static_assert(sizeof(T) <= 8, "a register pair at most");
    unsigned own = lane;
    std::memcpy(&slots[own], &value, sizeof(T));
    leave(WARP_BARRIER);
    T found;
    std::memcpy(&found, &slots[from < LANES ? from : own], sizeof(T));
    leave(WARP_BARRIER);
    return found;
}

} // namespace gpu

static void __syncthreads() { gpu::leave(gpu::BLOCK_BARRIER); }
static void __syncwarp(unsigned = 0xffffffffu) { gpu::leave(gpu::WARP_BARRIER); }
static unsigned __activemask() { return 0xffffffffu; }
template <typename T> static T __shfl_sync(unsigned, T value, int from, int width) {
    return gpu::exchanged(value, (gpu::lane & ~(width - 1)) + (from & (width - 1)));
}
template <typename T> static T __shfl_down_sync(unsigned, T value, unsigned delta, int width) {
    unsigned own = gpu::lane;
    return gpu::exchanged(value, (own & (width - 1)) + delta < unsigned(width) ? own + delta : own);
}
template <typename T> static T __shfl_xor_sync(unsigned, T value, unsigned mask, int width) {
    unsigned own = gpu::lane, from = own ^ mask;
    return gpu::exchanged(value, from / width == own / width ? from : own);
}
template <typename T> static T __shfl_up_sync(unsigned, T value, unsigned delta, int width) {
    unsigned own = gpu::lane;
    return gpu::exchanged(value, (own & (width - 1)) >= delta ? own - delta : own);
}

static inline double __longlong_as_double(long long b) { double x; std::memcpy(&x, &b, 8); return x; }
static inline float __int_as_float(int b) { float x; std::memcpy(&x, &b, 4); return x; }

/* CUDA's max and min of floats leave out what is not a number. */
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline float min(float a, float b) { return fminf(a, b); }
static inline double max(double a, double b) { return fmax(a, b); }
static inline double min(double a, double b) { return fmin(a, b); }
#define GPU_ORDER(T) \
    static inline T max(T a, T b) { return a < b ? b : a; } \
    static inline T min(T a, T b) { return b < a ? b : a; }
GPU_ORDER(int)
GPU_ORDER(unsigned)
GPU_ORDER(int64_t)
GPU_ORDER(uint64_t)
#undef GPU_ORDER

#define GPU_VECTOR(T, N) \
    struct alignas(2 * sizeof(T)) N##2 { T x, y; }; \
    struct alignas(4 * sizeof(T)) N##4 { T x, y, z, w; }; \
    static inline N##2 make_##N##2(T x, T y) { return {x, y}; } \
    static inline N##4 make_##N##4(T x, T y, T z, T w) { return {x, y, z, w}; }
GPU_VECTOR(float, float)
GPU_VECTOR(int, int)
GPU_VECTOR(unsigned, uint)
GPU_VECTOR(signed char, char)
GPU_VECTOR(unsigned char, uchar)
GPU_VECTOR(short, short)
GPU_VECTOR(unsigned short, ushort)
#undef GPU_VECTOR
struct double2 { double x, y; };
struct longlong2 { long long x, y; };
static inline double2 make_double2(double x, double y) { return {x, y}; }
static inline longlong2 make_longlong2(long long x, long long y) { return {x, y}; }

namespace gpu {

static inline uint32_t bits_of(float x) { uint32_t b; std::memcpy(&b, &x, 4); return b; }
static inline float float_of(uint32_t b) { float x; std::memcpy(&x, &b, 4); return x; }

/* IEEE half precision, round half to even. */
static inline uint16_t half_bits(float x) {
    uint32_t b = bits_of(x), sign = (b >> 16) & 0x8000, rest = b & 0x7fffffff;
    if (rest > 0x7f800000) return uint16_t(sign | 0x7e00);
    if (rest >= 0x47800000) return uint16_t(sign | 0x7c00);
    if (rest < 0x38800000) { /* below the least normal number: 24 places behind the point */
        float scaled = float_of(rest) * 16777216.0f;
        return uint16_t(sign | uint32_t(nearbyintf(scaled)));
    }
    rest += 0xfff + ((rest >> 13) & 1);
    return uint16_t(sign | ((rest - 0x38000000) >> 13));
}
static inline float half_value(uint16_t h) {
    uint32_t sign = uint32_t(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 0x3ff;
    if (exponent == 31) return float_of(sign | 0x7f800000 | (mantissa << 13));
    if (!exponent) return (sign ? -1.0f : 1.0f) * float(mantissa) * 5.9604644775390625e-8f;
    return float_of(sign | ((exponent + 112) << 23) | (mantissa << 13));
}
static inline uint16_t brain_bits(float x) {
    uint32_t b = bits_of(x);
    if ((b & 0x7fffffff) > 0x7f800000) return uint16_t((b >> 16) | 0x40);
    return uint16_t((b + 0x7fff + ((b >> 16) & 1)) >> 16);
}
static inline float brain_value(uint16_t h) { return float_of(uint32_t(h) << 16); }

template <uint16_t (*TO)(float), float (*FROM)(uint16_t)> struct Small {
    uint16_t bits;
    Small() = default;
    template <typename T> Small(T x) : bits(TO(float(x))) {}
    operator float() const { return FROM(bits); }
};

} // namespace gpu

typedef gpu::Small<gpu::half_bits, gpu::half_value> half;
typedef half __half;
typedef gpu::Small<gpu::brain_bits, gpu::brain_value> nv_bfloat16;
typedef nv_bfloat16 __nv_bfloat16;
#define GPU_SMALL(T) \
    static inline T operator+(T a, T b) { return T(float(a) + float(b)); } \
    static inline T operator-(T a, T b) { return T(float(a) - float(b)); } \
    static inline T operator*(T a, T b) { return T(float(a) * float(b)); } \
    static inline T operator/(T a, T b) { return T(float(a) / float(b)); } \
    static inline T operator-(T a) { return T(-float(a)); } \
    static inline bool operator<(T a, T b) { return float(a) < float(b); } \
    static inline bool operator>(T a, T b) { return float(a) > float(b); } \
    static inline bool operator<=(T a, T b) { return float(a) <= float(b); } \
    static inline bool operator>=(T a, T b) { return float(a) >= float(b); } \
    static inline bool operator==(T a, T b) { return float(a) == float(b); } \
    static inline bool operator!=(T a, T b) { return float(a) != float(b); } \
    static inline T max(T a, T b) { return float(a) > float(b) ? a : b; } \
    static inline T min(T a, T b) { return float(a) < float(b) ? a : b; }
GPU_SMALL(half)
GPU_SMALL(nv_bfloat16)
#undef GPU_SMALL
static inline half __float2half_rn(float x) { return half(x); }
static inline nv_bfloat16 __float2bfloat16_rn(float x) { return nv_bfloat16(x); }
static inline float __half2float(half x) { return float(x); }
static inline half hfloor(half x) { return half(floorf(x)); }
static inline half hceil(half x) { return half(ceilf(x)); }
static inline half htrunc(half x) { return half(truncf(x)); }
static inline half hrint(half x) { return half(nearbyintf(x)); }
static inline half hsqrt(half x) { return half(sqrtf(x)); }
static inline half hexp(half x) { return half(expf(x)); }
static inline half hlog(half x) { return half(logf(x)); }
static inline half hsin(half x) { return half(sinf(x)); }
static inline half hcos(half x) { return half(cosf(x)); }
static inline half __habs(half x) { return half(fabsf(x)); }
static inline bool __hisnan(half x) { return std::isnan(float(x)); }
#define __expf expf
#define __logf logf
#define __log2f log2f
#define __log10f log10f
#define __sinf sinf
#define __cosf cosf
#define __tanf tanf
#define __powf powf

namespace nvcuda {
namespace wmma {

struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major;
struct col_major;
enum layout_t { mem_row_major, mem_col_major };
namespace precision { struct tf32 { float value; operator float() const { return value; } }; }

template <typename T> struct stored_as { typedef T type; };
template <> struct stored_as<precision::tf32> { typedef float type; };
template <typename U, int M, int N, int K> struct extents;
template <int M, int N, int K> struct extents<matrix_a, M, N, K> { enum { rows = M, columns = K }; };
template <int M, int N, int K> struct extents<matrix_b, M, N, K> { enum { rows = K, columns = N }; };
template <int M, int N, int K> struct extents<accumulator, M, N, K> { enum { rows = M, columns = N }; };
template <typename L> struct is_column { enum { value = 0 }; };
template <> struct is_column<col_major> { enum { value = 1 }; };

template <typename U, int M, int N, int K, typename T, typename L = void> struct fragment {
    enum { rows = extents<U, M, N, K>::rows, columns = extents<U, M, N, K>::columns, num_elements = rows * columns };
    typename stored_as<T>::type x[num_elements];
};

static inline bool first() { return gpu::lane == 0; }

template <typename U, int M, int N, int K, typename T, typename L, typename V>
static void fill_fragment(fragment<U, M, N, K, T, L> &f, V value) {
    if (first())
        for (auto &x : f.x) x = value;
}
template <typename U, int M, int N, int K, typename T, typename L, typename V>
static void load_matrix_sync(fragment<U, M, N, K, T, L> &f, const V *from, unsigned stride) {
    if (!first()) return;
    typedef fragment<U, M, N, K, T, L> F;
    for (int i = 0; i < F::rows; ++i)
        for (int j = 0; j < F::columns; ++j) f.x[i * F::columns + j] = is_column<L>::value ? from[j * stride + i] : from[i * stride + j];
}
template <int M, int N, int K, typename T, typename V>
static void load_matrix_sync(fragment<accumulator, M, N, K, T> &f, const V *from, unsigned stride, layout_t layout) {
    if (!first()) return;
    for (int i = 0; i < M; ++i)
        for (int j = 0; j < N; ++j) f.x[i * N + j] = layout == mem_row_major ? from[i * stride + j] : from[j * stride + i];
}
template <int M, int N, int K, typename T, typename V>
static void store_matrix_sync(V *to, const fragment<accumulator, M, N, K, T> &f, unsigned stride, layout_t layout) {
    if (!first()) return;
    for (int i = 0; i < M; ++i)
        for (int j = 0; j < N; ++j) (layout == mem_row_major ? to[i * stride + j] : to[j * stride + i]) = f.x[i * N + j];
}
template <typename T> static inline T wide(const T &x) { return x; }
static inline float wide(const half &x) { return float(x); }
static inline float wide(const nv_bfloat16 &x) { return float(x); }
static inline int wide(const signed char &x) { return x; }
static inline int wide(const unsigned char &x) { return x; }
static inline int wide(const char &x) { return (signed char)x; }
/* The ten bits of mantissa that tensor cores read of a float. */
static inline float wide(const float &x) { return gpu::float_of(gpu::bits_of(x) & 0xffffe000u); }
template <int M, int N, int K, typename A, typename B, typename C, typename LA, typename LB>
static void mma_sync(fragment<accumulator, M, N, K, C> &d, const fragment<matrix_a, M, N, K, A, LA> &a,
                     const fragment<matrix_b, M, N, K, B, LB> &b, const fragment<accumulator, M, N, K, C> &c) {
    if (!first()) return;
    C left[M * K], right[K * N];
    for (int i = 0; i < M * K; ++i) left[i] = C(wide(a.x[i]));
    for (int i = 0; i < K * N; ++i) right[i] = C(wide(b.x[i]));
    for (int i = 0; i < M; ++i) {
        C sums[N];
        for (int j = 0; j < N; ++j) sums[j] = c.x[i * N + j];
        for (int k = 0; k < K; ++k)
            for (int j = 0; j < N; ++j) sums[j] += left[i * K + k] * right[k * N + j];
        for (int j = 0; j < N; ++j) d.x[i * N + j] = sums[j];
    }
}
static inline float __float_to_tf32(float x) {
    uint32_t b = gpu::bits_of(x);
    return (b & 0x7f800000) == 0x7f800000 ? x : gpu::float_of((b + 0x1000) & 0xffffe000u);
}

} // namespace wmma
} // namespace nvcuda

/* As NVIDIA's compilers read it: anywhere among the specifiers. */
#define alignas(n) __attribute__((aligned(n)))
