/* layer_norm, gelu, dropout, softmax and embedding on the CPU: rows are handed to the tier as floats,
 * in place where they are floats already. */
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "../integer.h"
#include "half.h"
#include "ops.h"
#include "pool.h"
#include "rows.h"
#include "scratch.h"
#include "tier.h"

#define TASK_ELEMENTS 16384
#define PIECE 4096 /* elements at a time of what needs no whole row */

struct row_job {
  const spt_cpu_tier *tier;
  spt_tensor x, y, other; /* other: a second input, or data NULL */
  int64_t rows, n;        /* n: elements of a row, or of a piece of one */
  int64_t pieces;         /* of a row */
  int64_t rows_per_task;  /* pieces count as rows */
  float *scratch;         /* (workers, 3, n) */
  const float *weight, *bias;
  float eps;
  spt_activation activation;
  spt_element_dropout dropout;
  /* `first`: the number of the row's or piece's first element. */
  void (*compute)(const struct row_job *, float *y, const float *x, const float *other,
                  int64_t first, int64_t n);
};

static bool is_plain(const spt_tensor *t) {
  int64_t last = t->ndim - 1;
  return t->dtype == SPT_F32 && (t->stride[last] == 1 || t->shape[last] == 1);
}

/* n elements as floats: the caller's own where they are that already. */
static const float *load(const struct row_job *job, float *buffer, const spt_tensor *t, int64_t row,
                         int64_t col, int64_t n) {
  if (t->data == NULL) {
    return NULL;
  }
  int64_t stride = t->stride[t->ndim - 1];
  void *from = spt_element(t, spt_row_offset(t, row) + col * stride);
  if (is_plain(t)) {
    return from;
  }
  job->tier->load_row(buffer, from, t->dtype, stride, n);
  return buffer;
}

static void run_rows(void *context, int64_t task, int worker) {
  const struct row_job *job = context;
  int64_t last = job->x.ndim - 1, width = job->x.shape[last];
  float *x_buffer = job->scratch + worker * 3 * job->n, *y_buffer = x_buffer + job->n;
  int64_t end = spt_min((task + 1) * job->rows_per_task, job->rows * job->pieces);
  for (int64_t i = task * job->rows_per_task; i < end; i++) {
    int64_t row = i / job->pieces, col = i % job->pieces * job->n, n = spt_min(job->n, width - col);
    const float *x = load(job, x_buffer, &job->x, row, col, n);
    const float *other = load(job, y_buffer + job->n, &job->other, row, col, n);
    int64_t y_stride = job->y.stride[last];
    void *to = spt_element(&job->y, spt_row_offset(&job->y, row) + col * y_stride);
    float *y = is_plain(&job->y) ? to : y_buffer;
    job->compute(job, y, x, other, row * width + col, n);
    if (y == y_buffer) {
      job->tier->store_row(to, job->y.dtype, y_stride, y, n);
    }
  }
}

/* Whole rows, or pieces of them where `piece` is not 0. */
static spt_status run(const char *op, struct row_job *job, int64_t piece, spt_error *err) {
  spt_status status = SPT_OK;
  int64_t width = job->x.shape[job->x.ndim - 1];
  job->tier = spt_cpu_tier_in_use();
  job->rows = spt_row_count(&job->x);
  if (job->rows == 0 || width == 0) {
    return SPT_OK;
  }
  int workers = spt_pool_width();
  job->n = piece > 0 ? spt_min(piece, width) : width;
  job->pieces = spt_ceil_div(width, job->n);
  job->rows_per_task = spt_ceil_div(TASK_ELEMENTS, job->n);
  job->scratch = spt_scratch(op, job->n, 3 * sizeof(float) * (size_t)workers, &status, err);
  if (status == SPT_OK) {
    spt_parallel_for_workers(spt_ceil_div(job->rows * job->pieces, job->rows_per_task), workers,
                             run_rows, job);
  }
  spt_scratch_free(job->scratch);
  return status;
}

/* ---- layer_norm --------------------------------------------------------------------------------- */

static void layer_norm(const struct row_job *job, float *y, const float *x, const float *other,
                       int64_t first, int64_t n) {
  (void)first;
  if (other != NULL) {
    memmove(y, x, (size_t)n * sizeof *y);
    job->tier->add_row(y, other, n);
    x = y;
  }
  job->tier->layer_norm_row(y, x, job->weight, job->bias, job->eps, n);
}

spt_status spt_cpu_layer_norm(void *state, const spt_layer_norm_problem *p, spt_error *err) {
  (void)state;
  spt_status status = SPT_OK;
  const char *op = "layer_norm";
  const spt_cpu_tier *tier = spt_cpu_tier_in_use();
  int64_t n = p->weight.cols;
  float *parameters = spt_scratch(op, n, 2 * sizeof(float), &status, err);
  if (status != SPT_OK) {
    return status;
  }
  tier->load_row(parameters, p->weight.data, p->weight.dtype, p->weight.col, n);
  tier->load_row(parameters + n, p->bias.data, p->bias.dtype, p->bias.col, n);
  struct row_job job = {.x = p->x,
                        .y = p->y,
                        .other = p->residual,
                        .weight = parameters,
                        .bias = parameters + n,
                        .eps = p->eps,
                        .compute = layer_norm};
  status = run(op, &job, 0, err);
  spt_scratch_free(parameters);
  return status;
}

/* ---- gelu --------------------------------------------------------------------------------------- */

