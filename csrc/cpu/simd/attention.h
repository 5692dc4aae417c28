/* Attention on panels: keys and features take turns as the broadcast rows, the 16 queries of a panel
 * stay in the lanes from the scores to the output. So softmax is vertical, and both products run the
 * same loop: one register of x against ATTENTION_ROWS broadcast rows. */
#include <math.h>

#include "attention_bf16.h"
#include "philox.h"

/* sum (rows, 16) += a x for x (n, 16); element (r, k) of a is at a[r * row + k * step]. */
static inline __attribute__((always_inline)) void add_product(vec (*sum)[VECS], const float *a,
                                                              int64_t row, int64_t step,
                                                              const float *x, int64_t n,
                                                              const int rows) {
  for (int64_t k = 0; k < n; k++) {
    vec xs[VECS];
#pragma GCC unroll 2
    for (int v = 0; v < VECS; v++) {
      xs[v] = vec_load(x + k * SPT_LANES + v * VEC_WIDTH);
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) {
      vec broadcast = vec_set(a[r * row + k * step]);
#pragma GCC unroll 2
      for (int v = 0; v < VECS; v++) {
        sum[r][v] += broadcast * xs[v];
      }
    }
  }
}

static inline vec vec_select(vec_int mask, vec a, vec b) {
  return (vec)(((vec_int)a & mask) | ((vec_int)b & ~mask));
}

/* Writes the lanes of the mask alone: another thread may own the others. */
static inline void vec_store_lanes(float *p, vec_int mask, vec value) {
#if VEC_WIDTH == 16
  _mm512_mask_storeu_ps(p, _mm512_movepi32_mask((__m512i)mask), (__m512)value);
#else
  if (_mm256_movemask_ps((__m256)mask) == 0xff) { /* Zen 3 takes 12 cycles for a masked store */
    vec_store(p, value);
  } else {
    _mm256_maskstore_ps(p, (__m256i)mask, (__m256)value);
  }
#endif
}

static inline __attribute__((always_inline)) void score_rows(float *out, const float *k,
                                                             const float *q, int64_t d,
                                                             const int rows) {
  vec sum[ATTENTION_ROWS][VECS] = {0};
  add_product(sum, k, 1, SPT_LANES, q, d, rows);
  store_rows(out, sum, rows);
}

/* out (16 keys, 16 queries) = kT q for one panel of keys. */
static inline void score_tile(float *out, const float *k, const float *q, int64_t d) {
  int key = 0;
  for (; key + ATTENTION_ROWS <= SPT_LANES; key += ATTENTION_ROWS) {
    score_rows(out + key * SPT_LANES, k + key, q, d, ATTENTION_ROWS);
  }
#if SPT_LANES % ATTENTION_ROWS == 4
  score_rows(out + key * SPT_LANES, k + key, q, d, 4);
#endif
}

static inline __attribute__((always_inline)) void feature_sums(float *to, const weighted_keys *w,
                                                               int64_t feature, const vec *rescale,
                                                               const int rows) {
  vec sum[ATTENTION_ROWS][VECS];
#pragma GCC unroll 16
  for (int r = 0; r < rows; r++) {
#pragma GCC unroll 2
    for (int v = 0; v < VECS; v++) {
      float *at = to + (feature + r) * SPT_LANES + v * VEC_WIDTH;
      sum[r][v] = rescale != NULL ? vec_load(at) * rescale[v] : vec_set(0.0f);
    }
  }
  if (w->v_rows != NULL) {
    add_pair_keys(sum, w, feature, rows);
  }
  for (int64_t key = w->v_rows != NULL ? w->end : w->begin; key < w->end;) {
    int64_t lane = key % SPT_LANES;
    int64_t n = SPT_LANES - lane < w->end - key ? SPT_LANES - lane : w->end - key;
    const float *v = w->v + key / SPT_LANES * w->v_stride + feature * SPT_LANES + lane;
    add_product(sum, v, SPT_LANES, 1, w->p + (key - w->begin) * SPT_LANES, n, rows);
    key += n;
  }
  store_rows(to + feature * SPT_LANES, sum, rows);
}

