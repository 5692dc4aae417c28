/* Products of element-wise sparse weights, as CSR (spatile.h), with feature-major panels (tier.h).
 *
 * Each weight loads a register of x per 16 tokens and multiplies it once: loads bound it (about 1.1
 * a cycle from L1 on Zen 5, so 100 of 232 GFLOP/s). So x has to be in L1: a few columns at a time go
 * through all the rows, whose sums wait in memory. The weights of a row are then read in short runs,
 * which no prefetcher foresees: the next run is fetched when one ends. Tried: x copied so that a
 * column's registers are neighbours (no gain, and the copying shows); columns of all rows without
 * blocks (0.5 of the speed at 50 %, the same at 90 %); one sum a row however few the panels, so that a
 * token's bits would not depend on how many others there are (half of the speed at 16 tokens). */
#include "math.h"

#define CSR_ROWS 64
#define CSR_SUMS 8            /* registers: independent sums hide the FMA's latency */
#define CSR_BLOCK_FLOATS 8192 /* of x, 32 KB */
#define CSR_RUN 12 /* weights of a row in a block, at least: what ends a run costs as much */

/* Where the runs of a row's next block begin. */
typedef struct csr_rows {
  float sums[CSR_ROWS][CSR_SUMS * VEC_WIDTH] __attribute__((aligned(64)));
  int64_t at[CSR_ROWS];
} csr_rows;

/* The weights [i, end) of a row left of the column `limit`, into its sums; returns where they end. */
static inline __attribute__((always_inline)) int64_t csr_run(const spt_panel_product *p, float *to,
                                                             int64_t i, int64_t end, int64_t limit,
                                                             const float *x, const int panels) {
  const spt_csr *w = p->csr;
  const int width = panels * VECS, chains = CSR_SUMS / width;
  const int64_t stride = p->x_stride;
  vec sum[CSR_SUMS];
#pragma GCC unroll 8
  for (int v = 0; v < CSR_SUMS; v++) {
    sum[v] = v < width ? vec_load(to + v * VEC_WIDTH) : vec_set(0.0f);
  }
  for (; i + chains <= end && w->col[i + chains - 1] < limit; i += chains) {
#pragma GCC unroll 8
    for (int c = 0; c < chains; c++) {
      const float *from = x + (int64_t)w->col[i + c] * SPT_LANES;
      vec value = vec_set(w->values[i + c]);
#pragma GCC unroll 8
      for (int v = 0; v < width; v++) {
        sum[c * width + v] += value * vec_load(from + v / (VECS)*stride + v % (VECS)*VEC_WIDTH);
      }
    }
  }
  for (; chains > 1 && i < end && w->col[i] < limit; i++) {
    const float *from = x + (int64_t)w->col[i] * SPT_LANES;
    vec value = vec_set(w->values[i]);
#pragma GCC unroll 8
    for (int v = 0; v < width; v++) {
      sum[v] += value * vec_load(from + v / (VECS)*stride + v % (VECS)*VEC_WIDTH);
    }
  }
#pragma GCC unroll 8
  for (int v = width; v < CSR_SUMS; v++) {
    sum[v % width] += sum[v];
  }
#pragma GCC unroll 8
  for (int v = 0; v < width; v++) {
    vec_store(to + v * VEC_WIDTH, sum[v]);
  }
  __builtin_prefetch(w->col + i + 16);
  __builtin_prefetch(w->values + i + 16);
  return i;
}

static inline __attribute__((always_inline)) void csr_block(const spt_panel_product *p,
                                                            int64_t row_begin, int64_t rows,
                                                            int64_t panel, const int panels) {
  const spt_csr *w = p->csr;
  csr_rows b;
  for (int64_t r = 0; r < rows; r++) {
    vec bias = vec_set(p->bias != NULL ? p->bias[row_begin + r] : 0.0f);
    for (int v = 0; v < panels * VECS; v++) {
      vec_store(b.sums[r] + v * VEC_WIDTH, bias);
    }
    b.at[r] = w->row_ptr[row_begin + r];
  }
  int64_t weights = w->row_ptr[row_begin + rows] - w->row_ptr[row_begin];
  int64_t columns = CSR_BLOCK_FLOATS / (panels * SPT_LANES);
  int64_t enough = weights > 0 ? CSR_RUN * rows * w->in / weights : w->in;
  columns = columns > enough ? columns : enough;
  for (int64_t first = 0; first < w->in; first += columns) {
    for (int64_t r = 0; r < rows; r++) {
      b.at[r] = csr_run(p, b.sums[r], b.at[r], w->row_ptr[row_begin + r + 1], first + columns,
                        p->x + panel * p->x_stride, panels);
    }
  }
  for (int64_t r = 0; r < rows; r++) {
    for (int v = 0; v < panels * VECS; v++) {
      int64_t q = panel + v / (VECS);
      int64_t at = (row_begin + r - p->first_row) * SPT_LANES + v % (VECS)*VEC_WIDTH;
      vec y = vec_activate(vec_load(b.sums[r] + v * VEC_WIDTH), p->activation);
      if (p->residual != NULL) {
        y += vec_load(p->residual + q * p->residual_stride + at);
      }
      vec_store(p->y + q * p->y_stride + at, y);
    }
  }
}

static void panel_csr(const spt_panel_product *p, int64_t row_begin, int64_t row_end,
                      int64_t panel_begin, int64_t panel_end) {
  for (int64_t row = row_begin; row < row_end; row += CSR_ROWS) {
    int64_t rows = row_end - row < CSR_ROWS ? row_end - row : CSR_ROWS, panel = panel_begin;
    for (; CSR_SUMS / (VECS) == 8 && panel + 8 <= panel_end; panel += 8) {
      csr_block(p, row, rows, panel, CSR_SUMS / (VECS));
    }
    for (; panel + 4 <= panel_end; panel += 4) {
      csr_block(p, row, rows, panel, 4);
    }
    for (; panel + 2 <= panel_end; panel += 2) {
      csr_block(p, row, rows, panel, 2);
    }
    if (panel < panel_end) {
      csr_block(p, row, rows, panel, 1);
    }
  }
}
