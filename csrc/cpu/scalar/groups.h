/* Sums of squares of groups, and what scales their weights. */
#include "../group_loops.h"
#include "../half.h"

static void square_columns(float *sums, uint32_t *bits, const void *x, spt_dtype dtype,
                           int64_t stride, int64_t rows, int64_t n) {
  for (int64_t c = 0; c < n; c++) {
    sums[c] = 0.0f;
    for (int64_t r = 0; r < rows; r++) {
      float value = spt_load(x, dtype, r * stride + c);
      sums[c] += value * value;
      bits[c] |= spt_bits_of_float(value);
    }
  }
}

static void square_rows(double *sums, uint32_t *bits, const void *x, spt_dtype dtype,
                        int64_t stride, int64_t rows, int64_t n) {
  for (int64_t r = 0; r < rows; r++) {
    for (int64_t c = 0; c < n; c++) {
      float value = spt_load(x, dtype, r * stride + c);
      sums[r] += value * value;
      bits[r] |= spt_bits_of_float(value);
    }
  }
}

static void fold_columns(double *sums, const float *columns, int64_t n_groups, int64_t width) {
  for (int64_t c = 0; c < n_groups * width; c++) {
    sums[c / width] += columns[c];
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

static bool narrow_factors(float *y, const double *x, int64_t n) {
  bool fits = true;
  for (int64_t g = 0; g < n; g++) {
    double size = fabs(x[g]);
    fits &= (size >= SPT_LEAST_FACTOR && size <= SPT_MOST_FACTOR) || size == 0.0;
    y[g] = (float)x[g];
  }
  return fits;
}

static void repeat_row(float *y, const float *x, int64_t n, int64_t times) {
  for (int64_t i = 0; i < n * times; i++) {
    y[i] = x[i / times];
  }
}

static void scale_rows(const spt_scaling *s) {
  for (int64_t r = 0; r < s->rows; r++) {
    for (int64_t c = 0; c < s->cols; c++) {
      int64_t at = r * s->y_stride + c;
      float y = s->factor[r * s->row_step + (s->each_column ? c : 0)] *
                spt_load(s->x, s->dtype, r * s->x_stride + c);
      spt_store(s->y, s->dtype, at, s->add ? spt_load(s->y, s->dtype, at) + y : y);
    }
  }
}
