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

void spt_find_sequences(spt_encoder_pass *p) {
  int64_t s = 0;
  for (int64_t panel = 0; panel < p->n_panels; panel++) {
    while (p->end[s] <= panel * SPT_LANES) {
      s++;
    }
    p->panel_sequence[panel] = s;
  }
}

/* What pruning needs to know of a block: each key's share of the probabilities, each query's
 * magnitude. */
static void ask_for_importance(const spt_encoder_pass *p, spt_attention_block *block, int32_t head,
                               int64_t sequence, int64_t query_panel, int worker) {
  const spt_kept *k = &p->kept;
  if (spt_loses_tokens(p, sequence)) {
    block->token_shares = k->shares + worker * p->most_slots + p->begin[sequence];
    block->nan = k->nan + worker;
  }
  if (k->loses_heads[sequence]) {
    block->magnitudes = k->magnitudes + head * p->most_slots + query_panel * SPT_LANES;
  }
}

/* Where a head's results of a panel begin. */
struct place {
  int32_t head;
  int64_t context_row;
  bool accumulate;
};

/* The queries in lanes [lane, lane_end) of a panel, all of one sequence. */
static void attend(const spt_encoder_pass *p, struct place to, int64_t sequence,
                   int64_t query_panel, int lane, int lane_end, int worker) {
  const spt_encoder_layer *l = p->layer;
  const spt_activations *queries = p->first_only ? &p->first_q : &p->qkv;
  int64_t begin = p->begin[sequence], keys = p->end[sequence] - begin;
  int64_t q_row = l->q_row[to.head] * SPT_LANES, k_row = l->k_row[to.head] * SPT_LANES;
  int64_t v_row = l->v_row[to.head] * SPT_LANES, panel = begin / SPT_LANES;
  spt_attention_block block = {
      .d = l->head_dim,
      .dv = l->v_width[to.head],
      .key_begin = begin % SPT_LANES,
      .key_end = begin % SPT_LANES + keys,
      .lane_begin = lane,
      .lane_end = lane_end,
      .first_key = -SPT_UNBOUNDED,
      .last_key = SPT_UNBOUNDED,
      .scale = l->scale,
      .scratch = p->scratch + worker * p->scratch_stride,
      .accumulate = to.accumulate,
  };
  if (p->layers_bf16 != NULL) {
    int64_t stride = spt_bf16_stride(&p->qkv);
    const uint16_t *key_panel = p->qkv.bf16 + panel * stride;
    block.q_pairs = queries->bf16 + query_panel * stride + q_row;
    block.k_pairs = key_panel + k_row;
    block.v_rows = key_panel + v_row;
    block.k_stride = block.v_stride = stride;
  } else {
    int64_t stride = spt_f32_stride(&p->qkv);
    const float *key_panel = p->qkv.f32 + panel * stride;
    block.q = queries->f32 + query_panel * stride + q_row;
    block.k = key_panel + k_row;
    block.v = key_panel + v_row;
    block.k_stride = block.v_stride = stride;
  }
  if (p->context.bf16 != NULL) {
    block.out_pairs = p->context.bf16 + query_panel * spt_bf16_stride(&p->context);
    block.out_feature = to.context_row;
  } else {
    block.out =
        p->context.f32 + query_panel * spt_f32_stride(&p->context) + to.context_row * SPT_LANES;
  }
  if (p->run->pruning != NULL) {
    ask_for_importance(p, &block, to.head, sequence, query_panel, worker);
  }
  p->tier->attention_block(&block);
  p->work[worker].scores += (lane_end - lane) * keys * block.d;
  p->work[worker].values += (lane_end - lane) * keys * block.dv;
}

/* Zeros in rows [row, row + n) of the context, of a head that is dropped. */
static void clear_rows(const spt_encoder_pass *p, int64_t row, int64_t n, int64_t query_panel,
                       int lane, int lane_end) {
  for (int64_t r = row; r < row + n; r++) {
    for (int l = lane; l < lane_end; l++) {
      if (p->context.bf16 != NULL) {
        int64_t at = query_panel * spt_bf16_stride(&p->context);
        p->context.bf16[at + (r / 2 * SPT_LANES + l) * 2 + r % 2] = 0;
      } else {
        p->context.f32[query_panel * spt_f32_stride(&p->context) + r * SPT_LANES + l] = 0.0f;
      }
    }
  }
}

