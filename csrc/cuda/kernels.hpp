// What the host side knows of the CUDA kernels: their arguments, and functions that launch them on a stream.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace mli::cuda {

enum class Type : int { f32, f64, bf16, f16 };

// ---- blend: many tensors at several points

// A plan in device memory, int64 each: per tensor [out, scale, elements, elements per index of dimension 0, vectors?, anchors...],
// then per block of threads tensor * 2^40 + number of its chunk. A single tensor's entry can come with the arguments instead.
constexpr int blend_header = 5;          // int64 in front of the anchors
constexpr int blend_single_anchors = 8;  // of a single tensor
constexpr int blend_chunk = 8192;        // bytes of output that one block of threads writes at each point

struct BlendArgs {
  const int64_t* tensors;  // null: `single`, its chunks in order
  const int64_t* chunks;
  int64_t chunk_count;
  int anchors;
  int points;
  const double* coefficients;          // [P, R] for all tensors or [T, P, R]
  int64_t coefficients_tensor_stride;  // 0 or P * R
  Type in, out;
  bool scale_wide;  // float64 factors; else float32
  bool streaming;   // written past the caches
  int64_t single[blend_header + blend_single_anchors];
};

cudaError_t blend(const BlendArgs& args, cudaStream_t stream);

// ---- parts of x: TF32 values that add up to float32 ones

// parts[0] = TF32(x), parts[1] = TF32(x - parts[0])
cudaError_t split(const float* x, float* parts, int64_t count, cudaStream_t stream);

// ---- linear: x W(p)^T with W(p) blended on its way into the matrix units

enum class Kind : int { bf16, fp16, tf32, split };

constexpr int most_anchors = 4;

struct LinearArgs {
  CUtensorMap x;                      // [planes, M, K]; split: the planes of part 1 come after those of part 0
  CUtensorMap weights[most_anchors];  // [N, K]
  const double* coefficients;         // [P, R]
  void* out;                          // [P, M, N]
  const void* scale;                  // [P, N] or null
  const void* shift;                  // [P, N] or null
  const void* residual;               // [P, M, N] or null
  int points, rows, columns, depth;   // P, M, N, K
  int shared;                         // one plane of x for all points
  int activation;
  int wide_out, wide_scale, wide_shift, wide_residual;  // float32 where the kind's own type is 16 bits wide
  int vectors;                        // 16-byte stores along N (and loads of the residual) are aligned
};

// `cluster` blocks (1 or 2) share the weights they read.
using LinearLaunch = cudaError_t (*)(const LinearArgs& args, int cluster, int processors, cudaStream_t stream);

struct LinearKernel {
  int rows_per_tile;  // rows of x
  int points_per_tile;
  LinearLaunch launch;
};

// The kernels of a kind for R anchors, by rows per tile from many to few; `count` is how many. Null: none.
const LinearKernel* linear_kernels(Kind kind, int anchors, int* count);

}  // namespace mli::cuda
