// Activations on float sums; the numbering is that of mli_fast/native/checks.py. All propagate NaN.
#pragma once

namespace mli::cuda {

enum Activation : int { none, relu, gelu, gelu_tanh, silu, tanh_ };

template <int COUNT>
__device__ __forceinline__ void activate(float (&x)[COUNT], int activation) {
  if (activation == relu) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) x[i] = x[i] < 0.0f ? 0.0f : x[i];
  } else if (activation == gelu) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) x[i] = 0.5f * x[i] * (1.0f + erff(x[i] * 0.70710678f));
  } else if (activation == gelu_tanh) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      const float cube = x[i] * x[i] * x[i];
      x[i] = 0.5f * x[i] * (1.0f + tanhf(0.79788456f * __fmaf_rn(0.044715f, cube, x[i])));
    }
  } else if (activation == silu) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) x[i] = __fdiv_rn(x[i], 1.0f + expf(-x[i]));
  } else if (activation == tanh_) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) x[i] = tanhf(x[i]);
  }
}

}  // namespace mli::cuda
