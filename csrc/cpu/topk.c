/* topk: the k largest of each sequence, in their original order. */
#include <math.h>
#include <stdatomic.h>

#include "half.h"
#include "ops.h"
#include "pool.h"
#include "rows.h"
#include "scratch.h"
#include "select.h"

struct topk_job {
  const spt_topk_problem *p;
  int64_t *starts; /* where each packed sequence's results begin, or NULL */
  uint32_t *keys;  /* (workers, longest) */
  int64_t longest;
  atomic_llong nan_at; /* the first score that is NaN, or INT64_MAX */
};

static void report_nan(struct topk_job *job, int64_t at) {
  long long seen = atomic_load(&job->nan_at);
  while (at < seen && !atomic_compare_exchange_weak(&job->nan_at, &seen, at)) {
  }
}

static int64_t length_of(const spt_topk_problem *p, int64_t i) {
  return p->offsets != NULL ? p->offsets[i + 1] - p->offsets[i]
                            : p->scores.shape[p->scores.ndim - 1];
}

static void select_sequence(void *context, int64_t i, int worker) {
  struct topk_job *job = context;
  const spt_topk_problem *p = job->p;
  const spt_tensor *s = &p->scores;
  bool packed = p->offsets != NULL;
  int64_t n = length_of(p, i), k = packed ? p->counts[i] : p->k;
  int64_t first = packed ? p->offsets[i] : 0, step = s->stride[s->ndim - 1];
  int64_t from = packed ? first * step : spt_row_offset(s, i);
  uint32_t *keys = job->keys + worker * job->longest;
  for (int64_t j = 0; j < n; j++) {
    float score = spt_load(s->data, s->dtype, from + j * step);
    if (score != score) {
      report_nan(job, packed ? first + j : i * n + j);
      return;
    }
    keys[j] = spt_select_key(score);
  }
  if (p->protected_first && n > 0) {
    keys[0] = 0;
  }
  for (int64_t j = 0; p->protect != NULL && j < n; j++) {
    keys[j] = p->protect[first + j] ? 0 : keys[j];
  }
  if (k == 0) {
    return;
  }
  spt_selection most = spt_select_smallest(keys, n, k);
  bool with_values = p->values.data != NULL;
  int64_t values_step = with_values ? p->values.stride[p->values.ndim - 1] : 0;
  int64_t indices_step = p->indices.stride[p->indices.ndim - 1];
  int64_t value = packed        ? job->starts[i] * values_step
                  : with_values ? spt_row_offset(&p->values, i)
                                : 0;
  int64_t index = packed ? job->starts[i] * indices_step : spt_row_offset(&p->indices, i);
  for (int64_t j = 0; j < n; j++) {
    if (spt_is_selected(&most, keys[j])) {
      /* Bits are copied, so that -0 stays -0. */
      if (with_values) {
        spt_store(p->values.data, s->dtype, value, spt_load(s->data, s->dtype, from + j * step));
      }
      ((int64_t *)p->indices.data)[index] = first + j;
      value += values_step;
      index += indices_step;
    }
  }
}

static spt_status refuse_nan(const struct topk_job *job, spt_error *err) {
  long long at = atomic_load(&job->nan_at);
  if (at == INT64_MAX) {
    return SPT_OK;
  }
  return spt_fail(err, SPT_INVALID_VALUE,
                  "%s: %s holds NaN (element %lld), expected numbers that can be ordered",
                  job->p->op, job->p->arg, at);
}

spt_status spt_cpu_topk(void *state, const spt_topk_problem *p, spt_error *err) {
  (void)state;
  spt_status status = SPT_OK;
  bool packed = p->offsets != NULL;
  int64_t count = packed ? p->n_sequences : spt_row_count(&p->scores);
  int workers = spt_pool_width();
  struct topk_job job = {.p = p};
  atomic_init(&job.nan_at, INT64_MAX);
  for (int64_t i = 0; i < (packed ? count : count > 0); i++) {
    int64_t n = length_of(p, i);
    job.longest = n > job.longest ? n : job.longest;
  }
  job.keys = spt_scratch(p->op, job.longest, sizeof(uint32_t) * (size_t)workers, &status, err);
  if (packed) {
    job.starts = spt_scratch(p->op, count, sizeof(int64_t), &status, err);
    for (int64_t i = 0, start = 0; job.starts != NULL && i < count; i++) {
      job.starts[i] = start;
      start += p->counts[i];
    }
  }
  if (status == SPT_OK) {
    spt_parallel_for_workers(count, workers, select_sequence, &job);
    status = refuse_nan(&job, err);
  }
  spt_scratch_free(job.keys);
  spt_scratch_free(job.starts);
  return status;
}
