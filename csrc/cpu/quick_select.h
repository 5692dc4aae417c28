/* The k smallest keys by a tier's own loops. A few keys: one bit of the k-th smallest after the other,
 * by counting those below, which takes 32 passes but no branch. Many: a sample's neighbours of the
 * wanted rank let all others be dropped at once; where the sample deceives, or cannot tell them apart,
 * select.h counts digits, so that the time stays linear.
 */
#ifndef SPATILE_CPU_QUICK_SELECT_H
#define SPATILE_CPU_QUICK_SELECT_H

#include "tier.h"

/* 1 <= k <= n. `spare` has room for n keys and SPT_SELECT_SAMPLE more. */
#define SPT_SELECT_SAMPLE 1024
spt_selection spt_quick_select(const spt_cpu_tier *, const uint32_t *keys, int64_t n, int64_t k,
                               uint32_t *spare);

#endif
