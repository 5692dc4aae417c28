#include <math.h>

#include "../half.h"
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
        int64_t at = (row - p->first_row) * SPT_LANES;
        finish_row(p->y + panel * p->y_stride + at, sum,
                   p->residual != NULL ? p->residual + panel * p->residual_stride + at : NULL,
                   p->bias != NULL ? p->bias[row] : 0.0f, p->activation);
      }
    }
  }
}

/* Element (feature f, lane l) of a pair panel. */
static int64_t pair_index(int64_t f, int l) { return (f / 2 * SPT_LANES + l) * 2 + f % 2; }

static void panel_narrow(uint16_t *pairs, const float *panel, int64_t features) {
  for (int64_t f = 0; f < (features + 1) / 2 * 2; f++) {
    for (int l = 0; l < SPT_LANES; l++) {
      float value = f < features ? panel[f * SPT_LANES + l] : 0.0f;
      pairs[pair_index(f, l)] = spt_bf16_of_float(value);
    }
  }
}

static void panel_split(uint16_t *rows, const uint16_t *pairs, int64_t features) {
  for (int64_t f = 0; f < features; f += 2) {
    uint16_t both[2 * SPT_LANES];
    memcpy(both, pairs + f * SPT_LANES, sizeof both);
    for (int l = 0; l < SPT_LANES; l++) {
      rows[f * SPT_LANES + l] = both[2 * l];
      rows[(f + 1) * SPT_LANES + l] = both[2 * l + 1];
    }
  }
}

static void store_row_bf16(const spt_panel_product *p, int64_t row, int64_t panel, const float *y) {
  uint16_t *to = p->y_bf16 + panel * p->y_stride;
  for (int l = 0; l < SPT_LANES; l++) {
    to[row < p->pair_rows ? pair_index(row, l) : row * SPT_LANES + l] = spt_bf16_of_float(y[l]);
  }
}

/* Products of bfloat16 are exact in float32; the sums are float32's. */
static void sum_row_bf16(float *sum, const spt_strips_bf16 *w, int64_t strip, int r,
                         const uint16_t *x) {
  const spt_strips *shape = &w->shape;
  const uint16_t *weight = w->values + (shape->value_ptr[strip] * SPT_STRIP + r) * 2;
  for (int64_t run = shape->run_ptr[strip]; run < shape->run_ptr[strip + 1]; run++) {
    for (int32_t k = 0; k < shape->run_len[run]; k++, weight += 2 * SPT_STRIP) {
      int64_t feature = 2 * ((int64_t)shape->run_start[run] + k);
      for (int l = 0; l < SPT_LANES; l++) {
        for (int i = 0; i < 2; i++) {
          sum[l] += spt_float_of_bf16(weight[i]) * spt_float_of_bf16(x[pair_index(feature + i, l)]);
        }
      }
    }
  }
}

static void panel_linear_bf16(const spt_panel_product *p, int64_t strip_begin, int64_t strip_end,
                              int64_t panel_begin, int64_t panel_end) {
  const spt_strips_bf16 *w = p->strips_bf16;
  for (int64_t strip = strip_begin; strip < strip_end; strip++) {
    for (int64_t panel = panel_begin; panel < panel_end; panel++) {
      for (int r = 0; r < SPT_STRIP; r++) {
        int64_t row = spt_strip_row(&w->shape, strip, r);
        if (row < 0) {
          continue;
        }
        float sum[SPT_LANES] = {0}, narrow[SPT_LANES];
        sum_row_bf16(sum, w, strip, r, p->x_pairs + panel * p->x_stride);
        int64_t at = (row - p->first_row) * SPT_LANES;
        float *y = p->y_bf16 != NULL ? narrow : p->y + panel * p->y_stride + at;
        finish_row(y, sum,
                   p->residual != NULL ? p->residual + panel * p->residual_stride + at : NULL,
                   p->bias != NULL ? p->bias[row] : 0.0f, p->activation);
        if (p->y_bf16 != NULL) {
          store_row_bf16(p, row, panel, narrow);
        }
      }
    }
  }
}
