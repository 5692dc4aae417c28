/* linear_backward on the CPU: panels as in linear.c, from gradients of the output back to those of
 * the input and of the weights. */
#include "../integer.h"
#include "dense_strips.h"
#include "half.h"
#include "ops.h"
#include "pool.h"
#include "scratch.h"
#include "tier.h"

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
  spt_dense_strips dense = {0};
  bool is_dense = p->w.strips == NULL && p->w.csr == NULL;
  if (is_dense) {
    SPT_TRY(spt_cut_dense(op, &p->w.dense, &dense, err));
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
  spt_free_dense_strips(&dense);
  return status;
}
