/* encoder: a compiled model on the device. Its weights lie there as the products read them, from when it is
 * created. */
#include "encoder_graph.h"

#include <stdlib.h>
#include <string.h>

#include "memory.h"
#include "slots.h"
#include "view.cuh"

static spt_status no_memory(spt_error *err) {
  return spt_fail(err, SPT_OUT_OF_MEMORY, "encoder: no memory");
}

/* ---- tables ----------------------------------------------------------------------------------- */

/* A copy of a host table on the device, which goes with the encoder; NULL stays NULL. */
template <typename T>
static spt_status table_on_device(spt_gpu_encoder *e, const T *table, int64_t n, const T **copy,
                                  spt_error *err) {
  *copy = NULL;
  if (table == NULL) {
    return SPT_OK;
  }
  void **grown = (void **)realloc(e->owned, (size_t)(e->n_owned + 1) * sizeof *grown);
  if (grown == NULL) {
    return no_memory(err);
  }
  e->owned = grown;
  void *data;
  size_t bytes = (size_t)n * sizeof(T);
  SPT_TRY(spt_cuda_pool_take(e->queue->pool, "encoder", bytes, &data, err));
  e->owned[e->n_owned++] = data;
  *copy = (const T *)data;
  return spt_cuda_to_device(e->queue, "encoder", data, table, bytes, err);
}

static spt_status product_on_device(spt_gpu_encoder *e, const spt_encoder_matrix *m,
                                    spt_gpu_product *to, spt_error *err) {
  to->weight.strips = m->strips;
  to->weight.csr = m->csr;
  to->weight.out = m->strips != NULL ? m->strips->out : m->csr->out;
  to->weight.in = m->strips != NULL ? m->strips->in : m->csr->in;
  SPT_TRY(table_on_device(e, m->bias, to->weight.out, &to->bias, err));
  return spt_cuda_prepare(e->queue, &to->weight, e->model->compute, &to->prepared, err);
}

/* ---- Q apart from K and V --------------------------------------------------------------------- */

/* Output rows [begin, end) of qkv, which are whole strips (or, of CSR, any) by what create has checked. */
static spt_status part_of_strips(const spt_strips *w, int64_t first, int64_t n, int64_t begin,
                                 int64_t end, spt_strips *part, int32_t **rows, spt_error *err) {
  *part = *w;
  part->out = end - begin;
  part->n_strips = n;
  part->run_ptr = w->run_ptr + first;
  part->value_ptr = w->value_ptr + first;
  if (w->rows == NULL) {
    return SPT_OK;
  }
  *rows = (int32_t *)malloc((size_t)(n * SPT_STRIP + 1) * sizeof **rows);
  if (*rows == NULL) {
    return no_memory(err);
  }
  for (int64_t i = 0; i < n * SPT_STRIP; i++) {
    int32_t row = w->rows[first * SPT_STRIP + i];
    (*rows)[i] = row < 0 ? -1 : row - (int32_t)begin;
  }
  part->rows = *rows;
  return SPT_OK;
}

static spt_status part_on_device(spt_gpu_encoder *e, const spt_encoder_layer *l, int64_t begin,
                                 int64_t end, spt_gpu_part *to, spt_error *err) {
  const spt_encoder_matrix *qkv = &l->qkv;
  spt_encoder_matrix part = {};
  part.bias = qkv->bias != NULL ? qkv->bias + begin : NULL;
  if (qkv->strips != NULL) {
    int64_t first = begin / SPT_STRIP;
    int64_t n = begin == 0 ? l->q_rows / SPT_STRIP : qkv->strips->n_strips - first;
    SPT_TRY(part_of_strips(qkv->strips, first, n, begin, end, &to->strips, &to->rows, err));
    part.strips = &to->strips;
  } else {
    to->csr = *qkv->csr;
    to->csr.out = end - begin;
    to->csr.row_ptr = qkv->csr->row_ptr + begin;
    part.csr = &to->csr;
  }
  return product_on_device(e, &part, &to->product, err);
}

/* ---- heads ------------------------------------------------------------------------------------ */

static bool joins(const spt_encoder_layer *l, const spt_gpu_heads *g, int32_t h) {
  if (l->v_width[h] != g->width) {
    return false;
  }
  int32_t before = h - 1;
  int64_t q = l->q_row[h] - l->q_row[before], k = l->k_row[h] - l->k_row[before];
  int64_t v = l->v_row[h] - l->v_row[before];
  return g->count == 1 || (q == g->q_step && k == g->k_step && v == g->v_step);
}

static spt_status group_heads(spt_gpu_layer *to, spt_error *err) {
  const spt_encoder_layer *l = to->table;
  to->groups = (spt_gpu_heads *)calloc((size_t)l->n_heads + 1, sizeof *to->groups);
  if (to->groups == NULL) {
    return no_memory(err);
  }
  int64_t context = 0;
  for (int32_t h = 0; h < l->n_heads; h++) {
    spt_gpu_heads *last = to->n_groups > 0 ? &to->groups[to->n_groups - 1] : NULL;
    if (last != NULL && joins(l, last, h)) {
      last->q_step = l->q_row[h] - l->q_row[h - 1];
      last->k_step = l->k_row[h] - l->k_row[h - 1];
      last->v_step = l->v_row[h] - l->v_row[h - 1];
      last->count++;
    } else {
      to->groups[to->n_groups++] = {
          h, 1, l->v_width[h], l->q_row[h], l->k_row[h], l->v_row[h], context, 0, 0, 0};
    }
    context += l->v_width[h];
  }
  to->context_width = l->merged_row == NULL ? context : l->n_heads > 0 ? l->v_width[0] : 0;
  return SPT_OK;
}

