/* Tokens and heads that leave an encoder's run between its layers. What is kept moves to the front of
 * the panels behind an attention, so every later product is smaller.
 *
 * A token's importance is summed in whole numbers: threads add in any order, and the same tokens win
 * in any batch. A head's is summed over its queries one after another, in double. */
#include <string.h>

#include "encoder_pass.h"
#include "quick_select.h"

static const int64_t *counts_of(const spt_encoder_pass *p, const int64_t *counts, int64_t layer) {
  return counts + layer * p->run->n_sequences;
}

/* ---- before the first layer, and before each -------------------------------------------------------- */

void spt_pruning_start(spt_encoder_pass *p) {
  spt_kept *k = &p->kept;
  int64_t n = p->run->n_sequences;
  memset(k->importance, 0, (size_t)p->slots * sizeof *k->importance);
  memset(k->head_importance, 0, (size_t)(n * p->model->n_heads) * sizeof *k->head_importance);
  memset(k->heads, 1, (size_t)(n * p->model->n_heads));
  k->noted = 0;
}

/* How many heads of a layer sequence s still has; `last` is one of them. */
static int64_t heads_left(const spt_encoder_pass *p, int64_t layer, int64_t s, int32_t *last) {
  const spt_encoder_layer *l = &p->model->layers[layer];
  const uint8_t *alive = p->kept.heads + s * p->model->n_heads;
  int64_t left = 0;
  for (int32_t h = 0; h < l->n_heads; h++) {
    if (alive[l->head[h]]) {
      left++;
      *last = l->head[h];
    }
  }
  return left;
}

/* Whether sequence s loses a head behind the current layer or a later one. */
static bool loses_heads(const spt_encoder_pass *p, int64_t s) {
  const int64_t *heads = p->run->pruning->heads;
  int32_t last;
  for (int64_t layer = p->layer_index + 1; heads != NULL && layer < p->model->n_layers; layer++) {
    if (counts_of(p, heads, layer)[s] < heads_left(p, layer, s, &last)) {
      return true;
    }
  }
  return false;
}

static void mark_rows(uint8_t *rows, int32_t row, int32_t n) { memset(rows + row, 1, (size_t)n); }

/* Which units of qkv hold a row of a head that some sequence keeps. */
static void find_units(spt_encoder_pass *p) {
  const spt_encoder_layer *l = p->layer;
  spt_kept *k = &p->kept;
  int64_t n_rows = spt_rows_of(&l->qkv);
  memset(k->rows, 0, (size_t)n_rows);
  for (int32_t h = 0; h < l->n_heads; h++) {
    bool needed = false;
    for (int64_t s = 0; s < p->run->n_sequences && !needed; s++) {
      needed = p->end[s] > p->begin[s] && spt_head_is_kept(p, h, s);
    }
    if (needed) {
      mark_rows(k->rows, l->q_row[h], l->head_dim);
      mark_rows(k->rows, l->k_row[h], l->head_dim);
      mark_rows(k->rows, l->v_row[h], l->v_width[h]);
    }
  }
  const spt_strips *strips = l->qkv.strips;
  int64_t units = strips != NULL ? strips->n_strips : spt_ceil_div(n_rows, SPT_STRIP);
  for (int64_t unit = 0; unit < units; unit++) {
    k->units[unit] = 0;
    for (int r = 0; r < SPT_STRIP; r++) {
      int64_t row = strips != NULL                  ? spt_strip_row(strips, unit, r)
                    : unit * SPT_STRIP + r < n_rows ? unit * SPT_STRIP + r
                                                    : -1;
      k->units[unit] |= row >= 0 ? k->rows[row] : 0;
    }
  }
}

void spt_pruning_begin_layer(spt_encoder_pass *p) {
  const spt_encoder_pruning *pruning = p->run->pruning;
  spt_kept *k = &p->kept;
  int64_t n = p->run->n_sequences, heads = n * p->model->n_heads;
  for (int64_t slot = 0; slot < p->slots; slot++) {
    if (p->place.token[slot] >= 0) {
      pruning->kept_tokens[k->noted++] = p->place.token[slot];
    }
  }
  uint8_t *noted = pruning->kept_heads + p->layer_index * heads;
  memset(noted, 0, (size_t)heads);
  for (int64_t s = 0; s < n; s++) {
    for (int32_t h = 0; h < p->layer->n_heads; h++) {
      noted[s * p->model->n_heads + p->layer->head[h]] = spt_head_is_kept(p, h, s);
    }
    k->loses_heads[s] = loses_heads(p, s);
    size_t bytes = (size_t)(p->end[s] - p->begin[s]) * sizeof *k->shares;
    for (int w = 0; spt_loses_tokens(p, s) && w < p->workers; w++) {
      memset(k->shares + w * p->most_slots + p->begin[s], 0, bytes);
    }
  }
  memset(k->nan, 0, (size_t)p->workers);
  if (pruning->heads != NULL) {
    find_units(p);
  }
}

