// Cross entropy and argmax of rows of logits in one pass.
//
// loss = log(sum_c exp(z_c - max)) + max - z_target, exponentials in T, sum, logarithm and differences in double.
// Few classes: a block of rows is transposed so that lanes are rows. Many: lanes run along one row.
#pragma once

#include "activation.hpp"
#include "pack.hpp"
#include "parallel.hpp"

namespace mli::MLI_ISA {

constexpr int64_t kFewClasses = 64;

template <class T>
using BlockIndex = decltype(Block<T>{} < Block<T>{});
template <class T>
struct Doubles {
  typedef double type __attribute__((vector_size(kBlock<T> * 8)));
};

// exp of a difference to the maximum, which is at most zero.
MLI_INLINE Block<float> exp_block(Block<float> x) { return exp_float<kBlockBytes, true>(x); }
MLI_INLINE Block<double> exp_block(Block<double> x) {
  for (int i = 0; i < kBlock<double>; ++i) x[i] = exp(x[i]);
  return x;
}

// Keeps the larger value and its index; as torch.argmax does, NaN counts as largest and the first of equals stays.
template <class T>
MLI_INLINE void keep_larger(Block<T> value, BlockIndex<T> index, Block<T>& best, BlockIndex<T>& at) {
  const BlockIndex<T> better = (value > best) | ((value != value) & (best == best));
  best = better ? value : best;
  at = better ? index : at;
}

// log for the sums met here: 1 <= s <= number of classes, or NaN. 2 atanh((m - 1) / (m + 1)) + e log 2, m in [0.7, 1.42).
template <class D>
MLI_INLINE D log_of_sum(D s) {
  typedef decltype(s < s) Bits;
  const D one = D{} + 1.0;
  Bits bits = reinterpret_cast<Bits>(s);
  const Bits exponent = (bits - 0x3FE6A09E667F3BCDll) >> 52;  // s / 2^exponent lies in [sqrt(1/2), sqrt(2))
  const D m = reinterpret_cast<D>(bits - (exponent << 52));
  const D e = reinterpret_cast<D>(exponent + 0x4330000000000000ll) - 4503599627370496.0;
  const D f = (m - one) / (m + one), q = f * f;
  D p = D{} + 2.0 / 23;
#pragma GCC unroll 10
  for (int k = 21; k >= 3; k -= 2) p = p * q + 2.0 / k;
  const D result = e * 0.69314718055994531 + (f * 2.0 + f * q * p);
  return s == s ? result : s;
}

// Rows [0, kBlock) from `rows`, as columns[c] = logit c of each row.
template <class T>
MLI_INLINE void transpose_rows(const T* const* rows, int64_t classes, Block<T>* columns) {
  constexpr int B = kBlock<T>;
  if (classes < B) {
    for (int64_t c = 0; c < classes; ++c) {
      for (int i = 0; i < B; ++i) columns[c][i] = rows[i][c];
    }
    return;
  }
  for (int64_t next = 0; next < classes; next += B) {
    const int64_t c = next + B <= classes ? next : classes - B;  // the last block overlaps the one before
    Block<T> block[B];
    for (int i = 0; i < B; ++i) block[i] = load<T, kBlockBytes>(rows[i] + c);
    transpose(block);
    for (int i = 0; i < B; ++i) columns[c + i] = block[i];
  }
}

template <class T>
struct RowResult {
  double normalizer[kBlock<T>];  // log sum exp(z), relative to the maximum
  T maximum[kBlock<T>];
  int64_t prediction[kBlock<T>];
};

template <class T>
MLI_INLINE void few_classes(const T* const* rows, int64_t classes, RowResult<T>& result) {
  typedef typename Doubles<T>::type D;
  Block<T> columns[kFewClasses];
  columns[0] = Block<T>{};  // classes >= 1, which the compiler cannot see
  transpose_rows(rows, classes, columns);
  Block<T> best = columns[0];
  BlockIndex<T> at{}, index{};
  for (int64_t c = 1; c < classes; ++c) {
    index += 1;
    keep_larger<T>(columns[c], index, best, at);
  }
  D sum{};
  for (int64_t c = 0; c < classes; ++c) sum += __builtin_convertvector(exp_block(columns[c] - best), D);
  const D logs = log_of_sum(sum);
  for (int i = 0; i < kBlock<T>; ++i) {
    result.normalizer[i] = logs[i];
    result.maximum[i] = best[i];
    result.prediction[i] = at[i];
  }
}

template <class T>
MLI_INLINE Block<T> load_padded(const T* row, int64_t left) {
  if (left >= kBlock<T>) return load<T, kBlockBytes>(row);
  Block<T> lanes = broadcast<T, kBlockBytes>(-static_cast<T>(INFINITY));
  for (int64_t i = 0; i < left; ++i) lanes[i] = row[i];
  return lanes;
}

template <class T>
MLI_INLINE void many_classes(const T* row, int64_t classes, int lane, RowResult<T>& result) {
  typedef typename Doubles<T>::type D;
  constexpr int B = kBlock<T>;
  Block<T> best = load_padded(row, classes);
  BlockIndex<T> at{}, index{};
  for (int i = 0; i < B; ++i) at[i] = i;
  index = at;
  for (int64_t c = B; c < classes; c += B) {
    index += B;
    keep_larger<T>(load_padded(row + c, classes - c), index, best, at);
  }
  T maximum = best[0];
  int64_t prediction = at[0];
  for (int i = 1; i < B; ++i) {
    const bool nan = best[i] != best[i], held_nan = maximum != maximum;
    const bool better = nan ? !held_nan || at[i] < prediction
                            : !held_nan && (best[i] > maximum || (best[i] == maximum && at[i] < prediction));
    if (better) maximum = best[i], prediction = at[i];
  }
  const Block<T> shift = broadcast<T, kBlockBytes>(maximum);
  D even{}, odd{};
  for (int64_t c = 0; c < classes; c += 2 * B) {
    even += __builtin_convertvector(exp_block(load_padded(row + c, classes - c) - shift), D);
    if (c + B < classes) odd += __builtin_convertvector(exp_block(load_padded(row + c + B, classes - c - B) - shift), D);
  }
  even += odd;
  double sum = 0;
  for (int i = 0; i < B; ++i) sum += even[i];
  result.normalizer[lane] = log(sum);
  result.maximum[lane] = maximum;
  result.prediction[lane] = prediction;
}

// Rows [row0, row1) of one point.
template <class T>
MLI_NOINLINE void cross_entropy_rows(const CrossEntropyArgs& a, int64_t point, int64_t row0, int64_t row1) {
  constexpr int B = kBlock<T>;
  const T* logits = static_cast<const T*>(a.logits) + point * a.rows * a.classes;
  for (int64_t row = row0; row < row1; row += B) {
    const int count = static_cast<int>(row1 - row < B ? row1 - row : B);
    const T* rows[B];
    for (int i = 0; i < B; ++i) rows[i] = logits + (row + (i < count ? i : 0)) * a.classes;
    RowResult<T> r;
    if (a.classes <= kFewClasses) {
      few_classes(rows, a.classes, r);
    } else {
      for (int i = 0; i < count; ++i) many_classes(rows[i], a.classes, i, r);
    }
    for (int i = 0; i < count; ++i) {
      const int64_t target = a.targets[row + i];
      const bool counts = target != a.ignore_index;
      const double margin = counts ? static_cast<double>(r.maximum[i]) - static_cast<double>(rows[i][target]) : 0;
      a.losses[point * a.rows + row + i] = counts ? r.normalizer[i] + margin : 0;
      a.predictions[point * a.rows + row + i] = r.prediction[i];
    }
  }
}

template <class T>
void cross_entropy(const CrossEntropyArgs& a) {
  const int64_t chunks = (a.rows + a.chunk_rows - 1) / a.chunk_rows;
  parallel_for(a.points * chunks, a.threads, [&](int64_t task) -> bool {
    const int64_t point = task / chunks, row0 = task % chunks * a.chunk_rows;
    cross_entropy_rows<T>(a, point, row0, row0 + a.chunk_rows < a.rows ? row0 + a.chunk_rows : a.rows);
    return true;
  });
}

}  // namespace mli::MLI_ISA
