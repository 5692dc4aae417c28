/* tier.h: what one instruction-set tier of the CPU backend provides.
 *
 * Activations inside the backend are feature-major panels: a panel holds 16 tokens, feature f of
 * token lane l at panel[f * 16 + l]. So the tokens fill the SIMD lanes, weights are broadcast
 * scalars, and LayerNorm, softmax and GELU are vertical. Lanes past the last token hold zeros where a
 * panel is packed, and anything, unwritten too, where it is computed.
 *
 * The drivers (linear.c, attention.c, ...) cut work into tasks, own the scratch memory and call
 * these; a tier never allocates, locks or fails. */
#ifndef SPATILE_CPU_TIER_H
#define SPATILE_CPU_TIER_H

#include "../backend.h"
#include "select.h"

#define SPT_LANES 16

/* In bfloat16 there are two kinds of panels. In a *pair* panel features 2 p and 2 p + 1 lie side by
 * side, which is how products contract over them: feature f of lane l at
 * panel[(f / 2 * 16 + l) * 2 + f % 2]. A *row* panel is laid out like the float32 one. In both, row f
 * starts 16 f elements from the panel's start where f is even. */

/* Strips whose input columns go in pairs: shape's runs and value_ptr count pairs, its values are NULL.
 * A kept pair holds 16 rows of two weights; `values` is in the order that the tier chose (bf16.h). */
typedef struct spt_strips_bf16 {
  spt_strips shape;
  const uint16_t *values;
  const struct spt_cpu_tier *tier; /* whose panel_linear_bf16 reads it */
} spt_strips_bf16;

/* y = act(w · x + bias) + residual on panels, w being one of strips, CSR and strips in bfloat16.
 * Panel p of x starts at x + p * x_stride, and so on; strides are in elements. */
typedef struct spt_panel_product {
  const spt_strips *strips;
  const spt_csr *csr;
  const spt_strips_bf16 *strips_bf16;
  const float *x;
  const uint16_t *x_pairs;      /* instead of x for strips_bf16; features beyond w's are zero */
  const float *bias, *residual; /* bias by output row; bias and residual may be NULL */
  float *y;
  /* Instead of y, for strips_bf16: rows before pair_rows (even) as pairs, the others as rows. */
  uint16_t *y_bf16;
  int64_t pair_rows;
  int64_t first_row; /* of y and residual: output row r is their row r - first_row */
  int64_t x_stride, y_stride, residual_stride;
  int64_t n_tokens; /* lanes of the panels from there on need no result; 0: all do */
  spt_activation activation;
} spt_panel_product;

/* Dropout as Philox decides it (philox.h): the element (query i, key j) of one head. */
typedef struct spt_attention_dropout {
  uint32_t threshold; /* kept iff the element's word is at least this */
  float kept_scale;   /* 1 / (1 - dropout) */
  uint64_t seed;
  uint32_t head, sequence;
} spt_attention_dropout;

/* Dropout of elements by their number n in an array: word n / 16 mod 4 of the counter whose low half is
 * n / 64 * 16 + n mod 16, and whose last word is this, so that it is none of attention's. */
#define SPT_DROPOUT_STREAM 0xffffffffu

typedef struct spt_element_dropout {
  uint32_t threshold; /* kept iff the element's word is at least this */
  float kept_scale;
  uint64_t seed;
} spt_element_dropout;

/* Keys at a time where a row is not kept whole: 64 KiB of scores, and K and V of the chunk besides. */
#define SPT_ATTENTION_CHUNK 1024

/* out = softmax(scale q kT + added) v for one head and the queries in lanes [lane_begin, lane_end) of
 * one panel, against the keys of one sequence.
 *
 * Keys are numbered from lane 0 of the first panel at k and v; the sequence is [key_begin, key_end),
 * which may start and end inside a panel. Its key j below is the one at key_begin + j. Neither the
 * other keys nor the other lanes count, whatever they hold, and nothing is written to other lanes: so
 * blocks that share a panel may run at the same time. A query that sees no key gives 0, lse -inf. */
