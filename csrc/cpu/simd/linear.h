/* Products of strips (spatile.h) with feature-major panels (tier.h).
 *
 * The inner loop broadcasts one weight and multiplies it with ROWS x PANELS accumulators in
 * registers. With AVX-512's 8 rows and 3 panels a step loads 8 weights and 3 registers of x for 24 FMAs,
 * so the FMA units and not the load ports bound it; one row more or less loses that balance.
 *
 * AVX2 has 16 registers: 12 sums, 2 of x and a weight. A strip then goes as 6 + 6 + 4 rows, each pass with
 * a line of x and one of weights a step, out of L2 where a strip is long. Tried on Zen 3 (peak 103
 * GFLOP/s), dense, 80 % of tiles pruned, both 768 wide: 4 rows 90, 82; 4 rows by 24 tokens, so that panels
 * are cut, 94, 79, for a step has three lines; these 97, 87. */
#include "math.h"

#if VEC_WIDTH == 16
#define LINEAR_ROWS 8
#define LINEAR_ROWS_BF16 8
#define LINEAR_PANELS 3
#else
#define LINEAR_ROWS 6
#define LINEAR_ROWS_BF16 4 /* both halves of x and of a weight are registers, too */
#define LINEAR_PANELS 1
#endif
#define LINEAR_ROWS_MOST 8

#include "linear_finish.h"

/* The weights of the strip that comes next, fetched during a pass over this one: weights come from
 * memory once, and a pass that waits for them runs at half speed (measured: 105 against 224 GFLOP/s at
 * 32 tokens, 182 against 235 at 128). The processor's own prefetchers start too late. */
#define PREFETCH_STEPS 384 /* at least so far ahead: the strips of a sparse matrix are short */

typedef struct prefetch {
  const char *at;
  int lines; /* for every 16 steps */
} prefetch;

/* float32 and bfloat16 take the same steps: a kept column of weights, or a kept pair of columns, is
 * 16 words of 32 bits, and so are a feature, or a pair of features, of a panel. */
typedef float word __attribute__((may_alias));

typedef struct strip_operands {
  const spt_panel_product *p;
  const spt_strips *w; /* in steps */
  const word *values, *x;
  int64_t x_stride; /* words */
} strip_operands;

static inline __attribute__((always_inline)) void add_steps(vec (*sum)[LINEAR_PANELS * VECS],
                                                            const word *weight, const word *x,
                                                            int64_t x_stride, int32_t steps,
                                                            const bool bf16, const int rows,
                                                            const int vecs) {
  for (int32_t k = steps; k > 0; k--) {
    vec xs[LINEAR_PANELS * VECS];
#pragma GCC unroll 8
    for (int v = 0; v < vecs; v++) {
      xs[v] = vec_load(x + v / (VECS)*x_stride + v % (VECS)*VEC_WIDTH);
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) {
      vec broadcast = vec_set(weight[r]);
#pragma GCC unroll 8
      for (int v = 0; v < vecs; v++) {
        sum[r][v] = bf16 ? vec_dot_bf16(sum[r][v], (vec_int)xs[v], (vec_int)broadcast)
                         : sum[r][v] + broadcast * xs[v];
      }
    }
    weight += SPT_STRIP;
    x += SPT_LANES;
  }
}

/* Tiles lie anywhere in x, and no prefetcher follows: the run after this one, or the next panel's first,
 * is fetched by the first pass. Measured for AVX2 alone, 80 % of tiles pruned: 768 columns 3 % faster,
 * 3072, whose x is in L3, 9 %. Inline, for GCC takes a call that does nothing but prefetch for one that
 * does nothing. */
#define FETCH_RUNS (LINEAR_PANELS == 1)

static inline
    __attribute__((always_inline)) void fetch_run_after(const strip_operands *o, int64_t strip,
                                                        int64_t run, const word *x_panel) {
  if (++run == o->w->run_ptr[strip + 1]) {
    run = o->w->run_ptr[strip];
    x_panel += o->x_stride;
  }
  const word *x = x_panel + (int64_t)o->w->run_start[run] * SPT_LANES;
  for (int32_t i = 0; i < 16 && i < o->w->run_len[run]; i++) {
    _mm_prefetch((const char *)(x + i * SPT_LANES), _MM_HINT_T0);
  }
}

#include "linear_few.h"

static inline
    __attribute__((always_inline)) void strip_product(const strip_operands *o, int64_t strip,
                                                      int first_row, int64_t panel, prefetch next,
                                                      const bool bf16, const int rows,
                                                      const int vecs) {
  const spt_strips *w = o->w;
  vec sum[LINEAR_ROWS_MOST][LINEAR_PANELS * VECS];
#pragma GCC unroll 16
  for (int r = 0; r < rows; r++) {
#pragma GCC unroll 8
    for (int v = 0; v < vecs; v++) {
      sum[r][v] = vec_set(0.0f);
    }
  }
  const word *weight = o->values + w->value_ptr[strip] * SPT_STRIP + first_row;
  const word *x_panel = o->x + panel * o->x_stride;
  for (int64_t run = w->run_ptr[strip]; run < w->run_ptr[strip + 1]; run++) {
    const word *x = x_panel + (int64_t)w->run_start[run] * SPT_LANES;
    if (FETCH_RUNS && first_row == 0) {
      fetch_run_after(o, strip, run, x_panel);
    }
    for (int32_t left = w->run_len[run]; left > 0; left -= 16) {
      int32_t steps = left < 16 ? left : 16;
      for (int i = 0; i < next.lines; i++, next.at += 64) {
        _mm_prefetch(next.at, _MM_HINT_T1);
      }
      add_steps(sum, weight, x, o->x_stride, steps, bf16, rows, vecs);
      weight += steps * SPT_STRIP;
      x += steps * SPT_LANES;
    }
  }
  if (is_plain(o->p, w, strip, first_row, rows)) {
    finish_plain(o->p, strip * SPT_STRIP + first_row, panel, sum, rows, vecs);
    return;
  }
  float product[LINEAR_ROWS_MOST][LINEAR_PANELS * SPT_LANES];
  store_sums(product, sum, rows, vecs);
  finish_rows(o->p, w, strip, first_row, rows, panel, vecs, product[0], LINEAR_PANELS * SPT_LANES);
}