/* to (features, 16) = to * rescale + v p; rescale NULL: to = v p. */
static void weighted_sums(float *to, const weighted_keys *w, int64_t features, const vec *rescale) {
  int64_t f = 0;
  for (; f + ATTENTION_ROWS <= features; f += ATTENTION_ROWS) {
    feature_sums(to, w, f, rescale, ATTENTION_ROWS);
  }
#if ATTENTION_ROWS > 4
  for (; f + 4 <= features; f += 4) {
    feature_sums(to, w, f, rescale, 4);
  }
#endif
  for (; f < features; f++) {
    feature_sums(to, w, f, rescale, 1);
  }
}

/* ---- what a query sees -------------------------------------------------------------------------- */

/* Keys of a chunk that each lane sees, counted from the chunk's first. */
typedef struct visible_keys {
  vec_int first[VECS], last[VECS];
  bool limited; /* some key is hidden from some lane */
} visible_keys;

static int32_t clamp_to_chunk(int64_t key, int64_t n) {
  return (int32_t)(key < -1 ? -1 : key > n ? n : key);
}

/* Lane l's keys are [first + l, last + l], where the chunk's own are [begin, end). */
static visible_keys visible_in(int64_t first, int64_t last, int64_t begin, int64_t end) {
  visible_keys seen;
  int32_t firsts[SPT_LANES], lasts[SPT_LANES];
  for (int l = 0; l < SPT_LANES; l++) {
    firsts[l] = clamp_to_chunk(first + l - begin, end - begin);
    lasts[l] = clamp_to_chunk(last + l - begin, end - begin);
  }
  memcpy(seen.first, firsts, sizeof firsts);
  memcpy(seen.last, lasts, sizeof lasts);
  seen.limited = first + SPT_LANES - 1 > begin || last < end - 1;
  return seen;
}

static inline vec_int is_visible(const visible_keys *seen, int v, int32_t key) {
  vec_int keys = key - (vec_int){0};
  return (keys >= seen->first[v]) & (keys <= seen->last[v]);
}

static inline vec hide(vec score, const visible_keys *seen, int v, int32_t key,
                       const float *added) {
  const vec nothing = vec_set(-INFINITY);
  if (added != NULL) {
    vec bias = vec_load(added);
    score = vec_select(bias == nothing, nothing, score + bias);
  }
  return seen->limited ? vec_select(is_visible(seen, v, key), score, nothing) : score;
}

/* ---- forward -------------------------------------------------------------------------------------- */

typedef struct softmax_state {
  vec top[VECS], sum[VECS]; /* running maximum, and sum of exp(score - top) */
} softmax_state;

/* Where every score so far is -inf, exp(-inf - 0) is 0 and exp(-inf - (-inf)) would be NaN. */
static inline vec finite_top(vec top) {
  return vec_select(top == vec_set(-INFINITY), vec_set(0.0f), top);
}

/* Largest of the scores (n, 16) and `top`, NaN passed over; hidden scores become -inf. */
static inline vec largest(float *scores, int64_t n, const visible_keys *seen, int v,
                          const float *added, vec top) {
  vec best[4] = {top, top, top, top}; /* 4 chains: a maximum waits for the one before */
  if (added == NULL && !seen->limited) {
    int64_t j = 0;
    for (; j + 4 <= n; j += 4) {
#pragma GCC unroll 4
      for (int c = 0; c < 4; c++) {
        best[c] = vec_max(vec_load(scores + (j + c) * SPT_LANES), best[c]);
      }
    }
    for (; j < n; j++) {
      best[0] = vec_max(vec_load(scores + j * SPT_LANES), best[0]);
    }
  } else {
    for (int64_t j = 0; j < n; j++) {
      float *at = scores + j * SPT_LANES;
      const float *bias = added != NULL ? added + j * SPT_LANES : NULL;
      vec score = hide(vec_load(at), seen, v, (int32_t)j, bias);
      vec_store(at, score);
      best[0] = vec_max(score, best[0]);
    }
  }
  return vec_max(vec_max(best[0], best[1]), vec_max(best[2], best[3]));
}

