/* attention_mma.cuh: the parts of attention on tensor cores that whole rows and blocks of keys share.
 *
 * A warp has 16 queries. Lane l holds, of each product of 16 queries and 8 keys (or features), those of
 * rows l / 4 and l / 4 + 8 and of columns l % 4 * 2 and the next: values 0, 1 and 2, 3. As the A operand
 * of the next product two neighbouring such tiles are 16 x 16 probabilities, without a move. */
#ifndef SPATILE_CUDA_ATTENTION_MMA_CUH
#define SPATILE_CUDA_ATTENTION_MMA_CUH

#include "attention_forward.cuh"
#include "exp2.cuh"
#include "mma.cuh"

/* sm_75 multiplies no bfloat16: there the simple kernel runs (attention_shapes.h), and these are empty. */
template <typename T>
struct spt_has_products {
  static const bool value = true;
};
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
template <>
struct spt_has_products<spt_bfloat> {
  static const bool value = false;
};
#endif

#define SPT_LOG2_E 1.44269504088896341f

/* Queries by scale's sign, so that a score's magnitude alone is left to multiply by. */
static __device__ __forceinline__ uint32_t spt_sign_of_scale(float scale) {
  return scale < 0.0f ? 0x80008000u : 0u;
}

/* A lane's row addresses in tiles in shared memory, each as ldmatrix wants them. */
template <typename T>
static __device__ __forceinline__ const T *spt_lane_rows(const T *tile, int pitch) {
  int lane = threadIdx.x % SPT_WARP; /* 16 x 16: rows, then the columns' second half */
  return tile + lane % 16 * pitch + lane / 16 * 8;
}
template <typename T>
static __device__ __forceinline__ const T *spt_lane_keys(const T *tile, int pitch) {
  int lane = threadIdx.x % SPT_WARP; /* 8 keys x 16, then the next 8 keys */
  return tile + (lane / 16 * 8 + lane % 8) * pitch + lane / 8 % 2 * 8;
}

/* scores (16, 16 keys) += q k^T of 16 features. */
template <typename T>
static __device__ __forceinline__ void spt_add_scores(float (&left)[4], float (&right)[4],
                                                      const uint32_t (&q)[4], const T *k) {
  uint32_t keys[4];
  spt_ldmatrix_x4(keys, k);
  spt_mma_16x8x16<T>(left, q, keys[0], keys[1]);
  spt_mma_16x8x16<T>(right, q, keys[2], keys[3]);
}

/* sums (16, 16 features) += p v of 16 keys. */
template <typename T>
static __device__ __forceinline__ void spt_add_values(float (&left)[4], float (&right)[4],
                                                      const uint32_t (&p)[4], const T *v) {
  uint32_t values[4];
  spt_ldmatrix_x4_trans(values, v);
  spt_mma_16x8x16<T>(left, p, values[0], values[1]);
  spt_mma_16x8x16<T>(right, p, values[2], values[3]);
}

/* Two tiles of probabilities as an A operand. */
template <typename T>
static __device__ __forceinline__ void spt_as_operand(uint32_t (&p)[4], const float (&left)[4],
                                                      const float (&right)[4]) {
  p[0] = spt_pack_pair<T>(left[0], left[1]);
  p[1] = spt_pack_pair<T>(left[2], left[3]);
  p[2] = spt_pack_pair<T>(right[0], right[1]);
  p[3] = spt_pack_pair<T>(right[2], right[3]);
}

/* ---- what a lane's two queries see --------------------------------------------------------------- */

/* Keys [low, high] of each row, counted from the warp's first; from low_all to high_all every row of the
 * warp sees all. */
struct spt_lane_limits {
  int low[2], high[2];
  int low_all, high_all;
};

static __device__ __forceinline__ int spt_clamp_key(int64_t key, int low, int high) {
  return (int)spt_least(high, spt_most(low, key));
}

