// What nvcc gives a kernel without being asked: read before anything else.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "machine.hpp"

#undef __launch_bounds__
#define __launch_bounds__(...)

struct Index {
  unsigned x;
};
#define threadIdx (Index{static_cast<unsigned>(machine::self().index)})
#define blockIdx (Index{static_cast<unsigned>(machine::cluster->first_block + machine::self().block)})
#define gridDim (Index{static_cast<unsigned>(machine::cluster->grid)})
#define __syncwarp() machine::meet(machine::block().warps[machine::self().index / 32], 32)
#define __syncthreads() machine::meet(machine::block().meetings[0], machine::block_size)

inline int min(int a, int b) { return a < b ? a : b; }
inline float __double2float_rn(double x) { return static_cast<float>(x); }
inline float __fmaf_rn(float a, float b, float c) { return std::fmaf(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __uint_as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline uint32_t __float_as_uint(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