typedef struct spt_attention_block {
  const float *q;     /* (d, 16) */
  const float *k, *v; /* panels (d, 16), (dv, 16) */
  /* Instead of these three, in bfloat16: pair, pair and row panels. Then d is even, and
   * probabilities may be rounded before they meet v. */
  const uint16_t *q_pairs, *k_pairs, *v_rows;
  int64_t k_stride, v_stride; /* elements from panel to panel */
  int64_t d, dv;
  int64_t key_begin, key_end;
  int lane_begin, lane_end;
  int64_t query;               /* of lane_begin, its place in the sequence (for dropout) */
  int64_t first_key, last_key; /* the keys j that lane_begin's query sees, both included; each next
                                  lane sees one key further. +-SPT_UNBOUNDED where nothing limits */
  float scale;
  const float *added; /* (key_end - key_begin, 16) bias, -inf hides the key; or NULL */
  const spt_attention_dropout *dropout; /* or NULL */
  float *scratch;                       /* spt_attention_scratch() floats */
  float *out;                           /* (dv, 16) */
  bool accumulate;                      /* add to out instead of writing it */
  uint16_t *out_pairs; /* instead of out: a pair panel, where the results are features */
  int64_t out_feature; /* [out_feature, out_feature + dv) */
  float *lse;          /* (16) or NULL */
  /* (key_end - key_begin, 16) or NULL: each lane's probabilities are added; a key's importance is
   * the sum of its 16. Rows are then kept whole. */
  float *token_importance;
  float *head_importance; /* one sum of |out| that is added to, or NULL */
  /* (key_end - key_begin) or NULL: each key's probabilities are added, each rounded to a whole number
   * of SPT_SHARE_UNIT. So their sums are exact, and no order changes them. Where a probability is NaN
   * they are anything, and *nan becomes 1. */
  double *token_shares;
  uint8_t *nan;
  float *magnitudes; /* (16) or NULL: sum of |out| of each lane */
} spt_attention_block;

#define SPT_SHARE_UNIT 0x1p-26f /* 16 probabilities add up in 32 bits, 2^27 of them in a double */

static inline bool spt_keeps_rows(const spt_attention_block *b) {
  return b->token_importance != NULL || b->token_shares != NULL;
}

/* Floats of scratch for a block of `keys` keys. */
static inline int64_t spt_attention_scratch(int64_t d, int64_t dv, int64_t keys, bool importance) {
  int64_t rows = keys + 2 * SPT_LANES; /* the first and the last panel may be partly foreign */
  if (!importance && rows > SPT_ATTENTION_CHUNK) {
    rows = SPT_ATTENTION_CHUNK;
  }
  return (d + dv + rows) * SPT_LANES;
}

/* The gradients of such a block, from the recomputed probabilities. The keys are [0, keys), lanes
 * from `lanes` on hold zeros in q, out and grad, keys past the end hold zeros in k and v. */
typedef struct spt_attention_backward_block {
  const float *q, *out, *grad; /* (d, 16), (dv, 16), (dv, 16): grad is the output's */
  const float *k, *v;          /* panels (d, 16), (dv, 16) */
  int64_t k_stride, v_stride;  /* floats from panel to panel, for the gradients too */
  int64_t d, dv, keys;
  int lanes;
  int64_t query, first_key, last_key; /* of lane 0, as above */
  float scale;
  const float *added;
  const spt_attention_dropout *dropout;
  const float *lse;       /* (16) */
  float *scratch;         /* spt_attention_backward_scratch() floats */
  float *q_grad;          /* (d, 16), written */
  float *k_grad, *v_grad; /* panels, added to */
  float *scores_grad;     /* (keys, 16), written; or NULL */
} spt_attention_backward_block;

#define SPT_ATTENTION_BACKWARD_CHUNK 128

static inline int64_t spt_attention_backward_scratch(int64_t d) {
  return (d + 2 * SPT_ATTENTION_BACKWARD_CHUNK + SPT_LANES) * SPT_LANES;
}

/* Factors between these round once in float32, and so does what they multiply. */
#define SPT_LEAST_FACTOR 0x1p-100f
#define SPT_MOST_FACTOR 0x1p100f

/* What a group's sum of squares becomes. */
typedef enum spt_group_rule {
  SPT_GROUP_NORM,   /* norm */
  SPT_GROUP_BETA,   /* 1 / (norm + amount) */
  SPT_GROUP_GRAD,   /* amount * beta / norm, 0 for a zero group */
  SPT_GROUP_SHRINK, /* max(0, 1 - amount * beta / norm) */
} spt_group_rule;

