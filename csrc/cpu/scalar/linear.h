#include <math.h>

#include "../tier.h"

static float activate(float x, spt_activation activation) {
  switch (activation) {
    case SPT_ACT_GELU:
      return 0.5f * x * (1.0f + erff(x * 0.70710678f));
    case SPT_ACT_GELU_TANH:
      return 0.5f * x * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
    case SPT_ACT_RELU:
      return x < 0.0f ? 0.0f : x; /* NaN passes */
    case SPT_ACT_TANH:
      return tanhf(x);
    default:
      return x;
  }
}

/* One output feature of one panel: bias, activation, residual, store. */
static void finish_row(float *y, const float *sum, const float *residual, float bias,
                       spt_activation activation) {
  for (int l = 0; l < SPT_LANES; l++) {
    y[l] = activate(sum[l] + bias, activation) + (residual != NULL ? residual[l] : 0.0f);
  }
}

static void panel_linear(const spt_panel_product *p, int64_t strip_begin, int64_t strip_end,
                         int64_t panel_begin, int64_t panel_end) {
  const spt_strips *w = p->strips;
  for (int64_t strip = strip_begin; strip < strip_end; strip++) {
    for (int64_t panel = panel_begin; panel < panel_end; panel++) {
      for (int r = 0; r < SPT_STRIP; r++) {
        int64_t row = spt_strip_row(w, strip, r);
        if (row < 0) {
          continue;
        }
        float sum[SPT_LANES] = {0};
        const float *weight = w->values + w->value_ptr[strip] * SPT_STRIP + r;
        for (int64_t run = w->run_ptr[strip]; run < w->run_ptr[strip + 1]; run++) {
          const float *x = p->x + panel * p->x_stride + (int64_t)w->run_start[run] * SPT_LANES;
          for (int32_t k = 0; k < w->run_len[run]; k++, weight += SPT_STRIP) {
            for (int l = 0; l < SPT_LANES; l++) {
              sum[l] += *weight * x[k * SPT_LANES + l];
            }
          }
        }
        int64_t at = row * SPT_LANES;
        finish_row(p->y + panel * p->y_stride + at, sum,
                   p->residual != NULL ? p->residual + panel * p->residual_stride + at : NULL,
                   p->bias != NULL ? p->bias[row] : 0.0f, p->activation);
      }
    }
  }
}
