/* linear and linear_backward on the CPU: rows of the caller's arrays become panels, strips (or CSR
 * rows) times panels give panels, and those become rows again.
 *
 * A dense matrix is cut into strips on every call: one pass over the weights, against one per token
 * for the product itself. Pack it once (a matrix without a mask) where that pass matters. */
#include "../integer.h"
#include "half.h"
#include "ops.h"
#include "pool.h"
#include "product.h"
#include "scratch.h"
#include "tier.h"

#define CHUNK_PANELS 64 /* 1024 tokens at a time bound the workspace */

/* ---- a dense matrix as strips ------------------------------------------------------------- */

typedef struct dense_strips {
  spt_strips strips;
  int64_t *run_ptr, *value_ptr;
  int32_t *run_start, *run_len;
  float *values;
} dense_strips;

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

static void free_dense_strips(dense_strips *d) {
  free(d->run_ptr);
  free(d->values);
}

static spt_status cut_dense(const char *op, const spt_matrix *w, dense_strips *d, spt_error *err) {
  spt_status status = SPT_OK;
  int64_t n = spt_ceil_div(w->rows, SPT_STRIP);
  *d = (dense_strips){0};
  char *index = spt_scratch(op, n + 1, 2 * sizeof(int64_t) + 2 * sizeof(int32_t), &status, err);
  d->run_ptr = (int64_t *)index;
  d->values = spt_scratch(op, n * w->cols, SPT_STRIP * sizeof(float), &status, err);
  if (status != SPT_OK) {
    free_dense_strips(d);
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

/* ---- forward ---------------------------------------------------------------------------------- */

struct linear_job {
  const spt_cpu_tier *tier;
  const spt_linear_problem *p;
  const spt_strips *strips;
  const float *bias;
  float *x, *y, *residual;
  int64_t first_row; /* of the chunk */
  int64_t n_panels;  /* in the chunk */
};

static void pack_rows(void *context, int64_t panel, int worker) {
  (void)worker;
  const struct linear_job *job = context;
  int64_t row = job->first_row + panel * SPT_LANES;
  job->tier->panel_pack(job->x + panel * job->p->x.cols * SPT_LANES, &job->p->x, row);
  if (job->residual != NULL) {
    job->tier->panel_pack(job->residual + panel * job->p->y.cols * SPT_LANES, &job->p->residual,
                          row);
  }
}

static void unpack_rows(void *context, int64_t panel, int worker) {
  (void)worker;
  const struct linear_job *job = context;
  job->tier->panel_unpack(&job->p->y, job->first_row + panel * SPT_LANES,
                          job->y + panel * job->p->y.cols * SPT_LANES);
}

static float *load_row(const char *op, const spt_matrix *m, spt_status *status, spt_error *err) {
  if (m->data == NULL) {
    return NULL;
  }
  float *to = spt_scratch(op, m->cols, sizeof(float), status, err);
  for (int64_t c = 0; to != NULL && c < m->cols; c++) {
    to[c] = spt_load(m->data, m->dtype, c * m->col);
  }
  return to;
}

static void run_forward(struct linear_job *job) {
  int64_t n = job->p->x.rows;
  int64_t x_stride = job->p->w.in * SPT_LANES, y_stride = job->p->w.out * SPT_LANES;
  spt_panel_product product = {.strips = job->strips,
                               .csr = job->p->w.csr,
                               .x = job->x,
                               .y = job->y,
                               .bias = job->bias,
                               .residual = job->residual,
                               .x_stride = x_stride,
                               .y_stride = y_stride,
                               .residual_stride = y_stride,
                               .activation = job->p->activation};
  for (job->first_row = 0; job->first_row < n; job->first_row += CHUNK_PANELS * SPT_LANES) {
    job->n_panels = spt_min(spt_ceil_div(n - job->first_row, SPT_LANES), CHUNK_PANELS);
    spt_parallel_for(job->n_panels, pack_rows, job);
    spt_product_run(&product, 0, spt_product_units(&product), job->n_panels);
    spt_parallel_for(job->n_panels, unpack_rows, job);
  }
}

spt_status spt_cpu_linear(void *state, const spt_linear_problem *p, spt_error *err) {
  (void)state;
  const char *op = "linear";
  if (p->x.rows == 0 || p->w.out == 0) {
    return SPT_OK;
  }
  spt_status status = SPT_OK;
  dense_strips dense = {0};
  if (p->w.strips == NULL && p->w.csr == NULL) {
    SPT_TRY(cut_dense(op, &p->w.dense, &dense, err));
  }
  int64_t panels = spt_min(spt_ceil_div(p->x.rows, SPT_LANES), CHUNK_PANELS);
  struct linear_job job = {.tier = spt_cpu_tier_in_use(), .p = p};
  job.strips = dense.values != NULL ? &dense.strips : p->w.strips;
  float *bias = load_row(op, &p->bias, &status, err);
  job.bias = bias;
  job.x = spt_scratch(op, panels * p->w.in, SPT_LANES * sizeof(float), &status, err);
  job.y = spt_scratch(op, panels * p->w.out, SPT_LANES * sizeof(float), &status, err);
  if (p->residual.data != NULL) {
    job.residual = spt_scratch(op, panels * p->w.out, SPT_LANES * sizeof(float), &status, err);
  }
  if (status == SPT_OK) {
    run_forward(&job);
  }
  free(bias);
  free(job.x);
  free(job.y);
  free(job.residual);
  free_dense_strips(&dense);
  return status;
}

/* ---- backward --------------------------------------------------------------------------------- */

struct backward_job {
  const spt_cpu_tier *tier;
  const spt_linear_backward_problem *p;
  const spt_strips *strips;
  float *x, *g;    /* panels of all tokens */
  float *g_strips; /* (strip, token, 16): g by token, the strip's rows side by side */
  float *dx;       /* panels */
  float *dw;       /* strips: the layout of values */
  int64_t n_panels;
};

static void pack_inputs(void *context, int64_t panel, int worker) {
  (void)worker;
  const struct backward_job *job = context;
  job->tier->panel_pack(job->g + panel * job->p->w.out * SPT_LANES, &job->p->grad,
                        panel * SPT_LANES);
  if (job->x != NULL) {
    job->tier->panel_pack(job->x + panel * job->p->w.in * SPT_LANES, &job->p->x, panel * SPT_LANES);
  }
}

static void input_gradient(void *context, int64_t panel, int worker) {
  (void)worker;
  const struct backward_job *job = context;
  int64_t in = job->p->w.in;
  const float *g = job->g + panel * job->p->w.out * SPT_LANES;
  float *dx = job->dx + panel * in * SPT_LANES;
  for (int64_t i = 0; i < in * SPT_LANES; i++) {
    dx[i] = 0.0f;
  }
  const spt_csr *csr = job->p->w.csr;
  if (csr == NULL) {
    job->tier->panel_linear_transposed(job->strips, g, dx);
  } else {
    for (int64_t row = 0; row < csr->out; row++) {
      for (int64_t i = csr->row_ptr[row]; i < csr->row_ptr[row + 1]; i++) {
        for (int l = 0; l < SPT_LANES; l++) {
          dx[(int64_t)csr->col[i] * SPT_LANES + l] += csr->values[i] * g[row * SPT_LANES + l];
        }
      }
    }
  }
  job->tier->panel_unpack(&job->p->dx, panel * SPT_LANES, dx);
}

static void strip_weight_gradient(void *context, int64_t strip, int worker) {
  (void)worker;
  const struct backward_job *job = context;
  int64_t tokens = job->n_panels * SPT_LANES;
  float *g = job->g_strips + strip * tokens * SPT_STRIP;
  for (int r = 0; r < SPT_STRIP; r++) {
    int64_t row = spt_strip_row(job->strips, strip, r);
    for (int64_t t = 0; t < tokens; t++) {
      const float *panel = job->g + t / SPT_LANES * job->p->w.out * SPT_LANES;
      g[t * SPT_STRIP + r] = row < 0 ? 0.0f : panel[row * SPT_LANES + t % SPT_LANES];
    }
  }
  job->tier->strip_gradient(job->strips, strip, job->x, job->p->w.in * SPT_LANES, g, job->n_panels,
                            job->dw + job->strips->value_ptr[strip] * SPT_STRIP);
}

/* Strip columns back to the rows of a dense (out, in) array. */
static void unpack_weight_gradient(void *context, int64_t strip, int worker) {
  (void)worker;
  const struct backward_job *job = context;
  job->tier->panel_unpack(&job->p->dw, strip * SPT_STRIP,
                          job->dw + job->strips->value_ptr[strip] * SPT_STRIP);
}

static void csr_row_gradient(void *context, int64_t row, int worker) {
  (void)worker;
  const struct backward_job *job = context;
  const spt_csr *w = job->p->w.csr;
  float *dw = job->p->dw.data;
  for (int64_t i = w->row_ptr[row]; i < w->row_ptr[row + 1]; i++) {
    float sum[SPT_LANES] = {0};
    for (int64_t panel = 0; panel < job->n_panels; panel++) {
      const float *g = job->g + (panel * w->out + row) * SPT_LANES;
      const float *x = job->x + (panel * w->in + w->col[i]) * SPT_LANES;
      for (int l = 0; l < SPT_LANES; l++) {
        sum[l] += g[l] * x[l];
      }
    }
    float total = 0.0f;
    for (int l = 0; l < SPT_LANES; l++) {
      total += sum[l];
    }
    dw[i * job->p->dw.col] = total;
  }
}

static void bias_gradient(const struct backward_job *job) {
  const spt_matrix *to = &job->p->dbias;
  for (int64_t row = 0; row < job->p->w.out; row++) {
    double sum = 0.0;
    for (int64_t panel = 0; panel < job->n_panels; panel++) {
      const float *g = job->g + (panel * job->p->w.out + row) * SPT_LANES;
      for (int l = 0; l < SPT_LANES; l++) {
        sum += g[l];
      }
    }
    spt_store(to->data, to->dtype, row * to->col, (float)sum);
  }
}

static void run_backward(const struct backward_job *job, bool dense) {
  const spt_linear_backward_problem *p = job->p;
  spt_parallel_for(job->n_panels, pack_inputs, (void *)job);
  if (p->dx.data != NULL) {
    spt_parallel_for(job->n_panels, input_gradient, (void *)job);
  }
  if (p->dw.data != NULL && p->w.csr != NULL) {
    spt_parallel_for(p->w.out, csr_row_gradient, (void *)job);
  } else if (p->dw.data != NULL) {
    spt_parallel_for(job->strips->n_strips, strip_weight_gradient, (void *)job);
    if (dense) {
      spt_parallel_for(job->strips->n_strips, unpack_weight_gradient, (void *)job);
    }
  }
  if (p->dbias.data != NULL) {
    bias_gradient(job);
  }
}

spt_status spt_cpu_linear_backward(void *state, const spt_linear_backward_problem *p,
                                   spt_error *err) {
  (void)state;
  const char *op = "linear_backward";
  spt_status status = SPT_OK;
  dense_strips dense = {0};
  bool is_dense = p->w.strips == NULL && p->w.csr == NULL;
  if (is_dense) {
    SPT_TRY(cut_dense(op, &p->w.dense, &dense, err));
  }
  struct backward_job job = {.tier = spt_cpu_tier_in_use(), .p = p};
  job.strips = is_dense ? &dense.strips : p->w.strips;
  job.n_panels = spt_ceil_div(p->x.rows, SPT_LANES);
  size_t column = SPT_LANES * sizeof(float);
  job.g = spt_scratch(op, job.n_panels * p->w.out, column, &status, err);
  if (p->dx.data != NULL) {
    job.dx = spt_scratch(op, job.n_panels * p->w.in, column, &status, err);
  }
  float *strips_dw = NULL;
  if (p->dw.data != NULL) {
    job.x = spt_scratch(op, job.n_panels * p->w.in, column, &status, err);
    if (job.strips != NULL) {
      job.g_strips =
          spt_scratch(op, job.n_panels * job.strips->n_strips * SPT_LANES, column, &status, err);
      strips_dw = spt_scratch(op, job.strips->n_columns, column, &status, err);
      job.dw = strips_dw;
    }
  }
  if (status == SPT_OK) {
    run_backward(&job, is_dense);
    if (strips_dw != NULL && !is_dense) {
      for (int64_t i = 0; i < job.strips->n_columns * SPT_STRIP; i++) {
        int64_t r = i / SPT_STRIP, c = i % SPT_STRIP;
        ((float *)p->dw.data)[r * p->dw.row + c * p->dw.col] = strips_dw[i];
      }
    }
  }
  free(job.g);
  free(job.dx);
  free(job.x);
  free(job.g_strips);
  free(strips_dw);
  free_dense_strips(&dense);
  return status;
}
