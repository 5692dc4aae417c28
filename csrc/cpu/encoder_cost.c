/* What the layers of a run did, counted where they do it. */
#include "encoder_pass.h"

static int64_t tokens_now(const spt_encoder_pass *p) {
  int64_t tokens = 0;
  for (int64_t s = 0; s < p->run->n_sequences; s++) {
    tokens += p->end[s] - p->begin[s];
  }
  return tokens;
}

/* Sequences that have tokens. */
static int64_t firsts_now(const spt_encoder_pass *p) {
  int64_t n = 0;
  for (int64_t s = 0; s < p->run->n_sequences; s++) {
    n += p->end[s] > p->begin[s];
  }
  return n;
}

static int64_t element(const spt_encoder_pass *p) {
  return (int64_t)spt_dtype_size(p->model->compute);
}

static spt_part_cost *costs_of(const spt_encoder_pass *p) {
  return p->run->cost + p->layer_index * SPT_COST_PARTS;
}

void spt_count_attention(const spt_encoder_pass *p) {
  const spt_encoder_layer *l = p->layer;
  if (p->run->cost == NULL) {
    return;
  }
  spt_part_cost *cost = costs_of(p);
  const uint8_t *needed = p->run->pruning != NULL ? p->kept.units : NULL;
  int64_t bytes = element(p), tokens = tokens_now(p), q_units = l->q_rows / SPT_STRIP;
  int64_t queries = p->first_only ? firsts_now(p) : tokens;
  spt_matrix_size q = p->sizes[p->layer_index].q, kv = p->sizes[p->layer_index].kv;
  if (needed != NULL) {
    q = spt_size_of_units(&l->qkv, needed, 0, q_units, bytes);
    kv = spt_size_of_units(&l->qkv, needed, q_units, spt_units_of(&l->qkv), bytes);
  }
  if (!p->first_only) { /* one product reads x once */
    q = (spt_matrix_size){q.weights + kv.weights, q.bytes + kv.bytes, q.rows + kv.rows};
  } else {
    spt_add_product_cost(&cost[SPT_COST_PROJECTIONS], &kv, p->model->width, tokens, bytes);
  }
  spt_add_product_cost(&cost[SPT_COST_PROJECTIONS], &q, p->model->width, queries, bytes);
  for (int w = 0; w < p->workers; w++) {
    cost[SPT_COST_SCORES].multiply_adds += p->work[w].scores;
    cost[SPT_COST_VALUES].multiply_adds += p->work[w].values;
  }
  for (int64_t s = 0; s < p->run->n_sequences; s++) {
    int64_t keys = p->end[s] - p->begin[s], rows = p->first_only && keys > 0 ? 1 : keys;
    for (int32_t h = 0; h < l->n_heads; h++) {
      if (spt_head_is_kept(p, h, s)) {
        cost[SPT_COST_SCORES].bytes += (keys + rows) * l->head_dim * bytes;
        cost[SPT_COST_VALUES].bytes += (keys + rows) * l->v_width[h] * bytes;
      }
    }
  }
}

void spt_count_rest(const spt_encoder_pass *p) {
  const spt_encoder_layer *l = p->layer;
  if (p->run->cost == NULL) {
    return;
  }
  spt_part_cost *cost = costs_of(p);
  int64_t bytes = element(p), tokens = p->first_only ? firsts_now(p) : tokens_now(p);
  const spt_layer_size *size = &p->sizes[p->layer_index];
  if (l->merged_row == NULL) {
    spt_add_product_cost(&cost[SPT_COST_PROJECTIONS], &size->o, p->context.features, tokens, bytes);
  }
  spt_add_product_cost(&cost[SPT_COST_FFN], &size->up, p->model->width, tokens, bytes);
  spt_add_product_cost(&cost[SPT_COST_FFN], &size->down, spt_rows_of(&l->up), tokens, bytes);
}
