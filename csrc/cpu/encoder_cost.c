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

static void add_strip(spt_matrix_size *to, const spt_strips *w, int64_t strip, int64_t element) {
  int64_t columns = w->value_ptr[strip + 1] - w->value_ptr[strip], rows = 0;
  for (int r = 0; r < SPT_STRIP; r++) {
    rows += spt_strip_row(w, strip, r) >= 0;
  }
  to->weights += columns * rows;
  to->rows += rows;
  to->bytes += columns * SPT_STRIP * element;
  to->bytes += (w->run_ptr[strip + 1] - w->run_ptr[strip]) * 2 * (int64_t)sizeof(int32_t);
}

static spt_matrix_size size_of(const spt_encoder_matrix *m, const uint8_t *needed, int64_t begin,
                               int64_t end, int64_t element) {
  spt_matrix_size size = {0};
  for (int64_t unit = begin; unit < end; unit++) {
    if (needed != NULL && !needed[unit]) {
      continue;
    }
    if (m->strips != NULL) {
      add_strip(&size, m->strips, unit, element);
      continue;
    }
    int64_t row = unit * SPT_STRIP, row_end = spt_min(row + SPT_STRIP, m->csr->out);
    int64_t weights = m->csr->row_ptr[row_end] - m->csr->row_ptr[row];
    size.weights += weights;
    size.rows += row_end - row;
    size.bytes += weights * (int64_t)(sizeof(float) + sizeof(int32_t));
  }
  return size;
}

static int64_t units_of(const spt_encoder_matrix *m) {
  return m->strips != NULL ? m->strips->n_strips : spt_ceil_div(m->csr->out, SPT_STRIP);
}

spt_layer_size spt_size_of_layer(const spt_encoder_layer *l, spt_dtype compute) {
  int64_t q_units = l->q_rows / SPT_STRIP, bytes = (int64_t)spt_dtype_size(compute);
  spt_layer_size size = {
      .q = size_of(&l->qkv, NULL, 0, q_units, bytes),
      .kv = size_of(&l->qkv, NULL, q_units, units_of(&l->qkv), bytes),
      .up = size_of(&l->up, NULL, 0, units_of(&l->up), bytes),
      .down = size_of(&l->down, NULL, 0, units_of(&l->down), bytes),
  };
  if (l->merged_row == NULL) {
    size.o = size_of(&l->o, NULL, 0, units_of(&l->o), bytes);
  }
  return size;
}

/* A product of some tokens: x of `in` features is read, the rows are written. */
static void add_product(spt_part_cost *to, const spt_matrix_size *size, int64_t in, int64_t tokens,
                        int64_t element) {
  if (tokens == 0) {
    return;
  }
  to->multiply_adds += size->weights * tokens;
  to->bytes += size->bytes + tokens * (in + size->rows) * element;
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
    q = size_of(&l->qkv, needed, 0, q_units, bytes);
    kv = size_of(&l->qkv, needed, q_units, units_of(&l->qkv), bytes);
  }
  if (!p->first_only) { /* one product reads x once */
    q = (spt_matrix_size){q.weights + kv.weights, q.bytes + kv.bytes, q.rows + kv.rows};
  } else {
    add_product(&cost[SPT_COST_PROJECTIONS], &kv, p->model->width, tokens, bytes);
  }
  add_product(&cost[SPT_COST_PROJECTIONS], &q, p->model->width, queries, bytes);
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
    add_product(&cost[SPT_COST_PROJECTIONS], &size->o, p->context.features, tokens, bytes);
  }
  add_product(&cost[SPT_COST_FFN], &size->up, p->model->width, tokens, bytes);
  add_product(&cost[SPT_COST_FFN], &size->down, spt_rows_of(&l->up), tokens, bytes);
}
