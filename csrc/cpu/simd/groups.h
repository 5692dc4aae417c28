/* Sums of squares of groups, and what scales their weights. */
#include <math.h>

#include "vec.h"

typedef double vec_double __attribute__((vector_size(VEC_BYTES)));
typedef int64_t vec_double_mask __attribute__((vector_size(VEC_BYTES)));
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

/* Four rows for each load and store of the sums. The next four are fetched ahead: several streams
 * that each jump at the end of a row are more than the hardware's own prefetching follows (tiles of a
 * matrix in memory: 1.6 times the speed). */
static void square_columns(double *sums, const float *x, int64_t stride, int64_t rows, int64_t n) {
  for (int64_t r = 0; r < rows; r += 4) {
    const float *row = x + r * stride;
    int64_t here = rows - r < 4 ? rows - r : 4, c = 0;
    for (; here == 4 && c + VEC_WIDTH <= n; c += VEC_WIDTH) {
#pragma GCC unroll 4
      for (int k = 4; k < 8; k++) {
        __builtin_prefetch(row + k * stride + c);
      }
#pragma GCC unroll 2
      for (int64_t i = c; i < c + VEC_WIDTH; i += DOUBLES) {
        vec_double a = widen(row + i), b = widen(row + stride + i);
        vec_double d = widen(row + 2 * stride + i), e = widen(row + 3 * stride + i);
        vec_double sum = load_double(sums + i) + a * a + b * b + d * d + e * e;
        *(vec_double_unaligned *)(sums + i) = sum;
      }
    }
    for (int64_t k = 0; k < here; k++) {
#pragma GCC ivdep
      for (int64_t i = c; i < n; i++) {
        sums[i] += (double)row[k * stride + i] * row[k * stride + i];
      }
    }
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

static void square_roots(double *sum, int64_t n) {
  for (int64_t g = 0; g < n; g++) {
    sum[g] = sqrt(sum[g]);
  }
}

static void magnitudes(double *norm, const float *x, int64_t n) {
  for (int64_t g = 0; g < n; g++) {
    norm[g] = fabs((double)x[g]);
  }
}

/* norm = amount * beta / norm, 0 for a zero group; NaN and infinity pass. */
static void pull_rates(double *norm, const float *beta, double amount, int64_t n) {
  int64_t g = 0;
  for (; g + DOUBLES <= n; g += DOUBLES) {
    vec_double own = load_double(norm + g), pull = {0};
    pull += amount;
    if (beta != NULL) {
      pull *= widen(beta + g);
    }
    vec_double_mask rate = (vec_double_mask)(pull / own) & ~(own == 0.0);
    *(vec_double_unaligned *)(norm + g) = (vec_double)rate;
  }
  for (; g < n; g++) {
    double pull = beta != NULL ? amount * beta[g] : amount;
    norm[g] = norm[g] == 0.0 ? 0.0 : pull / norm[g];
  }
}

static void group_values(double *norm, const float *beta, spt_group_rule rule, double amount,
                         int64_t n) {
  if (rule == SPT_GROUP_BETA) {
    for (int64_t g = 0; g < n; g++) {
      norm[g] = 1.0 / (norm[g] + amount);
    }
  } else if (rule != SPT_GROUP_NORM) {
    pull_rates(norm, beta, amount, n);
  }
  if (rule == SPT_GROUP_SHRINK) {
    for (int64_t g = 0; g < n; g++) {
      double kept = 1.0 - norm[g];
      norm[g] = kept < 0.0 ? 0.0 : kept;
    }
  }
}

static void narrow_row(float *y, const double *x, int64_t n) {
  for (int64_t c = 0; c < n; c++) {
    y[c] = (float)x[c];
  }
}

static inline __attribute__((always_inline)) void scale(float *y, const double *factor,
                                                        const int step, const float *x, int64_t n,
                                                        const bool add) {
  int64_t c = 0;
  vec_double one = {0};
  one += factor[0];
  for (; c + DOUBLES <= n; c += DOUBLES) {
    if (add) { /* x comes from cache, y from memory: 4 KB ahead, add gains 1.3 times */
      __builtin_prefetch(y + c + 1024, 1);
    }
    vec_double scaled = (step == 0 ? one : load_double(factor + c)) * widen(x + c);
    narrow(y + c, add ? widen(y + c) + scaled : scaled);
  }
  for (; c < n; c++) {
    double scaled = factor[c * step] * x[c];
    y[c] = (float)(add ? y[c] + scaled : scaled);
  }
}

static void scale_row(float *y, const double *factor, int step, const float *x, int64_t n) {
  if (step == 0) {
    scale(y, factor, 0, x, n, false);
  } else {
    scale(y, factor, 1, x, n, false);
  }
}

static void add_scaled_row(float *y, const double *factor, int step, const float *x, int64_t n) {
  if (step == 0) {
    scale(y, factor, 0, x, n, true);
  } else {
    scale(y, factor, 1, x, n, true);
  }
}