/* Scores (n, 16) become exp(score - top). Gives the factor for what was summed before. */
static inline vec exponentiate(float *scores, int64_t n, softmax_state *s, int v, vec top) {
  vec shift = finite_top(top);
  vec rescale = vec_exp(s->top[v] - shift);
  vec sum = vec_set(0.0f);
  int64_t j = 0;
  for (; ATTENTION_EXPS > 1 && j + ATTENTION_EXPS <= n; j += ATTENTION_EXPS) {
    vec e[ATTENTION_EXPS];
#pragma GCC unroll 4
    for (int c = 0; c < ATTENTION_EXPS; c++) {
      e[c] = vec_load(scores + (j + c) * SPT_LANES) - shift;
    }
    vec_exps(e, ATTENTION_EXPS);
#pragma GCC unroll 4
    for (int c = 0; c < ATTENTION_EXPS; c++) {
      vec_store(scores + (j + c) * SPT_LANES, e[c]);
      sum += e[c];
    }
  }
  for (; j < n; j++) {
    vec e = vec_exp(vec_load(scores + j * SPT_LANES) - shift);
    vec_store(scores + j * SPT_LANES, e);
    sum += e;
  }
  s->top[v] = top;
  s->sum[v] = s->sum[v] * rescale + sum;
  return rescale;
}

static void drop(float *p, int64_t begin, int64_t end, const spt_attention_dropout *dropout,
                 int64_t query) {
  for (int64_t block = begin / 4; block * 4 < end; block++) {
    vec_int keep[4][VECS];
    philox_keep(keep, dropout, (uint32_t)block, (uint32_t)query);
    for (int64_t j = block * 4; j < block * 4 + 4; j++) {
      for (int v = 0; j >= begin && j < end && v < VECS; v++) {
        float *at = p + (j - begin) * SPT_LANES + v * VEC_WIDTH;
        vec_store(at, (vec)((vec_int)vec_load(at) & keep[j % 4][v]));
      }
    }
  }
}

static vec_int lane_mask(int begin, int end, int v) {
  static const int32_t numbers[SPT_LANES] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  vec_int lanes;
  memcpy(&lanes, numbers + v * VEC_WIDTH, sizeof lanes);
  return (lanes >= begin) & (lanes < end);
}

static void add_token_importance(const spt_attention_block *b, const float *p, int64_t begin,
                                 int64_t n, const softmax_state *s) {
  for (int v = 0; v < VECS; v++) {
    vec_int lanes = lane_mask(b->lane_begin, b->lane_end, v);
    vec inverse = vec_set(1.0f) / vec_select(s->sum[v] == 0.0f, vec_set(1.0f), s->sum[v]);
    for (int64_t j = 0; j < n; j++) {
      float *to = b->token_importance + (begin + j) * SPT_LANES + v * VEC_WIDTH;
      vec share = vec_load(p + j * SPT_LANES + v * VEC_WIDTH) * inverse;
      vec_store(to, vec_load(to) + (vec)((vec_int)share & lanes));
    }
  }
}

/* Shares of up to VEC_WIDTH keys from p (n, 16) on; `whole`: every lane counts. The others hold anything,
 * NaN too, and are left out of the whole numbers. */
