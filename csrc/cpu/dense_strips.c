#include "dense_strips.h"

#include "../integer.h"
#include "pool.h"
#include "scratch.h"
#include "tier.h"

struct cut_job {
  const spt_matrix *w;
  float *values;
};

static void cut_strip(void *context, int64_t strip, int worker) {
  (void)worker;
  const struct cut_job *job = context;
  /* A strip is a panel whose 16 lanes are output rows. */
  spt_cpu_tier_in_use()->panel_pack(job->values + strip * job->w->cols * SPT_STRIP, job->w,
                                    strip * SPT_STRIP);
}

void spt_free_dense_strips(spt_dense_strips *d) {
  free(d->run_ptr);
  free(d->values);
}

spt_status spt_cut_dense(const char *op, const spt_matrix *w, spt_dense_strips *d, spt_error *err) {
  spt_status status = SPT_OK;
  int64_t n = spt_ceil_div(w->rows, SPT_STRIP);
  *d = (spt_dense_strips){0};
  char *index = spt_scratch(op, n + 1, 2 * sizeof(int64_t) + 2 * sizeof(int32_t), &status, err);
  d->run_ptr = (int64_t *)index;
  d->values = spt_scratch(op, n * w->cols, SPT_STRIP * sizeof(float), &status, err);
  if (status != SPT_OK) {
    spt_free_dense_strips(d);
    return status;
  }
  d->value_ptr = d->run_ptr + n + 1;
  d->run_start = (int32_t *)(d->value_ptr + n + 1);
  d->run_len = d->run_start + n + 1;
  for (int64_t i = 0; i <= n; i++) {
    d->run_ptr[i] = w->cols > 0 ? i : 0; /* a run has at least one column */
    d->value_ptr[i] = i * w->cols;
    d->run_start[i] = 0;
    d->run_len[i] = (int32_t)w->cols;
  }
  spt_parallel_for(n, cut_strip, &(struct cut_job){w, d->values});
  d->strips = (spt_strips){.out = w->rows,
                           .in = w->cols,
                           .n_strips = n,
                           .n_columns = n * w->cols,
                           .run_ptr = d->run_ptr,
                           .value_ptr = d->value_ptr,
                           .run_start = d->run_start,
                           .run_len = d->run_len,
                           .values = d->values};
  return SPT_OK;
}
