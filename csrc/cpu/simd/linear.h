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

/* The weights of the strip that comes next, fetched during a pass over this one: weights come from
 * memory once, and a pass that waits for them runs at half speed (measured: 105 against 224 GFLOP/s at
 * 32 tokens, 182 against 235 at 128). The processor's own prefetchers start too late. */
#define PREFETCH_COLUMNS 384 /* at least so far ahead: the strips of a sparse matrix are short */

typedef struct prefetch {
  const char *at;
  int lines; /* for every 16 columns */
} prefetch;

static inline __attribute__((always_inline)) void add_columns(vec (*sum)[LINEAR_PANELS * VECS],
                                                              const float *weight, const float *x,
                                                              int64_t x_stride, int32_t columns,
                                                              const int panels) {
  for (int32_t k = columns; k > 0; k--) {
    vec xs[LINEAR_PANELS * VECS];
#pragma GCC unroll 8
    for (int v = 0; v < panels * VECS; v++) {
      xs[v] = vec_load(x + v / (VECS)*x_stride + v % (VECS)*VEC_WIDTH);
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

static inline __attribute__((always_inline)) void strip_product(const spt_panel_product *p,
                                                                int64_t strip, int first_row,
                                                                int64_t panel, prefetch next,
                                                                const int panels) {
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
    for (int32_t left = w->run_len[run]; left > 0; left -= 16) {
      int32_t columns = left < 16 ? left : 16;
      for (int i = 0; i < next.lines; i++, next.at += 64) {
        _mm_prefetch(next.at, _MM_HINT_T1);
      }
      add_columns(sum, weight, x, p->x_stride, columns, panels);
      weight += columns * SPT_STRIP;
      x += columns * SPT_LANES;
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

/* 4 left over go as 2 + 2, not 3 + 1: one panel alone starves the FMA units. */
static int panels_at_once(int64_t left) {
  return (int)(left == 4 && LINEAR_PANELS == 3 ? 2 : left < LINEAR_PANELS ? left : LINEAR_PANELS);
}

static void panel_linear(const spt_panel_product *p, int64_t strip_begin, int64_t strip_end,
                         int64_t panel_begin, int64_t panel_end) {
  const spt_strips *w = p->strips;
  int64_t panels = panel_end - panel_begin;
  int64_t passes = (panels + LINEAR_PANELS - 1) / LINEAR_PANELS * (SPT_STRIP / LINEAR_ROWS);
  /* A column of a strip is one cache line, so 16 columns of the next one are 16 lines. */
  prefetch next = {.lines = (int)((16 + passes - 1) / passes)};
  for (int64_t strip = strip_begin; strip < strip_end; strip++) {
    const int64_t *columns = w->value_ptr + strip;
    int64_t far =
        columns[1] > columns[0] + PREFETCH_COLUMNS ? columns[1] : columns[0] + PREFETCH_COLUMNS;
    const char *ahead = (const char *)(w->values + far * SPT_STRIP);
    int64_t segment = (columns[1] - columns[0]) * next.lines / 16 * 64, pass = 0;
    int64_t panel = panel_begin;
    while (panel < panel_end) {
      int here = panels_at_once(panel_end - panel);
      for (int r = 0; r < SPT_STRIP; r += LINEAR_ROWS, pass++) {
        next.at = ahead + pass * segment;
        switch (here) {
#if LINEAR_PANELS == 3
          case 3:
            strip_product(p, strip, r, panel, next, 3);
            break;
          case 2:
            strip_product(p, strip, r, panel, next, 2);
            break;
#endif
          default:
            strip_product(p, strip, r, panel, next, 1);
        }
      }
      panel += here;
    }
  }
}
