/* linear_backward on the CPU.
 *
 * The input's gradient is linear's own product with w transposed, whose strips are made on every
 * call: one pass over the kept weights.
 *
 * The weight gradient reads activations as the caller has them, by token. A task owns a few strips
 * and goes through the tokens in chunks, so that what its strips read of a chunk comes from memory
 * once. Which sums are added in which order depends on the shapes alone. */
#include <string.h>

#include "../integer.h"
#include "half.h"
#include "ops.h"
#include "pool.h"
#include "scratch.h"
#include "tier.h"
#include "weight_strips.h"

#define BLOCK_PANELS \
  3 /* of a task of the input's gradient: as many as the kernel's registers hold */
#define GROUP_STRIPS 4
#define CHUNK_TOKENS 128
#define BIAS_COLUMNS 64

/* Rows of floats, one after another in memory: the caller's own where they are that already. */
typedef struct float_rows {
  const float *data;
  int64_t row;
  float *copy; /* to free */
} float_rows;

struct backward_job {
  const spt_cpu_tier *tier;
  const spt_linear_backward_problem *p;
  const spt_strips *strips; /* or NULL: CSR */
  float_rows x, g;
  float *rows;        /* CSR: a row of dx for each worker */
  float *dw;          /* the layout of values */
  bool bias_by_strip; /* the weight gradient's tasks compute the bias's too */
};

/* ---- the weights' gradient --------------------------------------------------------------- */

/* The gradients of a strip's 16 rows, side by side for each of n tokens. */
static void gather_gradients(const struct backward_job *job, int64_t strip, int64_t token,
                             int64_t n, float *to) {
  const float *g = job->g.data + token * job->g.row;
  bool plain = job->strips->rows == NULL && (strip + 1) * SPT_STRIP <= job->p->w.out;
  for (int64_t t = 0; t < n; t++, g += job->g.row, to += SPT_STRIP) {
    if (plain) {
      memcpy(to, g + strip * SPT_STRIP, SPT_STRIP * sizeof *to);
      continue;
    }
    for (int r = 0; r < SPT_STRIP; r++) {
      int64_t row = spt_strip_row(job->strips, strip, r);
      to[r] = row < 0 ? 0.0f : g[row];
    }
  }
}

/* The bias's gradient rides along: g is in the core's nearest cache. */
static void add_tokens(double *sum, const float *g, int64_t n) {
  float part[SPT_STRIP] = {0};
  for (int64_t t = 0; t < n; t++) {
    for (int r = 0; r < SPT_STRIP; r++) {
      part[r] += g[t * SPT_STRIP + r];
    }
  }
  for (int r = 0; r < SPT_STRIP; r++) {
    sum[r] += part[r];
  }
}

static void store_bias(const struct backward_job *job, int64_t row, const double *sum, int64_t n) {
  const spt_matrix *to = &job->p->dbias;
  for (int64_t r = 0; r < n; r++) {
    spt_store(to->data, to->dtype, (row + r) * to->col, (float)sum[r]);
  }
}

static void weight_gradient(void *context, int64_t group, int worker) {
  (void)worker;
  const struct backward_job *job = context;
  const spt_strips *w = job->strips;
  int64_t begin = group * GROUP_STRIPS, end = spt_min(begin + GROUP_STRIPS, w->n_strips);
  int64_t tokens = job->p->x.rows;
  float *dw = job->dw + w->value_ptr[begin] * SPT_STRIP;
  double bias[GROUP_STRIPS * SPT_STRIP] = {0};
  memset(dw, 0, (size_t)(w->value_ptr[end] - w->value_ptr[begin]) * SPT_STRIP * sizeof *dw);
  for (int64_t token = 0; token < tokens; token += CHUNK_TOKENS) {
    int64_t n = spt_min(CHUNK_TOKENS, tokens - token);
    for (int64_t strip = begin; strip < end; strip++) {
      bool empty = w->value_ptr[strip + 1] == w->value_ptr[strip];
      if (empty && !job->bias_by_strip) {
        continue;
      }
      float g[CHUNK_TOKENS * SPT_STRIP];
      gather_gradients(job, strip, token, n, g);
      if (job->bias_by_strip) {
        add_tokens(bias + (strip - begin) * SPT_STRIP, g, n);
      }
      job->tier->strip_gradient(w, strip, job->x.data + token * job->x.row, job->x.row, g, n,
                                job->dw + w->value_ptr[strip] * SPT_STRIP);
    }
  }
  if (job->bias_by_strip) {
    int64_t row = begin * SPT_STRIP;
    store_bias(job, row, bias, spt_min(GROUP_STRIPS * SPT_STRIP, job->p->w.out - row));
  }
}