static inline __attribute__((always_inline)) void add_shares(double *to, const float *p, int64_t n,
                                                             const vec *units, const vec_int *lanes,
                                                             const bool whole) {
  vec_int shares[VEC_WIDTH];
#pragma GCC unroll 16
  for (int g = 0; g < VEC_WIDTH; g++) {
    shares[g] = (vec_int){0};
#pragma GCC unroll 2
    for (int v = 0; v < VECS; v++) {
      vec e = vec_load(p + (g < n ? g : 0) * SPT_LANES + v * VEC_WIDTH);
      vec_int share = vec_to_int(e * units[v]);
      shares[g] += whole ? share : share & lanes[v];
    }
  }
  if (whole) {
    vec_add_to_doubles(to, vec_int_sums_of(shares));
    return;
  }
  int32_t sums[VEC_WIDTH];
  vec_int all = vec_int_sums_of(shares);
  memcpy(sums, &all, sizeof sums);
  for (int g = 0; g < VEC_WIDTH && g < n; g++) {
    to[g] += sums[g];
  }
}

static void add_token_shares(const spt_attention_block *b, const float *p, int64_t begin, int64_t n,
                             const softmax_state *s) {
  bool whole = b->lane_begin == 0 && b->lane_end == SPT_LANES;
  vec_int lanes[VECS];
  vec units[VECS];
  for (int v = 0; v < VECS; v++) {
    lanes[v] = lane_mask(b->lane_begin, b->lane_end, v);
    units[v] =
        vec_set(1.0f / SPT_SHARE_UNIT) / vec_select(s->sum[v] == 0.0f, vec_set(1.0f), s->sum[v]);
    if (vec_or((s->sum[v] != s->sum[v]) & lanes[v]) != 0) {
      *b->nan = 1;
    }
  }
  double *to = b->token_shares + begin;
  for (int64_t j = 0; j < n; j += VEC_WIDTH) {
    if (whole && n - j >= VEC_WIDTH) {
      add_shares(to + j, p + j * SPT_LANES, VEC_WIDTH, units, lanes, true);
    } else {
      add_shares(to + j, p + j * SPT_LANES, n - j, units, lanes, false);
    }
  }
}

/* Scores of the panels [panel, panel_end) of keys, whole panels one after the other. */
static void score_panels(const spt_attention_block *b, const float *q, float *scores, int64_t panel,
                         int64_t panel_end) {
  for (int64_t i = panel; i < panel_end; i++, scores += SPT_LANES * SPT_LANES) {
    if (b->k_pairs != NULL) {
      score_pair_tile(scores, b->k_pairs + i * b->k_stride, b->q_pairs, b->d, b->scale);
    } else {
      score_tile(scores, b->k + i * b->k_stride, q, b->d);
    }
  }
}

/* Keys [begin, end) of the sequence; scores has room for their panels. */
static void attend_chunk(const spt_attention_block *b, const float *q, float *sum_v, float *scores,
                         int64_t begin, int64_t end, softmax_state *s, bool first) {
  int64_t key = b->key_begin + begin, n = end - begin;
  score_panels(b, q, scores, key / SPT_LANES, (key + n + SPT_LANES - 1) / SPT_LANES);
  float *p = scores + key % SPT_LANES * SPT_LANES;
  visible_keys seen =
      visible_in(b->first_key - b->lane_begin, b->last_key - b->lane_begin, begin, end);
  vec rescale[VECS];
  for (int v = 0; v < VECS; v++) {
    const float *added = b->added != NULL ? b->added + begin * SPT_LANES + v * VEC_WIDTH : NULL;
    vec top = largest(p + v * VEC_WIDTH, n, &seen, v, added, s->top[v]);
    rescale[v] = exponentiate(p + v * VEC_WIDTH, n, s, v, top);
  }
  if (b->token_importance != NULL) {
    add_token_importance(b, p, begin, n, s);
  }
  if (b->token_shares != NULL) {
    add_token_shares(b, p, begin, n, s);
  }
  if (b->dropout != NULL) {
    drop(p, begin, end, b->dropout, b->query - b->lane_begin);
  }
  weighted_keys w = {.v = b->v, .p = p, .v_stride = b->v_stride, .begin = key, .end = key + n};
  if (b->v_rows != NULL) {
    w.v_rows = b->v_rows;
    w.p_pairs = narrow_probabilities(p, key, n);
  }
  weighted_sums(sum_v, &w, b->dv, first ? NULL : rescale);
}

