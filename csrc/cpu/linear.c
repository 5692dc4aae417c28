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

#define BLOCK_PANELS 3 /* of a task: 96 tokens of 384 and 1536 features are 0.7 MB */

struct linear_job {
  const spt_cpu_tier *tier;
  const spt_linear_problem *p;
  spt_panel_product product; /* of all panels, where they are few */
  float *workspace;          /* of each worker, or of all panels: x, y, residual */
  int64_t n_panels;          /* that a workspace holds */
};

/* The product on panels [0, n) of a workspace. */
static spt_panel_product lay_out(const struct linear_job *job, float *workspace) {
  const spt_linear_problem *p = job->p;
  spt_panel_product product = job->product;
  float *y = workspace + job->n_panels * p->w.in * SPT_LANES;
  product.x = workspace;
  product.y = y;
  product.x_stride = p->w.in * SPT_LANES;
  product.y_stride = product.residual_stride = p->w.out * SPT_LANES;
  if (p->residual.data != NULL) {
    product.residual = y + job->n_panels * product.y_stride;
  }
  return product;
}

static int64_t workspace_columns(const struct linear_job *job) {
  const spt_linear_problem *p = job->p;
  return job->n_panels * (p->w.in + p->w.out * (p->residual.data != NULL ? 2 : 1));
}

static void pack_panel(const struct linear_job *job, const spt_panel_product *product,
                       int64_t panel, int64_t row) {
  const spt_linear_problem *p = job->p;
  job->tier->panel_pack((float *)product->x + panel * product->x_stride, &p->x, row);
  if (product->residual != NULL) {
    job->tier->panel_pack((float *)product->residual + panel * product->y_stride, &p->residual,
                          row);
  }
}

/* Few panels: each step is split over the workers by itself, the product by strips. */

static void pack_rows(void *context, int64_t panel, int worker) {
  (void)worker;
  const struct linear_job *job = context;
  pack_panel(job, &job->product, panel, panel * SPT_LANES);
}

static void unpack_rows(void *context, int64_t panel, int worker) {
  (void)worker;
  const struct linear_job *job = context;
  job->tier->panel_unpack(&job->p->y, panel * SPT_LANES,
                          job->product.y + panel * job->product.y_stride);
}

/* Many panels: a task takes a few through all steps, and they stay in its core's cache. */
static void multiply_rows(void *context, int64_t block, int worker) {
  const struct linear_job *job = context;
  const spt_linear_problem *p = job->p;
  spt_panel_product product =
      lay_out(job, job->workspace + worker * workspace_columns(job) * SPT_LANES);
  int64_t row = block * job->n_panels * SPT_LANES;
  int64_t n = spt_min(spt_ceil_div(p->x.rows - row, SPT_LANES), job->n_panels);
  for (int64_t i = 0; i < n; i++) {
    pack_panel(job, &product, i, row + i * SPT_LANES);
  }
  if (product.strips != NULL) {
    job->tier->panel_linear(&product, 0, product.strips->n_strips, 0, n);
  } else {
    job->tier->panel_csr(&product, 0, p->w.out, 0, n);
  }
  for (int64_t i = 0; i < n; i++) {
    job->tier->panel_unpack(&p->y, row + i * SPT_LANES, product.y + i * product.y_stride);
  }
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

static spt_status run_forward(const char *op, struct linear_job *job, spt_error *err) {
  spt_status status = SPT_OK;
  int workers = spt_pool_width();
  int64_t panels = spt_ceil_div(job->p->x.rows, SPT_LANES);
  bool many = panels >= 2 * workers * BLOCK_PANELS;
  job->n_panels = many ? BLOCK_PANELS : panels;
  job->workspace = spt_scratch(op, workspace_columns(job) * (many ? workers : 1),
                               SPT_LANES * sizeof(float), &status, err);
  if (status != SPT_OK) {
    return status;
  }
  if (many) {
    spt_parallel_for_workers(spt_ceil_div(panels, BLOCK_PANELS), workers, multiply_rows, job);
  } else {
    job->product = lay_out(job, job->workspace);
    spt_parallel_for(panels, pack_rows, job);
    spt_product_run(&job->product, 0, spt_product_units(&job->product), panels);
    spt_parallel_for(panels, unpack_rows, job);
  }
  spt_scratch_free(job->workspace);
  return SPT_OK;
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
  float *bias = load_row(op, &p->bias, &status, err);
  struct linear_job job = {.tier = spt_cpu_tier_in_use(),
                           .p = p,
                           .product = {.strips = p->w.csr == NULL ? &weight.strips : NULL,
                                       .csr = p->w.csr,
                                       .bias = bias,
                                       .activation = p->activation}};
  if (status == SPT_OK) {
    status = run_forward(op, &job, err);
  }
  spt_scratch_free(bias);
  spt_free_weight_strips(&weight);
  return status;
}