/* Strip columns back to the rows of a dense (out, in) array, zero where nothing is kept. */
static void scatter_gradient(void *context, int64_t strip, int worker) {
  (void)worker;
  const struct backward_job *job = context;
  const spt_strips *w = job->strips;
  const spt_matrix *dw = &job->p->dw;
  const float *from = job->dw + w->value_ptr[strip] * SPT_STRIP;
  for (int64_t run = w->run_ptr[strip]; run < w->run_ptr[strip + 1]; run++) {
    int64_t start = w->run_start[run], len = w->run_len[run];
    if (w->rows == NULL) {
      spt_matrix part = *dw;
      part.data = (char *)dw->data + start * dw->col * (int64_t)spt_dtype_size(dw->dtype);
      part.cols = len;
      job->tier->panel_unpack(&part, strip * SPT_STRIP, from);
    } else {
      for (int r = 0; r < SPT_STRIP; r++) {
        int64_t row = w->rows[strip * SPT_STRIP + r];
        for (int64_t k = 0; row >= 0 && k < len; k++) {
          spt_store(dw->data, dw->dtype, row * dw->row + (start + k) * dw->col,
                    from[k * SPT_STRIP + r]);
        }
      }
    }
    from += len * SPT_STRIP;
  }
}

static void clear_rows(void *context, int64_t block, int worker) {
  (void)worker;
  const spt_matrix *dw = &((const struct backward_job *)context)->p->dw;
  int64_t end = spt_min((block + 1) * SPT_STRIP, dw->rows);
  for (int64_t row = block * SPT_STRIP; row < end; row++) {
    if (dw->col == 1) {
      size_t size = spt_dtype_size(dw->dtype);
      memset((char *)dw->data + row * dw->row * (int64_t)size, 0, (size_t)dw->cols * size);
      continue;
    }
    for (int64_t c = 0; c < dw->cols; c++) {
      spt_store(dw->data, dw->dtype, row * dw->row + c * dw->col, 0.0f);
    }
  }
}

static void store_values(const struct backward_job *job) {
  const spt_matrix *dw = &job->p->dw;
  for (int64_t r = 0; r < job->strips->n_columns; r++) {
    for (int64_t c = 0; c < SPT_STRIP; c++) {
      ((float *)dw->data)[r * dw->row + c * dw->col] = job->dw[r * SPT_STRIP + c];
    }
  }
}

static void csr_row_gradient(void *context, int64_t row, int worker) {
  (void)worker;
  const struct backward_job *job = context;
  const spt_csr *w = job->p->w.csr;
  float *dw = job->p->dw.data;
  for (int64_t i = w->row_ptr[row]; i < w->row_ptr[row + 1]; i++) {
    const float *g = job->g.data + row, *x = job->x.data + w->col[i];
    float sum = 0.0f;
    for (int64_t t = 0; t < job->p->x.rows; t++) {
      sum += g[t * job->g.row] * x[t * job->x.row];
    }
    dw[i * job->p->dw.col] = sum;
  }
}

static void csr_input_gradient(void *context, int64_t token, int worker) {
  const struct backward_job *job = context;
  const spt_csr *w = job->p->w.csr;
  float *dx = job->rows + worker * w->in;
  memset(dx, 0, (size_t)w->in * sizeof *dx);
  for (int64_t row = 0; row < w->out; row++) {
    float g = job->g.data[token * job->g.row + row];
    for (int64_t i = w->row_ptr[row]; i < w->row_ptr[row + 1]; i++) {
      dx[w->col[i]] += w->values[i] * g;
    }
  }
  const spt_matrix *to = &job->p->dx;
  job->tier->store_row((char *)to->data + token * to->row * (int64_t)spt_dtype_size(to->dtype),
                       to->dtype, to->col, dx, w->in);
}

/* ---- the bias's gradient ----------------------------------------------------------------- */

static void bias_gradient(void *context, int64_t block, int worker) {
  (void)worker;
  const struct backward_job *job = context;
  int64_t begin = block * BIAS_COLUMNS, n = spt_min(BIAS_COLUMNS, job->p->w.out - begin);
  double sum[BIAS_COLUMNS] = {0};
  for (int64_t t = 0; t < job->p->grad.rows; t++) {
    const float *g = job->g.data + t * job->g.row + begin;
    for (int64_t c = 0; c < n; c++) {
      sum[c] += g[c];
    }
  }
  store_bias(job, begin, sum, n);
}

/* ---- the whole --------------------------------------------------------------------------- */

struct load_job {
  const spt_matrix *m;
  float *to;
};

