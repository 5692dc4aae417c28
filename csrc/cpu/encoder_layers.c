/* The encoder's layers: every one is a handful of parallel phases over panels, strips and heads. */
#include <string.h>

#include "encoder_pass.h"

/* ---- LayerNorm -------------------------------------------------------------------------------- */

struct norm_job {
  const spt_encoder_pass *p;
  const spt_activations *to; /* normalised in place, and rounded for the next product */
  const float *weight, *bias;
  /* of a merged layer: to = residual + bias + scattered context */
  const float *residual;
  const spt_activations *context;
};

static void norm_panel(void *context, int64_t panel, int worker) {
  (void)worker;
  const struct norm_job *job = context;
  float *x = job->to->f32 + panel * spt_f32_stride(job->to);
  job->p->tier->panel_layer_norm(x, job->to->features, job->weight, job->bias,
                                 job->p->model->norm_eps);
  if (job->to->bf16 != NULL) {
    uint16_t *pairs = job->to->bf16 + panel * spt_bf16_stride(job->to);
    job->p->tier->panel_narrow(pairs, x, job->to->features);
    spt_clear_pair_padding(pairs, job->to->features, 1);
  }
}

static void merged_panel(void *context, int64_t panel, int worker) {
  const struct norm_job *job = context;
  const spt_encoder_layer *l = job->p->layer;
  int64_t width = job->to->features, rows = job->context->features;
  float *y = job->to->f32 + panel * width * SPT_LANES;
  const float *from = job->context->f32 + panel * rows * SPT_LANES;
  const float *residual = job->residual + panel * width * SPT_LANES;
  for (int64_t f = 0; f < width; f++) {
    for (int lane = 0; lane < SPT_LANES; lane++) {
      y[f * SPT_LANES + lane] = residual[f * SPT_LANES + lane] + l->merged_bias[f];
    }
  }
  for (int64_t r = 0; r < rows; r++) {
    float *to = y + (int64_t)l->merged_row[r] * SPT_LANES;
    for (int lane = 0; lane < SPT_LANES; lane++) {
      to[lane] += from[r * SPT_LANES + lane];
    }
  }
  norm_panel(context, panel, worker);
}

/* ---- embeddings ------------------------------------------------------------------------------- */

/* A row of its own: turned into a lane with 15 others. */
static void embed_token(const spt_encoder_pass *p, int64_t token, float *restrict row) {
  const spt_encoder_model *m = p->model;
  const float *word = m->word + p->run->ids[token] * m->width;
  const float *position = m->position + p->run->positions[token] * m->width;
  if (m->type == NULL) {
    for (int64_t f = 0; f < m->width; f++) {
      row[f] = word[f] + position[f];
    }
    return;
  }
  const float *type = m->type + (p->run->types != NULL ? p->run->types[token] : 0) * m->width;
  for (int64_t f = 0; f < m->width; f++) {
    row[f] = word[f] + type[f] + position[f];
  }
}

static void embed_panel(void *context, int64_t panel, int worker) {
  const struct norm_job *job = context;
  const spt_encoder_pass *p = job->p;
  int64_t width = p->x.features;
  float *rows = p->y.f32 + panel * spt_f32_stride(&p->y); /* nobody else's yet */
  for (int64_t l = 0; l < SPT_LANES; l++) {
    int64_t slot = panel * SPT_LANES + l;
    int64_t token = slot >= p->slots ? -1 : spt_is_placed(p) ? p->place.token[slot] : slot;
    if (token >= 0) {
      embed_token(p, token, rows + l * width);
    } else {
      memset(rows + l * width, 0, (size_t)width * sizeof *rows);
    }
  }
  spt_matrix tokens = {
      .data = rows, .dtype = SPT_F32, .rows = SPT_LANES, .cols = width, .row = width, .col = 1};
  p->tier->panel_pack(p->x.f32 + panel * spt_f32_stride(&p->x), &tokens, 0);
  norm_panel(context, panel, worker);
}

/* ---- products --------------------------------------------------------------------------------- */

/* The product of a matrix, from x to y, in y's float32 where it has any; without residual or
 * activation so far. */
static spt_panel_product product_of(const spt_encoder_matrix *w, const spt_strips_bf16 *bf16,
                                    const spt_activations *x, const spt_activations *y,
                                    int64_t n_tokens) {
  spt_panel_product product = {.bias = w->bias, .pair_rows = spt_rows_of(w), .n_tokens = n_tokens};
  if (bf16 != NULL) {
    product.strips_bf16 = bf16;
    product.x_pairs = x->bf16;
    product.x_stride = spt_bf16_stride(x);
  } else {
    product.strips = w->strips;
    product.csr = w->csr;
    product.x = x->f32;
    product.x_stride = spt_f32_stride(x);
  }
  if (y->f32 != NULL) {
    product.y = y->f32;
    product.y_stride = spt_f32_stride(y);
  } else {
    product.y_bf16 = y->bf16;
    product.y_stride = spt_bf16_stride(y);
  }
  return product;
}

