/* Weights times feature-major panels, cut into tasks for the pool. */
#ifndef SPATILE_CPU_PRODUCT_H
#define SPATILE_CPU_PRODUCT_H

#include "tier.h"

#define SPT_BLOCK_PANELS 12 /* 192 tokens of 1024 features are 0.8 MB: one core's L2 */
#define SPT_BLOCK_UNITS 4

/* Units are what tasks are cut into: strips, or 16 rows of a CSR matrix. */
int64_t spt_product_units(const spt_panel_product *);

/* y = act(w · x + bias) + residual for units [begin, end) over panels [0, n_panels). */
void spt_product_run(const spt_panel_product *, int64_t begin, int64_t end, int64_t n_panels);

/* The same for whoever does more with each block: how many there are, which one is the i-th, and its
 * product, on the calling thread. */
typedef struct spt_product_block {
  int64_t begin, end, panel, panel_end;
} spt_product_block;
int64_t spt_product_blocks(int64_t units, int64_t n_panels);
spt_product_block spt_product_block_at(int64_t units, int64_t n_panels, int64_t i);
void spt_product_run_block(const spt_panel_product *, int64_t begin, int64_t end, int64_t panel,
                           int64_t panel_end);

#endif
