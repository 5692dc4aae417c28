/* One row at a time: storage to floats and back, softmax, LayerNorm, activations. */
#include <math.h>

#include "math.h"

static void load_row(float *to, const void *data, spt_dtype dtype, int64_t stride, int64_t n) {
  int64_t i = 0;
  if (stride == 1 && dtype == SPT_F32) {
    memcpy(to, data, (size_t)n * sizeof(float));
    return;
  }
  if (stride == 1 && dtype == SPT_F16) {
    for (; i + VEC_WIDTH <= n; i += VEC_WIDTH) {
      vec_store(to + i, vec_load_f16((const uint16_t *)data + i));
    }
  } else if (stride == 1) {
    for (; i + VEC_WIDTH <= n; i += VEC_WIDTH) {
      vec_store(to + i, vec_load_bf16((const uint16_t *)data + i));
    }
  }
  for (; i < n; i++) {
    to[i] = spt_load(data, dtype, i * stride);
  }
}

static void store_row(void *data, spt_dtype dtype, int64_t stride, const float *from, int64_t n) {
  int64_t i = 0;
  if (stride == 1 && dtype == SPT_F32) {
    memcpy(data, from, (size_t)n * sizeof(float));
    return;
  }
  if (stride == 1 && dtype == SPT_F16) {
    for (; i + VEC_WIDTH <= n; i += VEC_WIDTH) {
      vec_store_f16((uint16_t *)data + i, vec_load(from + i));
    }
  } else if (stride == 1) {
    for (; i + VEC_WIDTH <= n; i += VEC_WIDTH) {
      vec_store_bf16((uint16_t *)data + i, vec_load(from + i));
    }
  }
  for (; i < n; i++) {
    spt_store(data, dtype, i * stride, from[i]);
  }
}

/* The largest of a row; NaN may be lost, the sum of its exponentials finds it. */
static float row_top(const float *x, int64_t n) {
  vec top = vec_set(-INFINITY);
  int64_t i = 0;
  for (; i + VEC_WIDTH <= n; i += VEC_WIDTH) {
    top = vec_max(top, vec_load(x + i));
  }
  float most = -INFINITY;
  for (; i < n; i++) {
    most = x[i] > most ? x[i] : most;
  }
  for (int l = 0; l < VEC_WIDTH; l++) {
    most = top[l] > most ? top[l] : most;
  }
  return most;
}

static bool has_nan(const float *x, int64_t n) {
  bool found = false;
  for (int64_t i = 0; i < n; i++) {
    found |= x[i] != x[i];
  }
  return found;
}

static void softmax_row(float *y, const float *x, int64_t n) {
  float most = row_top(x, n);
  if (most == -INFINITY && !has_nan(x, n)) { /* x - top would be NaN */
    memset(y, 0, (size_t)n * sizeof *y);
    return;
  }
  vec top = vec_set(most), sums = vec_set(0.0f);
  int64_t i = 0;
  for (; i + VEC_WIDTH <= n; i += VEC_WIDTH) {
    vec e = vec_exp(vec_load(x + i) - top);
    sums += e;
    vec_store(y + i, e);
  }
  float sum = vec_sum(sums);
  if (i < n) {
    float tail[VEC_WIDTH];
    vec_store(tail, vec_exp(vec_load_part(x + i, n - i) - top));
    for (int l = 0; l < n - i; l++) {
      y[i + l] = tail[l];
      sum += tail[l];
    }
  }
  for (i = 0; i + VEC_WIDTH <= n; i += VEC_WIDTH) {
    vec_store(y + i, vec_load(y + i) / vec_set(sum));
  }
  for (; i < n; i++) {
    y[i] /= sum;
  }
}

static float row_sum(const float *x, int64_t n) {
  vec sum[4] = {0};
  int64_t i = 0;
  for (; i + 4 * VEC_WIDTH <= n; i += 4 * VEC_WIDTH) {
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
      sum[c] += vec_load(x + i + c * VEC_WIDTH);
    }
  }
  for (; i + VEC_WIDTH <= n; i += VEC_WIDTH) {
    sum[0] += vec_load(x + i);
  }
  if (i < n) {
    sum[1] += vec_load_part(x + i, n - i);
  }
  return vec_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

/* The first mean may be off by its own rounding, which a mean far above the spread makes large: the
 * mean of what is left corrects it. */
static void layer_norm_row(float *y, const float *x, const float *weight, const float *bias,
                           float eps, int64_t n) {
  float count = (float)n, mean = row_sum(x, n) / count;
  vec rest = vec_set(0.0f), squares = vec_set(0.0f);
  int64_t i = 0;
  for (; i + VEC_WIDTH <= n; i += VEC_WIDTH) {
    vec d = vec_load(x + i) - vec_set(mean);
    rest += d;
    squares += d * d;
    vec_store(y + i, d);
  }
  float left = vec_sum(rest), total = vec_sum(squares);
  for (; i < n; i++) {
    y[i] = x[i] - mean;
    left += y[i];
    total += y[i] * y[i];
  }
  left /= count;
  float variance = total / count - left * left;
  float scale = 1.0f / sqrtf((variance < 0.0f ? 0.0f : variance) + eps);
  for (i = 0; i + VEC_WIDTH <= n; i += VEC_WIDTH) {
    vec normal = (vec_load(y + i) - vec_set(left)) * vec_set(scale);
    vec_store(y + i, normal * vec_load(weight + i) + vec_load(bias + i));
  }
  for (; i < n; i++) {
    y[i] = (y[i] - left) * scale * weight[i] + bias[i];
  }
}

static void activate_row(float *y, const float *x, spt_activation activation, int64_t n) {
  int64_t i = 0;
  for (; i + VEC_WIDTH <= n; i += VEC_WIDTH) {
    vec_store(y + i, vec_activate(vec_load(x + i), activation));
  }
  if (i < n) {
    vec_store_part(y + i, vec_activate(vec_load_part(x + i, n - i), activation), n - i);
  }
}

static void add_row(float *y, const float *x, int64_t n) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; i++) {
    y[i] += x[i];
  }
}
