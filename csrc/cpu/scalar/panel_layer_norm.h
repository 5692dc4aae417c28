#include <math.h>

#include "../tier.h"

static void panel_layer_norm(float *panel, int64_t features, const float *weight, const float *bias,
                             float eps) {
  for (int l = 0; l < SPT_LANES; l++) {
    double sum = 0.0, squares = 0.0;
    for (int64_t f = 0; f < features; f++) {
      sum += panel[f * SPT_LANES + l];
    }
    float mean = (float)(sum / (double)features);
    for (int64_t f = 0; f < features; f++) {
      float d = panel[f * SPT_LANES + l] - mean;
      squares += d * d;
    }
    float scale = 1.0f / sqrtf((float)(squares / (double)features) + eps);
    for (int64_t f = 0; f < features; f++) {
      float *at = &panel[f * SPT_LANES + l];
      *at = (*at - mean) * scale * weight[f] + bias[f];
    }
  }
}