static spt_status layer_on_device(spt_gpu_encoder *e, int64_t i, spt_error *err) {
  const spt_encoder_layer *l = &e->model->layers[i];
  spt_gpu_layer *to = &e->layers[i];
  int64_t width = e->model->width;
  to->table = l;
  SPT_TRY(product_on_device(e, &l->qkv, &to->qkv, err));
  to->qkv_width = to->qkv.weight.out;
  if (l->merged_row == NULL) {
    SPT_TRY(product_on_device(e, &l->o, &to->o, err));
  }
  SPT_TRY(product_on_device(e, &l->up, &to->up, err));
  SPT_TRY(product_on_device(e, &l->down, &to->down, err));
  if (i + 1 == e->model->n_layers) {
    SPT_TRY(part_on_device(e, l, 0, l->q_rows, &to->first_q, err));
    SPT_TRY(part_on_device(e, l, l->q_rows, to->qkv_width, &to->rest_kv, err));
  }
  SPT_TRY(group_heads(to, err));
  SPT_TRY(table_on_device(e, l->head, l->n_heads, &to->head, err));
  SPT_TRY(table_on_device(e, l->norm1_weight, width, &to->norm1_weight, err));
  SPT_TRY(table_on_device(e, l->norm1_bias, width, &to->norm1_bias, err));
  SPT_TRY(table_on_device(e, l->norm2_weight, width, &to->norm2_weight, err));
  SPT_TRY(table_on_device(e, l->norm2_bias, width, &to->norm2_bias, err));
  SPT_TRY(table_on_device(e, l->merged_row, to->context_width, &to->merged_row, err));
  return table_on_device(e, l->merged_bias, width, &to->merged_bias, err);
}

/* Which heads each layer has. */
static spt_status layer_heads_on_device(spt_gpu_encoder *e, spt_error *err) {
  const spt_encoder_model *m = e->model;
  int64_t n = m->n_layers * m->n_heads;
  uint8_t *table = (uint8_t *)calloc((size_t)n + 1, 1);
  if (table == NULL) {
    return no_memory(err);
  }
  for (int64_t i = 0; i < m->n_layers; i++) {
    for (int32_t h = 0; h < m->layers[i].n_heads; h++) {
      table[i * m->n_heads + m->layers[i].head[h]] = 1;
    }
  }
  spt_status status = table_on_device(e, (const uint8_t *)table, n, &e->layer_heads, err);
  free(table);
  return status;
}

static spt_status fill(spt_gpu_encoder *e, spt_error *err) {
  const spt_encoder_model *m = e->model;
  e->layers = (spt_gpu_layer *)calloc((size_t)m->n_layers + 1, sizeof *e->layers);
  e->sizes = (spt_layer_size *)calloc((size_t)m->n_layers + 1, sizeof *e->sizes);
  if (e->layers == NULL || e->sizes == NULL) {
    return no_memory(err);
  }
  SPT_TRY(table_on_device(e, m->word, m->vocabulary * m->width, &e->word, err));
  SPT_TRY(table_on_device(e, m->position, m->positions * m->width, &e->position, err));
  SPT_TRY(table_on_device(e, m->type, m->types * m->width, &e->type, err));
  SPT_TRY(table_on_device(e, m->norm_weight, m->width, &e->norm_weight, err));
  SPT_TRY(table_on_device(e, m->norm_bias, m->width, &e->norm_bias, err));
  SPT_TRY(layer_heads_on_device(e, err));
  for (int64_t i = 0; i < m->n_layers; i++) {
    e->sizes[i] = spt_size_of_layer(&m->layers[i], m->compute);
    SPT_TRY(layer_on_device(e, i, err));
  }
  return spt_gpu_graphs_create(e->queue->device, &e->graphs, err);
}

spt_status spt_cuda_encoder_create(void *state, const spt_encoder_model *model, void **out,
                                   spt_error *err) {
  spt_gpu_encoder *e = (spt_gpu_encoder *)calloc(1, sizeof *e);
  if (e == NULL) {
    return no_memory(err);
  }
  e->queue = spt_queue_of(state);
  e->model = model;
  spt_status status = fill(e, err);
  if (status != SPT_OK) {
    spt_cuda_encoder_free(e);
    return status;
  }
  *out = e;
  return SPT_OK;
}

static void free_product(const spt_gpu_encoder *e, const spt_gpu_product *w) {
  if (w->prepared != NULL) {
    spt_cuda_prepared_free(e->queue, w->prepared);
  }
}

void spt_cuda_encoder_free(void *encoder) {
  spt_gpu_encoder *e = (spt_gpu_encoder *)encoder;
  spt_gpu_graphs_free(e->graphs);
  for (int64_t i = 0; e->layers != NULL && i < e->model->n_layers; i++) {
    spt_gpu_layer *l = &e->layers[i];
    free_product(e, &l->qkv);
    free_product(e, &l->o);
    free_product(e, &l->up);
    free_product(e, &l->down);
    free_product(e, &l->first_q.product);
    free_product(e, &l->rest_kv.product);
    free(l->first_q.rows);
    free(l->rest_kv.rows);
    free(l->groups);
  }
  for (int64_t i = 0; i < e->n_owned; i++) {
    spt_cuda_pool_give(e->queue->pool, e->owned[i], true);
  }
  free(e->owned);
  free(e->layers);
  free(e->sizes);
  free(e);
}
