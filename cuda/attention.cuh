/* attention.cuh: what attention and attention_backward share: which keys a query sees, the bias and mask
 * of a pair, whether dropout keeps it. One problem as kernels take it, by value. */
#ifndef SPATILE_CUDA_ATTENTION_CUH
#define SPATILE_CUDA_ATTENTION_CUH

#include <math.h>

#include "context.h"
#include "philox.cuh"
#include "storage.cuh"
#include "view.cuh"

/* A (sequences, heads, queries, keys) array: strides in elements, 0 where it was broadcast. */
struct spt_pairs {
  const void *data; /* NULL where absent */
  spt_dtype dtype;
  int64_t sequence, head, query, key;
};

/* Kept iff the pair's word is at least `threshold`. */
struct spt_pair_dropout {
  bool on;
  uint32_t threshold;
  float kept_scale;
  uint64_t seed;
};

struct spt_attention_view {
  int64_t sequences, heads, kv_heads, d, dv;
  int64_t queries, keys; /* of each sequence where batched, in all where packed */
  bool packed;
  const int64_t *q_offsets, *kv_offsets; /* (sequences + 1) on the device, where packed */
  const int64_t *lengths;                /* (sequences) on the device, or NULL */
  int64_t left, right; /* query i sees keys i + keys - queries - left to ... + right */
  float scale;
  spt_pairs mask, bias;
  spt_pair_dropout dropout;
};

/* One sequence. Rows from `queries` to `query_rows`, and so for keys, are padding. */
struct spt_span {
  int64_t number;
  int64_t q_start, k_start; /* first token in a packed array, else 0 */
  int64_t queries, keys;
  int64_t query_rows, key_rows;
};

/* ---- sequences ----------------------------------------------------------------------------------- */

static __device__ __forceinline__ spt_span spt_span_of(const spt_attention_view &v, int64_t n) {
  spt_span s = {n, 0, 0, v.queries, v.keys, v.queries, v.keys};
  if (v.packed) {
    s.q_start = v.q_offsets[n];
    s.k_start = v.kv_offsets[n];
    s.queries = s.query_rows = v.q_offsets[n + 1] - s.q_start;
    s.keys = s.key_rows = v.kv_offsets[n + 1] - s.k_start;
  } else if (v.lengths != NULL) {
    s.queries = s.keys = v.lengths[n];
  }
  return s;
}

/* Blocks of `tile` rows of packed sequences have slots: block i of sequence n has slot
 * start[n] / tile + n + i. As many as a sequence may need lie between its first and the next one's, some
 * are nobody's, and a block finds its sequence from the offsets alone: no table, nothing on the host
 * that depends on them but their last. */
static inline int64_t spt_packed_slots(int64_t tokens, int64_t sequences, int64_t tile) {
  return tokens / tile + sequences;
}