/* ---- behind an attention ---------------------------------------------------------------------------- */

static void add_token_importance(const spt_encoder_pass *p, int64_t s) {
  const spt_kept *k = &p->kept;
  for (int w = 0; w < p->workers; w++) {
    const double *shares = k->shares + w * p->most_slots;
    for (int64_t slot = p->begin[s]; slot < p->end[s]; slot++) {
      k->importance[slot] += shares[slot];
    }
  }
}

/* The tokens that stay, as slots from the sequence's first on. */
static void select_tokens(const spt_encoder_pass *p, int64_t s, int64_t count, uint32_t *keys) {
  const spt_encoder_run *run = p->run;
  const spt_kept *k = &p->kept;
  int64_t begin = p->begin[s], n = p->end[s] - begin;
  for (int64_t j = 0; j < n; j++) {
    int32_t token = p->place.token[begin + j];
    bool is_protected = token == run->offsets[s] ||
                        (run->pruning->protect != NULL && run->pruning->protect[token] != 0);
    keys[j] = is_protected ? 0 : spt_select_key((float)k->importance[begin + j]);
  }
  spt_selection most = spt_quick_select(p->tier, keys, n, count, keys + n);
  int32_t *to = p->place.source + begin;
  for (int64_t j = 0; j < n; j++) {
    if (spt_is_selected(&most, keys[j])) {
      *to++ = (int32_t)(begin + j);
    }
  }
}

/* False where a head's importance is NaN. */
static bool add_head_importance(const spt_encoder_pass *p, int64_t s) {
  const spt_kept *k = &p->kept;
  bool ordered = true;
  for (int32_t h = 0; h < p->layer->n_heads; h++) {
    double sum = 0.0;
    const float *magnitudes = k->magnitudes + h * p->most_slots;
    for (int64_t slot = p->begin[s]; spt_head_is_kept(p, h, s) && slot < p->end[s]; slot++) {
      sum += magnitudes[slot];
    }
    k->head_importance[s * p->model->n_heads + p->layer->head[h]] += sum;
    ordered &= sum == sum;
  }
  return ordered;
}

/* Whether a later layer has no other head left than this one. */
static bool is_last_head(const spt_encoder_pass *p, int64_t s, int32_t head) {
  for (int64_t layer = p->layer_index + 1; layer < p->model->n_layers; layer++) {
    int32_t last = -1;
    if (heads_left(p, layer, s, &last) == 1 && last == head) {
      return true;
    }
  }
  return false;
}

/* The next layer's heads go, the least important first and of equals the last, until it has `count`.
 * One that a later layer could not do without stays. Heads that the next layer does not have cost
 * nothing in it: nothing is decided about them. */
static void select_heads(const spt_encoder_pass *p, int64_t s, int64_t count, uint32_t *keys) {
  const spt_encoder_layer *next = &p->model->layers[p->layer_index + 1];
  uint8_t *alive = p->kept.heads + s * p->model->n_heads;
  uint32_t *candidates = keys + p->model->n_heads;
  int64_t n = 0;
  for (int32_t h = 0; h < next->n_heads; h++) {
    int32_t head = next->head[h];
    if (alive[head]) {
      double importance = p->kept.head_importance[s * p->model->n_heads + head];
      keys[n] = spt_select_key((float)importance); /* the larger, the less important */
      candidates[n++] = (uint32_t)head;
    }
  }
  for (int64_t left = n; left > count && n > 0; n--) {
    int64_t least = 0;
    for (int64_t i = 1; i < n; i++) {
      least = keys[i] >= keys[least] ? i : least;
    }
    int32_t head = (int32_t)candidates[least];
    if (!is_last_head(p, s, head)) {
      alive[head] = 0;
      left--;
    }
    for (int64_t i = least; i + 1 < n; i++) {
      keys[i] = keys[i + 1];
      candidates[i] = candidates[i + 1];
    }
  }
}