static void activate(const struct row_job *job, float *y, const float *x, const float *other,
                     int64_t first, int64_t n) {
  (void)other, (void)first;
  job->tier->activate_row(y, x, job->activation, n);
}

spt_status spt_cpu_gelu(void *state, const spt_gelu_problem *p, spt_error *err) {
  (void)state;
  struct row_job job = {.x = p->x, .y = p->y, .activation = p->activation, .compute = activate};
  return run("gelu", &job, PIECE, err);
}

/* ---- dropout ------------------------------------------------------------------------------------ */

static void drop(const struct row_job *job, float *y, const float *x, const float *other,
                 int64_t first, int64_t n) {
  (void)other;
  job->tier->dropout_row(y, x, (uint64_t)first, n, &job->dropout);
}

spt_status spt_cpu_dropout(void *state, const spt_dropout_problem *p, spt_error *err) {
  (void)state;
  struct row_job job = {.x = p->x,
                        .y = p->y,
                        .dropout = {.threshold = (uint32_t)floor(ldexp(p->p, 32)),
                                    .kept_scale = (float)(1.0 / (1.0 - p->p)),
                                    .seed = p->seed},
                        .compute = drop};
  return run("dropout", &job, PIECE, err);
}

/* ---- softmax ------------------------------------------------------------------------------------ */

static void softmax(const struct row_job *job, float *y, const float *x, const float *other,
                    int64_t first, int64_t n) {
  (void)other, (void)first;
  job->tier->softmax_row(y, x, n);
}

spt_status spt_cpu_softmax(void *state, const spt_softmax_problem *p, spt_error *err) {
  (void)state;
  struct row_job job = {.x = p->x, .y = p->y, .compute = softmax};
  return run("softmax", &job, 0, err);
}

/* ---- embedding ---------------------------------------------------------------------------------- */

struct embedding_job {
  const spt_embedding_problem *p;
  int64_t count, per_task;
  atomic_llong wrong; /* the first position whose id is outside the table, or INT64_MAX */
};

/* Offset of the element at a row-major position. */
static int64_t offset_of(const spt_tensor *t, int ndim, int64_t position) {
  int64_t offset = 0;
  for (int i = ndim - 1; i >= 0; i--) {
    offset += position % t->shape[i] * t->stride[i];
    position /= t->shape[i];
  }
  return offset;
}

static int64_t id_at(const spt_tensor *ids, int64_t position) {
  int64_t at = offset_of(ids, ids->ndim, position);
  return ids->dtype == SPT_I32 ? ((const int32_t *)ids->data)[at]
                               : ((const int64_t *)ids->data)[at];
}

static void copy_row(const spt_embedding_problem *p, int64_t position, int64_t id) {
  const spt_matrix *table = &p->table;
  size_t size = spt_dtype_size(table->dtype);
  int64_t step = p->rows.stride[p->rows.ndim - 1];
  const char *from = (const char *)table->data + id * table->row * (int64_t)size;
  char *to = spt_element(&p->rows, offset_of(&p->rows, p->rows.ndim - 1, position));
  if (table->cols == 1 || (table->col == 1 && step == 1)) {
    memcpy(to, from, (size_t)table->cols * size);
    return;
  }
  for (int64_t c = 0; c < table->cols; c++) {
    memcpy(to + c * step * (int64_t)size, from + c * table->col * (int64_t)size, size);
  }
}

static void copy_rows(void *context, int64_t task, int worker) {
  (void)worker;
  struct embedding_job *job = context;
  int64_t end = spt_min((task + 1) * job->per_task, job->count);
  for (int64_t i = task * job->per_task; i < end; i++) {
    int64_t id = id_at(&job->p->ids, i);
    if (id >= 0 && id < job->p->table.rows) {
      copy_row(job->p, i, id);
      continue;
    }
    long long seen = atomic_load(&job->wrong);
    while (i < seen && !atomic_compare_exchange_weak(&job->wrong, &seen, i)) {
    }
    return;
  }
}

static spt_status refuse_id(const spt_embedding_problem *p, int64_t position, spt_error *err) {
  char index[SPT_MAX_NDIM * 22 + 4] = "";
  int64_t rest = position, at[SPT_MAX_NDIM];
  for (int i = p->ids.ndim - 1; i >= 0; i--) {
    at[i] = rest % p->ids.shape[i];
    rest /= p->ids.shape[i];
  }
  size_t used = 0;
  for (int i = 0; i < p->ids.ndim; i++) {
    used += (size_t)snprintf(index + used, sizeof index - used, "%s%lld", i == 0 ? "[" : ", ",
                             (long long)at[i]);
  }
  return spt_fail(err, SPT_INVALID_VALUE, "%s: %s%s%s is %lld, expected 0 to %lld", p->op, p->arg,
                  index, used > 0 ? "]" : "", (long long)id_at(&p->ids, position),
                  (long long)p->table.rows - 1);
}

spt_status spt_cpu_embedding(void *state, const spt_embedding_problem *p, spt_error *err) {
  (void)state;
  struct embedding_job job = {.p = p, .count = 1};
  atomic_init(&job.wrong, INT64_MAX);
  for (int i = 0; i < p->ids.ndim; i++) {
    job.count *= p->ids.shape[i];
  }
  job.per_task = spt_ceil_div(TASK_ELEMENTS, p->table.cols + 1);
  spt_parallel_for(spt_ceil_div(job.count, job.per_task), copy_rows, &job);
  long long wrong = atomic_load(&job.wrong);
  return wrong == INT64_MAX ? SPT_OK : refuse_id(p, wrong, err);
}
