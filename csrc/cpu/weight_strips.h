/* Weights as strips, whatever form they came in, so that one kernel multiplies with all of them. */
#ifndef SPATILE_CPU_WEIGHT_STRIPS_H
#define SPATILE_CPU_WEIGHT_STRIPS_H

#include "../backend.h"

typedef struct spt_weight_strips {
  spt_strips strips;
  void *index;   /* owned, or NULL where the caller's is in use */
  float *values; /* likewise */
} spt_weight_strips;

/* Strips of a weight that is not CSR, with values in float32. A dense matrix is cut, of one with
 * strips beside it the kept weights are gathered, and values in 16 bits are widened: one pass. On
 * failure there is nothing to free. */
SPT_WARN_UNUSED spt_status spt_strips_of(const char *op, const spt_weight *, spt_weight_strips *,
                                         spt_error *);

/* Strips of w transposed: those of wT's rows, w's columns, that w keeps anywhere, 16 at a time, and
 * then the others, which have none. Where w keeps only a part of 16 such columns, the rest is zero.
 * One pass over the kept weights. */
SPT_WARN_UNUSED spt_status spt_transpose_strips(const char *op, const spt_strips *w,
                                                spt_weight_strips *, spt_error *);

/* A zeroed one too. */
void spt_free_weight_strips(spt_weight_strips *);

#endif