/* `row`: the warp's first in the block. `keys`: how many the warp has, from `first_key` on. */
static __device__ __forceinline__ spt_lane_limits spt_limits_of(const spt_attend &a,
                                                                const spt_attend_block &b, int row,
                                                                int64_t first_key, int keys) {
  spt_lane_limits l;
  int lane_row = row + threadIdx.x % SPT_WARP / 4;
#pragma unroll
  for (int i = 0; i < 2; i++) {
    int64_t query = b.first + lane_row + 8 * i;
    bool counts = lane_row + 8 * i < b.rows;
    l.low[i] = spt_clamp_key(spt_first_key(a.view, b.s, query) - first_key, 0, keys);
    int64_t last = spt_least(b.s.keys - 1, spt_last_key(a.view, b.s, query));
    l.high[i] = counts ? spt_clamp_key(last - first_key, -1, keys - 1) : -1;
  }
  l.low_all = spt_clamp_key(spt_first_key(a.view, b.s, b.first + row + 15) - first_key, 0, keys);
  int64_t last = spt_least(b.s.keys - 1, spt_last_key(a.view, b.s, b.first + row));
  l.high_all = row + 16 <= b.rows ? spt_clamp_key(last - first_key, -1, keys - 1) : -1;
  return l;
}

/* Mask and bias of a lane's two queries, at the warp's first key. */
struct spt_lane_pairs {
  const uint8_t *mask[2];
  int64_t bias[2];
};

static __device__ __forceinline__ spt_lane_pairs spt_pairs_of(const spt_attend &a,
                                                              const spt_attend_block &b, int row,
                                                              int64_t first_key) {
  spt_lane_pairs pairs;
#pragma unroll
  for (int i = 0; i < 2; i++) {
    int64_t query = b.first + row + threadIdx.x % SPT_WARP / 4 + 8 * i;
    const uint8_t *mask = static_cast<const uint8_t *>(a.view.mask.data);
    int64_t at = spt_pair_offset(a.view.mask, b.s.number, b.head, query, first_key);
    pairs.mask[i] = mask != NULL ? mask + at : NULL;
    pairs.bias[i] = spt_pair_offset(a.view.bias, b.s.number, b.head, query, first_key);
  }
  return pairs;
}

/* As spt_pair_score: a score with its bias, or -inf where that or the mask hides it. */
static __device__ __forceinline__ float spt_lane_score(const spt_attend &a,
                                                       const spt_lane_pairs &pairs, int i, int key,
                                                       float score) {
  if (pairs.mask[i] != NULL && pairs.mask[i][key * a.view.mask.key] == 0) {
    return -INFINITY;
  }
  if (a.view.bias.data == NULL) {
    return score;
  }
  float bias = spt_pair_value(a.view.bias, pairs.bias[i] + key * a.view.bias.key);
  return bias == -INFINITY ? -INFINITY : score + bias;
}

/* A tile of 8 keys, from the warp's `key` on: -inf where hidden. Raw products stay so without a mask and a
 * bias (EXTRAS), else they become scores. */
template <bool EXTRAS>
static __device__ __forceinline__ void spt_limit_tile(float (&s)[4], int key,
                                                      const spt_lane_limits &l,
                                                      const spt_lane_pairs &pairs,
                                                      const spt_attend &a) {
  int column = key + threadIdx.x % 4 * 2;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    int j = column + i % 2;
    if (j < l.low[i / 2] || j > l.high[i / 2]) {
      s[i] = -INFINITY;
    } else if (EXTRAS) {
      s[i] = spt_lane_score(a, pairs, i / 2, j, s[i] * fabsf(a.view.scale));
    }
  }
}

/* Scores s (16, KEYS) of a warp's queries from `row` on and the keys from `first_key` on, in 16 at a time of
 * which there are `steps`: but for those that all rows see. */
template <bool EXTRAS, int TILES>
static __device__ __forceinline__ void spt_limit_scores(float (&s)[TILES][4], int steps,
                                                        const spt_attend &a,
                                                        const spt_attend_block &b, int row,
                                                        int64_t first_key) {
  spt_lane_limits l = spt_limits_of(a, b, row, first_key, 8 * TILES);
  spt_lane_pairs pairs = {};
  if (EXTRAS) {
    pairs = spt_pairs_of(a, b, row, first_key);
  }
#pragma unroll
  for (int t = 0; t < TILES; t += 2) {
    if (t / 2 < steps && (EXTRAS || 8 * t < l.low_all || 8 * t + 15 > l.high_all)) {
      spt_limit_tile<EXTRAS>(s[t], 8 * t, l, pairs, a);
      spt_limit_tile<EXTRAS>(s[t + 1], 8 * t + 8, l, pairs, a);
    }
  }
}

