#include "weight_strips.h"

#include "../integer.h"
#include "half.h"
#include "pool.h"
#include "scratch.h"
#include "tier.h"

struct gather_job {
  const spt_matrix *w;
  const spt_strips *strips;
  float *values;
};

static void gather_row(float *to, const spt_matrix *w, int64_t row, int64_t column, int64_t n) {
  for (int64_t k = 0; k < n; k++) {
    to[k * SPT_STRIP] =
        row < 0 ? 0.0f : spt_load(w->data, w->dtype, row * w->row + (column + k) * w->col);
  }
}

static void gather_strip(void *context, int64_t strip, int worker) {
  (void)worker;
  const struct gather_job *job = context;
  const spt_strips *s = job->strips;
  float *to = job->values + s->value_ptr[strip] * SPT_STRIP;
  for (int64_t run = s->run_ptr[strip]; run < s->run_ptr[strip + 1]; run++) {
    int64_t start = s->run_start[run], len = s->run_len[run];
    if (s->rows == NULL) {
      /* A strip is a panel whose 16 lanes are output rows. */
      spt_matrix part = *job->w;
      part.data = (char *)part.data + start * part.col * (int64_t)spt_dtype_size(part.dtype);
      part.cols = len;
      spt_cpu_tier_in_use()->panel_pack(to, &part, strip * SPT_STRIP);
    } else {
      for (int r = 0; r < SPT_STRIP; r++) {
        gather_row(to + r, job->w, s->rows[strip * SPT_STRIP + r], start, len);
      }
    }
    to += len * SPT_STRIP;
  }
}

static void widen_strip(void *context, int64_t strip, int worker) {
  (void)worker;
  const spt_weight_strips *to = context;
  const spt_strips *s = &to->strips;
  int64_t begin = s->value_ptr[strip] * SPT_STRIP, end = s->value_ptr[strip + 1] * SPT_STRIP;
  spt_cpu_tier_in_use()->load_row(to->values + begin, s->half + begin, s->half_dtype, 1,
                                  end - begin);
}

static spt_status index_dense(const char *op, const spt_matrix *w, spt_weight_strips *to,
                              spt_error *err) {
  spt_status status = SPT_OK;
  int64_t n = spt_ceil_div(w->rows, SPT_STRIP);
  int64_t *run_ptr =
      spt_scratch(op, n + 1, 2 * sizeof(int64_t) + 2 * sizeof(int32_t), &status, err);
  if (status != SPT_OK) {
    return status;
  }
  int64_t *value_ptr = run_ptr + n + 1;
  int32_t *run_start = (int32_t *)(value_ptr + n + 1), *run_len = run_start + n + 1;
  for (int64_t i = 0; i <= n; i++) {
    run_ptr[i] = w->cols > 0 ? i : 0; /* a run has at least one column */
    value_ptr[i] = i * w->cols;
    run_start[i] = 0;
    run_len[i] = (int32_t)w->cols;
  }
  to->index = run_ptr;
  to->strips = (spt_strips){.out = w->rows,
                            .in = w->cols,
                            .n_strips = n,
                            .n_columns = n * w->cols,
                            .run_ptr = run_ptr,
                            .value_ptr = value_ptr,
                            .run_start = run_start,
                            .run_len = run_len};
  return SPT_OK;
}

spt_status spt_strips_of(const char *op, const spt_weight *w, spt_weight_strips *to,
                         spt_error *err) {
  spt_status status = SPT_OK;
  *to = (spt_weight_strips){0};
  if (w->strips != NULL) {
    to->strips = *w->strips;
  } else {
    SPT_TRY(index_dense(op, &w->dense, to, err));
  }
  if (w->dense.data == NULL && to->strips.values != NULL) {
    return SPT_OK;
  }
  to->values = spt_scratch(op, to->strips.n_columns, SPT_STRIP * sizeof(float), &status, err);
  if (status != SPT_OK) {
    spt_free_weight_strips(to);
    return status;
  }
  to->strips.values = to->values;
  if (w->dense.data == NULL) {
    spt_parallel_for(to->strips.n_strips, widen_strip, to);
    return SPT_OK;
  }
  spt_parallel_for(to->strips.n_strips, gather_strip,
                   &(struct gather_job){&w->dense, &to->strips, to->values});
  return SPT_OK;
}

void spt_free_weight_strips(spt_weight_strips *s) {
  spt_scratch_free(s->index);
  spt_scratch_free(s->values);
  *s = (spt_weight_strips){0};
}
