/* What attention does otherwise in bfloat16: products over pairs, of features for the scores and of
 * keys for the values, and pairs of features as the result. */
#include "math.h"

#if VEC_WIDTH == 16
#define ATTENTION_ROWS 16 /* 16 independent sums hide the FMA's latency */
#define ATTENTION_EXPS 1
#else
#define ATTENTION_ROWS 6 /* 6 x 2 registers of 16, and 3 for what they multiply */
#define ATTENTION_EXPS 4 /* one waits for itself: the scheduler holds two or three of them */
#endif

static inline __attribute__((always_inline)) void store_rows(float *out, vec (*sum)[VECS],
                                                             const int rows) {
#pragma GCC unroll 16
  for (int r = 0; r < rows; r++) {
#pragma GCC unroll 2
    for (int v = 0; v < VECS; v++) {
      vec_store(out + r * SPT_LANES + v * VEC_WIDTH, sum[r][v]);
    }
  }
}

/* Keys [begin, end) of the panels at v, and their weights p (end - begin, 16). Or, in bfloat16,
 * v_rows and p_pairs, whose pairs begin at the even key at or before `begin`. */
typedef struct weighted_keys {
  const float *v, *p;
  const uint16_t *v_rows, *p_pairs;
  int64_t v_stride, begin, end;
} weighted_keys;

/* sum (rows, 16) += a x in pairs of bfloat16: strides of a and n count pairs. Bits of a outside `mask`
 * are 0. */
static inline __attribute__((always_inline)) void add_pair_product(vec (*sum)[VECS],
                                                                   const uint16_t *a, int64_t row,
                                                                   int64_t step, int32_t mask,
                                                                   const uint16_t *x, int64_t n,
                                                                   const int rows) {
  for (int64_t k = 0; k < n; k++) {
    vec_int xs[VECS];
#pragma GCC unroll 2
    for (int v = 0; v < VECS; v++) {
      xs[v] = vec_load_pairs(x + (k * SPT_LANES + v * VEC_WIDTH) * 2);
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) {
      vec_int broadcast = vec_set_pair(a + (r * row + k * step) * 2) & mask;
#pragma GCC unroll 2
      for (int v = 0; v < VECS; v++) {
        sum[r][v] = vec_dot_bf16(sum[r][v], xs[v], broadcast);
      }
    }
  }
}

/* Scaled here: q could not be scaled beforehand without rounding it once more. */
static inline __attribute__((always_inline)) void score_pair_rows(float *out, const uint16_t *k,
                                                                  const uint16_t *q, int64_t d,
                                                                  float scale, const int rows) {
  vec sum[ATTENTION_ROWS][VECS] = {0};
  add_pair_product(sum, k, 1, SPT_LANES, -1, q, d / 2, rows);
#pragma GCC unroll 16
  for (int r = 0; r < rows; r++) {
#pragma GCC unroll 2
    for (int v = 0; v < VECS; v++) {
      sum[r][v] *= vec_set(scale);
    }
  }
  store_rows(out, sum, rows);
}

/* out (16 keys, 16 queries) = scale kT q for one panel of keys. */
static inline void score_pair_tile(float *out, const uint16_t *k, const uint16_t *q, int64_t d,
                                   float scale) {
  int key = 0;
  for (; key + ATTENTION_ROWS <= SPT_LANES; key += ATTENTION_ROWS) {
    score_pair_rows(out + key * SPT_LANES, k + 2 * key, q, d, scale, ATTENTION_ROWS);
  }
#if SPT_LANES % ATTENTION_ROWS == 4
  score_pair_rows(out + key * SPT_LANES, k + 2 * key, q, d, scale, 4);
#endif
}

/* A pair that `begin` or `end` cuts through counts by half, whatever the other half holds. */
static inline __attribute__((always_inline)) void add_pair_keys(vec (*sum)[VECS],
                                                                const weighted_keys *w,
                                                                int64_t feature, const int rows) {
  int64_t first = w->begin & ~(int64_t)1;
  for (int64_t key = first; key < w->end;) {
    const uint16_t *v =
        w->v_rows + key / SPT_LANES * w->v_stride + feature * SPT_LANES + key % SPT_LANES;
    const uint16_t *p = w->p_pairs + (key - first) * SPT_LANES;
    if (key < w->begin || key + 1 == w->end) {
      int32_t mask =
          (key < w->begin ? (int32_t)0xffff0000 : -1) & (key + 1 == w->end ? 0xffff : -1);
      add_pair_product(sum, v, SPT_LANES / 2, 1, mask, p, 1, rows);
      key += 2;
      continue;
    }
    int64_t room = SPT_LANES - key % SPT_LANES, left = (w->end - key) & ~(int64_t)1;
    int64_t n = room < left ? room : left;
    add_pair_product(sum, v, SPT_LANES / 2, 1, -1, p, n / 2, rows);
    key += n;
  }
}

/* p (n, 16), whose first row is key `key`, as pairs in its own place: pairs begin at an even key, so
 * the row before an odd one becomes zero, and so does the row after an odd end. Both rows exist, for
 * scores come in whole panels. */
static const uint16_t *narrow_probabilities(float *p, int64_t key, int64_t n) {
  float *first = p - key % 2 * SPT_LANES;
  int64_t rows = n + key % 2;
  for (int i = 0; i < SPT_LANES; i++) {
    first[i] = key % 2 != 0 ? 0.0f : first[i];
  }
  panel_narrow((uint16_t *)first, first, rows);
  return (const uint16_t *)first;
}

/* value of the lanes of the mask to feature f of the panel of pairs at b->out_pairs. */
static void store_pair_lanes(const spt_attention_block *b, int64_t f, int v, vec_int lanes,
                             vec value) {
  uint16_t half[VEC_WIDTH], *to = b->out_pairs + f / 2 * SPT_LANES * 2 + f % 2;
  vec_store_bf16(half, value);
  for (int l = 0; l < VEC_WIDTH; l++) {
    if (lanes[l]) {
      to[(v * VEC_WIDTH + l) * 2] = half[l];
    }
  }
}