static void load_float_row(void *context, int64_t row, int worker) {
  (void)worker;
  const struct load_job *job = context;
  const spt_matrix *m = job->m;
  const char *from = (const char *)m->data + row * m->row * (int64_t)spt_dtype_size(m->dtype);
  spt_cpu_tier_in_use()->load_row(job->to + row * m->cols, from, m->dtype, m->col, m->cols);
}

static float_rows rows_of(const char *op, const spt_matrix *m, spt_status *status, spt_error *err) {
  if (m->dtype == SPT_F32 && m->col == 1) {
    return (float_rows){.data = m->data, .row = m->row};
  }
  float *copy = spt_scratch(op, m->rows * m->cols, sizeof(float), status, err);
  if (copy != NULL) {
    spt_parallel_for(m->rows, load_float_row, &(struct load_job){m, copy});
  }
  return (float_rows){.data = copy, .row = m->cols, .copy = copy};
}

static void strips_gradient(struct backward_job *job) {
  const spt_linear_backward_problem *p = job->p;
  spt_parallel_for(spt_ceil_div(job->strips->n_strips, GROUP_STRIPS), weight_gradient, job);
  if (p->w.dense.data == NULL) {
    store_values(job);
    return;
  }
  if (p->w.strips != NULL) {
    spt_parallel_for(spt_ceil_div(p->w.out, SPT_STRIP), clear_rows, job);
  }
  spt_parallel_for(job->strips->n_strips, scatter_gradient, job);
}

/* The product with w transposed. */
static spt_status input_gradient(const char *op, const struct backward_job *job, spt_error *err) {
  const spt_linear_backward_problem *p = job->p;
  spt_weight_strips transposed;
  SPT_TRY(spt_transpose_strips(op, job->strips, &transposed, err));
  spt_linear_problem product = {.x = p->grad,
                                .y = p->dx,
                                .w = {.strips = &transposed.strips, .out = p->w.in, .in = p->w.out},
                                .compute = p->compute};
  spt_status status = spt_cpu_linear(NULL, &product, err);
  spt_free_weight_strips(&transposed);
  return status;
}

static spt_status strips_backward(const char *op, struct backward_job *job, spt_error *err) {
  const spt_linear_backward_problem *p = job->p;
  spt_status status = SPT_OK;
  spt_weight_strips weight;
  SPT_TRY(spt_strips_of(op, &p->w, &weight, err));
  job->strips = &weight.strips;
  /* Strips with rows of their own need not have every row. */
  job->bias_by_strip = p->dw.data != NULL && p->dbias.data != NULL && weight.strips.rows == NULL;
  if (p->dx.data != NULL) {
    status = input_gradient(op, job, err);
  }
  if (p->dw.data != NULL && status == SPT_OK) {
    job->dw = spt_scratch(op, weight.strips.n_columns, SPT_STRIP * sizeof(float), &status, err);
    if (status == SPT_OK) {
      strips_gradient(job);
    }
    spt_scratch_free(job->dw);
  }
  spt_free_weight_strips(&weight);
  return status;
}

static spt_status csr_backward(const char *op, struct backward_job *job, spt_error *err) {
  const spt_linear_backward_problem *p = job->p;
  spt_status status = SPT_OK;
  if (p->dx.data != NULL) {
    int workers = spt_pool_width();
    job->rows = spt_scratch(op, workers * p->w.in, sizeof(float), &status, err);
    if (status == SPT_OK) {
      spt_parallel_for_workers(p->grad.rows, workers, csr_input_gradient, job);
    }
    spt_scratch_free(job->rows);
  }
  if (p->dw.data != NULL && status == SPT_OK) {
    spt_parallel_for(p->w.out, csr_row_gradient, job);
  }
  return status;
}

spt_status spt_cpu_linear_backward(void *state, const spt_linear_backward_problem *p,
                                   spt_error *err) {
  (void)state;
  const char *op = "linear_backward";
  spt_status status = SPT_OK;
  struct backward_job job = {.tier = spt_cpu_tier_in_use(), .p = p};
  bool by_token = p->dw.data != NULL || p->w.csr != NULL;
  if (by_token || p->dbias.data != NULL) {
    job.g = rows_of(op, &p->grad, &status, err);
  }
  if (by_token) {
    job.x = rows_of(op, &p->x, &status, err);
  }
  if (status == SPT_OK && (p->dx.data != NULL || p->dw.data != NULL)) {
    status = p->w.csr != NULL ? csr_backward(op, &job, err) : strips_backward(op, &job, err);
  }
  if (status == SPT_OK && p->dbias.data != NULL && !job.bias_by_strip) {
    spt_parallel_for(spt_ceil_div(p->w.out, BIAS_COLUMNS), bias_gradient, &job);
  }
  spt_scratch_free(job.g.copy);
  spt_scratch_free(job.x.copy);
  return status;
}