/* The heads [head, head_end) for some queries of one sequence. */
static void attend_heads(const spt_encoder_pass *p, int32_t head, int32_t head_end,
                         int64_t sequence, int64_t query_panel, int lane, int lane_end,
                         int worker) {
  const spt_encoder_layer *l = p->layer;
  if (l->merged_row == NULL) {
    int64_t row = 0;
    for (int32_t h = 0; h < head; h++) {
      row += l->v_width[h];
    }
    if (spt_head_is_kept(p, head, sequence)) {
      attend(p, (struct place){head, row, false}, sequence, query_panel, lane, lane_end, worker);
    } else {
      clear_rows(p, row, l->v_width[head], query_panel, lane, lane_end);
    }
    return;
  }
  bool some = false; /* the heads' results add up */
  for (int32_t h = head; h < head_end; h++) {
    if (spt_head_is_kept(p, h, sequence)) {
      attend(p, (struct place){h, 0, some}, sequence, query_panel, lane, lane_end, worker);
      some = true;
    }
  }
  if (!some) {
    clear_rows(p, 0, p->context.features, query_panel, lane, lane_end);
  }
}

static void attend_panel(const spt_encoder_pass *p, int32_t head, int32_t head_end, int64_t panel,
                         int worker) {
  if (p->first_only) {
    int64_t last = spt_min((panel + 1) * SPT_LANES, p->run->n_sequences);
    for (int64_t s = panel * SPT_LANES; s < last; s++) {
      int lane = (int)(s - panel * SPT_LANES);
      if (p->end[s] > p->begin[s]) {
        attend_heads(p, head, head_end, s, panel, lane, lane + 1, worker);
      }
    }
    return;
  }
  int64_t first = panel * SPT_LANES, end = spt_min(first + SPT_LANES, p->slots);
  for (int64_t s = p->panel_sequence[panel]; s < p->run->n_sequences && p->begin[s] < end; s++) {
    int lane = (int)(spt_max(p->begin[s], first) - first);
    int lane_end = (int)(spt_min(p->end[s], end) - first);
    if (lane_end > lane) {
      attend_heads(p, head, head_end, s, panel, lane, lane_end, worker);
    }
  }
}

/* Tasks are (head, panel), or panels alone where the heads add up into one context. */
static void attention_task(void *context, int64_t task, int worker) {
  const spt_encoder_pass *p = context;
  if (p->layer->merged_row != NULL) {
    attend_panel(p, 0, p->layer->n_heads, task, worker);
    return;
  }
  int32_t head = (int32_t)(task / p->query_panels);
  attend_panel(p, head, head + 1, task % p->query_panels, worker);
}

/* Whether a query fills every lane of the panel. */
static bool is_full(const spt_encoder_pass *p, int64_t panel) {
  if (p->first_only || (panel + 1) * SPT_LANES > p->slots) {
    return false;
  }
  for (int l = 0; spt_is_placed(p) && l < SPT_LANES; l++) {
    if (p->place.token[panel * SPT_LANES + l] < 0) {
      return false;
    }
  }
  return true;
}

/* Lanes that no query fills are never written by a block, and the next product reads them. */
static void clear_context(const spt_encoder_pass *p) {
  for (int64_t panel = 0; panel < p->query_panels; panel++) {
    if (is_full(p, panel)) {
      continue;
    }
    if (p->context.bf16 != NULL) {
      int64_t stride = spt_bf16_stride(&p->context);
      memset(p->context.bf16 + panel * stride, 0, (size_t)stride * sizeof(uint16_t));
    } else {
      int64_t stride = spt_f32_stride(&p->context);
      memset(p->context.f32 + panel * stride, 0, (size_t)stride * sizeof(float));
    }
  }
  if (p->context.bf16 != NULL) {
    spt_clear_pair_padding(p->context.bf16, p->context.features, p->query_panels);
  }
}

void spt_encoder_attention(spt_encoder_pass *p) {
  const spt_encoder_layer *l = p->layer;
  clear_context(p);
  memset(p->work, 0, (size_t)p->workers * sizeof *p->work);
  int64_t tasks = l->merged_row != NULL ? p->query_panels : l->n_heads * p->query_panels;
  spt_parallel_for_workers(tasks, p->workers, attention_task, p);
}
