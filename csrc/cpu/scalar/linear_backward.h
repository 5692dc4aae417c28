#include "../tier.h"

static void strip_gradient(const spt_strips *w, int64_t strip, const float *x, int64_t x_row,
                           const float *g, int64_t tokens, float *dw) {
  for (int64_t run = w->run_ptr[strip]; run < w->run_ptr[strip + 1]; run++) {
    for (int32_t k = 0; k < w->run_len[run]; k++, dw += SPT_STRIP) {
      for (int64_t t = 0; t < tokens; t++) {
        for (int r = 0; r < SPT_STRIP; r++) {
          dw[r] += x[t * x_row + w->run_start[run] + k] * g[t * SPT_STRIP + r];
        }
      }
    }
  }
}
