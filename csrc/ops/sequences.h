/* What topk and select_tokens check alike: packed sequences, and how many of each are wanted. */
#ifndef SPATILE_OPS_SEQUENCES_H
#define SPATILE_OPS_SEQUENCES_H

#include "check.h"

/* scores, called `arg`, is 1-D and cut by offsets; *total is the sum of the counts. */
SPT_WARN_UNUSED spt_status spt_check_sequences(const char *op, const char *arg,
                                               const spt_tensor *scores, const int64_t *offsets,
                                               const int64_t *counts, int64_t n_sequences,
                                               int64_t *total, spt_error *err);

#endif