/* The last sequence whose first slot is at most `slot`. */
static __device__ __forceinline__ int64_t spt_sequence_of_slot(const int64_t *offsets,
                                                               int64_t sequences, int64_t slot,
                                                               int64_t tile) {
  int64_t low = 0, high = sequences; /* start of low <= slot < start of high */
  while (high - low > 1) {
    int64_t middle = (low + high) / 2;
    if (offsets[middle] / tile + middle <= slot) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

/* Slots of a problem's queries, `tile` of them each; packed: some are empty. */
static inline int64_t spt_query_slots(const spt_attention_view &v, int64_t tile) {
  return v.packed ? spt_packed_slots(v.queries, v.sequences, tile)
                  : v.sequences * spt_blocks(v.queries, tile);
}

/* The sequence of a slot, and its first query; false where the slot is nobody's. */
static __device__ __forceinline__ bool spt_find_queries(const spt_attention_view &v, int64_t slot,
                                                        int64_t tile, spt_span *s, int64_t *first) {
  if (v.packed) {
    int64_t n = spt_sequence_of_slot(v.q_offsets, v.sequences, slot, tile);
    *s = spt_span_of(v, n);
    *first = (slot - s->q_start / tile - n) * tile;
  } else {
    int64_t per_sequence = (v.queries + tile - 1) / tile;
    *s = spt_span_of(v, slot / per_sequence);
    *first = slot % per_sequence * tile;
  }
  return *first < s->query_rows;
}

/* Element 0 of a token's row. Feature f is at [f * x.feature]. */
template <typename T>
static __device__ __forceinline__ T *spt_token_row(const spt_heads &x, int64_t sequence,
                                                   int64_t token, int64_t head) {
  return static_cast<T *>(x.data) + sequence * x.sequence + token * x.token + head * x.head;
}

/* ---- which keys a query sees --------------------------------------------------------------------- */

/* Both ends included, and not yet cut to the keys that there are. */
static __device__ __forceinline__ int64_t spt_first_key(const spt_attention_view &v,
                                                        const spt_span &s, int64_t query) {
  return query + s.keys - s.queries - v.left;
}
static __device__ __forceinline__ int64_t spt_last_key(const spt_attention_view &v,
                                                       const spt_span &s, int64_t query) {
  return query + s.keys - s.queries + v.right;
}

/* The other way about: which queries see a key. */
static __device__ __forceinline__ int64_t spt_first_query(const spt_attention_view &v,
                                                          const spt_span &s, int64_t key) {
  return key - (s.keys - s.queries) - v.right;
}
static __device__ __forceinline__ int64_t spt_last_query(const spt_attention_view &v,
                                                         const spt_span &s, int64_t key) {
  return key - (s.keys - s.queries) + v.left;
}

/* Keys [begin, end) that some query of [first, last] sees; begin >= end where there is none. */
static __device__ __forceinline__ void spt_keys_seen(const spt_attention_view &v, const spt_span &s,
                                                     int64_t first, int64_t last, int64_t *begin,
                                                     int64_t *end) {
  *begin = spt_most(0, spt_first_key(v, s, first));
  *end = spt_least(s.keys, spt_last_key(v, s, last) + 1);
}

/* ---- mask and bias ------------------------------------------------------------------------------- */

static __device__ __forceinline__ int64_t spt_pair_offset(const spt_pairs &p, int64_t sequence,
                                                          int64_t head, int64_t query,
                                                          int64_t key) {
  return sequence * p.sequence + head * p.head + query * p.query + key * p.key;
}

static __device__ __forceinline__ float spt_pair_value(const spt_pairs &p, int64_t at) {
  if (p.dtype == SPT_F32) {
    return static_cast<const float *>(p.data)[at];
  }
  return p.dtype == SPT_F16 ? spt_load(static_cast<const spt_half *>(p.data) + at)
                            : spt_load(static_cast<const spt_bfloat *>(p.data) + at);
}

/* A scaled score with its bias, or -inf where the mask or a bias of -inf hides the pair: whatever the
 * score is, NaN too. Windows are the caller's. */
static __device__ __forceinline__ float spt_pair_score(const spt_attention_view &v,
                                                       int64_t sequence, int64_t head,
                                                       int64_t query, int64_t key, float score) {
  if (v.mask.data != NULL) {
    int64_t at = spt_pair_offset(v.mask, sequence, head, query, key);
    if (static_cast<const uint8_t *>(v.mask.data)[at] == 0) {
      return -INFINITY;
    }
  }
  if (v.bias.data != NULL) {
    float bias = spt_pair_value(v.bias, spt_pair_offset(v.bias, sequence, head, query, key));
    return bias == -INFINITY ? -INFINITY : score + bias;
  }
  return score;
}

/* ---- dropout ------------------------------------------------------------------------------------- */

/* Bit w: whether key 4 * quad + w survives. Positions are those within the sequence. */
static __device__ __forceinline__ uint32_t spt_kept_quad(const spt_pair_dropout &d,
                                                         int64_t sequence, int64_t head,
                                                         int64_t query, int64_t quad) {
  spt_philox_counter words = spt_philox_of_keys(d.seed, (uint32_t)quad, (uint32_t)query,
                                                (uint32_t)head, (uint32_t)sequence);
  uint32_t kept = 0;
#pragma unroll
  for (int w = 0; w < 4; w++) {
    kept |= (uint32_t)(words.word[w] >= d.threshold) << w;
  }
  return kept;
}

static __device__ __forceinline__ bool spt_keeps_pair(const spt_pair_dropout &d, int64_t sequence,
                                                      int64_t head, int64_t query, int64_t key) {
  return (spt_kept_quad(d, sequence, head, query, key / 4) >> (key % 4) & 1) != 0;
}

/* ---- launchers ----------------------------------------------------------------------------------- */

/* `view` of a problem; its index arrays are copied into scratch memory, unless q_offsets and kv_offsets
 * say where the device has them. attention.cu. */
SPT_WARN_UNUSED spt_status spt_attention_view_of(spt_cuda_queue *, spt_scratch *, const char *op,
                                                 const spt_attention_problem *,
                                                 const int64_t *q_offsets,
                                                 const int64_t *kv_offsets,
                                                 spt_attention_view *view, spt_error *);

#endif
