// Vector types of the instruction set this translation unit is compiled for, on GCC/Clang vector extensions.
//
// Every kernel header of this folder is compiled once per instruction set, inside namespace mli::MLI_ISA. Nothing here may
// call a non-trivial inline function of the standard library: the linker would keep one copy for all instruction sets.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#ifndef MLI_ISA
#define MLI_ISA portable
#endif

#define MLI_INLINE inline __attribute__((always_inline))
#define MLI_NOINLINE __attribute__((noinline))

namespace mli::MLI_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
// Packing transposes square blocks; 8 x 8 floats is the largest whose shuffles stay cheap.
constexpr int kBlockBytes = kVectorBytes < 32 ? kVectorBytes : 32;

template <class T, int Bytes>
struct Vector {
  typedef T type __attribute__((vector_size(Bytes)));
  typedef T unaligned __attribute__((vector_size(Bytes), aligned(alignof(T)), may_alias));
  static constexpr int width = Bytes / static_cast<int>(sizeof(T));
};

template <class T>
using Vec = typename Vector<T, kVectorBytes>::type;
template <class T>
constexpr int kWidth = Vector<T, kVectorBytes>::width;

template <class T, int Bytes = kVectorBytes>
MLI_INLINE typename Vector<T, Bytes>::type load(const T* p) {
  return *reinterpret_cast<const typename Vector<T, Bytes>::unaligned*>(p);
}

template <class T, int Bytes = kVectorBytes>
MLI_INLINE void store(T* p, typename Vector<T, Bytes>::type v) {
  *reinterpret_cast<typename Vector<T, Bytes>::unaligned*>(p) = v;
}

// The first n lanes; the others are zero. n may exceed the width.
template <class T>
MLI_INLINE Vec<T> load_first(const T* p, int64_t n) {
  if (n >= kWidth<T>) return load(p);
  alignas(kVectorBytes) T lanes[kWidth<T>] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = p[i];
  return load(lanes);
}

template <class T>
MLI_INLINE void store_first(T* p, Vec<T> v, int64_t n) {
  if (n >= kWidth<T>) {
    store(p, v);
    return;
  }
  alignas(kVectorBytes) T lanes[kWidth<T>];
  store(lanes, v);
  for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
}

template <class T, int Bytes = kVectorBytes>
MLI_INLINE typename Vector<T, Bytes>::type broadcast(T value) {
  return value - typename Vector<T, Bytes>::type{};  // exact for every value; compilers make one broadcast of it
}

// a * b + c: fused where the instruction set has it, else rounded twice; scalars and vectors alike, so that edges round as
// the bulk does. Spelled out (and -ffp-contract=off) because the compiler's own contraction may pick another multiplication.
#if defined(__FMA__)
MLI_INLINE float multiply_add(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
MLI_INLINE double multiply_add(double a, double b, double c) { return __builtin_fma(a, b, c); }
MLI_INLINE __m256 multiply_add(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }
MLI_INLINE __m256d multiply_add(__m256d a, __m256d b, __m256d c) { return _mm256_fmadd_pd(a, b, c); }
#if defined(__AVX512F__)
MLI_INLINE __m512 multiply_add(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }
MLI_INLINE __m512d multiply_add(__m512d a, __m512d b, __m512d c) { return _mm512_fmadd_pd(a, b, c); }
#endif
#elif defined(__aarch64__)
MLI_INLINE float multiply_add(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
MLI_INLINE double multiply_add(double a, double b, double c) { return __builtin_fma(a, b, c); }
MLI_INLINE float32x4_t multiply_add(float32x4_t a, float32x4_t b, float32x4_t c) { return vfmaq_f32(c, a, b); }
MLI_INLINE float64x2_t multiply_add(float64x2_t a, float64x2_t b, float64x2_t c) { return vfmaq_f64(c, a, b); }
#else
template <class V>
MLI_INLINE V multiply_add(V a, V b, V c) {
  return a * b + c;
}
#endif

// The one definition of a blend: the first active anchor scaled, the others added in order. Kernels that blend on the fly
// call it as well, which is what makes their weights bit-equal to those of the blend kernel. R = 0: `count` at run time.
template <class T, int Bytes, int R>
MLI_INLINE typename Vector<T, Bytes>::type blend_block(const T* const* anchors, const T* factors, int count, int64_t at) {
  auto value = broadcast<T, Bytes>(factors[0]) * load<T, Bytes>(anchors[0] + at);
  for (int r = 1; r < (R > 0 ? R : count); ++r) {
    value = multiply_add(broadcast<T, Bytes>(factors[r]), load<T, Bytes>(anchors[r] + at), value);
  }
  return value;
}

template <class T, int R>
MLI_INLINE T blend_one(const T* const* anchors, const T* factors, int count, int64_t at) {
  T value = factors[0] * anchors[0][at];
  for (int r = 1; r < (R > 0 ? R : count); ++r) value = multiply_add(factors[r], anchors[r][at], value);
  return value;
}

// Calls f with the number of active anchors as a compile-time constant where it is small; 0 stands for "count at run time".
template <class F>
MLI_INLINE void with_count(int count, F&& f) {
  switch (count) {
    case 1: f.template operator()<1>(); break;
    case 2: f.template operator()<2>(); break;
    case 3: f.template operator()<3>(); break;
    case 4: f.template operator()<4>(); break;
    default: f.template operator()<0>(); break;
  }
}

// Leaves out anchors whose coefficient is exactly zero (0 * NaN would be NaN); returns how many remain.
template <class T>
inline int active_anchors(const void* const* anchors, const double* coefficients, int64_t count, const T** used, T* factors) {
  int n = 0;
  for (int64_t r = 0; r < count; ++r) {
    const T factor = static_cast<T>(coefficients[r]);
    if (factor == T(0)) continue;
    used[n] = static_cast<const T*>(anchors[r]);
    factors[n++] = factor;
  }
  return n;
}

}  // namespace mli::MLI_ISA
