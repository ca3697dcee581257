// Activations on vectors, within 1-2 units in the last place in float; double goes through libm. All propagate NaN.
#pragma once

#include <cmath>

#include "kernels.hpp"
#include "simd.hpp"

namespace mli::MLI_ISA {

template <class T, int Bytes>
MLI_INLINE auto as_integers(typename Vector<T, Bytes>::type x) {
  typedef decltype(x < x) Integers;
  return reinterpret_cast<Integers>(x);
}

template <class T>
MLI_INLINE Vec<T> relu(Vec<T> x) {
  return x < Vec<T>{} ? Vec<T>{} : x;
}

// exp; polynomial for |f| <= ln(2) / 2 after N. Juffa. In general the subnormal range is kept (2^n is applied in two halves);
// for arguments known to be at most zero, results below 2^-125 may be any value as small: nothing beside the 1 they add to.
template <int Bytes = kVectorBytes, bool AtMostZero = false>
MLI_INLINE typename Vector<float, Bytes>::type exp_float(typename Vector<float, Bytes>::type x) {
  typedef typename Vector<float, Bytes>::type V;
  const auto all = [](float value) { return broadcast<float, Bytes>(value); };
  constexpr float kLowest = AtMostZero ? -87.0f : -104.0f;
  x = x < all(kLowest) ? all(kLowest) : x;
  if constexpr (!AtMostZero) x = x > all(89.0f) ? all(89.0f) : x;
  const V shifted = multiply_add(all(1.442695f), x, all(12582912.0f));
  const V n = shifted - all(12582912.0f);
  V f = multiply_add(n, all(-6.93145752e-1f), x);
  f = multiply_add(n, all(-1.42860677e-6f), f);
  V r = all(1.37805939e-3f);
  r = multiply_add(r, f, all(8.37312452e-3f));
  r = multiply_add(r, f, all(4.16695364e-2f));
  r = multiply_add(r, f, all(1.66664720e-1f));
  r = multiply_add(r, f, all(4.99999851e-1f));
  r = multiply_add(r, f, all(1.0f));
  r = multiply_add(r, f, all(1.0f));
  const auto exponent = as_integers<float, Bytes>(shifted) - 0x4B400000;  // n as an integer
  if constexpr (AtMostZero) return r * reinterpret_cast<V>((exponent + 127) << 23);
  const auto half = exponent >> 1;
  return r * reinterpret_cast<V>((half + 127) << 23) * reinterpret_cast<V>((exponent - half + 127) << 23);
}

MLI_INLINE Vec<float> absolute(Vec<float> x) {
  return reinterpret_cast<Vec<float>>(as_integers<float, kVectorBytes>(x) & 0x7FFFFFFF);
}

MLI_INLINE Vec<float> with_sign_of(Vec<float> magnitude, Vec<float> sign) {
  const auto bits = as_integers<float, kVectorBytes>(sign) & static_cast<int32_t>(0x80000000);
  return reinterpret_cast<Vec<float>>(as_integers<float, kVectorBytes>(magnitude) | bits);
}

MLI_INLINE Vec<float> tanh_float(Vec<float> x) {
  const auto all = [](float value) { return broadcast(value); };
  const Vec<float> t = absolute(x), s = x * x;
  const Vec<float> large = all(1.0f) - all(2.0f) / (exp_float(t + t) + all(1.0f));
  Vec<float> r = all(1.57394409e-2f);
  r = multiply_add(r, s, all(-5.23025580e-2f));
  r = multiply_add(r, s, all(1.33152470e-1f));
  r = multiply_add(r, s, all(-3.33327681e-1f));
  const Vec<float> small = multiply_add(r * s, x, x);
  return t < all(0.599609375f) ? small : with_sign_of(large, x);
}

// Two polynomials after N. Juffa, below and above 475/512.
MLI_INLINE Vec<float> erf_float(Vec<float> x) {
  const auto all = [](float value) { return broadcast(value); };
  const Vec<float> t = absolute(x), s = x * x;
  Vec<float> r = multiply_add(all(-1.72853470e-5f), t, all(3.83197126e-4f));
  const Vec<float> u = multiply_add(all(-3.88396438e-3f), t, all(2.42546219e-2f));
  r = multiply_add(r, s, u);
  r = multiply_add(r, t, all(-1.06777877e-1f));
  r = multiply_add(r, t, all(-6.34846687e-1f));
  r = multiply_add(r, t, all(-1.28717512e-1f));
  r = multiply_add(r, t, Vec<float>{} - t);
  const Vec<float> large = with_sign_of(all(1.0f) - exp_float<kVectorBytes, true>(r), x);
  Vec<float> p = all(-5.96761703e-4f);
  p = multiply_add(p, s, all(4.99119423e-3f));
  p = multiply_add(p, s, all(-2.67681349e-2f));
  p = multiply_add(p, s, all(1.12819925e-1f));
  p = multiply_add(p, s, all(-3.76125336e-1f));
  p = multiply_add(p, s, all(1.28379166e-1f));
  const Vec<float> small = multiply_add(p, x, x);
  return t > all(0.927734375f) ? large : small;
}

MLI_INLINE Vec<float> activate(Activation activation, Vec<float> x) {
  const auto all = [](float value) { return broadcast(value); };
  switch (activation) {
    case Activation::gelu:
      return x * all(0.5f) * (all(1.0f) + erf_float(x * all(0.70710678118654752f)));
    case Activation::gelu_tanh: {
      const Vec<float> inner = all(0.79788456080286536f) * multiply_add(all(0.044715f) * x, x * x, x);
      return x * all(0.5f) * (all(1.0f) + tanh_float(inner));
    }
    case Activation::silu: return x / (all(1.0f) + exp_float(Vec<float>{} - x));
    case Activation::tanh: return tanh_float(x);
    case Activation::relu: return relu<float>(x);
    default: return x;
  }
}

MLI_INLINE double activate_one(Activation activation, double x) {
  switch (activation) {
    case Activation::gelu: return x * 0.5 * (1 + erf(x * M_SQRT1_2));
    case Activation::gelu_tanh: return 0.5 * x * (1 + ::tanh(M_SQRT2 * M_2_SQRTPI * 0.5 * (x + 0.044715 * x * x * x)));
    case Activation::silu: return x / (1 + exp(-x));
    case Activation::tanh: return ::tanh(x);
    default: return x;
  }
}

MLI_INLINE Vec<double> activate(Activation activation, Vec<double> x) {
  if (activation == Activation::relu) return relu<double>(x);
  for (int i = 0; i < kWidth<double>; ++i) x[i] = activate_one(activation, x[i]);
  return x;
}

// In place over n values. ReLU is part of the epilogue proper, so nothing is left to do for it here.
template <class T>
MLI_NOINLINE void activate_row(Activation activation, T* row, int64_t n) {
  if (activation == Activation::none || activation == Activation::relu) return;
  for (int64_t i = 0; i < n; i += kWidth<T>) {
    store_first(row + i, activate(activation, load_first(row + i, n - i)), n - i);
  }
}

}  // namespace mli::MLI_ISA