static void finish_block(const spt_attention_block *b, float *sum_v, const softmax_state *s) {
  float kept_scale = b->dropout != NULL ? b->dropout->kept_scale : 1.0f;
  for (int v = 0; v < VECS; v++) {
    vec_int lanes = lane_mask(b->lane_begin, b->lane_end, v), nothing = s->sum[v] == 0.0f;
    vec inverse = vec_set(kept_scale) / s->sum[v], magnitude = vec_set(0.0f);
    for (int64_t f = 0; f < b->dv; f++) {
      float *from = sum_v + f * SPT_LANES + v * VEC_WIDTH;
      vec value = (vec)((vec_int)(vec_load(from) * inverse) & ~nothing & lanes);
      magnitude += vec_max(-value, value);
      if (b->out_pairs != NULL) {
        vec_store(from, value);
        continue;
      }
      float *to = b->out + f * SPT_LANES + v * VEC_WIDTH;
      vec_store_lanes(to, lanes, b->accumulate ? vec_load(to) + value : value);
    }
    for (int64_t f = 0; b->out_pairs != NULL && f < b->dv; f++) {
      const float *from = sum_v + f * SPT_LANES + v * VEC_WIDTH;
      int64_t to = b->out_feature + f;
      if (to % 2 == 0 && f + 1 < b->dv) {
        vec_int pairs = vec_pairs_bf16(vec_load(from), vec_load(from + SPT_LANES));
        float *at = (float *)(b->out_pairs + to * SPT_LANES + 2 * v * VEC_WIDTH);
        vec_store_lanes(at, lanes, (vec)pairs);
        f++;
      } else {
        store_pair_lanes(b, to, v, lanes, vec_load(from));
      }
    }
    if (b->magnitudes != NULL) {
      vec_store_lanes(b->magnitudes + v * VEC_WIDTH, lanes, magnitude);
    }
    if (b->head_importance != NULL) {
      *b->head_importance += vec_sum(magnitude);
    }
    for (int l = 0; b->lse != NULL && l < VEC_WIDTH; l++) {
      if (lanes[l]) {
        b->lse[v * VEC_WIDTH + l] =
            nothing[l] ? -INFINITY : finite_top(s->top[v])[l] + logf(s->sum[v][l]);
      }
    }
  }
}

static void attention_block(const spt_attention_block *b) {
  float *q = b->scratch, *sum_v = q + b->d * SPT_LANES, *scores = sum_v + b->dv * SPT_LANES;
  for (int64_t i = 0; b->q != NULL && i < b->d * SPT_LANES; i += VEC_WIDTH) {
    vec_store(q + i, vec_load(b->q + i) * vec_set(b->scale));
  }
  /* Only keys that some lane sees. */
  int64_t keys = b->key_end - b->key_begin, last = b->last_key + b->lane_end - b->lane_begin;
  int64_t begin = b->first_key > 0 ? b->first_key : 0, end = last < keys ? last : keys;
  softmax_state s;
  for (int v = 0; v < VECS; v++) {
    s.top[v] = vec_set(-INFINITY);
    s.sum[v] = vec_set(0.0f);
  }
  bool first = true;
  while (begin < end) {
    /* A chunk ends with a panel, or the next would compute that panel's scores again. */
    int64_t room = SPT_ATTENTION_CHUNK - (b->key_begin + begin) % SPT_LANES;
    int64_t stop = !spt_keeps_rows(b) && end - begin > room ? begin + room : end;
    attend_chunk(b, q, sum_v, scores, begin, stop, &s, first);
    first = false;
    begin = stop;
  }
  finish_block(b, sum_v, &s); /* where s.sum is 0, sum_v does not count */
}
