/* The encoder's layers, enqueued one after the other. */
#include "encoder.h"
#include "slots.h"

static spt_matrix rows_at(void *data, spt_dtype dtype, int64_t rows, int64_t width) {
  spt_matrix m = {};
  m.data = data;
  m.dtype = dtype;
  m.rows = rows;
  m.cols = m.row = width;
  m.col = 1;
  return m;
}

/* y = act(x · wᵀ + bias) + residual, for `rows` rows; y's rows are `stride` apart. */
struct product {
  const spt_gpu_product *w;
  void *x, *y;
  const float *residual;
  spt_dtype y_dtype;
  spt_activation activation;
  int64_t rows, stride;
};

static spt_status multiply(const spt_gpu_pass *p, const product *of, spt_error *err) {
  const spt_weight *w = &of->w->weight;
  if (of->rows == 0 || w->out == 0) {
    return SPT_OK;
  }
  spt_linear_problem problem = {};
  problem.x = rows_at(of->x, p->narrow, of->rows, w->in);
  problem.y = rows_at(of->y, of->y_dtype, of->rows, w->out);
  problem.y.row = of->stride;
  problem.w = *w;
  if (of->w->bias != NULL) {
    problem.bias = rows_at((void *)of->w->bias, SPT_F32, 1, w->out);
  }
  if (of->residual != NULL) {
    problem.residual = rows_at((void *)of->residual, SPT_F32, of->rows, w->out);
  }
  problem.activation = of->activation;
  problem.compute = p->model->compute;
  problem.prepared = of->w->prepared;
  return spt_cuda_linear(p->queue, &problem, err);
}

static spt_status project(const spt_gpu_pass *p, const spt_gpu_layer *l, int64_t layer, bool first,
                          spt_error *err) {
  product of = {
      &l->qkv,     p->x.narrow, p->qkv, NULL, p->narrow, SPT_ACT_NONE, spt_gpu_tokens(p, layer),
      l->qkv_width};
  if (!first) {
    return multiply(p, &of, err);
  }
  /* Q of the first tokens, K and V of all. */
  of.w = &l->rest_kv.product;
  of.y = (char *)p->qkv + l->table->q_rows * (int64_t)spt_dtype_size(p->narrow);
  SPT_TRY(multiply(p, &of, err));
  of.w = &l->first_q.product;
  of.x = p->next.narrow;
  of.y = p->q;
  of.rows = p->host_first_offsets[p->n];
  of.stride = l->table->q_rows;
  return multiply(p, &of, err);
}

/* What follows the attention, for so many tokens. `x` is the layer's input there. */
static spt_status finish_layer(const spt_gpu_pass *p, const spt_gpu_layer *l, const float *x,
                               int64_t rows, const spt_gpu_rows *to, spt_error *err) {
  int64_t width = p->model->width;
  if (l->table->merged_row != NULL) {
    SPT_TRY(spt_gpu_merge_heads(p, l, x, rows, err));
  } else {
    product o = {&l->o, p->context, p->y.f32, x, SPT_F32, SPT_ACT_NONE, rows, width};
    SPT_TRY(multiply(p, &o, err));
    SPT_TRY(spt_gpu_norm(p, &p->y, rows, l->norm1_weight, l->norm1_bias, err));
  }
  product up = {&l->up,    p->y.narrow,          p->inner, NULL,
                p->narrow, l->table->activation, rows,     l->up.weight.out};
  SPT_TRY(multiply(p, &up, err));
  product down = {&l->down, p->inner, to->f32, p->y.f32, SPT_F32, SPT_ACT_NONE, rows, width};
  SPT_TRY(multiply(p, &down, err));
  return spt_gpu_norm(p, to, rows, l->norm2_weight, l->norm2_bias, err);
}

static spt_status run_layer(spt_gpu_pass *p, int64_t layer, spt_error *err) {
  const spt_gpu_layer *l = &p->encoder->layers[layer];
  bool first = p->run->first_only && layer + 1 == p->model->n_layers;
  int64_t rows = first ? p->host_first_offsets[p->n] : spt_gpu_tokens(p, layer);
  if (first) { /* p->next: the first tokens' rows */
    int64_t bytes = p->model->width * (int64_t)sizeof(float);
    SPT_TRY(spt_gpu_gather(p, p->next.f32, p->x.f32, p->first_rows, rows, bytes, err));
    if (p->narrow != SPT_F32) {
      bytes = p->model->width * (int64_t)spt_dtype_size(p->narrow);
      SPT_TRY(spt_gpu_gather(p, p->next.narrow, p->x.narrow, p->first_rows, rows, bytes, err));
    }
  }
  SPT_TRY(project(p, l, layer, first, err));
  if (p->run->pruning != NULL) {
    SPT_TRY(spt_gpu_pruning_note(p, layer, err));
  }
  SPT_TRY(spt_gpu_attend(p, layer, first, err));
  bool compacted = false;
  if (p->run->pruning != NULL) {
    SPT_TRY(spt_gpu_pruning_select(p, layer, &compacted, err));
  }
  if (!first) {
    rows = spt_gpu_tokens(p, layer + 1);
  }
  return finish_layer(p, l, first ? p->next.f32 : p->x.f32, rows, &p->x, err);
}

spt_status spt_gpu_run_layers(spt_gpu_pass *p, spt_error *err) {
  SPT_TRY(spt_gpu_embed(p, err));
  if (p->run->pruning != NULL) {
    SPT_TRY(spt_gpu_pruning_start(p, err));
  }
  for (int64_t layer = 0; layer < p->model->n_layers; layer++) {
    SPT_TRY(run_layer(p, layer, err));
  }
  if (p->run->first_only && p->model->n_layers == 0) {
    int64_t bytes = p->model->width * (int64_t)sizeof(float);
    SPT_TRY(spt_gpu_gather(p, p->next.f32, p->x.f32, p->first_rows, p->host_first_offsets[p->n],
                           bytes, err));
    p->x.f32 = p->next.f32;
  }
  return SPT_OK;
}
