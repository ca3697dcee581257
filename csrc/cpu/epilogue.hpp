// act(sum * scale + shift + residual) on vectors: one order of operations for every kernel that has an epilogue.
#pragma once

#include "activation.hpp"

namespace mli::MLI_ISA {

// The epilogue of one row segment: pointers already moved to its first column; null leaves a term out.
template <class T>
struct RowEpilogue {
  const T* scale;
  const T* shift;
  const T* residual;
  bool relu;
};

template <class T>
MLI_INLINE RowEpilogue<T> row_epilogue(const Epilogue& e, int64_t point, int64_t row, int64_t columns, int64_t column) {
  const auto at = [](const void* base, int64_t offset) {
    return base == nullptr ? nullptr : static_cast<const T*>(base) + offset;
  };
  return {at(e.scale, point * e.scale_stride + column), at(e.shift, point * e.shift_stride + column),
          at(e.residual, point * e.residual_stride + row * columns + column), e.activation == Activation::relu};
}

// `n` columns are valid from `at` on; whole vectors are read where n allows, lanes past n are zero.
template <class T>
MLI_INLINE Vec<T> finish(Vec<T> sum, const RowEpilogue<T>& e, int64_t at, int64_t n) {
  if (e.scale != nullptr) {
    const Vec<T> scale = load_first(e.scale + at, n);
    sum = e.shift != nullptr ? multiply_add(sum, scale, load_first(e.shift + at, n)) : sum * scale;
  } else if (e.shift != nullptr) {
    sum = sum + load_first(e.shift + at, n);
  }
  if (e.residual != nullptr) sum = sum + load_first(e.residual + at, n);
  return e.relu ? relu<T>(sum) : sum;
}

}  // namespace mli::MLI_ISA
