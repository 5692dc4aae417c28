/* attention, any width and dtype: a warp per query, 32 keys at a time, one to a lane. Once for the row's
 * maximum and denominator, then once more for each 256 features of the values, which lanes hold.
 * Bound by loads: a lane reads keys of its own, from L1 where they fit, one element per FMA. For widths
 * that the tiles don't have, and what they are tested against. */
#include "attention_forward.cuh"

static const int SIMPLE_WARPS = SPT_SIMPLE_TILE;
static const int SIMPLE_FEATURES = 8; /* of a lane */
static const int SIMPLE_CHUNK = SIMPLE_FEATURES * SPT_WARP;

struct simple_row {
  int64_t query, begin, end; /* and the keys it sees */
  float top, inverse;        /* greatest score, or 0 where all are -inf; 1 / sum, or 0 */
};

/* exp(-inf - 0) is 0, where exp(-inf - (-inf)) would be NaN. */
static __device__ __forceinline__ float finite_top(float top) {
  return top == -INFINITY ? 0.0f : top;
}

template <typename T>
static __device__ float simple_score(const spt_attend &a, const spt_attend_block &b,
                                     const simple_row &row, int64_t key) {
  const T *q = spt_token_row<T>(a.q, b.s.number, b.s.q_start + row.query, b.head);
  const T *k = spt_token_row<T>(a.k, b.s.number, b.s.k_start + key, b.kv_head);
  float sum = 0.0f;
  for (int64_t f = 0; f < a.view.d; f++) {
    sum = fmaf(a.view.scale * spt_load(q + f * a.q.feature), spt_load(k + f * a.k.feature), sum);
  }
  return spt_pair_score(a.view, b.s.number, b.head, row.query, key, sum);
}

template <typename T>
static __device__ float simple_softmax(const spt_attend &a, const spt_attend_block &b,
                                       simple_row *row) {
  float top = -INFINITY, sum = 0.0f; /* of this lane's keys */
  for (int64_t key = row->begin + threadIdx.x % SPT_WARP; key < row->end; key += SPT_WARP) {
    float score = simple_score<T>(a, b, *row, key);
    float next = fmaxf(top, score); /* NaN is passed over here, and met in the sum */
    sum = sum * expf(top - finite_top(next)) + expf(score - finite_top(next));
    top = next;
  }
  row->top = finite_top(spt_warp_max(top));
  sum = spt_warp_sum(sum * expf(top - row->top));
  row->inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
  return sum == 0.0f ? -INFINITY : row->top + logf(sum);
}

/* 32 keys from `key` on add their values to features begin + lane + 32 f. */
template <typename T>
static __device__ void simple_values(const spt_attend &a, const spt_attend_block &b,
                                     const simple_row &row, int64_t key, int64_t begin,
                                     float (&sums)[SIMPLE_FEATURES]) {
  int lane = threadIdx.x % SPT_WARP;
  float p = 0.0f;
  if (key + lane < row.end) {
    p = expf(simple_score<T>(a, b, row, key + lane) - row.top);
    if (begin == 0 && b.sums) {
      spt_add_share(a, b, key + lane, p * row.inverse);
    }
    if (a.view.dropout.on &&
        !spt_keeps_pair(a.view.dropout, b.s.number, b.head, row.query, key + lane)) {
      p = 0.0f;
    }
  }
  int keys = (int)spt_least(SPT_WARP, row.end - key);
  for (int j = 0; j < keys; j++) {
    float weight = __shfl_sync(SPT_ALL_LANES, p, j);
    const T *v = spt_token_row<T>(a.v, b.s.number, b.s.k_start + key + j, b.kv_head);
#pragma unroll
    for (int f = 0; f < SIMPLE_FEATURES; f++) {
      int64_t feature = begin + lane + f * SPT_WARP;
      if (feature < a.view.dv) {
        sums[f] = fmaf(weight, spt_load(v + feature * a.v.feature), sums[f]);
      }
    }
  }
}

/* Gives this lane's sum of |out|. */
template <typename T>
static __device__ float simple_results(const spt_attend &a, const spt_attend_block &b,
                                       const simple_row &row) {
  int lane = threadIdx.x % SPT_WARP;
  float magnitude = 0.0f, factor = row.inverse * a.view.dropout.kept_scale;
  int64_t start =
      b.s.number * a.out.sequence + (b.s.q_start + row.query) * a.out.token + b.head * a.out.head;
  for (int64_t begin = 0; begin < a.view.dv; begin += SIMPLE_CHUNK) {
    float sums[SIMPLE_FEATURES] = {0.0f};
    for (int64_t key = row.begin; key < row.end; key += SPT_WARP) {
      simple_values<T>(a, b, row, key, begin, sums);
    }
#pragma unroll
    for (int f = 0; f < SIMPLE_FEATURES; f++) {
      int64_t feature = begin + lane + f * SPT_WARP;
      float value = row.inverse == 0.0f ? 0.0f : sums[f] * factor;
      if (feature < a.view.dv) {
        spt_store_result(a.out, start + feature * a.out.feature, value);
        magnitude += fabsf(value);
      }
    }
  }
  return magnitude;
}

template <typename T>
__global__ void attend_simply_kernel(spt_attend a) {
  SPT_SHARED(float, shared);
  spt_attend_block b;
  if (!spt_find_block(a, SIMPLE_WARPS, &b)) {
    return;
  }
  int warp = threadIdx.x / SPT_WARP;
  float magnitude = 0.0f;
  if (warp < b.all_rows) {
    simple_row row = {b.first + warp, 0, 0, 0.0f, 0.0f};
    float lse = -INFINITY;
    if (warp < b.rows) {
      spt_keys_seen(a.view, b.s, row.query, row.query, &row.begin, &row.end);
      lse = simple_softmax<T>(a, b, &row);
    }
    if (threadIdx.x % SPT_WARP == 0) {
      spt_store_lse(a, b, warp, lse);
    }
    magnitude = simple_results<T>(a, b, row);
  }
  if (b.sums) {
    spt_store_head_sum(a, b, magnitude, shared);
  }
}

spt_status spt_attend_simply(spt_cuda_queue *queue, const spt_attend *a, int64_t slots,
                             spt_error *err) {
  const int threads = SIMPLE_WARPS * SPT_WARP;
  unsigned blocks = (unsigned)(slots * a->view.heads);
  SPT_WITH_STORAGE(a->q.dtype, T, {
    SPT_LAUNCH("attention", attend_simply_kernel<T>, blocks, threads, SIMPLE_WARPS * sizeof(float),
               queue->stream, *a);
  });
  return SPT_OK;
}
