// The micro-kernel of `product`: MR rows times one packed panel, accumulated in registers, with the epilogue at its end.
#pragma once

#include "epilogue.hpp"

namespace mli::MLI_ISA {

// Rows of a tile and vectors of a panel, chosen so that the sums fill the register file.
#if defined(__AVX512F__)
constexpr int kWideRows = 12, kNarrowRows = 24;
#elif defined(__AVX2__)
constexpr int kWideRows = 6, kNarrowRows = 12;
#elif defined(__aarch64__)
constexpr int kWideRows = 12, kNarrowRows = 24;
#else
constexpr int kWideRows = 4, kNarrowRows = 8;
#endif
constexpr int kChunkRows = 48;  // a multiple of all of the above

// What a tile multiplies: `segments` runs of `length` contiguous values per row; rows[s * kChunkRows + i] points to row i's.
template <class T>
struct TileInput {
  const T* const* rows;
  int64_t segments, length;
  const T* panel;
};

template <class T>
struct TileOutput {
  T* out;
  int64_t stride, columns;  // elements between rows; valid columns of this panel
  bool first, last;         // first block of K: nothing to add to; last: the epilogue follows
  RowEpilogue<T> epilogue;  // of the tile's first row
};

template <class T, int MR, int NV>
MLI_INLINE void write_tile(Vec<T> (&sum)[MR][NV], const TileOutput<T>& o) {
  RowEpilogue<T> epilogue = o.epilogue;
  const bool whole = o.columns >= NV * kWidth<T>;
#pragma GCC unroll 24
  for (int i = 0; i < MR; ++i) {
    T* out = o.out + i * o.stride;
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j) {
      const int64_t at = j * kWidth<T>, n = whole ? kWidth<T> : o.columns - at;
      if (n <= 0) break;
      Vec<T> value = sum[i][j];
      if (!o.first) value = load_first(out + at, n) + value;
      if (o.last) value = finish(value, epilogue, at, n);
      store_first(out + at, value, n);
    }
    if (epilogue.residual != nullptr) epilogue.residual += o.stride;
  }
}

template <class T, int MR, int NV>
MLI_NOINLINE void micro(const TileInput<T>& in, const TileOutput<T>& o) {
  Vec<T> sum[MR][NV];
#pragma GCC unroll 24
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j) sum[i][j] = Vec<T>{};
  }
  const T* panel = in.panel;
  for (int64_t s = 0; s < in.segments; ++s) {
    const T* row[MR];
#pragma GCC unroll 24
    for (int i = 0; i < MR; ++i) row[i] = in.rows[s * kChunkRows + i];
    for (int64_t k = 0; k < in.length; ++k) {
      Vec<T> b[NV];
#pragma GCC unroll 2
      for (int j = 0; j < NV; ++j) b[j] = load(panel + j * kWidth<T>);
      panel += NV * kWidth<T>;
#pragma GCC unroll 24
      for (int i = 0; i < MR; ++i) {
        const Vec<T> a = broadcast(row[i][k]);
#pragma GCC unroll 2
        for (int j = 0; j < NV; ++j) sum[i][j] = multiply_add(a, b[j], sum[i][j]);
      }
    }
  }
  write_tile<T, MR, NV>(sum, o);
}

// The remainder of rows: the same arithmetic per row in a smaller tile.
template <class T, int MR, int NV>
MLI_INLINE void micro_up_to(int rows, const TileInput<T>& in, const TileOutput<T>& o) {
  if (rows == MR) {
    micro<T, MR, NV>(in, o);
  } else if constexpr (MR > 1) {
    micro_up_to<T, MR - 1, NV>(rows, in, o);
  }
}

}  // namespace mli::MLI_ISA
