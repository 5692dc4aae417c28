/* Sums of squares of groups, and what scales their weights. */
#include <math.h>

#include "vec.h"

typedef double vec_double __attribute__((vector_size(VEC_BYTES)));
typedef double vec_double_unaligned __attribute__((vector_size(VEC_BYTES), aligned(8), may_alias));
typedef float half_vec_unaligned __attribute__((vector_size(VEC_BYTES / 2), aligned(4), may_alias));

#define DOUBLES (VEC_WIDTH / 2)

static inline vec_double widen(const float *p) {
  return __builtin_convertvector(*(const half_vec_unaligned *)p, vec_double);
}
static inline void narrow(float *p, vec_double a) {
  *(half_vec_unaligned *)p = __builtin_convertvector(a, half_vec_unaligned);
}
static inline vec_double load_double(const double *p) { return *(const vec_double_unaligned *)p; }

static void square_columns(double *sums, const float *x, int64_t n) {
  int64_t c = 0;
  for (; c + DOUBLES <= n; c += DOUBLES) {
    vec_double value = widen(x + c);
    *(vec_double_unaligned *)(sums + c) = load_double(sums + c) + value * value;
  }
  for (; c < n; c++) {
    sums[c] += (double)x[c] * x[c];
  }
}

static double square_sum(const float *x, int64_t n) {
  vec_double sum[4] = {0}; /* chains, so that the additions overlap */
  int64_t c = 0;
  for (; c + 4 * DOUBLES <= n; c += 4 * DOUBLES) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
      vec_double value = widen(x + c + i * DOUBLES);
      sum[i] += value * value;
    }
  }
  vec_double all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  double total = 0.0;
  for (; c < n; c++) {
    total += (double)x[c] * x[c];
  }
  for (int i = 0; i < DOUBLES; i++) {
    total += all[i];
  }
  return total;
}

/* Selects, not branches: a division by zero that is thrown away would still keep the compiler from
 * making vectors of it. NaN and infinity pass. */
static inline double pull_rate(double sum, double pull) {
  double norm = sqrt(sum);
  bool zero = norm == 0.0;
  return (zero ? 0.0 : pull) / (zero ? 1.0 : norm);
}

static void group_values(double *value, const double *sum, const float *beta, spt_group_rule rule,
                         double amount, int64_t n) {
#pragma GCC ivdep
  for (int64_t g = 0; g < n; g++) {
    value[g] = beta != NULL ? amount * beta[g] : amount;
  }
  switch (rule) {
    case SPT_GROUP_NORM:
#pragma GCC ivdep
      for (int64_t g = 0; g < n; g++) {
        value[g] = sqrt(sum[g]);
      }
      break;
    case SPT_GROUP_BETA:
#pragma GCC ivdep
      for (int64_t g = 0; g < n; g++) {
        value[g] = 1.0 / (sqrt(sum[g]) + amount);
      }
      break;
    case SPT_GROUP_GRAD:
#pragma GCC ivdep
      for (int64_t g = 0; g < n; g++) {
        value[g] = pull_rate(sum[g], value[g]);
      }
      break;
    case SPT_GROUP_SHRINK:
#pragma GCC ivdep
      for (int64_t g = 0; g < n; g++) {
        double kept = 1.0 - pull_rate(sum[g], value[g]);
        value[g] = kept < 0.0 ? 0.0 : kept;
      }
      break;
  }
}

static void scale_row(float *y, const double *factor, const float *x, int64_t n) {
  int64_t c = 0;
  for (; c + DOUBLES <= n; c += DOUBLES) {
    narrow(y + c, load_double(factor + c) * widen(x + c));
  }
  for (; c < n; c++) {
    y[c] = (float)(factor[c] * x[c]);
  }
}

static void add_scaled_row(float *y, const double *factor, const float *x, int64_t n) {
  int64_t c = 0;
  for (; c + DOUBLES <= n; c += DOUBLES) {
    narrow(y + c, widen(y + c) + load_double(factor + c) * widen(x + c));
  }
  for (; c < n; c++) {
    y[c] = (float)(y[c] + factor[c] * x[c]);
  }
}