/* 4 left over go as 2 + 2, not 3 + 1: one panel alone starves the FMA units. */
static int panels_at_once(int64_t left) {
  return (int)(left == 4 && LINEAR_PANELS == 3 ? 2 : left < LINEAR_PANELS ? left : LINEAR_PANELS);
}

static inline __attribute__((always_inline)) void multiply_rows(const strip_operands *o,
                                                                int64_t strip, int first_row,
                                                                int64_t panel, int vecs,
                                                                prefetch next, const bool bf16,
                                                                const int rows) {
  switch (vecs) {
#if LINEAR_PANELS == 3
    case 3:
      strip_product(o, strip, first_row, panel, next, bf16, rows, 3);
      break;
    case 2:
      strip_product(o, strip, first_row, panel, next, bf16, rows, 2);
      break;
#endif
    default:
      strip_product(o, strip, first_row, panel, next, bf16, rows, VECS);
  }
}

static inline __attribute__((always_inline)) void multiply_strip(const strip_operands *o,
                                                                 int64_t strip, int64_t panel_begin,
                                                                 int64_t panel_end, int lines,
                                                                 const bool bf16) {
  const int rows = bf16 ? LINEAR_ROWS_BF16 : LINEAR_ROWS, rest = SPT_STRIP % rows;
  const int64_t *steps = o->w->value_ptr + strip;
  int64_t far = steps[1] > steps[0] + PREFETCH_STEPS ? steps[1] : steps[0] + PREFETCH_STEPS;
  const char *ahead = (const char *)(o->values + far * SPT_STRIP);
  int64_t segment = (steps[1] - steps[0]) * lines / 16 * 64;
  int here;
  for (int64_t panel = panel_begin; panel < panel_end; panel += here) {
    here = panels_at_once(panel_end - panel);
    int tokens = bf16 ? 0 : few_tokens(o->p, panel);
    if (tokens > 0) {
      ahead = multiply_few(o, strip, panel, tokens, (prefetch){ahead, lines}, segment);
      continue;
    }
    for (int r = 0; r + rows <= SPT_STRIP; r += rows, ahead += segment) {
      multiply_rows(o, strip, r, panel, here * VECS, (prefetch){ahead, lines}, bf16, rows);
    }
    if (rest != 0) {
      prefetch next = {ahead, lines};
      multiply_rows(o, strip, SPT_STRIP - rest, panel, here * VECS, next, bf16, rest);
      ahead += segment;
    }
  }
}

/* A step's weights are one cache line: the passes over a strip share the next one's lines. */
static int lines_ahead(int64_t panels, int rows) {
  int64_t passes = (panels + LINEAR_PANELS - 1) / LINEAR_PANELS * ((SPT_STRIP + rows - 1) / rows);
  return (int)((16 + passes - 1) / passes);
}

static void panel_linear(const spt_panel_product *p, int64_t strip_begin, int64_t strip_end,
                         int64_t panel_begin, int64_t panel_end) {
  strip_operands o = {
      .p = p, .w = p->strips, .values = p->strips->values, .x = p->x, .x_stride = p->x_stride};
  int lines = lines_ahead(panel_end - panel_begin, LINEAR_ROWS);
  for (int64_t strip = strip_begin; strip < strip_end; strip++) {
    multiply_strip(&o, strip, panel_begin, panel_end, lines, false);
  }
}

static void panel_narrow(uint16_t *pairs, const float *panel, int64_t features) {
  for (int64_t f = 0; f < features; f += 2) {
    for (int v = 0; v < VECS; v++) {
      const float *at = panel + f * SPT_LANES + v * VEC_WIDTH;
      vec odd = f + 1 < features ? vec_load(at + SPT_LANES) : vec_set(0.0f);
      vec_store_pairs(pairs + f * SPT_LANES + 2 * v * VEC_WIDTH, vec_pairs_bf16(vec_load(at), odd));
    }
  }
}

static void panel_split(uint16_t *rows, const uint16_t *pairs, int64_t features) {
  for (int64_t f = 0; f < features; f += 2) {
    vec_int both[VECS];
    for (int v = 0; v < VECS; v++) {
      both[v] = vec_load_pairs(pairs + f * SPT_LANES + 2 * v * VEC_WIDTH);
    }
    for (int v = 0; v < VECS; v++) {
      vec_store_bf16(rows + f * SPT_LANES + v * VEC_WIDTH, vec_even_bf16(both[v]));
      vec_store_bf16(rows + (f + 1) * SPT_LANES + v * VEC_WIDTH, vec_odd_bf16(both[v]));
    }
  }
}
