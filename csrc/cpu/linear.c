/* linear on the CPU: rows of the caller's arrays become panels, strips (or CSR rows) times panels
 * give panels, and those become rows again.
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
#include "weight_strips.h"

#define CHUNK_PANELS 64 /* 1024 tokens at a time bound the workspace */

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
  spt_weight_strips weight = {0};
  if (p->w.csr == NULL) {
    SPT_TRY(spt_strips_of(op, &p->w, &weight, err));
  }
  int64_t panels = spt_min(spt_ceil_div(p->x.rows, SPT_LANES), CHUNK_PANELS);
  struct linear_job job = {.tier = spt_cpu_tier_in_use(), .p = p};
  job.strips = p->w.csr == NULL ? &weight.strips : NULL;
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
  spt_scratch_free(bias);
  spt_scratch_free(job.x);
  spt_scratch_free(job.y);
  spt_scratch_free(job.residual);
  spt_free_weight_strips(&weight);
  return status;
}
