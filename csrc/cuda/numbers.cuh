// Numbers in the kernels: types, conversions that round once, and the one formula of the blend.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace mli::cuda {

// What sums are taken in.
template <class T>
struct Wide {
  using type = float;
};
template <>
struct Wide<double> {
  using type = double;
};

template <class To>
struct Convert {
  template <class From>
  static __device__ __forceinline__ To from(From x) {
    return static_cast<To>(x);
  }
};
template <>
struct Convert<float> {
  static __device__ __forceinline__ float from(float x) { return x; }
  static __device__ __forceinline__ float from(double x) { return __double2float_rn(x); }
  static __device__ __forceinline__ float from(__nv_bfloat16 x) { return __bfloat162float(x); }
  static __device__ __forceinline__ float from(__half x) { return __half2float(x); }
};
template <>
struct Convert<__nv_bfloat16> {
  static __device__ __forceinline__ __nv_bfloat16 from(float x) { return __float2bfloat16_rn(x); }
};
template <>
struct Convert<__half> {
  static __device__ __forceinline__ __half from(float x) { return __float2half_rn(x); }
};

__device__ __forceinline__ float multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ __forceinline__ double multiply_add(double a, double b, double c) { return __fma_rn(a, b, c); }

// total + coefficient * term; an anchor of coefficient exactly 0 is left out, whatever it holds.
template <class T>
__device__ __forceinline__ T add_weighted(T total, T coefficient, T term) {
  return coefficient != T(0) ? multiply_add(coefficient, term, total) : total;
}

#ifdef __CUDA_ARCH__
// The same under a predicate: left to the compiler it becomes branches in the innermost loop.
template <>
__device__ __forceinline__ float add_weighted(float total, float coefficient, float term) {
  asm("{\n.reg .pred p;\nsetp.neu.f32 p, %1, 0f00000000;\n@p fma.rn.f32 %0, %1, %2, %0;\n}" : "+f"(total) : "f"(coefficient), "f"(term));
  return total;
}
#endif

// 16 bytes (or fewer) of T, moved as one.
template <class T, int COUNT>
struct alignas(sizeof(T) * COUNT) Pack {
  T at[COUNT];
};

}  // namespace mli::cuda
