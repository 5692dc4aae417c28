/* A dense matrix cut into strips, so that one kernel multiplies with every form of weight. */
#ifndef SPATILE_CPU_DENSE_STRIPS_H
#define SPATILE_CPU_DENSE_STRIPS_H

#include "../backend.h"

typedef struct spt_dense_strips {
  spt_strips strips; /* its arrays are those below */
  int64_t *run_ptr, *value_ptr;
  int32_t *run_start, *run_len;
  float *values;
} spt_dense_strips;

/* One pass over w. On failure there is nothing to free. */
SPT_WARN_UNUSED spt_status spt_cut_dense(const char *op, const spt_matrix *w, spt_dense_strips *,
                                         spt_error *);
/* A zeroed one too. */
void spt_free_dense_strips(spt_dense_strips *);

#endif