static void run_product(const spt_panel_product *product, const spt_activations *y,
                        int64_t n_panels) {
  if (product->y_bf16 != NULL) {
    spt_clear_pair_padding(y->bf16, y->features, n_panels);
  }
  spt_product_run(product, 0, spt_product_units(product), n_panels);
}

/* Units [begin, end) of a product of qkv, but for those that only dropped heads would need. */
static void project_units(const spt_encoder_pass *p, const spt_panel_product *product,
                          int64_t begin, int64_t end, int64_t n_panels) {
  const uint8_t *needed = p->run->pruning != NULL ? p->kept.units : NULL;
  while (begin < end) {
    int64_t stop = needed == NULL ? end : begin;
    while (stop < end && needed[stop]) {
      stop++;
    }
    spt_product_run(product, begin, stop, n_panels);
    for (begin = stop; begin < end && !needed[begin]; begin++) {
    }
  }
}

static void project_heads(spt_encoder_pass *p) {
  const spt_encoder_layer *l = p->layer;
  const spt_strips_bf16 *half = p->layer_bf16 != NULL ? p->layer_bf16->qkv : NULL;
  spt_panel_product product = product_of(&l->qkv, half, &p->x, &p->qkv, p->slots);
  /* Scores contract over features, which go in pairs; values over tokens, which lie side by side. */
  for (int32_t h = 0; h < l->n_heads; h++) {
    product.pair_rows = spt_min(product.pair_rows, l->v_row[h]);
  }
  if (!p->first_only) {
    if (product.y_bf16 != NULL) {
      spt_clear_pair_padding(p->qkv.bf16, p->qkv.features, p->n_panels);
    }
    project_units(p, &product, 0, spt_product_units(&product), p->n_panels);
    return;
  }
  /* Q of the first tokens, K and V of all tokens. */
  int64_t q_strips = l->q_rows / SPT_STRIP;
  spt_panel_product first =
      product_of(&l->qkv, half, &p->first_x, &p->first_q, p->run->n_sequences);
  first.pair_rows = product.pair_rows;
  project_units(p, &first, 0, q_strips, p->query_panels);
  project_units(p, &product, q_strips, spt_product_units(&product), p->n_panels);
}

static spt_status run_layer(spt_encoder_pass *p, spt_error *err) {
  const spt_encoder_layer *l = p->layer;
  const spt_layer_bf16 none = {0}, *half = p->layer_bf16 != NULL ? p->layer_bf16 : &none;
  const spt_activations *x = p->first_only ? &p->first_x : &p->x, *context = &p->context;
  bool compacted = false;
  project_heads(p);
  spt_encoder_attention(p);
  spt_count_attention(p);
  if (p->run->pruning != NULL) {
    SPT_TRY(spt_pruning_end_attention(p, &compacted, err));
  }
  if (compacted) {
    x = &p->kept.x;
    context = &p->kept.context;
  }
  int64_t panels = p->query_panels, queries = p->first_only ? p->run->n_sequences : p->slots;
  struct norm_job job = {p, &p->y, l->norm1_weight, l->norm1_bias, x->f32, context};
  if (l->merged_row != NULL) {
    spt_parallel_for(panels, merged_panel, &job);
  } else {
    spt_panel_product o = product_of(&l->o, half->o, context, &p->y, queries);
    o.residual = x->f32;
    o.residual_stride = spt_f32_stride(x);
    run_product(&o, &p->y, panels);
    spt_parallel_for(panels, norm_panel, &job);
  }
  spt_panel_product up = product_of(&l->up, half->up, &p->y, &p->inner, queries);
  up.activation = l->activation;
  run_product(&up, &p->inner, panels);
  spt_panel_product down = product_of(&l->down, half->down, &p->inner, &p->x, queries);
  down.residual = p->y.f32;
  down.residual_stride = spt_f32_stride(&p->y);
  run_product(&down, &p->x, panels);
  job = (struct norm_job){p, &p->x, l->norm2_weight, l->norm2_bias, NULL, NULL};
  spt_parallel_for(panels, norm_panel, &job);
  spt_count_rest(p);
  return SPT_OK;
}

/* ---- the whole run ---------------------------------------------------------------------------- */

