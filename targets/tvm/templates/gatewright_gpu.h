/* What the generated kernels include when they are compiled for a GPU, by NVRTC or nvcc. */
#pragma once
#ifdef __CUDACC_RTC__
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#else
#include <cstdint>
#endif
#define uint unsigned int
#define uchar unsigned char
#define ushort unsigned short
#define CUDART_INF_F __int_as_float(0x7f800000)
#define CUDART_NAN_F __int_as_float(0x7fffffff)
#define CUDART_INF __longlong_as_double(0x7ff0000000000000ll)
#define CUDART_NAN __longlong_as_double(0xfff8000000000000ll)
#ifdef GATEWRIGHT_FP16
#include <cuda_fp16.h>
static __device__ __forceinline__ half max(half a, half b) { return __hgt(a, b) ? a : b; }
static __device__ __forceinline__ half min(half a, half b) { return __hlt(a, b) ? a : b; }
#endif
#ifdef GATEWRIGHT_BF16
#include <cuda_bf16.h>
#endif
#ifdef GATEWRIGHT_MMA
#include <mma.h>
#endif
