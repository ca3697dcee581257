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

// x Phi(x) = max(x, 0) - |x| / 2 erfc(|x| / sqrt(2)), the complement as 1 / p(|x|)^4 with p fitted so that the whole errs by
// at most 1.2e-8. What cancels in 1 + erf(x) does not cancel here: below zero it is closer than that formula in float.
MLI_INLINE Vec<float> gelu_float(Vec<float> x) {
  const auto all = [](float value) { return broadcast(value); };
  Vec<float> t = absolute(x);
  t = t > all(40.0f) ? all(40.0f) : t;  // p^4 is infinite there; NaN stays
  Vec<float> p = all(1.1168679e-6f);
  p = multiply_add(p, t, all(-1.4913529e-5f));
  p = multiply_add(p, t, all(9.8015342e-5f));
  p = multiply_add(p, t, all(-3.4795029e-4f));
  p = multiply_add(p, t, all(8.7280087e-4f));
  p = multiply_add(p, t, all(-9.7619044e-4f));
  p = multiply_add(p, t, all(2.6215583e-3f));
  p = multiply_add(p, t, all(4.6804114e-3f));
  p = multiply_add(p, t, all(2.6552219e-2f));
  p = multiply_add(p, t, all(9.9420495e-2f));
  p = multiply_add(p, t, all(1.9947484e-1f));
  p = multiply_add(p, t, all(1.0f));
  p = p * p;
  const Vec<float> positive = x > Vec<float>{} ? all(1.0f) : Vec<float>{};
  return multiply_add(x, positive, Vec<float>{} - all(0.5f) * t / (p * p));  // -inf * 0 is NaN, as x Phi(x) gives
}

MLI_INLINE Vec<float> activate(Activation activation, Vec<float> x) {
  const auto all = [](float value) { return broadcast(value); };
  switch (activation) {
    case Activation::gelu: return gelu_float(x);
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

template <class T, Activation A>
MLI_INLINE void activate_values(T* row, int64_t n) {
  int64_t i = 0;
  for (; i + kWidth<T> <= n; i += kWidth<T>) store(row + i, activate(A, load(row + i)));
  if (i < n) store_first(row + i, activate(A, load_first(row + i, n - i)), n - i);
}

// In place over n values. ReLU is part of the epilogue proper, so nothing is left to do for it here.
template <class T>
MLI_NOINLINE void activate_row(Activation activation, T* row, int64_t n) {
  switch (activation) {
    case Activation::gelu: return activate_values<T, Activation::gelu>(row, n);
    case Activation::gelu_tanh: return activate_values<T, Activation::gelu_tanh>(row, n);
    case Activation::silu: return activate_values<T, Activation::silu>(row, n);
    case Activation::tanh: return activate_values<T, Activation::tanh>(row, n);
    default: return;
  }
}

}  // namespace mli::MLI_ISA
