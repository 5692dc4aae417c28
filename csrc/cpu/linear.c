/* linear on the CPU: rows of the caller's arrays become panels, weights times panels give panels, and
 * those become rows again.
 *
 * A dense matrix is cut into strips on every call: one pass over the weights, against one per token
 * for the product itself. Pack it once (a matrix without a mask) where that pass matters. */
#include "../integer.h"
#include "bf16.h"
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
  spt_panel_product product;
  float *x;          /* panels of the chunk */
  uint16_t *x_pairs; /* the same in bfloat16, where that is multiplied */
  float *y;          /* panels of the chunk, where a block's rows are not neighbours; else NULL */
  int64_t first_row; /* of the chunk */
  int64_t n_panels;  /* in the chunk */
};

static void pack_rows(void *context, int64_t panel, int worker) {
  (void)worker;
  const struct linear_job *job = context;
  const spt_matrix *x = &job->p->x;
  int64_t row = job->first_row + panel * SPT_LANES;
  float *to = job->x + panel * x->cols * SPT_LANES;
  if (job->x_pairs == NULL) {
    job->tier->panel_pack(to, x, row);
    return;
  }
  uint16_t *pairs = job->x_pairs + panel * job->product.x_stride;
  spt_matrix words;
  if (spt_as_words(x, &words)) {
    job->tier->panel_pack((float *)pairs, &words, row);
  } else {
    job->tier->panel_pack(to, x, row);
    job->tier->panel_narrow(pairs, to, x->cols);
  }
  spt_clear_pair_padding(pairs, x->cols, 1);
}

static spt_matrix columns_of(const spt_matrix *m, int64_t first, int64_t n) {
  spt_matrix part = *m;
  part.data = (char *)m->data + first * m->col * (int64_t)spt_dtype_size(m->dtype);
  part.cols = n;
  return part;
}

/* One block of the product and straight back to rows: its results never leave the cache as panels. */
static void multiply_block(void *context, int64_t task, int worker) {
  (void)worker;
  const struct linear_job *job = context;
  float y[SPT_BLOCK_PANELS * SPT_BLOCK_UNITS * SPT_STRIP * SPT_LANES] __attribute__((aligned(64)));
  spt_panel_product product = job->product;
  spt_product_block b = spt_product_block_at(spt_product_units(&product), job->n_panels, task);
  int64_t first = b.begin * SPT_STRIP, end = spt_min(b.end * SPT_STRIP, job->p->w.out);
  int64_t stride = (end - first) * SPT_LANES, panels = b.panel_end - b.panel;
  int64_t row = job->first_row + b.panel * SPT_LANES;
  spt_matrix out = columns_of(&job->p->y, first, end - first);
  product.first_row = first;
  product.n_tokens = job->p->x.rows - row;
  product.y = y;
  product.y_stride = stride;
  if (job->p->residual.data != NULL) { /* in y's own place: each is read before it is written */
    spt_matrix residual = columns_of(&job->p->residual, first, end - first);
    for (int64_t q = 0; q < panels; q++) {
      job->tier->panel_pack(y + q * stride, &residual, row + q * SPT_LANES);
    }
    product.residual = y;
    product.residual_stride = stride;
  }
  if (product.x != NULL) {
    product.x += b.panel * product.x_stride;
  } else {
    product.x_pairs += b.panel * product.x_stride;
  }
  spt_product_run_block(&product, b.begin, b.end, 0, panels);
  for (int64_t q = 0; q < panels; q++) {
    job->tier->panel_unpack(&out, row + q * SPT_LANES, y + q * stride);
  }
}

/* Where rows were dropped, a block's rows are not neighbours: the whole width, then back to rows. */
static void pack_residual(void *context, int64_t panel, int worker) {
  (void)worker;
  const struct linear_job *job = context;
  job->tier->panel_pack(job->y + panel * job->product.y_stride, &job->p->residual,
                        job->first_row + panel * SPT_LANES);
}

static void unpack_rows(void *context, int64_t panel, int worker) {
  (void)worker;
  const struct linear_job *job = context;
  job->tier->panel_unpack(&job->p->y, job->first_row + panel * SPT_LANES,
                          job->y + panel * job->product.y_stride);
}

static void multiply_scattered(struct linear_job *job) {
  job->product.n_tokens = job->p->x.rows - job->first_row;
  job->product.y = job->y;
  job->product.y_stride = job->p->w.out * SPT_LANES;
  if (job->p->residual.data != NULL) {
    spt_parallel_for(job->n_panels, pack_residual, job);
    job->product.residual = job->y;
    job->product.residual_stride = job->product.y_stride;
  }
  spt_product_run(&job->product, 0, spt_product_units(&job->product), job->n_panels);
  spt_parallel_for(job->n_panels, unpack_rows, job);
}

