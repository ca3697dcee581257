// out[p] = epilogue(sum_r c[p, r] * product_r): the points of a layer whose input they share.
#pragma once

#include "epilogue.hpp"
#include "parallel.hpp"

namespace mli::MLI_ISA {

template <class T, int R>
MLI_INLINE void combine_row(const T* const* products, const T* factors, int count, int64_t at, int64_t columns,
                            const RowEpilogue<T>& e, T* out) {
  int64_t n = 0;
  for (; n + kWidth<T> <= columns; n += kWidth<T>) {
    const Vec<T> sum = blend_block<T, kVectorBytes, R>(products, factors, count, at + n);
    store(out + n, finish(sum, e, n, kWidth<T>));
  }
  if (n < columns) {
    alignas(kVectorBytes) T lanes[kWidth<T>] = {};
    for (int64_t i = n; i < columns; ++i) lanes[i - n] = blend_one<T, R>(products, factors, count, at + i);
    store_first(out + n, finish(load(lanes), e, n, columns - n), columns - n);
  }
}

// A row with whatever number of active products, activation included.
template <class T>
MLI_INLINE void combine_one_row(const T* const* products, const T* factors, int count, int64_t at, int64_t columns,
                                const RowEpilogue<T>& e, Activation activation, T* out) {
  if (count == 0) {
    for (int64_t n = 0; n < columns; n += kWidth<T>) {
      store_first(out + n, finish(Vec<T>{}, e, n, columns - n), columns - n);
    }
  } else {
    with_count(count, [&]<int R>() { combine_row<T, R>(products, factors, count, at, columns, e, out); });
  }
  activate_row(activation, out, columns);
}

template <class T>
MLI_NOINLINE void combine_rows(const CombineArgs& a, const T* const* products, const T* factors, int count, int64_t point,
                               int64_t row0, int64_t row1) {
  for (int64_t row = row0; row < row1; ++row) {
    T* out = static_cast<T*>(a.out) + (point * a.rows + row) * a.columns;
    const RowEpilogue<T> e = row_epilogue<T>(a.epilogue, point, row, a.columns, 0);
    combine_one_row<T>(products, factors, count, row * a.columns, a.columns, e, a.epilogue.activation, out);
  }
}

// A task is a block of rows small enough that its products stay in cache while the points pass over it.
template <class T>
void combine(const CombineArgs& a) {
  if (a.points == 0 || a.rows == 0 || a.columns == 0) return;
  constexpr int64_t kElements = 16384;
  const int64_t rows_each = a.columns >= kElements ? 1 : kElements / a.columns;
  const int64_t row_blocks = (a.rows + rows_each - 1) / rows_each;
  const int64_t point_blocks = row_blocks >= 4 * static_cast<int64_t>(a.threads) ? 1 : a.points;
  parallel_for(row_blocks * point_blocks, a.threads, [&](int64_t task) -> bool {
    const size_t bytes = static_cast<size_t>(a.count) * (sizeof(T*) + sizeof(T));
    const T** products = static_cast<const T**>(thread_scratch(bytes));
    if (products == nullptr) return false;
    T* factors = reinterpret_cast<T*>(products + a.count);
    const int64_t row0 = task / point_blocks * rows_each, row1 = row0 + rows_each < a.rows ? row0 + rows_each : a.rows;
    const int64_t first = point_blocks == 1 ? 0 : task % point_blocks, last = point_blocks == 1 ? a.points : first + 1;
    for (int64_t point = first; point < last; ++point) {
      const int n = active_anchors(a.products, a.coefficients + point * a.count, a.count, products, factors);
      combine_rows(a, products, factors, n, point, row0, row1);
    }
    return true;
  });
}

}  // namespace mli::MLI_ISA