/* Lane i of first_x is the first token of sequence i. */
static void gather_first(spt_encoder_pass *p) {
  if (p->query_panels == 0) {
    return;
  }
  int64_t width = p->x.features, stride = spt_f32_stride(&p->x);
  memset(p->first_x.f32, 0, (size_t)(p->query_panels * stride) * sizeof(float));
  for (int64_t s = 0; s < p->run->n_sequences; s++) {
    int64_t slot = p->begin[s];
    if (p->end[s] == slot) {
      continue;
    }
    const float *from = p->x.f32 + slot / SPT_LANES * stride + slot % SPT_LANES;
    float *to = p->first_x.f32 + s / SPT_LANES * stride + s % SPT_LANES;
    for (int64_t f = 0; f < width; f++) {
      to[f * SPT_LANES] = from[f * SPT_LANES];
    }
  }
  for (int64_t panel = 0; p->first_x.bf16 != NULL && panel < p->query_panels; panel++) {
    p->tier->panel_narrow(p->first_x.bf16 + panel * spt_bf16_stride(&p->first_x),
                          p->first_x.f32 + panel * stride, width);
  }
  if (p->first_x.bf16 != NULL) {
    spt_clear_pair_padding(p->first_x.bf16, width, p->query_panels);
  }
}

static void unpack_panel(void *context, int64_t panel, int worker) {
  (void)worker;
  const spt_encoder_pass *p = context;
  int64_t width = p->x.features;
  const float *x = p->x.f32 + panel * width * SPT_LANES;
  spt_matrix hidden = {.data = p->run->hidden,
                       .dtype = SPT_F32,
                       .rows = p->run->first_only ? p->run->n_sequences : p->slots,
                       .cols = width,
                       .row = width,
                       .col = 1};
  if (p->run->first_only || !p->even) {
    p->tier->panel_unpack(&hidden, panel * SPT_LANES, x);
    return;
  }
  for (int64_t l = 0; l < SPT_LANES && panel * SPT_LANES + l < p->slots; l++) {
    int64_t row = p->place.source[panel * SPT_LANES + l];
    for (int64_t f = 0; row >= 0 && f < width; f++) {
      p->run->hidden[row * width + f] = x[f * SPT_LANES + l];
    }
  }
}

/* The row of the result that each slot becomes, in place.source. */
static void number_rows(const spt_encoder_pass *p) {
  int32_t row = 0;
  for (int64_t slot = 0; slot < p->slots; slot++) {
    p->place.source[slot] = p->place.token[slot] >= 0 ? row++ : -1;
  }
}

static void enter_layer(spt_encoder_pass *p, const spt_activations *context) {
  p->layer = &p->model->layers[p->layer_index];
  p->layer_bf16 = p->layers_bf16 != NULL ? &p->layers_bf16[p->layer_index] : NULL;
  p->qkv.features = p->first_q.features = spt_rows_of(&p->layer->qkv);
  p->inner.features = spt_rows_of(&p->layer->up);
  p->context = *context;
  p->context.features = spt_context_width(p->layer);
  if (p->layer->merged_row != NULL) { /* heads are added, in float32 */
    p->context.bf16 = NULL;
  } else if (p->layers_bf16 != NULL) {
    p->context.f32 = NULL;
  }
  if (p->run->pruning != NULL) {
    spt_pruning_begin_layer(p);
  }
}

spt_status spt_encoder_run_layers(spt_encoder_pass *p, spt_error *err) {
  const spt_encoder_model *m = p->model;
  struct norm_job embed = {p, &p->x, m->norm_weight, m->norm_bias, NULL, NULL};
  spt_parallel_for(p->n_panels, embed_panel, &embed);
  p->query_panels = p->n_panels;
  const spt_activations context = p->context;
  for (int64_t i = 0; i < m->n_layers; i++) {
    p->layer_index = i;
    enter_layer(p, &context);
    if (p->run->first_only && i + 1 == m->n_layers) {
      p->first_only = true;
      p->query_panels = spt_ceil_div(p->run->n_sequences, SPT_LANES);
      gather_first(p);
    }
    SPT_TRY(run_layer(p, err));
  }
  if (p->run->first_only && m->n_layers == 0) {
    p->query_panels = spt_ceil_div(p->run->n_sequences, SPT_LANES);
    gather_first(p);
    p->x = p->first_x;
  }
  if (p->even) {
    number_rows(p);
  }
  spt_parallel_for(p->query_panels, unpack_panel, p);
  for (int64_t s = 0; p->run->first_only && s < p->run->n_sequences; s++) {
    if (p->run->offsets[s + 1] == p->run->offsets[s]) {
      memset(p->run->hidden + s * m->width, 0, (size_t)m->width * sizeof(float));
    }
  }
  return SPT_OK;
}