/* y = factor * x, or that added to y, on rows of storage; y may be x. The factor of row r and column c
 * is factor[r * row_step + (each_column ? c : 0)]. */
typedef struct spt_scaling {
  void *y;
  const void *x;
  spt_dtype dtype; /* of both */
  int64_t y_stride, x_stride;
  const float *factor;
  int row_step;
  bool each_column, add;
  bool
      stream; /* float32 only: y goes around the caches, and what lies `rows` rows below x is fetched
                  meanwhile */
  int64_t rows, cols;
} spt_scaling;

/* Doubles: rows whose columns go in blocks of 8 lanes, each of which is contiguous. Lane l of block b of
 * row i is at x + i * x_row + b * x_block + l. */
#define SPT_F64_LANES 8

/* c (columns, blocks) -= bT a, with a (depth, blocks) and b (depth, columns), plain. Every element's
 * products are subtracted one after another, so the result depends on no cut but those of depth. */
typedef struct spt_f64_product {
  double *c;
  int64_t c_row, c_block;
  const double *a;
  int64_t a_row, a_block;
  const double *b;
  int64_t b_row;
  int64_t blocks, columns, depth;
} spt_f64_product;

/* Terms of a long product at a time: so much of b stays in L1. */
#define SPT_F64_DEPTH 256

