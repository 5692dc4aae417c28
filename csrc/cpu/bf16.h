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

/* Zeros in the features from `features` on, of n panels. */
void spt_clear_pair_padding(uint16_t *panels, int64_t features, int64_t n_panels);

/* Copies everything that it needs from `from`. */
SPT_WARN_UNUSED spt_status spt_strips_bf16_create(const char *op, const spt_strips *from,
                                                  const spt_cpu_tier *tier, spt_strips_bf16 **out,
                                                  spt_error *err);
void spt_strips_bf16_free(spt_strips_bf16 *);

#endif
