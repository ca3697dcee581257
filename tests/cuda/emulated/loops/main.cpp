// Runs csrc/cuda/blend.cu and csrc/cuda/split.cu as loops; called from test_emulated_blend.py.
#include <algorithm>

#include "kernels.hpp"

using namespace mli::cuda;

extern "C" {

int blend_constants[] = {blend_header, blend_single_anchors, blend_chunk};

// numbers: chunk count, anchors, points, stride of the coefficients, in, out, wide scale, streaming, length of `single`;
// counts (written): wide stores, those of them that were streamed, accesses that are misaligned or pass the coefficients' end.
// The last tensor must not be empty, and nothing else lie in the 64 bytes behind the coefficients.
int emulated_blend(const int64_t* tensors, const int64_t* chunks, const int64_t* single, const double* coefficients, const int64_t* numbers,
                   int64_t* counts) {
  BlendArgs args{tensors,
                 chunks,
                 numbers[0],
                 static_cast<int>(numbers[1]),
                 static_cast<int>(numbers[2]),
                 coefficients,
                 numbers[3],
                 static_cast<Type>(numbers[4]),
                 static_cast<Type>(numbers[5]),
                 numbers[6] != 0,
                 numbers[7] != 0,
                 {}};
  std::copy(single, single + numbers[8], args.single);
  loops::wide_stores = loops::streamed_stores = loops::faults = 0;
  const int64_t tensor_count = args.coefficients_tensor_stride ? (chunks[args.chunk_count - 1] >> 40) + 1 : 1;
  const double* end = coefficients + tensor_count * args.points * args.anchors;
  loops::end = end;
  loops::margin_end = end + 8;
  const cudaError_t error = blend(args, nullptr);
  counts[0] = loops::wide_stores;
  counts[1] = loops::streamed_stores;
  counts[2] = loops::faults;
  return error;
}

int emulated_split(const float* x, float* parts, int64_t count) { return split(x, parts, count, nullptr); }

// to[i] = a * x[i] + to[i], rounded once
void multiply_add_f32(float a, const float* x, float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = std::fmaf(a, x[i], to[i]);
}
void multiply_add_f64(double a, const double* x, double* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = std::fma(a, x[i], to[i]);
}
}
