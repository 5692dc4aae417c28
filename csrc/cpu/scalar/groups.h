/* Sums of squares of groups, and what scales their weights. */
#include <math.h>

#include "../tier.h"

static void square_columns(double *sums, const float *x, int64_t stride, int64_t rows, int64_t n) {
  for (int64_t r = 0; r < rows; r++) {
    for (int64_t c = 0; c < n; c++) {
      double value = x[r * stride + c];
      sums[c] += value * value;
    }
  }
}

static double square_sum(const float *x, int64_t n) {
  double sum = 0.0;
  for (int64_t c = 0; c < n; c++) {
    sum += (double)x[c] * x[c];
  }
  return sum;
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

static void group_values(double *norm, const float *beta, spt_group_rule rule, double amount,
                         int64_t n) {
  for (int64_t g = 0; g < n; g++) {
    double pull = amount * (beta != NULL ? beta[g] : 1.0f);
    double rate = norm[g] == 0.0 ? 0.0 : pull / norm[g]; /* NaN and infinity pass */
    double kept = 1.0 - rate;
    switch (rule) {
      case SPT_GROUP_NORM:
        break;
      case SPT_GROUP_BETA:
        norm[g] = 1.0 / (norm[g] + amount);
        break;
      case SPT_GROUP_GRAD:
        norm[g] = rate;
        break;
      case SPT_GROUP_SHRINK:
        norm[g] = kept < 0.0 ? 0.0 : kept;
        break;
    }
  }
}

static void narrow_row(float *y, const double *x, int64_t n) {
  for (int64_t c = 0; c < n; c++) {
    y[c] = (float)x[c];
  }
}

static void scale_row(float *y, const double *factor, int step, const float *x, int64_t n) {
  for (int64_t c = 0; c < n; c++) {
    y[c] = (float)(factor[c * step] * x[c]);
  }
}

static void add_scaled_row(float *y, const double *factor, int step, const float *x, int64_t n) {
  for (int64_t c = 0; c < n; c++) {
    y[c] = (float)(y[c] + factor[c * step] * x[c]);
  }
}
