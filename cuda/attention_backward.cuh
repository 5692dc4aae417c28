/* attention_backward.cuh: what the kernels of attention_backward share.
 *
 * There are two sides. A block owns rows of one side and goes through those of the other in order:
 *   keys:    own k and v, others q and grad:  dk = scale * dS^T q, dv = (P o K)^T grad
 *   queries: own q and grad, others k and v:  dq = scale * dS k
 * with P the probabilities, from lse again, K the dropout mask over 1 - dropout, and
 * dS = P o (K o grad v^T - rowsum(grad o out)). So one template is both: first rows times first rows are
 * scores, second times second the gradients of probabilities. Nothing is added up by atomics: the same
 * call gives the same bits, for 7 products where 5 would do. */
#ifndef SPATILE_CUDA_ATTENTION_BACKWARD_CUH
#define SPATILE_CUDA_ATTENTION_BACKWARD_CUH

#include "attention.cuh"
#include "context.h"
#include "storage.cuh"
#include "view.cuh"

#define SPT_BACKWARD_OWN 64 /* rows of a block, at most */

struct spt_backward {
  spt_attention_view view;
  spt_heads q, k, v, grad, dq, dk, dv;
  /* float32 by query, see spt_stats_row: lse, where -inf is a query that sees nothing, and
   * rowsum(grad o out). */
  const float *lse, *delta;
  const uint32_t *peaks; /* (sequences, kv_heads) or NULL, see spt_gradient_unit */
  bool wide;             /* rows of q, k, v and grad are neighbours, 16-byte aligned and long */
};

static __host__ __device__ inline int64_t spt_stats_rows(const spt_attention_view &v) {
  return (v.packed ? 1 : v.sequences) * v.heads * v.queries;
}

/* Of the sequence's first query. */
static __device__ __forceinline__ int64_t spt_stats_row(const spt_attention_view &v,
                                                        const spt_span &s, int64_t head) {
  return v.packed ? head * v.queries + s.q_start : (s.number * v.heads + head) * v.queries;
}

/* dS is rounded to float16 before it is multiplied. What grad is taken times first makes the greatest
 * element of the sequence 16 to 32, so that neither a scaled loss overflows nor a plain one vanishes;
 * a power of two, which the results are divided by. */
static __device__ __forceinline__ float spt_gradient_unit(const spt_backward &p, const spt_span &s,
                                                          int64_t kv_head) {
  if (p.peaks == NULL) {
    return 1.0f;
  }
  int exponent = (int)(p.peaks[s.number * p.view.kv_heads + kv_head] >> 23);
  return exponent > 0 && exponent < 255 ? exp2f((float)(127 + 4 - exponent)) : 1.0f;
}

/* ---- whose block ------------------------------------------------------------------------------- */

static inline int64_t spt_side_slots(const spt_attention_view &v, bool keys, int64_t tile) {
  int64_t rows = keys ? v.keys : v.queries;
  return v.packed ? spt_packed_slots(rows, v.sequences, tile)
                  : v.sequences * spt_blocks(rows, tile);
}

static inline int64_t spt_side_blocks(const spt_attention_view &v, bool keys, int64_t tile) {
  return spt_side_slots(v, keys, tile) * (keys ? v.kv_heads : v.heads);
}

/* Of block blockIdx.x of spt_side_blocks, slots within heads: head, sequence and first row; false where
 * it is nobody's. Queries come last first: where they see only keys before them, the longest blocks
 * then start first. */
template <bool KEYS>
static __device__ __forceinline__ bool spt_find_side(const spt_attention_view &v, int64_t tile,
                                                     spt_span *s, int64_t *head, int64_t *first) {
  const int64_t *offsets = KEYS ? v.kv_offsets : v.q_offsets;
  int64_t slots = gridDim.x / (KEYS ? v.kv_heads : v.heads), slot = blockIdx.x % slots;
  int64_t blocks, block;
  *head = blockIdx.x / slots;
  if (v.packed) {
    int64_t n = spt_sequence_of_slot(offsets, v.sequences, slot, tile);
    *s = spt_span_of(v, n);
    blocks = ((KEYS ? s->key_rows : s->query_rows) + tile - 1) / tile;
    block = slot - offsets[n] / tile - n;
  } else {
    blocks = ((KEYS ? v.keys : v.queries) + tile - 1) / tile;
    *s = spt_span_of(v, slot / blocks);
    block = slot % blocks;
  }
  *first = (KEYS ? block : blocks - 1 - block) * tile;
  return block < blocks;
}

/* Others [begin, end) that some own row of [first, last] sees or is seen by. */
template <bool KEYS>
static __device__ __forceinline__ void spt_others_seen(const spt_attention_view &v,
                                                       const spt_span &s, int64_t first,
                                                       int64_t last, int64_t *begin, int64_t *end) {
  if (KEYS) {
    *begin = spt_most(0, spt_first_query(v, s, first));
    *end = spt_least(s.queries, spt_last_query(v, s, last) + 1);
  } else {
    spt_keys_seen(v, s, first, last, begin, end);
  }
}

