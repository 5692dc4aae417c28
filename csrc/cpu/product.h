/* Weights times feature-major panels, cut into tasks for the pool. */
#ifndef SPATILE_CPU_PRODUCT_H
#define SPATILE_CPU_PRODUCT_H

#include "tier.h"

/* Units are what tasks are cut into: strips, or 16 rows of a CSR matrix. */
int64_t spt_product_units(const spt_panel_product *);

/* y = act(w · x + bias) + residual for units [begin, end) over panels [0, n_panels). */
void spt_product_run(const spt_panel_product *, int64_t begin, int64_t end, int64_t n_panels);

#endif
