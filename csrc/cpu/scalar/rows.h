/* One row at a time: storage to floats and back, softmax, LayerNorm, activations. After linear.h,
 * whose activations these are. */
#include "../half.h"

static void load_row(float *to, const void *data, spt_dtype dtype, int64_t stride, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    to[i] = spt_load(data, dtype, i * stride);
  }
}

static void store_row(void *data, spt_dtype dtype, int64_t stride, const float *from, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    spt_store(data, dtype, i * stride, from[i]);
  }
}

static void softmax_row(float *y, const float *x, int64_t n) {
  float top = -INFINITY;
  for (int64_t i = 0; i < n; i++) {
    if (!(x[i] <= top) && top == top) { /* NaN becomes the top and stays it, and so the whole row */
      top = x[i];
    }
  }
  if (top == -INFINITY) { /* x - top would be NaN */
    memset(y, 0, (size_t)n * sizeof *y);
    return;
  }
  double sum = 0.0;
  for (int64_t i = 0; i < n; i++) {
    y[i] = expf(x[i] - top);
    sum += y[i];
  }
  for (int64_t i = 0; i < n; i++) {
    y[i] /= (float)sum;
  }
}

static void layer_norm_row(float *y, const float *x, const float *weight, const float *bias,
                           float eps, int64_t n) {
  double sum = 0.0, squares = 0.0;
  for (int64_t i = 0; i < n; i++) {
    sum += x[i];
  }
  double mean = sum / (double)n;
  for (int64_t i = 0; i < n; i++) {
    squares += (x[i] - mean) * (x[i] - mean);
  }
  double scale = 1.0 / sqrt(squares / (double)n + eps);
  for (int64_t i = 0; i < n; i++) {
    y[i] = (float)((x[i] - mean) * scale) * weight[i] + bias[i];
  }
}

static void activate_row(float *y, const float *x, spt_activation activation, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    y[i] = activate(x[i], activation);
  }
}

static void add_row(float *y, const float *x, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    y[i] += x[i];
  }
}
