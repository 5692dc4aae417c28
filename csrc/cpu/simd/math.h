/* exp, erf, tanh and GELU on one register. Polynomials fitted by weighted least squares with
 * Chebyshev nodes; errors against float64 over the whole range, in float32 arithmetic. */
#ifndef SPATILE_CPU_SIMD_MATH_H
#define SPATILE_CPU_SIMD_MATH_H

#include "vec.h"

/* exp of each, step by step side by side. 2 ulp; underflows gradually to 0, infinity above 88.73, NaN
 * stays NaN. */
static inline __attribute__((always_inline)) void vec_exps(vec *x, const int count) {
#define EACH _Pragma("GCC unroll 4") for (int i = 0; i < count; i++)
  vec n[4], u[4], p[4];
  /* max and min give their second operand where either is NaN: so x stands second. */
  EACH x[i] = vec_min(vec_set(89.0f), vec_max(vec_set(-104.0f), x[i]));
  EACH n[i] = vec_round(x[i] * vec_set(1.44269504f));
  /* u = x log2(e) - n in [-1/2, 1/2]; log2(e) in two parts, or x near 88 would lose 5 bits of u. */
  EACH u[i] = x[i] * vec_set(1.44269502e+00f) - n[i] + x[i] * vec_set(1.92596299e-08f);
  EACH p[i] = vec_set(1.5345810e-04f) * u[i] + vec_set(1.3399931e-03f);
  EACH p[i] = p[i] * u[i] + vec_set(9.6184891e-03f);
  EACH p[i] = p[i] * u[i] + vec_set(5.5503286e-02f);
  EACH p[i] = p[i] * u[i] + vec_set(2.4022646e-01f);
  EACH p[i] = p[i] * u[i] + vec_set(6.9314718e-01f);
  EACH p[i] = p[i] * u[i] + vec_set(1.0f);
  EACH x[i] = vec_scale2(p[i], n[i]);
#undef EACH
}

static inline vec vec_exp(vec x) {
  vec_exps(&x, 1);
  return x;
}

/* Absolute error 4e-7. */
static inline vec vec_erf(vec x) {
  x = vec_min(vec_set(4.0f), vec_max(vec_set(-4.0f), x));
  vec t = x * x;
  vec p = vec_set(1.9110849791559303e-08f);
  p = p * t + vec_set(-1.942144308486604e-06f);
  p = p * t + vec_set(0.00014725359505973756f);
  p = p * t + vec_set(0.003989310935139656f);
  p = p * t + vec_set(0.05152098834514618f);
  p = p * t + vec_set(0.20709654688835144f);
  p = p * t + vec_set(1.1283791065216064f);
  vec q = vec_set(0.0010207979939877987f);
  q = q * t + vec_set(0.014955553226172924f);
  q = q * t + vec_set(0.11795879155397415f);
  q = q * t + vec_set(0.5168657898902893f);
  q = q * t + vec_set(1.0f);
  return x * p / q;
}

/* Absolute error 3e-7. */
static inline vec vec_tanh(vec x) {
  vec e = vec_exp(vec_set(2.0f) * vec_min(vec_set(10.0f), vec_max(vec_set(-10.0f), x)));
  return vec_set(1.0f) - vec_set(2.0f) / (e + vec_set(1.0f));
}

static inline vec vec_gelu(vec x) {
  return vec_set(0.5f) * x * (vec_set(1.0f) + vec_erf(x * vec_set(0.70710678f)));
}

static inline vec vec_gelu_tanh(vec x) {
  vec inner = vec_set(0.79788456f) * (x + vec_set(0.044715f) * x * x * x);
  return vec_set(0.5f) * x * (vec_set(1.0f) + vec_tanh(inner));
}

static inline vec vec_activate(vec x, spt_activation activation) {
  switch (activation) {
    case SPT_ACT_GELU:
      return vec_gelu(x);
    case SPT_ACT_GELU_TANH:
      return vec_gelu_tanh(x);
    case SPT_ACT_RELU:
      return vec_max(vec_set(0.0f), x);
    case SPT_ACT_TANH:
      return vec_tanh(x);
    default:
      return x;
  }
}

#endif
