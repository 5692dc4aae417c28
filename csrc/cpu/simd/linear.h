/* Products of strips (spatile.h) with feature-major panels (tier.h).
 *
 * The inner loop broadcasts one weight and multiplies it with ROWS x PANELS accumulators in
 * registers. With 8 rows and 3 panels a step loads 8 weights and 3 registers of x for 24 FMAs, so the
 * FMA units and not the load ports bound it; one row more or less loses that balance. */
#include "math.h"

#if VEC_WIDTH == 16
#define LINEAR_ROWS 8
#define LINEAR_PANELS 3
#else
#define LINEAR_ROWS 4 /* 4 x 2 registers a panel = 8 accumulators of 16 */
#define LINEAR_PANELS 1
#endif

static inline __attribute__((always_inline)) void strip_product(const spt_panel_product *p,
                                                                int64_t strip, int first_row,
                                                                int64_t panel, const int panels) {
  const spt_strips *w = p->strips;
  vec sum[LINEAR_ROWS][LINEAR_PANELS * VECS];
#pragma GCC unroll 16
  for (int r = 0; r < LINEAR_ROWS; r++) {
#pragma GCC unroll 8
    for (int v = 0; v < panels * VECS; v++) {
      sum[r][v] = vec_set(0.0f);
    }
  }
  const float *weight = w->values + w->value_ptr[strip] * SPT_STRIP + first_row;
  const float *x_panel = p->x + panel * p->x_stride;
  for (int64_t run = w->run_ptr[strip]; run < w->run_ptr[strip + 1]; run++) {
    const float *x = x_panel + (int64_t)w->run_start[run] * SPT_LANES;
    for (int32_t k = w->run_len[run]; k > 0; k--) {
      vec xs[LINEAR_PANELS * VECS];
#pragma GCC unroll 8
      for (int v = 0; v < panels * VECS; v++) {
        xs[v] = vec_load(x + v / (VECS)*p->x_stride + v % (VECS)*VEC_WIDTH);
      }
#pragma GCC unroll 16
      for (int r = 0; r < LINEAR_ROWS; r++) {
        vec broadcast = vec_set(weight[r]);
#pragma GCC unroll 8
        for (int v = 0; v < panels * VECS; v++) {
          sum[r][v] += broadcast * xs[v];
        }
      }
      weight += SPT_STRIP;
      x += SPT_LANES;
    }
  }
  /* Through memory: the epilogue is a loop, and sums indexed by a loop would never be registers. */
  float product[LINEAR_ROWS][LINEAR_PANELS * SPT_LANES];
#pragma GCC unroll 16
  for (int r = 0; r < LINEAR_ROWS; r++) {
#pragma GCC unroll 8
    for (int v = 0; v < panels * VECS; v++) {
      vec_store(product[r] + v * VEC_WIDTH, sum[r][v]);
    }
  }
  for (int r = 0; r < LINEAR_ROWS; r++) {
    int64_t row = spt_strip_row(w, strip, first_row + r);
    if (row < 0) {
      continue;
    }
    vec bias = vec_set(p->bias != NULL ? p->bias[row] : 0.0f);
    for (int v = 0; v < panels * VECS; v++) {
      int64_t q = panel + v / (VECS), at = row * SPT_LANES + v % (VECS)*VEC_WIDTH;
      vec y = vec_activate(vec_load(product[r] + v * VEC_WIDTH) + bias, p->activation);
      if (p->residual != NULL) {
        y += vec_load(p->residual + q * p->residual_stride + at);
      }
      vec_store(p->y + q * p->y_stride + at, y);
    }
  }
}

static void panel_linear(const spt_panel_product *p, int64_t strip_begin, int64_t strip_end,
                         int64_t panel_begin, int64_t panel_end) {
  for (int64_t strip = strip_begin; strip < strip_end; strip++) {
    int64_t panel = panel_begin;
#if LINEAR_PANELS == 3
    /* 4 left over go as 2 + 2, not 3 + 1: one panel alone starves the FMA units. */
    for (; panel_end - panel >= 3 && panel_end - panel != 4; panel += 3) {
      for (int r = 0; r < SPT_STRIP; r += LINEAR_ROWS) {
        strip_product(p, strip, r, panel, 3);
      }
    }
    for (; panel_end - panel >= 2; panel += 2) {
      for (int r = 0; r < SPT_STRIP; r += LINEAR_ROWS) {
        strip_product(p, strip, r, panel, 2);
      }
    }
#endif
    for (; panel < panel_end; panel++) {
      for (int r = 0; r < SPT_STRIP; r += LINEAR_ROWS) {
        strip_product(p, strip, r, panel, 1);
      }
    }
  }
}