typedef struct spt_cpu_tier {
  const char *name;

  /* Rows [row, row + 16) of a matrix to a panel of m->cols features, and back. Rows past the end of
   * the matrix are zero lanes, and are not written back. */
  void (*panel_pack)(float *panel, const spt_matrix *m, int64_t row);
  void (*panel_unpack)(const spt_matrix *m, int64_t row, const float *panel);

  void (*panel_linear)(const spt_panel_product *, int64_t strip_begin, int64_t strip_end,
                       int64_t panel_begin, int64_t panel_end);
  void (*panel_csr)(const spt_panel_product *, int64_t row_begin, int64_t row_end,
                    int64_t panel_begin, int64_t panel_end);

  /* The same for strips_bf16; bf16_granule is what its runs' ends are multiples of, in pairs. */
  void (*panel_linear_bf16)(const spt_panel_product *, int64_t strip_begin, int64_t strip_end,
                            int64_t panel_begin, int64_t panel_end);
  int bf16_granule;
  bool
      bf16_by_rows; /* values in blocks of 16 rows by up to 16 pairs, row after row; else pair after
                        pair, each with its 16 rows */
  bool bf16_native; /* the processor multiplies bfloat16 itself */
  /* Rows of 16 words: lane l of row r becomes the word at from + at[l] + 16 r, or 0 where at[l] is
   * negative. */
  void (*panel_gather)(uint32_t *to, const uint32_t *from, const int64_t *at, int64_t rows);
  /* A float32 panel as pairs; an odd last feature gets a zero beside it. */
  void (*panel_narrow)(uint16_t *pairs, const float *panel, int64_t features);
  /* A pair panel as a row panel, which may be the same memory; features are even. */
  void (*panel_split)(uint16_t *rows, const uint16_t *pairs, int64_t features);

  /* dw (columns of the strip, 16) += Σ over tokens of x · gᵀ. x: rows of w->in features, x_row floats
   * apart; g (tokens, 16): the strip's 16 rows. */
  void (*strip_gradient)(const spt_strips *w, int64_t strip, const float *x, int64_t x_row,
                         const float *g, int64_t tokens, float *dw);

  /* LayerNorm of each lane over the panel's features, in place. */
  void (*panel_layer_norm)(float *panel, int64_t features, const float *weight, const float *bias,
                           float eps);

  void (*attention_block)(const spt_attention_block *);
  void (*attention_backward_block)(const spt_attention_backward_block *);

  /* n elements in memory, `stride` elements apart, to floats and back. */
  void (*load_row)(float *to, const void *data, spt_dtype, int64_t stride, int64_t n);
  void (*store_row)(void *data, spt_dtype, int64_t stride, const float *from, int64_t n);

  /* Rows of n floats. y may be x. */
  void (*softmax_row)(float *y, const float *x, int64_t n);
  void (*layer_norm_row)(float *y, const float *x, const float *weight, const float *bias,
                         float eps, int64_t n);
  void (*activate_row)(float *y, const float *x, spt_activation, int64_t n);
  void (*add_row)(float *y, const float *x, int64_t n); /* y += x */
  /* Elements `first` and on of an array. y may be x. */
  void (*dropout_row)(float *y, const float *x, uint64_t first, int64_t n,
                      const spt_element_dropout *);

  /* Keys of a row (select.h): made of scores, false where one is NaN; counted, fewer than 2^31, below
   * a pivot; those in [low, high] copied in their order to what has room for n, which says how many;
   * and a selection written out, whose arrays hold k. */
  bool (*select_keys)(uint32_t *keys, const float *scores, int64_t n);
  int64_t (*count_below)(const uint32_t *keys, int64_t n, uint32_t pivot);
  int64_t (*keys_between)(uint32_t *to, const uint32_t *keys, int64_t n, uint32_t low,
                          uint32_t high);
  void (*keep_row)(const spt_kept_row *, spt_selection);

  /* Squares of `rows` rows of n elements, `stride` elements apart, in float32.
   * Columns: sums[c] = Σ over rows of x², rows at least 1. Rows: sums[r] += Σ of the row's x².
   * bits[c] or bits[r] |= the bits of each element as float32: an element that is not zero shows
   * there even where its square vanishes. */
  void (*square_columns)(float *sums, uint32_t *bits, const void *x, spt_dtype, int64_t stride,
                         int64_t rows, int64_t n);
  void (*square_rows)(double *sums, uint32_t *bits, const void *x, spt_dtype, int64_t stride,
                      int64_t rows, int64_t n);
  /* sums[g] += the sum of columns [g * width, (g + 1) * width). */
  void (*fold_columns)(double *sums, const float *columns, int64_t n_groups, int64_t width);
  /* norm[g] = sqrt(sum[g]) in place; norm[g] = |x[g]| */
  void (*square_roots)(double *sum, int64_t n);
  void (*magnitudes)(double *norm, const float *x, int64_t n);
  /* What norms become, in place. beta NULL: 1. */
  void (*group_values)(double *norm, const float *beta, spt_group_rule, double amount, int64_t n);
  /* y[g] = x[g]; false where a value is neither 0 nor of a size between the limits. */
  bool (*narrow_factors)(float *y, const double *x, int64_t n);
  /* Each x `times` times; up to 15 floats after the last are written too. */
  void (*repeat_row)(float *y, const float *x, int64_t n, int64_t times);
  void (*narrow_row)(float *y, const double *x, int64_t n);
  void (*scale_rows)(const spt_scaling *);
  void (*f64_subtract_product)(const spt_f64_product *);
  /* The upper triangle of a (n, n) becomes that of U, A = UT U, with the reciprocals of U's diagonal in
   * place of it. False where A is not positive definite. Rows are a multiple of 8 long, and what they
   * hold past n or below the diagonal is changed too. */
  bool (*f64_cholesky)(double *a, int64_t row, int64_t n);
  /* x (n, blocks) = U^-T x */
  void (*f64_solve)(double *x, int64_t x_row, int64_t x_block, int64_t blocks, const double *u,
                    int64_t u_row, int64_t n);
  double (*f64_dot)(const double *x, const double *y, int64_t n); /* n: a multiple of 8 */
  /* Elements of `size` bytes, 2 or 4: w[r * stride + c] &= bits[c], all ones or all zeros. */
  void (*and_rows)(void *w, int64_t size, int64_t stride, const uint32_t *bits, int64_t rows,
                   int64_t n);
} spt_cpu_tier;

/* The tier in use; never NULL. */
const spt_cpu_tier *spt_cpu_tier_in_use(void);

extern const spt_cpu_tier spt_cpu_tier_scalar;
extern const spt_cpu_tier spt_cpu_tier_avx2;
extern const spt_cpu_tier spt_cpu_tier_avx512;
extern const spt_cpu_tier spt_cpu_tier_avx512_bf16;
extern const spt_cpu_tier spt_cpu_tier_amx_bf16;

#endif
