/* topk: the k largest of each sequence, in their original order. */
#include <math.h>
#include <stdatomic.h>

#include "half.h"
#include "ops.h"
#include "pool.h"
#include "quick_select.h"
#include "rows.h"
#include "scratch.h"

struct topk_job {
  const spt_cpu_tier *tier;
  const spt_topk_problem *p;
  int64_t *starts; /* where each packed sequence's results begin, or NULL */
  uint32_t *words; /* (workers, words_each): keys, what quick-select needs, scores as floats */
  int64_t longest, words_each;
  atomic_llong nan_at; /* the first score that is NaN, or INT64_MAX */
};

static void report_nan(struct topk_job *job, const float *scores, int64_t n, int64_t first) {
  int64_t i = 0;
  while (i < n - 1 && scores[i] == scores[i]) { /* another thread may have changed them by now */
    i++;
  }
  long long at = first + i, seen = atomic_load(&job->nan_at);
  while (at < seen && !atomic_compare_exchange_weak(&job->nan_at, &seen, at)) {
  }
}

static int64_t length_of(const spt_topk_problem *p, int64_t i) {
  return p->offsets != NULL ? p->offsets[i + 1] - p->offsets[i]
                            : p->scores.shape[p->scores.ndim - 1];
}

/* Offset of the first result of sequence i. */
static int64_t result_at(const struct topk_job *job, const spt_tensor *t, int64_t i) {
  return job->starts != NULL ? job->starts[i] * t->stride[0] : spt_row_offset(t, i);
}

/* Bits are copied, so that -0 stays -0. */
static void copy_element(const spt_tensor *to, int64_t at, const spt_tensor *from,
                         int64_t from_at) {
  size_t size = spt_dtype_size(from->dtype);
  memcpy(spt_element(to, at), spt_element(from, from_at), size);
}

/* The selection of row i, whose scores lie from `from` on, written out. */
static void write_results(const struct topk_job *job, int64_t i, spt_kept_row *row, int64_t from,
                          spt_selection most) {
  const spt_tensor *s = &job->p->scores, *values = &job->p->values, *to = &job->p->indices;
  int64_t step = s->stride[s->ndim - 1], index_step = to->stride[to->ndim - 1];
  bool with_values = values->data != NULL;
  int64_t value = with_values ? result_at(job, values, i) : 0;
  int64_t *indices = (int64_t *)to->data + result_at(job, to, i);
  bool plain = s->dtype == SPT_F32 && step == 1 && index_step == 1 &&
               (!with_values || values->stride[values->ndim - 1] == 1);
  if (plain) {
    row->values = with_values ? (float *)values->data + value : NULL;
    row->indices = indices;
    job->tier->keep_row(row, most);
    return;
  }
  for (int64_t j = 0, kept = 0; kept < row->k; j++) {
    if (spt_is_selected(&most, row->keys[j])) {
      if (with_values) {
        copy_element(values, value + kept * values->stride[values->ndim - 1], s, from + j * step);
      }
      indices[kept++ * index_step] = row->first + j;
    }
  }
}

static void select_sequence(void *context, int64_t i, int worker) {
  struct topk_job *job = context;
  const spt_topk_problem *p = job->p;
  const spt_tensor *s = &p->scores;
  bool packed = p->offsets != NULL;
  int64_t n = length_of(p, i), step = s->stride[s->ndim - 1];
  int64_t first = packed ? p->offsets[i] : 0;
  int64_t from = packed ? first * step : spt_row_offset(s, i);
  uint32_t *keys = job->words + worker * job->words_each, *spare = keys + job->longest;
  const float *scores = (const float *)s->data + from;
  if (s->dtype != SPT_F32 || step != 1) {
    float *loaded = (float *)(spare + job->longest + SPT_SELECT_SAMPLE);
    job->tier->load_row(loaded, spt_element(s, from), s->dtype, step, n);
    scores = loaded;
  }
  if (!job->tier->select_keys(keys, scores, n)) {
    report_nan(job, scores, n, packed ? first : i * n);
    return;
  }
  if (p->protected_first && n > 0) {
    keys[0] = 0;
  }
  for (int64_t j = 0; p->protect != NULL && j < n; j++) {
    keys[j] = p->protect[first + j] ? 0 : keys[j];
  }
  spt_kept_row row = {
      .keys = keys, .scores = scores, .n = n, .k = packed ? p->counts[i] : p->k, .first = first};
  if (row.k > 0) {
    write_results(job, i, &row, from, spt_quick_select(job->tier, keys, n, row.k, spare));
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
  struct topk_job job = {.tier = spt_cpu_tier_in_use(), .p = p};
  atomic_init(&job.nan_at, INT64_MAX);
  for (int64_t i = 0; i < (packed ? count : count > 0); i++) {
    int64_t n = length_of(p, i);
    job.longest = n > job.longest ? n : job.longest;
  }
  job.words_each = 3 * job.longest + SPT_SELECT_SAMPLE;
  job.words = spt_scratch(p->op, job.words_each, sizeof(uint32_t) * (size_t)workers, &status, err);
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
  spt_scratch_free(job.words);
  spt_scratch_free(job.starts);
  return status;
}
