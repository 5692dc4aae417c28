#include <string.h>

#include "../tier.h"

static void panel_linear_transposed(const spt_strips *w, const float *g, float *dx) {
  const float *weight = w->values;
  for (int64_t strip = 0; strip < w->n_strips; strip++) {
    for (int64_t run = w->run_ptr[strip]; run < w->run_ptr[strip + 1]; run++) {
      float *to = dx + (int64_t)w->run_start[run] * SPT_LANES;
      for (int32_t k = 0; k < w->run_len[run]; k++, weight += SPT_STRIP) {
        for (int r = 0; r < SPT_STRIP; r++) {
          int64_t row = spt_strip_row(w, strip, r);
          for (int l = 0; row >= 0 && l < SPT_LANES; l++) {
            to[k * SPT_LANES + l] += weight[r] * g[row * SPT_LANES + l];
          }
        }
      }
    }
  }
}

static void strip_gradient(const spt_strips *w, int64_t strip, const float *x, int64_t x_stride,
                           const float *g, int64_t n_panels, float *dw) {
  for (int64_t run = w->run_ptr[strip]; run < w->run_ptr[strip + 1]; run++) {
    const float *xs = x + (int64_t)w->run_start[run] * SPT_LANES;
    for (int32_t k = 0; k < w->run_len[run]; k++, dw += SPT_STRIP) {
      memset(dw, 0, SPT_STRIP * sizeof *dw);
      for (int64_t t = 0; t < n_panels * SPT_LANES; t++) {
        float value = xs[t / SPT_LANES * x_stride + k * SPT_LANES + t % SPT_LANES];
        for (int r = 0; r < SPT_STRIP; r++) {
          dw[r] += value * g[t * SPT_STRIP + r];
        }
      }
    }
  }
}
