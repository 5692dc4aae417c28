/* Gradients of strips times panels. */
#include "vec.h"

/* g's 16 rows of a strip are gathered once, then each kept column takes 16 FMAs in 4 chains. */
static void panel_linear_transposed(const spt_strips *w, const float *g, float *dx) {
  const float *weight = w->values;
  for (int64_t strip = 0; strip < w->n_strips; strip++) {
    vec rows[SPT_STRIP][VECS];
    for (int r = 0; r < SPT_STRIP; r++) {
      int64_t row = spt_strip_row(w, strip, r);
      for (int v = 0; v < VECS; v++) {
        rows[r][v] = row < 0 ? vec_set(0.0f) : vec_load(g + row * SPT_LANES + v * VEC_WIDTH);
      }
    }
    for (int64_t run = w->run_ptr[strip]; run < w->run_ptr[strip + 1]; run++) {
      float *to = dx + (int64_t)w->run_start[run] * SPT_LANES;
      for (int32_t k = w->run_len[run]; k > 0; k--) {
        for (int v = 0; v < VECS; v++) {
          vec sum[4];
#pragma GCC unroll 4
          for (int c = 0; c < 4; c++) {
            sum[c] = vec_set(weight[c]) * rows[c][v];
          }
#pragma GCC unroll 16
          for (int r = 4; r < SPT_STRIP; r++) {
            sum[r % 4] += vec_set(weight[r]) * rows[r][v];
          }
          float *at = to + v * VEC_WIDTH;
          vec_store(at, vec_load(at) + ((sum[0] + sum[1]) + (sum[2] + sum[3])));
        }
        weight += SPT_STRIP;
        to += SPT_LANES;
      }
    }
  }
}

#define GRADIENT_COLUMNS (VEC_WIDTH == 16 ? 16 : 4)

static inline __attribute__((always_inline)) void column_gradients(const float *x, int64_t x_stride,
                                                                   const float *g, int64_t n_panels,
                                                                   float *dw, const int columns) {
  vec sum[16][VECS];
  for (int k = 0; k < columns; k++) {
    for (int v = 0; v < VECS; v++) {
      sum[k][v] = vec_set(0.0f);
    }
  }
  for (int64_t panel = 0; panel < n_panels; panel++) {
    const float *xs = x + panel * x_stride;
    for (int t = 0; t < SPT_LANES; t++) {
      vec grad[VECS];
      for (int v = 0; v < VECS; v++) {
        grad[v] = vec_load(g + (panel * SPT_LANES + t) * SPT_STRIP + v * VEC_WIDTH);
      }
#pragma GCC unroll 16
      for (int k = 0; k < columns; k++) {
        vec value = vec_set(xs[k * SPT_LANES + t]);
        for (int v = 0; v < VECS; v++) {
          sum[k][v] += value * grad[v];
        }
      }
    }
  }
  for (int k = 0; k < columns; k++) {
    for (int v = 0; v < VECS; v++) {
      vec_store(dw + k * SPT_STRIP + v * VEC_WIDTH, sum[k][v]);
    }
  }
}

static void strip_gradient(const spt_strips *w, int64_t strip, const float *x, int64_t x_stride,
                           const float *g, int64_t n_panels, float *dw) {
  for (int64_t run = w->run_ptr[strip]; run < w->run_ptr[strip + 1]; run++) {
    const float *xs = x + (int64_t)w->run_start[run] * SPT_LANES;
    int32_t k = 0;
    for (; k + GRADIENT_COLUMNS <= w->run_len[run]; k += GRADIENT_COLUMNS) {
      column_gradients(xs + k * SPT_LANES, x_stride, g, n_panels, dw, GRADIENT_COLUMNS);
      dw += GRADIENT_COLUMNS * SPT_STRIP;
    }
    for (; k < w->run_len[run]; k++) {
      column_gradients(xs + k * SPT_LANES, x_stride, g, n_panels, dw, 1);
      dw += SPT_STRIP;
    }
  }
}
