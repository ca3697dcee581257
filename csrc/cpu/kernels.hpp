// The kernels' arguments and the table one instruction set fills; plain data, shared by all translation units.
#pragma once

#include <cstdint>

namespace mli {

enum class Activation : int { none = 0, relu = 1, gelu = 2, gelu_tanh = 3, silu = 4, tanh = 5 };

// What follows a sum: act(sum * scale + shift + residual). Null pointers leave a term out; strides are per point.
struct Epilogue {
  const void* scale;     // [P, N]
  const void* shift;     // [P, N]
  const void* residual;  // [P, M, N]
  int64_t scale_stride, shift_stride, residual_stride;
  Activation activation;
};

// out[p, m, n] = epilogue(sum_k x[p, row(m), k] * sum_r c[p, r] * anchor_r[n, k]), k = (tap, channel).
struct ProductArgs {
  void* out;      // [P, M, N]
  const void* x;  // [P or 1, M, K] or, with offsets, images of channels-last pixels
  int64_t points, rows, columns, taps, channels;
  int64_t x_point_stride;  // 0: all points see the same input
  const void* const* anchors;  // R times [N, taps, channels]
  const double* coefficients;  // [P, R]
  int64_t anchor_count;
  Epilogue epilogue;
  const int32_t* offsets;  // [pixels, taps] elements into an image, -1 is padding; null for a linear layer
  int64_t pixels, image_stride;
  int threads;
};

// Convolution with 3 x 3 kernels at stride 1 or 2; channels-last images [images, height, width, channels] for each point.
struct WinogradArgs {
  void* out;      // [P, images, out_height, out_width, N]
  const void* x;  // [P or 1, images, height, width, C]
  int64_t points, images, height, width, channels, columns;
  int64_t out_height, out_width, pad_y, pad_x, stride;
  int64_t x_point_stride;      // 0: all points see the same input
  const void* const* anchors;  // R times [N, 3, 3, C]
  const double* coefficients;  // [P, R]
  int64_t anchor_count;
  Epilogue epilogue;  // M = images * out_height * out_width
  int threads;
};

// out[p, m, n] = epilogue(sum_r c[p, r] * product_r[m, n])
struct CombineArgs {
  void* out;
  const void* const* products;  // R times [M, N]
  const double* coefficients;   // [P, R]
  int64_t points, rows, columns, count;
  Epilogue epilogue;
  int threads;
};

// out[t] = sum_r c[t, r] * anchor[t, r] for T tensors.
struct BlendArgs {
  void* const* outs;           // T
  const void* const* anchors;  // T * R
  const double* coefficients;  // [T, R]
  const int64_t* starts;       // [T + 1], running sum of numel
  int64_t tensors, count;
  int threads;
};

struct CrossEntropyArgs {
  const void* logits;      // [P, M, C]
  const int64_t* targets;  // [M]
  double* losses;          // [P, M]
  int64_t* predictions;    // [P, M]
  int64_t points, rows, classes, ignore_index, chunk_rows;
  int threads;
};

// One layer of a chain: epilogue(x (sum_r c[p, r] * anchor_r)^T). As a chain's source: anchors are products [M, N], no depth.
struct ChainLayer {
  const void* const* anchors;  // R times [N, K]
  const double* coefficients;  // [P, R]
  int64_t anchor_count, columns, depth;
  const void* scale;  // [P, N] or null
  const void* shift;  // [P, N] or null
  Activation activation;
};

// out = the last layer's output of layers applied one after the other, at P points; `rows` rows of x or, where x is null, of
// `source`.
struct ChainArgs {
  void* out;             // [P, M, N of the last layer]
  const void* x;         // [P, M, K of the first layer]
  const void* residual;  // as out, or null; added by the last layer
  ChainLayer source;
  const ChainLayer* layers;
  int64_t layer_count, points, rows;
  int threads;
};

struct Kernels {
  const char* name;
  void (*product_f32)(const ProductArgs&);
  void (*product_f64)(const ProductArgs&);
  void (*combine_f32)(const CombineArgs&);
  void (*combine_f64)(const CombineArgs&);
  void (*blend_f32)(const BlendArgs&);
  void (*blend_f64)(const BlendArgs&);
  void (*cross_entropy_f32)(const CrossEntropyArgs&);
  void (*cross_entropy_f64)(const CrossEntropyArgs&);
  void (*winograd_f32)(const WinogradArgs&);
  void (*chain_f32)(const ChainArgs&);
  void (*chain_f64)(const ChainArgs&);
};

}  // namespace mli
