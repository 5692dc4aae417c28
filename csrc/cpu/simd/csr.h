/* Products of element-wise sparse weights, as CSR (spatile.h), with feature-major panels (tier.h). */
#include "math.h"

static void panel_csr(const spt_panel_product *p, int64_t row_begin, int64_t row_end,
                      int64_t panel_begin, int64_t panel_end) {
  const spt_csr *w = p->csr;
  for (int64_t row = row_begin; row < row_end; row++) {
    vec bias = vec_set(p->bias != NULL ? p->bias[row] : 0.0f);
    /* 8 registers of independent sums hide the FMA's latency. */
    const int group = 8 / (VECS);
    for (int64_t panel = panel_begin; panel < panel_end; panel += group) {
      int64_t here = panel_end - panel < group ? panel_end - panel : group;
      vec sum[8];
      for (int v = 0; v < 8; v++) {
        sum[v] = bias;
      }
      const float *x = p->x + panel * p->x_stride;
      if (here == group) {
        for (int64_t i = w->row_ptr[row]; i < w->row_ptr[row + 1]; i++) {
          vec value = vec_set(w->values[i]);
          const float *xs = x + (int64_t)w->col[i] * SPT_LANES;
#pragma GCC unroll 8
          for (int v = 0; v < 8; v++) {
            sum[v] += value * vec_load(xs + v / (VECS)*p->x_stride + v % (VECS)*VEC_WIDTH);
          }
        }
      } else {
        for (int64_t i = w->row_ptr[row]; i < w->row_ptr[row + 1]; i++) {
          vec value = vec_set(w->values[i]);
          const float *xs = x + (int64_t)w->col[i] * SPT_LANES;
          for (int v = 0; v < here * VECS; v++) {
            sum[v] += value * vec_load(xs + v / (VECS)*p->x_stride + v % (VECS)*VEC_WIDTH);
          }
        }
      }
      for (int v = 0; v < here * VECS; v++) {
        int64_t q = panel + v / (VECS),
                at = (row - p->first_row) * SPT_LANES + v % (VECS)*VEC_WIDTH;
        vec y = vec_activate(sum[v], p->activation);
        if (p->residual != NULL) {
          y += vec_load(p->residual + q * p->residual_stride + at);
        }
        vec_store(p->y + q * p->y_stride + at, y);
      }
    }
  }
}
