/* What the layers of a run did, from what they worked on. On the device rows of the projections are
 * computed for all heads, dropped or not: which ones are dropped is not known where they are launched. */
#include "encoder.h"

static bool takes_part(const spt_gpu_pass *p, int64_t layer, int64_t s, int32_t head) {
  const spt_encoder_pruning *pruning = p->run->pruning;
  int64_t at = (layer * p->n + s) * p->model->n_heads + head;
  return pruning == NULL || pruning->kept_heads[at] != 0;
}

static void count_attention(const spt_gpu_pass *p, int64_t layer, bool first, spt_part_cost *cost) {
  const spt_encoder_layer *l = p->encoder->layers[layer].table;
  const int64_t *offsets = spt_gpu_host_offsets(p, layer);
  int64_t element = (int64_t)spt_dtype_size(p->model->compute);
  for (int64_t s = 0; s < p->n; s++) {
    int64_t keys = offsets[s + 1] - offsets[s], rows = first && keys > 0 ? 1 : keys;
    for (int32_t h = 0; h < l->n_heads; h++) {
      if (takes_part(p, layer, s, l->head[h])) {
        cost[SPT_COST_SCORES].multiply_adds += rows * keys * l->head_dim;
        cost[SPT_COST_SCORES].bytes += (keys + rows) * l->head_dim * element;
        cost[SPT_COST_VALUES].multiply_adds += rows * keys * l->v_width[h];
        cost[SPT_COST_VALUES].bytes += (keys + rows) * l->v_width[h] * element;
      }
    }
  }
}

void spt_gpu_count_costs(const spt_gpu_pass *p) {
  const spt_encoder_model *m = p->model;
  int64_t element = (int64_t)spt_dtype_size(m->compute), width = m->width;
  for (int64_t i = 0; i < m->n_layers; i++) {
    const spt_gpu_layer *l = &p->encoder->layers[i];
    const spt_layer_size *size = &p->encoder->sizes[i];
    spt_part_cost *cost = p->run->cost + i * SPT_COST_PARTS;
    bool first = p->run->first_only && i + 1 == m->n_layers;
    int64_t tokens = spt_gpu_tokens(p, i), firsts = p->host_first_offsets[p->n];
    int64_t rest = first ? firsts : spt_gpu_tokens(p, i + 1);
    spt_matrix_size q = size->q;
    if (first) {
      spt_add_product_cost(&cost[SPT_COST_PROJECTIONS], &size->kv, width, tokens, element);
    } else { /* one product reads x once */
      q = {q.weights + size->kv.weights, q.bytes + size->kv.bytes, q.rows + size->kv.rows};
    }
    spt_add_product_cost(&cost[SPT_COST_PROJECTIONS], &q, width, first ? firsts : tokens, element);
    count_attention(p, i, first, cost);
    if (l->table->merged_row == NULL) {
      spt_add_product_cost(&cost[SPT_COST_PROJECTIONS], &size->o, l->context_width, rest, element);
    }
    spt_add_product_cost(&cost[SPT_COST_FFN], &size->up, width, rest, element);
    spt_add_product_cost(&cost[SPT_COST_FFN], &size->down, l->up.weight.out, rest, element);
  }
}