/* ---- pairs --------------------------------------------------------------------------------------- */

struct spt_pair_gradient {
  float p, ds; /* P o K and dS */
};

static __device__ __forceinline__ bool spt_window_has(const spt_attention_view &v,
                                                      const spt_span &s, int64_t query,
                                                      int64_t key) {
  return query < s.queries && key < s.keys && key >= spt_first_key(v, s, query) &&
         key <= spt_last_key(v, s, query);
}

/* Of a pair that is not hidden, but by an lse of -inf. `kept` is K; lse and delta are the query's.
 * Where p is 0 nothing is multiplied: what the pair holds may be NaN. */
static __device__ __forceinline__ spt_pair_gradient spt_gradient_of_seen(float score, float dp,
                                                                         float lse, float delta,
                                                                         float kept) {
  float p = lse == -INFINITY ? 0.0f : exp2f((score - lse) * 1.44269504f);
  spt_pair_gradient result = {p * kept, p == 0.0f ? 0.0f : p * (dp * kept - delta)};
  return result;
}

static __device__ __forceinline__ spt_pair_gradient
spt_gradient_of_pair(const spt_attention_view &v, const spt_span &s, int64_t head, int64_t query,
                     int64_t key, float score, float dp, float lse, float delta, float kept) {
  bool seen = spt_window_has(v, s, query, key);
  if (seen && (v.mask.data != NULL || v.bias.data != NULL)) {
    score = spt_pair_score(v, s.number, head, query, key, score);
    seen = score != -INFINITY;
  }
  return seen ? spt_gradient_of_seen(score, dp, lse, delta, kept) : spt_pair_gradient{0.0f, 0.0f};
}

/* Dropout of a tile, drawn once: kept[key / 4 * QUERIES + query] is spt_kept_quad. The tile's first key
 * is a multiple of 4. By the whole block; nothing where there is no dropout. */
template <int QUERIES, int KEYS>
static __device__ __forceinline__ void spt_draw_tile(uint8_t *kept, const spt_attention_view &v,
                                                     const spt_span &s, int64_t head, int64_t query,
                                                     int64_t key) {
  if (v.dropout.on) {
    for (int i = threadIdx.x; i < QUERIES * KEYS / 4; i += blockDim.x) {
      kept[i] = (uint8_t)spt_kept_quad(v.dropout, s.number, head, query + i % QUERIES,
                                       key / 4 + i / QUERIES);
    }
  }
}

template <int QUERIES>
static __device__ __forceinline__ float spt_kept_of_tile(const uint8_t *kept,
                                                         const spt_attention_view &v, int query,
                                                         int key) {
  if (!v.dropout.on) {
    return 1.0f;
  }
  return kept[key / 4 * QUERIES + query] >> key % 4 & 1 ? v.dropout.kept_scale : 0.0f;
}

/* `rows` of a tile's lse and delta, as many as there are; by the whole block. */
static __device__ __forceinline__ void spt_load_stats(float *lse, float *delta,
                                                      const spt_backward &p, int64_t at, int rows,
                                                      int64_t there) {
  for (int i = threadIdx.x; i < rows; i += blockDim.x) {
    lse[i] = i < there ? p.lse[at + i] : -INFINITY;
    delta[i] = i < there ? p.delta[at + i] : 0.0f;
  }
}

/* ---- launchers ----------------------------------------------------------------------------------- */

/* Whether each row of `width` features is one of neighbours, a multiple of 16 bytes, from such. */
static inline bool spt_rows_are_wide(const spt_heads &x, int64_t width) {
  int64_t n = x.dtype == SPT_F32 ? 4 : 8;
  return (uintptr_t)x.data % 16 == 0 && x.feature == 1 && width % n == 0 && x.token % n == 0 &&
         x.head % n == 0 && x.sequence % n == 0;
}

/* Each gives dk and dv, or dq, of those that are wanted. */
SPT_WARN_UNUSED spt_status spt_backward_simple(spt_cuda_queue *, const spt_backward *, bool keys,
                                               spt_dtype dtype, spt_error *);
/* float32, width at most 128, and shared memory for it: false where that lacks. */
bool spt_backward_floats_fits(const spt_cuda_queue *, const spt_backward *);
SPT_WARN_UNUSED spt_status spt_backward_floats(spt_cuda_queue *, const spt_backward *, bool keys,
                                               spt_error *);
/* float16 and bfloat16, width at most 128, likewise; and bfloat16 from sm_80 on, whose tensor cores have
 * it. */
bool spt_backward_halves_fits(const spt_cuda_queue *, const spt_backward *, spt_dtype dtype);
SPT_WARN_UNUSED spt_status spt_backward_halves(spt_cuda_queue *, const spt_backward *, bool keys,
                                               spt_dtype dtype, spt_error *);
/* dbias, in its own shape and dtype; `dtype` is that of q. */
SPT_WARN_UNUSED spt_status spt_backward_bias(spt_cuda_queue *, const spt_backward *,
                                             const spt_tensor *dbias, spt_dtype dtype, spt_error *);

#endif
