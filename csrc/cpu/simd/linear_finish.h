/* What follows a strip's sums: bias, activation and residual, to float32 or bfloat16 panels. */
/* Through memory: the epilogue is a loop, and sums indexed by a loop would never be registers. */
static inline __attribute__((always_inline)) void store_sums(
    float (*product)[LINEAR_PANELS * SPT_LANES], vec (*sum)[LINEAR_PANELS * VECS], const int rows,
    const int vecs) {
#pragma GCC unroll 16
  for (int r = 0; r < rows; r++) {
#pragma GCC unroll 8
    for (int v = 0; v < vecs; v++) {
      vec_store(product[r] + v * VEC_WIDTH, sum[r][v]);
    }
  }
}

/* One register of output row `row`, lanes from `lane` on of panel q. */
static inline vec finish(const spt_panel_product *p, vec sum, int64_t row, int64_t q, int lane) {
  vec bias = vec_set(p->bias != NULL ? p->bias[row] : 0.0f);
  vec y = vec_activate(sum + bias, p->activation);
  if (p->residual != NULL) {
    int64_t at = (row - p->first_row) * SPT_LANES + lane;
    y += vec_load(p->residual + q * p->residual_stride + at);
  }
  return y;
}

static void store_bf16(const spt_panel_product *p, int64_t row, int64_t q, int lane, vec y) {
  uint16_t *panel = p->y_bf16 + q * p->y_stride, half[VEC_WIDTH];
  if (row >= p->pair_rows) {
    vec_store_bf16(panel + row * SPT_LANES + lane, y);
    return;
  }
  vec_store_bf16(half, y);
  for (int l = 0; l < VEC_WIDTH; l++) {
    panel[(row / 2 * SPT_LANES + lane + l) * 2 + row % 2] = half[l];
  }
}

/* From row sums to y: what follows the products of rows [first_row, first_row + rows) of a strip. Row r
 * of `product` starts at r * product_stride, 16 sums for each panel. */
static void finish_rows(const spt_panel_product *p, const spt_strips *w, int64_t strip,
                        int first_row, int rows, int64_t panel, int vecs, const float *product,
                        int product_stride) {
  for (int r = 0; r < rows; r++) {
    int64_t row = spt_strip_row(w, strip, first_row + r);
    if (row < 0) {
      continue;
    }
    const float *even = product + r * product_stride;
    bool pair = p->y_bf16 != NULL && r + 1 < rows && row % 2 == 0 && row + 1 < p->pair_rows &&
                spt_strip_row(w, strip, first_row + r + 1) == row + 1;
    for (int v = 0; v < vecs; v++) {
      int64_t q = panel + v / (VECS);
      int lane = v % (VECS)*VEC_WIDTH;
      vec y = finish(p, vec_load(even + v * VEC_WIDTH), row, q, lane);
      if (p->y_bf16 == NULL) {
        vec_store(p->y + q * p->y_stride + (row - p->first_row) * SPT_LANES + lane, y);
      } else if (pair) {
        vec odd = finish(p, vec_load(even + product_stride + v * VEC_WIDTH), row + 1, q, lane);
        vec_store_pairs(p->y_bf16 + q * p->y_stride + row * SPT_LANES + 2 * lane,
                        vec_pairs_bf16(y, odd));
      } else {
        store_bf16(p, row, q, lane, y);
      }
    }
    r += pair;
  }
}

/* Whether rows [first_row, first_row + rows) of a strip need no more than finish_plain. */
static bool is_plain(const spt_panel_product *p, const spt_strips *w, int64_t strip, int first_row,
                     int rows) {
  int64_t row = strip * SPT_STRIP + first_row, end = row + rows;
  return p->activation == SPT_ACT_NONE && w->rows == NULL && end <= w->out &&
         (p->y_bf16 == NULL || (end <= p->pair_rows && p->residual == NULL));
}

/* The same straight from the registers: a strip of a sparse matrix is so short that the way through
 * memory takes a tenth of its time. */
static inline __attribute__((always_inline)) void finish_plain(const spt_panel_product *p,
                                                               int64_t row, int64_t panel,
                                                               vec (*sum)[LINEAR_PANELS * VECS],
                                                               const int rows, const int vecs) {
#pragma GCC unroll 16
  for (int r = 0; r < rows; r++) {
    vec bias = vec_set(p->bias != NULL ? p->bias[row + r] : 0.0f);
#pragma GCC unroll 8
    for (int v = 0; v < vecs; v++) {
      sum[r][v] += bias;
    }
  }
#pragma GCC unroll 8
  for (int v = 0; v < vecs; v++) {
    int64_t q = panel + v / (VECS), lane = v % (VECS)*VEC_WIDTH;
    int64_t at = (row - p->first_row) * SPT_LANES + lane;
    if (p->y_bf16 != NULL) {
      uint16_t *y = p->y_bf16 + q * p->y_stride + row * SPT_LANES + 2 * lane;
#pragma GCC unroll 16
      for (int r = 0; r < rows; r += 2) {
        vec_store_pairs(y + r * SPT_LANES, vec_pairs_bf16(sum[r][v], sum[r + 1][v]));
      }
      continue;
    }
    if (p->residual != NULL) {
      const float *residual = p->residual + q * p->residual_stride + at;
#pragma GCC unroll 16
      for (int r = 0; r < rows; r++) {
        sum[r][v] += vec_load(residual + r * SPT_LANES);
      }
    }
    float *y = p->y + q * p->y_stride + at;
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) {
      vec_store(y + r * SPT_LANES, sum[r][v]);
    }
  }
}