static void select_sequence(void *context, int64_t s, int worker) {
  const spt_encoder_pass *p = context;
  const spt_encoder_pruning *pruning = p->run->pruning;
  uint32_t *keys = (uint32_t *)(p->scratch + worker * p->scratch_stride);
  if (p->end[s] == p->begin[s]) {
    return;
  }
  if (spt_loses_tokens(p, s)) {
    int64_t count = counts_of(p, pruning->tokens, p->layer_index + 1)[s];
    add_token_importance(p, s);
    select_tokens(p, s, count, keys);
  }
  if (p->kept.loses_heads[s]) {
    if (!add_head_importance(p, s)) {
      p->kept.nan[worker] = 1;
      return;
    }
    select_heads(p, s, counts_of(p, pruning->heads, p->layer_index + 1)[s], keys);
  }
}

/* What is known of the tokens that stay moves to the front. Nothing is overwritten that is still to be
 * read: no token moves back. */
static void move_tokens(spt_encoder_pass *p) {
  spt_kept *k = &p->kept;
  int64_t slot = 0;
  for (int64_t s = 0; s < p->run->n_sequences; s++) {
    int64_t count = counts_of(p, p->run->pruning->tokens, p->layer_index + 1)[s];
    bool selected = spt_loses_tokens(p, s);
    int64_t from = p->begin[s], begin = slot;
    for (int64_t j = 0; j < count; j++, slot++) {
      int32_t source = selected ? p->place.source[from + j] : (int32_t)(from + j);
      p->place.source[slot] = source;
      p->place.token[slot] = p->place.token[source];
      k->importance[slot] = k->importance[source];
    }
    p->place.begin[s] = begin;
    p->place.end[s] = slot;
    for (; slot < begin + spt_slots_for(p, count); slot++) {
      p->place.source[slot] = p->place.token[slot] = -1;
    }
  }
  p->slots = slot;
  p->n_panels = p->query_panels = spt_ceil_div(slot, SPT_LANES);
  spt_find_sequences(p);
}

static void gather_panel(void *context, int64_t panel, int worker) {
  (void)worker;
  const spt_encoder_pass *p = context;
  const spt_kept *k = &p->kept;
  bool pairs = p->context.bf16 != NULL;
  int64_t x_stride = spt_f32_stride(&p->x), x_at[SPT_LANES], context_at[SPT_LANES];
  int64_t stride = pairs ? spt_bf16_stride(&p->context) / 2 : spt_f32_stride(&p->context);
  for (int l = 0; l < SPT_LANES; l++) {
    int64_t slot = panel * SPT_LANES + l, from = slot < p->slots ? p->place.source[slot] : -1;
    x_at[l] = from < 0 ? -1 : from / SPT_LANES * x_stride + from % SPT_LANES;
    context_at[l] = from < 0 ? -1 : from / SPT_LANES * stride + from % SPT_LANES;
  }
  p->tier->panel_gather((uint32_t *)k->x.f32 + panel * x_stride, (const uint32_t *)p->x.f32, x_at,
                        p->x.features);
  uint32_t *to = pairs ? (uint32_t *)k->context.bf16 : (uint32_t *)k->context.f32;
  const uint32_t *words = pairs ? (uint32_t *)p->context.bf16 : (uint32_t *)p->context.f32;
  p->tier->panel_gather(to + panel * stride, words, context_at, stride / SPT_LANES);
}

static bool some_tokens_go(const spt_encoder_pass *p) {
  const int64_t *now = counts_of(p, p->run->pruning->tokens, p->layer_index);
  const int64_t *next = counts_of(p, p->run->pruning->tokens, p->layer_index + 1);
  for (int64_t s = 0; s < p->run->n_sequences; s++) {
    if (next[s] < now[s]) {
      return true;
    }
  }
  return false;
}

spt_status spt_pruning_end_attention(spt_encoder_pass *p, bool *compacted, spt_error *err) {
  *compacted = false;
  if (p->layer_index + 1 == p->model->n_layers) {
    return SPT_OK;
  }
  spt_parallel_for_workers(p->run->n_sequences, p->workers, select_sequence, p);
  for (int w = 0; w < p->workers; w++) {
    if (p->kept.nan[w]) {
      return spt_fail(err, SPT_INVALID_VALUE,
                      "encoder: layer %lld: the importance of tokens or heads is NaN, expected "
                      "numbers that can be ordered",
                      (long long)p->layer_index);
    }
  }
  if (!some_tokens_go(p)) {
    return SPT_OK;
  }
  move_tokens(p);
  p->kept.context.features = p->context.features;
  spt_parallel_for(p->n_panels, gather_panel, p);
  *compacted = true;
  return SPT_OK;
}