/* ---- softmax ------------------------------------------------------------------------------------- */

/* Over the 4 lanes of a row. */
static __device__ __forceinline__ float spt_row_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(SPT_ALL_LANES, x, 1));
  return fmaxf(x, __shfl_xor_sync(SPT_ALL_LANES, x, 2));
}
static __device__ __forceinline__ float spt_row_sum(float x) {
  x += __shfl_xor_sync(SPT_ALL_LANES, x, 1);
  return x + __shfl_xor_sync(SPT_ALL_LANES, x, 2);
}

/* Where every score is -inf: exp(-inf - 0) is 0, exp(-inf - (-inf)) would be NaN. */
static __device__ __forceinline__ float spt_finite_top(float top) {
  return top == -INFINITY ? 0.0f : top;
}

/* exp(score - top). Raw products take one FMA; scores with a bias lose less when subtracted first: the
 * least float is a usual bias. */
template <bool EXTRAS>
static __device__ __forceinline__ float spt_weight_of(float s, float top, float log2_scale) {
  return EXTRAS ? spt_exp2((s - top) * SPT_LOG2_E)
                : spt_exp2(fmaf(s, log2_scale, -top * log2_scale));
}

template <bool EXTRAS>
static __device__ __forceinline__ float spt_lse_of(float top, float sum, float scale) {
  return sum == 0.0f ? -INFINITY : (EXTRAS ? top : top * fabsf(scale)) + logf(sum);
}

/* ---- importance ---------------------------------------------------------------------------------- */

/* Which of 32 keys is this lane's in what spt_column_sum gives. */
static __device__ __forceinline__ int spt_column_of_lane() {
  int lane = threadIdx.x % SPT_WARP;
  return lane / 16 * 16 + lane / 8 % 2 * 8 + lane % 4 * 2 + lane / 4 % 2;
}

/* Sums over the warp's 16 rows of 4 tiles' weights, each row's times its factor: 32 keys, one to a lane.
 * Each exchange halves what is left: 7 shuffles, not 24. */
static __device__ __forceinline__ float spt_column_sum(const float (&s0)[4], const float (&s1)[4],
                                                       const float (&s2)[4], const float (&s3)[4],
                                                       const float (&factor)[2]) {
  float sums[8];
#pragma unroll
  for (int e = 0; e < 2; e++) {
    sums[e] = s0[e] * factor[0] + s0[e + 2] * factor[1];
    sums[2 + e] = s1[e] * factor[0] + s1[e + 2] * factor[1];
    sums[4 + e] = s2[e] * factor[0] + s2[e + 2] * factor[1];
    sums[6 + e] = s3[e] * factor[0] + s3[e + 2] * factor[1];
  }
#pragma unroll
  for (int half = 4; half >= 1; half /= 2) {
    bool upper = (threadIdx.x & (unsigned)(4 * half)) != 0;
#pragma unroll
    for (int i = 0; i < half; i++) {
      float given = upper ? sums[i] : sums[i + half];
      float kept = upper ? sums[i + half] : sums[i];
      sums[i] = kept + __shfl_xor_sync(SPT_ALL_LANES, given, 4 * half);
    }
  }
  return sums[0];
}

/* ---- dropout ------------------------------------------------------------------------------------- */

/* Zeros where dropout hits, in the tile of 8 keys from `key` (of the sequence, a multiple of 4) on. Lanes
 * 2 n and 2 n + 1 have the same four keys: one asks for the upper row, the other for the lower. */
static __device__ __forceinline__ void spt_drop_tile(float (&s)[4], int64_t key,
                                                     const spt_attend &a, const spt_attend_block &b,
                                                     int row) {
  int lane = threadIdx.x % SPT_WARP;
  int64_t query = b.first + row + lane / 4 + lane % 2 * 8;
  uint32_t mine = spt_kept_quad(a.view.dropout, b.s.number, b.head, query, key / 4 + lane % 4 / 2);
  uint32_t other = __shfl_xor_sync(SPT_ALL_LANES, mine, 1);
  uint32_t upper = lane % 2 == 0 ? mine : other, lower = lane % 2 == 0 ? other : mine;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    uint32_t kept = i < 2 ? upper : lower;
    s[i] = (kept >> (lane % 2 * 2 + i % 2) & 1) != 0 ? s[i] : 0.0f;
  }
}

#endif
