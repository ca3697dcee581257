// out[t] = sum_r c[t, r] * anchor[t, r] for many tensors in one call.
#pragma once

#include "kernels.hpp"
#include "parallel.hpp"
#include "simd.hpp"

namespace mli::MLI_ISA {

template <class T>
MLI_NOINLINE void blend_range(const T* const* anchors, const T* factors, int count, T* out, int64_t begin, int64_t end) {
  if (count == 0) {
    for (int64_t i = begin; i < end; ++i) out[i] = T(0);
    return;
  }
  with_count(count, [&]<int R>() {
    int64_t i = begin;
    for (; i + kWidth<T> <= end; i += kWidth<T>) {
      store(out + i, blend_block<T, kVectorBytes, R>(anchors, factors, count, i));
    }
    for (; i < end; ++i) out[i] = blend_one<T, R>(anchors, factors, count, i);
  });
}

// The tensors count as one long one, cut into equal blocks: threads are equally busy whatever the tensors' sizes are.
template <class T>
void blend(const BlendArgs& a) {
  const int64_t total = a.starts[a.tensors], threads = a.threads < 1 ? 1 : a.threads;
  constexpr int64_t kLeast = 16384;
  int64_t block = (total / (4 * threads) + 63) / 64 * 64;
  block = block < kLeast ? kLeast : block;
  parallel_for((total + block - 1) / block, a.threads, [&](int64_t index) -> bool {
    const int64_t begin = index * block, end = begin + block < total ? begin + block : total;
    const size_t bytes = static_cast<size_t>(a.count) * (sizeof(T*) + sizeof(T));
    const T** anchors = static_cast<const T**>(thread_scratch(bytes));
    if (anchors == nullptr) return false;
    T* factors = reinterpret_cast<T*>(anchors + a.count);
    int64_t low = 0, high = a.tensors;  // the last tensor that starts at or before `begin`
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (a.starts[middle] <= begin ? low : high) = middle;
    }
    for (int64_t t = low; t < a.tensors && a.starts[t] < end; ++t) {
      const int64_t first = begin > a.starts[t] ? begin - a.starts[t] : 0;
      const int64_t last = (end < a.starts[t + 1] ? end : a.starts[t + 1]) - a.starts[t];
      const int n = active_anchors(a.anchors + t * a.count, a.coefficients + t * a.count, a.count, anchors, factors);
      blend_range(anchors, factors, n, static_cast<T*>(a.outs[t]), first, last);
    }
    return true;
  });
}

}  // namespace mli::MLI_ISA
