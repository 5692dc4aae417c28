/* A last panel that is not full, in registers of 8 floats: a strip's 16 rows lie along the lanes there and
 * tokens are broadcast, so that 12 tokens take three quarters of the time that 16 do; below 6 it is bound
 * by the weights. Two registers of weights and 6 tokens' sums at a time, all of a step in one line of
 * weights and one of x. Each sum adds up the same terms in the same order as in a full panel: a token's
 * bits don't tell which panel it was in. float32 only. */
#define FEW_TOKENS (VECS == 2)
#define FEW_AT_ONCE 6

/* Tokens of a panel that is not full; 0 where it is, or where whole panels are no slower. */
static inline int few_tokens(const spt_panel_product *p, int64_t panel) {
  int64_t left = p->n_tokens - panel * SPT_LANES;
  return FEW_TOKENS && p->n_tokens > 0 && left < SPT_LANES ? (int)left : 0;
}

/* sums (tokens, 16): a strip's rows for tokens neighbouring in a panel of x. */
static inline __attribute__((always_inline)) void few_product(const strip_operands *o,
                                                              int64_t strip, const word *x_panel,
                                                              prefetch next, float *sums,
                                                              const int tokens) {
  const spt_strips *w = o->w;
  vec sum[FEW_AT_ONCE][VECS];
#pragma GCC unroll 8
  for (int t = 0; t < tokens; t++) {
#pragma GCC unroll 2
    for (int v = 0; v < VECS; v++) {
      sum[t][v] = vec_set(0.0f);
    }
  }
  const word *weight = o->values + w->value_ptr[strip] * SPT_STRIP;
  for (int64_t run = w->run_ptr[strip]; run < w->run_ptr[strip + 1]; run++) {
    const word *x = x_panel + (int64_t)w->run_start[run] * SPT_LANES;
    for (int32_t left = w->run_len[run]; left > 0; left -= 16) {
      for (int i = 0; i < next.lines; i++, next.at += 64) {
        _mm_prefetch(next.at, _MM_HINT_T1);
      }
      for (int32_t k = left < 16 ? left : 16; k > 0; k--, weight += SPT_STRIP, x += SPT_LANES) {
        vec rows[VECS];
#pragma GCC unroll 2
        for (int v = 0; v < VECS; v++) {
          rows[v] = vec_load(weight + v * VEC_WIDTH);
        }
#pragma GCC unroll 8
        for (int t = 0; t < tokens; t++) {
          vec broadcast = vec_set(x[t]);
#pragma GCC unroll 2
          for (int v = 0; v < VECS; v++) {
            sum[t][v] += broadcast * rows[v];
          }
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < tokens; t++) {
#pragma GCC unroll 2
    for (int v = 0; v < VECS; v++) {
      vec_store(sums + t * SPT_STRIP + v * VEC_WIDTH, sum[t][v]);
    }
  }
}

static void few_at_once(const strip_operands *o, int64_t strip, const word *x, prefetch next,
                        float *sums, int tokens) {
  switch (tokens) {
    case 1:
      few_product(o, strip, x, next, sums, 1);
      break;
    case 2:
      few_product(o, strip, x, next, sums, 2);
      break;
    case 3:
      few_product(o, strip, x, next, sums, 3);
      break;
    case 4:
      few_product(o, strip, x, next, sums, 4);
      break;
    case 5:
      few_product(o, strip, x, next, sums, 5);
      break;
    default:
      few_product(o, strip, x, next, sums, 6);
  }
}

/* sums (16 tokens, 16) to y; product has room for as many. By finish_rows alone: 5 to 8 % slower dense, 8 to
 * 18 % with 80 % of tiles pruned. */
static void finish_few(const strip_operands *o, int64_t strip, int64_t panel, int tokens,
                       const float *sums, float *product) {
  const spt_panel_product *p = o->p;
  int vecs = tokens <= VEC_WIDTH ? 1 : VECS;
  transpose_16x16(product, SPT_LANES, sums, SPT_STRIP);
  if (!is_plain(p, o->w, strip, 0, SPT_STRIP)) {
    finish_rows(p, o->w, strip, 0, SPT_STRIP, panel, vecs, product, SPT_LANES);
    return;
  }
  int64_t row = strip * SPT_STRIP, at = (row - p->first_row) * SPT_LANES;
  float *y = p->y + panel * p->y_stride + at;
  const float *residual =
      p->residual != NULL ? p->residual + panel * p->residual_stride + at : NULL;
  for (int r = 0; r < SPT_STRIP; r++) {
    vec bias = vec_set(p->bias != NULL ? p->bias[row + r] : 0.0f);
    for (int v = 0; v < vecs; v++) {
      int64_t lane = r * SPT_LANES + v * VEC_WIDTH;
      vec sum = vec_load(product + lane) + bias;
      vec_store(y + lane, residual != NULL ? sum + vec_load(residual + lane) : sum);
    }
  }
}

/* Where what comes ahead goes on after it. */
static const char *multiply_few(const strip_operands *o, int64_t strip, int64_t panel, int tokens,
                                prefetch next, int64_t segment) {
  float sums[SPT_LANES * SPT_STRIP] __attribute__((aligned(64)));
  float product[SPT_STRIP * SPT_LANES] __attribute__((aligned(64)));
  const word *x = o->x + panel * o->x_stride;
  int passes = (tokens + FEW_AT_ONCE - 1) / FEW_AT_ONCE, first = 0;
  for (int i = 0; i < passes; i++, next.at += segment) {
    int here = (tokens - first + passes - i - 1) / (passes - i);
    few_at_once(o, strip, x + first, next, sums + first * SPT_STRIP, here);
    first += here;
  }
  memset(sums + tokens * SPT_STRIP, 0, (size_t)(SPT_LANES - tokens) * SPT_STRIP * sizeof *sums);
  finish_few(o, strip, panel, tokens, sums, product);
  return next.at;
}
