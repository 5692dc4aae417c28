/* The gradients of a block of attention. With P the probabilities, G = v grad and D the sum
 * of grad * out over features: dS = P (G - D), dq = scale k dS, dk = scale q dST, dv = grad PT. The first contracts over keys as
 * the output did; the last two contract over queries, which are the lanes: so the tiles of P and dS
 * are transposed, and then the same loop serves. */
/* Added in the order of score_tile: where a query sees one key only, out is v, and dS exactly 0. */
static vec row_delta(const spt_attention_backward_block *b, int v) {
  vec delta = vec_set(0.0f);
  for (int64_t f = 0; f < b->dv; f++) {
    int64_t at = f * SPT_LANES + v * VEC_WIDTH;
    delta += vec_load(b->out + at) * vec_load(b->grad + at);
  }
  return delta;
}

struct gradient_tiles {
  float *p, *ds;     /* (chunk, 16): P and dS by key, and dropout in P */
  float *transposed; /* (16, 16) */
};

/* Probability and score gradient of one key for the queries of register v, in place. */
static inline void differentiate_score(const spt_attention_backward_block *b, float *p, float *ds,
                                       vec score, vec_int keep, vec lse, vec delta, vec_int live) {
  vec share = (vec)((vec_int)vec_exp(score - lse) & live), survival = vec_set(1.0f);
  if (b->dropout != NULL) {
    survival = (vec)((vec_int)vec_set(b->dropout->kept_scale) & keep);
  }
  vec gradient = share * (vec_load(ds) * survival - delta);
  vec_store(p, share * survival);
  vec_store(ds, (vec)((vec_int)gradient & live));
}

/* From scores and v grad, in place, to P and dS of keys [begin, begin + n) of the sequence. Rows of
 * the last panel that stand for no key become zero. */
static void differentiate(const spt_attention_backward_block *b, const struct gradient_tiles *t,
                          const vec *delta, int64_t begin, int64_t n, int64_t rows) {
  visible_keys seen = visible_in(b->first_key, b->last_key, begin, begin + n);
  vec lse[VECS];
  vec_int live[VECS], keep[4][VECS];
  for (int v = 0; v < VECS; v++) {
    lse[v] = vec_load(b->lse + v * VEC_WIDTH);
    /* A row that sees nothing has lse -inf: exp(-inf - (-inf)) would be NaN. */
    live[v] = lane_mask(0, b->lanes, v) & (lse[v] != vec_set(-INFINITY));
  }
  memset(keep, 0, sizeof keep);
  for (int64_t j = 0; j < n; j++) {
    if (b->dropout != NULL && j % 4 == 0) { /* begin is a multiple of 16 */
      philox_keep(keep, b->dropout, (uint32_t)((begin + j) / 4), (uint32_t)b->query);
    }
    for (int v = 0; v < VECS; v++) {
      int64_t at = j * SPT_LANES + v * VEC_WIDTH;
      const float *added = b->added != NULL ? b->added + begin * SPT_LANES + at : NULL;
      vec score = hide(vec_load(t->p + at), &seen, v, (int32_t)j, added);
      differentiate_score(b, t->p + at, t->ds + at, score, keep[j % 4][v], lse[v], delta[v],
                          live[v]);
    }
  }
  for (int64_t at = n * SPT_LANES; at < rows * SPT_LANES; at++) {
    t->p[at] = t->ds[at] = 0.0f;
  }
}

/* to (features, 16 keys) += x (features, 16 queries) times tile (16 keys, 16 queries) transposed. */
static void add_over_queries(float *to, const float *x, int64_t features, const float *tile,
                             float *transposed, int lanes) {
  vec one[VECS];
  for (int v = 0; v < VECS; v++) {
    one[v] = vec_set(1.0f);
  }
  transpose_16x16(transposed, SPT_LANES, tile, SPT_LANES);
  weighted_keys queries = {.v = x, .p = transposed, .begin = 0, .end = lanes};
  weighted_sums(to, &queries, features, one);
}

static void attention_backward_block(const spt_attention_backward_block *b) {
  float *q = b->scratch;
  struct gradient_tiles t = {.p = q + b->d * SPT_LANES};
  t.ds = t.p + SPT_ATTENTION_BACKWARD_CHUNK * SPT_LANES;
  t.transposed = t.ds + SPT_ATTENTION_BACKWARD_CHUNK * SPT_LANES;
  vec one[VECS], delta[VECS];
  for (int v = 0; v < VECS; v++) {
    one[v] = vec_set(1.0f);
    delta[v] = row_delta(b, v);
  }
  for (int64_t i = 0; i < b->d * SPT_LANES; i += VEC_WIDTH) {
    vec_store(q + i, vec_load(b->q + i) * vec_set(b->scale));
    vec_store(b->q_grad + i, vec_set(0.0f));
  }
  for (int64_t i = 0; b->scores_grad != NULL && i < b->keys * SPT_LANES; i += VEC_WIDTH) {
    vec_store(b->scores_grad + i, vec_set(0.0f));
  }
  int64_t last = b->last_key + b->lanes, end = last < b->keys ? last : b->keys;
  int64_t first = b->first_key > 0 ? b->first_key / SPT_LANES * SPT_LANES : 0;
  for (int64_t begin = first; begin < end; begin += SPT_ATTENTION_BACKWARD_CHUNK) {
    int64_t n = end - begin;
    n = n < SPT_ATTENTION_BACKWARD_CHUNK ? n : SPT_ATTENTION_BACKWARD_CHUNK;
    int64_t rows = (n + SPT_LANES - 1) / SPT_LANES * SPT_LANES, panel = begin / SPT_LANES;
    for (int64_t row = 0; row < rows; row += SPT_LANES) {
      int64_t at = panel + row / SPT_LANES;
      score_tile(t.p + row * SPT_LANES, b->k + at * b->k_stride, q, b->d);
      score_tile(t.ds + row * SPT_LANES, b->v + at * b->v_stride, b->grad, b->dv);
    }
    differentiate(b, &t, delta, begin, n, rows);
    if (b->scores_grad != NULL) {
      memcpy(b->scores_grad + begin * SPT_LANES, t.ds, (size_t)(n * SPT_LANES) * sizeof(float));
    }
    weighted_keys keys = {
        .v = b->k, .p = t.ds, .v_stride = b->k_stride, .begin = begin, .end = begin + n};
    weighted_sums(b->q_grad, &keys, b->d, one);
    for (int64_t row = 0; row < rows; row += SPT_LANES) {
      int64_t at = panel + row / SPT_LANES;
      add_over_queries(b->k_grad + at * b->k_stride, q, b->d, t.ds + row * SPT_LANES, t.transposed,
                       b->lanes);
      add_over_queries(b->v_grad + at * b->v_stride, b->grad, b->dv, t.p + row * SPT_LANES,
                       t.transposed, b->lanes);
    }
  }
  for (int64_t i = 0; i < b->d * SPT_LANES; i += VEC_WIDTH) {
    vec_store(b->q_grad + i, vec_load(b->q_grad + i) * vec_set(b->scale));
  }
}
