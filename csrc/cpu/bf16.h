/* Strips in bfloat16, made from float32 ones for the kernels of one tier. */
#ifndef SPATILE_CPU_BF16_H
#define SPATILE_CPU_BF16_H

#include "tier.h"

/* Features that a pair panel has room for: products read whole granules, whose last columns may lie
 * behind the matrix. They multiply zero weights, and must be finite. */
#define SPT_PAIR_PANEL_MULTIPLE 32
static inline int64_t spt_pair_panel_features(int64_t features) {
  return (features + SPT_PAIR_PANEL_MULTIPLE - 1) / SPT_PAIR_PANEL_MULTIPLE *
         SPT_PAIR_PANEL_MULTIPLE;
}

/* Rows of bfloat16 as rows of words of two: what turns rows into panels makes pairs of them. */
static inline bool spt_as_words(const spt_matrix *x, spt_matrix *words) {
  *words = (spt_matrix){.data = x->data,
                        .dtype = SPT_F32,
                        .rows = x->rows,
                        .cols = x->cols / 2,
                        .row = x->row / 2,
                        .col = 1};
  return x->dtype == SPT_BF16 && x->col == 1 && x->row % 2 == 0 && x->cols % 2 == 0 &&
         (uintptr_t)x->data % 4 == 0;
}

/* Zeros in the features from `features` on, of n panels. */
void spt_clear_pair_padding(uint16_t *panels, int64_t features, int64_t n_panels);

/* Copies everything that it needs from `from`. */
SPT_WARN_UNUSED spt_status spt_strips_bf16_create(const char *op, const spt_strips *from,
                                                  const spt_cpu_tier *tier, spt_strips_bf16 **out,
                                                  spt_error *err);
void spt_strips_bf16_free(spt_strips_bf16 *);

#endif
