/* Sums of squares of groups, and what scales their weights. */
#include <math.h>

#include "../tier.h"

static void square_columns(double *sums, const float *x, int64_t n) {
  for (int64_t c = 0; c < n; c++) {
    sums[c] += (double)x[c] * x[c];
  }
}

static double square_sum(const float *x, int64_t n) {
  double sum = 0.0;
  for (int64_t c = 0; c < n; c++) {
    sum += (double)x[c] * x[c];
  }
  return sum;
}

static void group_values(double *value, const double *sum, const float *beta, spt_group_rule rule,
                         double amount, int64_t n) {
  for (int64_t g = 0; g < n; g++) {
    double norm = sqrt(sum[g]), pull = amount * (beta != NULL ? beta[g] : 1.0f);
    double rate = norm == 0.0 ? 0.0 : pull / norm; /* NaN and infinity pass */
    double kept = 1.0 - rate;
    switch (rule) {
      case SPT_GROUP_NORM:
        value[g] = norm;
        break;
      case SPT_GROUP_BETA:
        value[g] = 1.0 / (norm + amount);
        break;
      case SPT_GROUP_GRAD:
        value[g] = rate;
        break;
      case SPT_GROUP_SHRINK:
        value[g] = kept < 0.0 ? 0.0 : kept;
        break;
    }
  }
}

static void scale_row(float *y, const double *factor, const float *x, int64_t n) {
  for (int64_t c = 0; c < n; c++) {
    y[c] = (float)(factor[c] * x[c]);
  }
}

static void add_scaled_row(float *y, const double *factor, const float *x, int64_t n) {
  for (int64_t c = 0; c < n; c++) {
    y[c] = (float)(y[c] + factor[c] * x[c]);
  }
}
