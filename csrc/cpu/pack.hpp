// Blends weights while they are packed into panels: [N, K] anchors -> panels of `width` columns, [K][width] each.
#pragma once

#include "simd.hpp"

namespace mli::MLI_ISA {

template <class T>
constexpr int kBlock = Vector<T, kBlockBytes>::width;
template <class T>
using Block = typename Vector<T, kBlockBytes>::type;

MLI_INLINE void transpose(Vector<float, 16>::type (&r)[4]) {
  const auto a = __builtin_shufflevector(r[0], r[1], 0, 4, 1, 5), b = __builtin_shufflevector(r[0], r[1], 2, 6, 3, 7);
  const auto c = __builtin_shufflevector(r[2], r[3], 0, 4, 1, 5), d = __builtin_shufflevector(r[2], r[3], 2, 6, 3, 7);
  r[0] = __builtin_shufflevector(a, c, 0, 1, 4, 5);
  r[1] = __builtin_shufflevector(a, c, 2, 3, 6, 7);
  r[2] = __builtin_shufflevector(b, d, 0, 1, 4, 5);
  r[3] = __builtin_shufflevector(b, d, 2, 3, 6, 7);
}

MLI_INLINE void transpose(Vector<double, 16>::type (&r)[2]) {
  const auto a = __builtin_shufflevector(r[0], r[1], 0, 2);
  r[1] = __builtin_shufflevector(r[0], r[1], 1, 3);
  r[0] = a;
}

#if defined(__AVX2__)
MLI_INLINE void transpose(Vector<float, 32>::type (&r)[8]) {
  Vector<float, 32>::type t[8], u[8];
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = __builtin_shufflevector(r[2 * i], r[2 * i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    t[2 * i + 1] = __builtin_shufflevector(r[2 * i], r[2 * i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 2; ++j) {
      u[4 * i + 2 * j] = __builtin_shufflevector(t[4 * i + j], t[4 * i + 2 + j], 0, 1, 8, 9, 4, 5, 12, 13);
      u[4 * i + 2 * j + 1] = __builtin_shufflevector(t[4 * i + j], t[4 * i + 2 + j], 2, 3, 10, 11, 6, 7, 14, 15);
    }
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = __builtin_shufflevector(u[i], u[4 + i], 0, 1, 2, 3, 8, 9, 10, 11);
    r[4 + i] = __builtin_shufflevector(u[i], u[4 + i], 4, 5, 6, 7, 12, 13, 14, 15);
  }
}

MLI_INLINE void transpose(Vector<double, 32>::type (&r)[4]) {
  const auto a = __builtin_shufflevector(r[0], r[1], 0, 4, 2, 6), b = __builtin_shufflevector(r[0], r[1], 1, 5, 3, 7);
  const auto c = __builtin_shufflevector(r[2], r[3], 0, 4, 2, 6), d = __builtin_shufflevector(r[2], r[3], 1, 5, 3, 7);
  r[0] = __builtin_shufflevector(a, c, 0, 1, 4, 5);
  r[1] = __builtin_shufflevector(b, d, 0, 1, 4, 5);
  r[2] = __builtin_shufflevector(a, c, 2, 3, 6, 7);
  r[3] = __builtin_shufflevector(b, d, 2, 3, 6, 7);
}
#endif

// The anchors of one point that take part in its blend.
template <class T>
struct Active {
  const T* const* anchors;
  const T* factors;
  int count;
};

// `rows` (<= block) weights' rows, k in [0, depth): panel[k * width + row] = blend(anchors)[first + row * stride + k].
template <class T, int R>
MLI_INLINE void pack_rows(const Active<T>& w, int64_t first, int64_t stride, int rows, int64_t depth, T* panel, int64_t width) {
  constexpr int B = kBlock<T>;
  int64_t k = 0;
  for (; k + B <= depth; k += B) {
    Block<T> block[B];
    for (int i = 0; i < B; ++i) {
      block[i] = i < rows ? blend_block<T, kBlockBytes, R>(w.anchors, w.factors, w.count, first + i * stride + k) : Block<T>{};
    }
    transpose(block);
    for (int i = 0; i < B; ++i) store<T, kBlockBytes>(panel + (k + i) * width, block[i]);
  }
  for (; k < depth; ++k) {
    for (int i = 0; i < B; ++i) {
      panel[k * width + i] = i < rows ? blend_one<T, R>(w.anchors, w.factors, w.count, first + i * stride + k) : T(0);
    }
  }
}

// One panel: columns [column, column + width) of N, zeros past `columns`; k in [k0, k0 + depth) of a row of `stride` weights.
template <class T>
MLI_NOINLINE void pack_panel(const Active<T>& w, int64_t column, int64_t columns, int64_t stride, int64_t k0, int64_t depth,
                             T* panel, int64_t width) {
  for (int64_t j = 0; j < width; j += kBlock<T>) {
    const int64_t left = columns - column - j;
    const int rows = left <= 0 || w.count == 0 ? 0 : static_cast<int>(left < kBlock<T> ? left : kBlock<T>);
    const int64_t first = (column + j) * stride + k0;
    if (rows == kBlock<T>) {
      with_count(w.count, [&]<int R>() { pack_rows<T, R>(w, first, stride, kBlock<T>, depth, panel + j, width); });
    } else {
      with_count(w.count, [&]<int R>() { pack_rows<T, R>(w, first, stride, rows, depth, panel + j, width); });
    }
  }
}

}  // namespace mli::MLI_ISA
