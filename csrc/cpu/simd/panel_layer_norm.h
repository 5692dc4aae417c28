/* Vertical: each lane is a token, so mean and variance need no horizontal step. Two passes, since
 * E[x²] − E[x]² cancels; four chains hide the latency of the additions. */
#include "vec.h"

static void panel_layer_norm(float *panel, int64_t features, const float *weight, const float *bias,
                             float eps) {
  float count = (float)features;
  for (int v = 0; v < VECS; v++) {
    float *x = panel + v * VEC_WIDTH;
    vec sum[4] = {vec_set(0.0f), vec_set(0.0f), vec_set(0.0f), vec_set(0.0f)};
    for (int64_t f = 0; f < features; f++) {
      sum[f & 3] += vec_load(x + f * SPT_LANES);
    }
    vec mean = ((sum[0] + sum[1]) + (sum[2] + sum[3])) / vec_set(count);
    for (int i = 0; i < 4; i++) {
      sum[i] = vec_set(0.0f);
    }
    for (int64_t f = 0; f < features; f++) {
      vec d = vec_load(x + f * SPT_LANES) - mean;
      sum[f & 3] += d * d;
    }
    vec variance = ((sum[0] + sum[1]) + (sum[2] + sum[3])) / vec_set(count);
    vec scale = vec_set(1.0f) / vec_sqrt(variance + vec_set(eps));
    for (int64_t f = 0; f < features; f++) {
      float *at = x + f * SPT_LANES;
      vec_store(at, (vec_load(at) - mean) * scale * vec_set(weight[f]) + vec_set(bias[f]));
    }
  }
}
