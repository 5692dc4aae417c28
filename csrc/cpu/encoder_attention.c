/* The encoder's attention: heads by panels of queries, straight from the product's output. */
#include <string.h>

#include "encoder_pass.h"

int64_t spt_context_width(const spt_encoder_layer *l) {
  if (l->merged_row != NULL) {
    return l->n_heads > 0 ? l->v_width[0] : 0;
  }
  int64_t width = 0;
  for (int32_t h = 0; h < l->n_heads; h++) {
    width += l->v_width[h];
  }
  return width;
}

/* The queries in lanes [lane, lane_end) of a panel, all of one sequence. */
static void attend(const spt_encoder_pass *p, int32_t head, int64_t sequence, int64_t query_panel,
                   int lane, int lane_end, int64_t context_row, int worker) {
  const spt_encoder_layer *l = p->layer;
  const spt_activations *queries = p->first_only ? &p->first_q : &p->qkv;
  int64_t begin = p->run->offsets[sequence], end = p->run->offsets[sequence + 1];
  int64_t q_row = l->q_row[head] * SPT_LANES, k_row = l->k_row[head] * SPT_LANES;
  int64_t v_row = l->v_row[head] * SPT_LANES, panel = begin / SPT_LANES;
  spt_attention_block block = {
      .d = l->head_dim,
      .dv = l->v_width[head],
      .key_begin = begin % SPT_LANES,
      .key_end = begin % SPT_LANES + end - begin,
      .lane_begin = lane,
      .lane_end = lane_end,
      .first_key = -SPT_UNBOUNDED,
      .last_key = SPT_UNBOUNDED,
      .scale = l->scale,
      .scratch = p->scratch + worker * p->scratch_stride,
      .accumulate = l->merged_row != NULL && head > 0,
  };
  if (p->layers_bf16 != NULL) {
    int64_t stride = spt_bf16_stride(&p->qkv);
    const uint16_t *keys = p->qkv.bf16 + panel * stride;
    block.q_pairs = queries->bf16 + query_panel * stride + q_row;
    block.k_pairs = keys + k_row;
    block.v_rows = keys + v_row;
    block.k_stride = block.v_stride = stride;
  } else {
    int64_t stride = spt_f32_stride(&p->qkv);
    const float *keys = p->qkv.f32 + panel * stride;
    block.q = queries->f32 + query_panel * stride + q_row;
    block.k = keys + k_row;
    block.v = keys + v_row;
    block.k_stride = block.v_stride = stride;
  }
  if (p->context.bf16 != NULL) {
    block.out_pairs = p->context.bf16 + query_panel * spt_bf16_stride(&p->context);
    block.out_feature = context_row;
  } else {
    block.out =
        p->context.f32 + query_panel * spt_f32_stride(&p->context) + context_row * SPT_LANES;
  }
  p->tier->attention_block(&block);
}

static void attend_panel(const spt_encoder_pass *p, int32_t head, int64_t panel,
                         int64_t context_row, int worker) {
  const int64_t *offsets = p->run->offsets;
  if (p->first_only) {
    int64_t last = spt_min((panel + 1) * SPT_LANES, p->run->n_sequences);
    for (int64_t s = panel * SPT_LANES; s < last; s++) {
      int lane = (int)(s - panel * SPT_LANES);
      if (offsets[s + 1] > offsets[s]) {
        attend(p, head, s, panel, lane, lane + 1, context_row, worker);
      }
    }
    return;
  }
  int64_t first = panel * SPT_LANES, end = spt_min(first + SPT_LANES, p->tokens);
  for (int64_t s = p->panel_sequence[panel]; s < p->run->n_sequences && offsets[s] < end; s++) {
    int lane = (int)(spt_max(offsets[s], first) - first);
    int lane_end = (int)(spt_min(offsets[s + 1], end) - first);
    if (lane_end > lane) {
      attend(p, head, s, panel, lane, lane_end, context_row, worker);
    }
  }
}

/* Tasks are (head, panel), or panels alone where the heads add up into one context. */
static void attention_task(void *context, int64_t task, int worker) {
  const spt_encoder_pass *p = context;
  const spt_encoder_layer *l = p->layer;
  if (l->merged_row != NULL) {
    for (int32_t h = 0; h < l->n_heads; h++) {
      attend_panel(p, h, task, 0, worker);
    }
    return;
  }
  int32_t head = (int32_t)(task / p->query_panels);
  int64_t context_row = 0;
  for (int32_t h = 0; h < head; h++) {
    context_row += l->v_width[h];
  }
  attend_panel(p, head, task % p->query_panels, context_row, worker);
}

/* Lanes that no query fills are never written by a block, and the next product reads them. */
static void clear_context(const spt_encoder_pass *p) {
  int64_t first = p->first_only ? 0 : p->query_panels - 1, n = p->query_panels - first;
  if (p->context.bf16 != NULL) {
    int64_t stride = spt_bf16_stride(&p->context);
    memset(p->context.bf16 + first * stride, 0, (size_t)(n * stride) * sizeof(uint16_t));
    spt_clear_pair_padding(p->context.bf16, p->context.features, first);
  } else {
    int64_t stride = spt_f32_stride(&p->context);
    memset(p->context.f32 + first * stride, 0, (size_t)(n * stride) * sizeof(float));
  }
}

void spt_encoder_attention(spt_encoder_pass *p) {
  const spt_encoder_layer *l = p->layer;
  if (p->query_panels > 0) {
    clear_context(p);
  }
  int64_t tasks = l->merged_row != NULL ? p->query_panels : l->n_heads * p->query_panels;
  spt_parallel_for_workers(tasks, p->workers, attention_task, p);
}
