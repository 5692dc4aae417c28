/* The encoder's attention: the fused kernel over the columns of the projections where they lie, a call for
 * each group of heads that are alike. */
#include "attention_run.h"
#include "encoder.h"

static char *columns_of(void *rows, spt_dtype dtype, int64_t column) {
  return (char *)rows + column * (int64_t)spt_dtype_size(dtype);
}

static spt_heads heads_at(void *rows, spt_dtype dtype, int64_t column, int64_t row_stride,
                          int64_t step) {
  return {columns_of(rows, dtype, column), dtype, 0, row_stride, step, 1};
}

/* Whether tokens, or heads, are chosen behind this layer or a later one. */
static bool some_go_later(const spt_gpu_pass *p, const int64_t *counts, int64_t layer) {
  for (int64_t i = 0; counts != NULL && i < p->n; i++) {
    if (counts[(p->model->n_layers - 1) * p->n + i] < counts[layer * p->n + i]) {
      return true;
    }
  }
  return false;
}

static void ask_for_importance(const spt_gpu_pass *p, int64_t layer, spt_attention_problem *a) {
  const spt_encoder_pruning *pruning = p->run->pruning;
  if (pruning == NULL || layer + 1 == p->model->n_layers) {
    return;
  }
  bool heads = pruning->heads != NULL;
  if (some_go_later(p, pruning->tokens, layer) || heads) {
    a->token_importance = {p->importance, SPT_F32, 0, 1, 0, 0};
    a->head_importance = {p->head_importance, SPT_F32, p->model->n_heads, 0, 1, 0};
  }
}

/* Where the results of a group go: side by side, or of a merged layer each head's apart. */
static spt_heads results_of(const spt_gpu_pass *p, const spt_gpu_layer *l,
                            const spt_gpu_heads *group) {
  if (l->table->merged_row != NULL) {
    int64_t width = l->context_width, row = width * l->table->n_heads;
    return heads_at(p->context, SPT_F32, group->first * width, row, width);
  }
  return heads_at(p->context, p->narrow, group->context, l->context_width, group->width);
}

/* Heads without values still share their probabilities out: K stands in V's place, for results that
 * nobody reads. */
static spt_status stand_in_values(const spt_gpu_pass *p, spt_scratch *scratch,
                                  spt_attention_problem *a, spt_error *err) {
  char *results;
  float *magnitudes;
  int64_t row = a->heads * a->d;
  SPT_TRY(scratch->take(&results, a->queries * row * (int64_t)sizeof(float), err));
  SPT_TRY(scratch->take(&magnitudes, p->n * p->model->n_heads, err));
  a->dv = a->d;
  a->v = a->k;
  a->out = heads_at(results, p->narrow, 0, row, a->d);
  a->head_importance.data = magnitudes;
  return SPT_OK;
}

static spt_status attend_group(const spt_gpu_pass *p, int64_t layer, bool first,
                               const spt_gpu_heads *group, spt_error *err) {
  const spt_gpu_layer *l = &p->encoder->layers[layer];
  spt_attention_problem a = {};
  a.sequences = p->n;
  a.heads = a.kv_heads = group->count;
  a.d = l->table->head_dim;
  a.dv = group->width;
  a.kv_offsets = spt_gpu_host_offsets(p, layer);
  a.q_offsets = first ? p->host_first_offsets : a.kv_offsets;
  a.queries = a.q_offsets[p->n];
  a.keys = a.kv_offsets[p->n];
  int64_t width = l->qkv_width;
  a.q = heads_at(first ? p->q : p->qkv, p->narrow, group->q,
                 first ? (int64_t)l->table->q_rows : width, group->q_step);
  a.k = heads_at(p->qkv, p->narrow, group->k, width, group->k_step);
  a.v = heads_at(p->qkv, p->narrow, group->v, width, group->v_step);
  a.out = results_of(p, l, group);
  a.left = a.right = SPT_UNBOUNDED;
  a.scale = l->table->scale;
  ask_for_importance(p, layer, &a);
  spt_scratch scratch(p->queue, "encoder");
  if (group->width == 0) {
    if (a.token_importance.data == NULL) {
      return SPT_OK;
    }
    SPT_TRY(stand_in_values(p, &scratch, &a, err));
  }
  spt_attention_run run = {};
  run.kv_offsets = spt_gpu_offsets(p, layer);
  run.q_offsets = first ? p->first_offsets : run.kv_offsets;
  run.head = l->head + group->first;
  run.accumulate = true;
  if (p->counts_heads != NULL) {
    run.kept = p->alive;
    run.kept_stride = p->model->n_heads;
  }
  return spt_cuda_attention_run(p->queue, &a, &run, err);
}

spt_status spt_gpu_attend(const spt_gpu_pass *p, int64_t layer, bool first, spt_error *err) {
  const spt_gpu_layer *l = &p->encoder->layers[layer];
  for (int32_t g = 0; g < l->n_groups; g++) {
    SPT_TRY(attend_group(p, layer, first, &l->groups[g], err));
  }
  return SPT_OK;
}