static void run_forward(struct linear_job *job) {
  int64_t n = job->p->x.rows;
  for (job->first_row = 0; job->first_row < n; job->first_row += CHUNK_PANELS * SPT_LANES) {
    job->n_panels = spt_min(spt_ceil_div(n - job->first_row, SPT_LANES), CHUNK_PANELS);
    spt_parallel_for(job->n_panels, pack_rows, job);
    if (job->y != NULL) {
      multiply_scattered(job);
    } else {
      int64_t units = spt_product_units(&job->product);
      spt_parallel_for(spt_product_blocks(units, job->n_panels), multiply_block, job);
    }
  }
}

/* Only strips that are multiplied in bfloat16 have another form here. */
spt_status spt_cpu_prepare(void *state, const spt_weight *w, spt_dtype compute, void **prepared,
                           spt_error *err) {
  (void)state;
  spt_strips_bf16 *made = NULL;
  if (compute == SPT_BF16 && w->strips != NULL && w->dense.data == NULL) {
    SPT_TRY(spt_strips_bf16_create("linear", w->strips, spt_cpu_tier_in_use(), &made, err));
  }
  *prepared = made;
  return SPT_OK;
}

void spt_cpu_prepared_free(void *state, void *prepared) {
  (void)state;
  spt_strips_bf16_free(prepared);
}

/* What of a product's weights is made for this call alone. */
struct own_weights {
  spt_weight_strips strips;
  spt_strips_bf16 *bf16;
};

static spt_status choose_weights(const char *op, const spt_linear_problem *p,
                                 struct own_weights *own, spt_panel_product *product,
                                 spt_error *err) {
  if (p->w.csr != NULL) {
    product->csr = p->w.csr;
    return SPT_OK;
  }
  const spt_strips_bf16 *prepared = p->compute == SPT_BF16 ? p->prepared : NULL;
  if (prepared != NULL && prepared->tier == spt_cpu_tier_in_use()) {
    product->strips_bf16 = prepared;
    return SPT_OK;
  }
  SPT_TRY(spt_strips_of(op, &p->w, &own->strips, err));
  if (p->compute == SPT_BF16) {
    SPT_TRY(
        spt_strips_bf16_create(op, &own->strips.strips, spt_cpu_tier_in_use(), &own->bf16, err));
    product->strips_bf16 = own->bf16;
  } else {
    product->strips = &own->strips.strips;
  }
  return SPT_OK;
}

static float *load_bias(const char *op, const spt_matrix *m, spt_status *status, spt_error *err) {
  if (m->data == NULL) {
    return NULL;
  }
  float *to = spt_scratch(op, m->cols, sizeof(float), status, err);
  for (int64_t c = 0; to != NULL && c < m->cols; c++) {
    to[c] = spt_load(m->data, m->dtype, c * m->col);
  }
  return to;
}

static void allocate(const char *op, struct linear_job *job, spt_status *status, spt_error *err) {
  const spt_linear_problem *p = job->p;
  int64_t panels = spt_min(spt_ceil_div(p->x.rows, SPT_LANES), CHUNK_PANELS);
  job->x = spt_scratch(op, panels * p->w.in, SPT_LANES * sizeof(float), status, err);
  if (job->product.strips_bf16 != NULL) {
    int64_t features = spt_pair_panel_features(p->w.in);
    job->x_pairs = spt_scratch(op, panels * features, SPT_LANES * sizeof(uint16_t), status, err);
    job->product.x_pairs = job->x_pairs;
    job->product.x_stride = features * SPT_LANES;
  } else {
    job->product.x = job->x;
    job->product.x_stride = p->w.in * SPT_LANES;
  }
  if (p->w.strips != NULL && p->w.strips->rows != NULL) {
    job->y = spt_scratch(op, panels * p->w.out, SPT_LANES * sizeof(float), status, err);
  }
}

spt_status spt_cpu_linear(void *state, const spt_linear_problem *p, spt_error *err) {
  (void)state;
  const char *op = "linear";
  if (p->x.rows == 0 || p->w.out == 0) {
    return SPT_OK;
  }
  struct own_weights own = {0};
  struct linear_job job = {.tier = spt_cpu_tier_in_use(), .p = p};
  job.product.activation = p->activation;
  spt_status status = choose_weights(op, p, &own, &job.product, err);
  if (status == SPT_OK) {
    allocate(op, &job, &status, err);
  }
  float *bias = status == SPT_OK ? load_bias(op, &p->bias, &status, err) : NULL;
  if (status == SPT_OK) {
    job.product.bias = bias;
    run_forward(&job);
  }
  spt_scratch_free(bias);
  spt_scratch_free(job.x);
  spt_scratch_free(job.x_pairs);
  spt_scratch_free(job.y);
  spt_strips_bf16_free(own.bf16);
  spt_free_weight_strips(&own.strips);
  return status;
}
