/* attention_backward, any width: a warp per row of a key or of a query head. 32 others at a time, one to
 * a lane, whose score and probability gradient are plain dot products; then a lane per feature, 256
 * features a block, adds the 32 rows up. Bound by loads: each lane reads rows of its own, from L1 where
 * they fit, 1 element per 1 FMA. For widths that the tiles don't have, and for a bias's gradient where
 * it was broadcast. */
#include "attention_backward.cuh"
#include "attention_backward_pair.cuh"
#include "warp.cuh"

static const int SIMPLE_WARPS = 4;
static const int SIMPLE_FEATURES = 8; /* of a lane */
static const int SIMPLE_CHUNK = SIMPLE_FEATURES * SPT_WARP;

/* sums[f] += lane o's weight * element begin + lane + 32 f of row o, over the rows of a batch. */
template <typename T>
static __device__ __forceinline__ void add_rows(float (&sums)[SIMPLE_FEATURES], float weight,
                                                const spt_heads &x, int64_t sequence, int64_t token,
                                                int64_t head, int rows, int64_t begin,
                                                int64_t width) {
  for (int o = 0; o < rows; o++) {
    float w = __shfl_sync(SPT_ALL_LANES, weight, o);
    const T *row = spt_token_row<T>(x, sequence, token + o, head);
#pragma unroll
    for (int f = 0; f < SIMPLE_FEATURES; f++) {
      int64_t c = begin + threadIdx.x % SPT_WARP + f * SPT_WARP;
      if (c < width) {
        sums[f] = fmaf(w, spt_load(row + c * x.feature), sums[f]);
      }
    }
  }
}

template <typename T>
static __device__ __forceinline__ void store_row(const spt_heads &x, int64_t sequence,
                                                 int64_t token, int64_t head, int64_t begin,
                                                 int64_t width,
                                                 const float (&sums)[SIMPLE_FEATURES],
                                                 float factor) {
  if (x.data == NULL) {
    return;
  }
  T *row = spt_token_row<T>(x, sequence, token, head);
#pragma unroll
  for (int f = 0; f < SIMPLE_FEATURES; f++) {
    int64_t c = begin + threadIdx.x % SPT_WARP + f * SPT_WARP;
    if (c < width) {
      spt_store(row + c * x.feature, sums[f] * factor);
    }
  }
}

/* Features from `begin` on of one own row's results, by one warp. */
template <typename T, bool KEYS>
static __device__ void simple_row(const spt_backward &p, const spt_span &s, int64_t own_head,
                                  int64_t own, int64_t begin_feature) {
  const spt_attention_view &v = p.view;
  int64_t group = v.heads / v.kv_heads;
  int lane = threadIdx.x % SPT_WARP;
  float first[SIMPLE_FEATURES] = {0.0f}, second[SIMPLE_FEATURES] = {0.0f};
  for (int64_t g = 0; g < (KEYS ? group : 1) && own < (KEYS ? s.keys : s.queries); g++) {
    int64_t head = KEYS ? own_head * group + g : own_head, kv_head = head / group;
    int64_t stats = spt_stats_row(v, s, head), begin, end;
    spt_others_seen<KEYS>(v, s, own, own, &begin, &end);
    for (int64_t o = begin; o < end; o += SPT_WARP) {
      int64_t i = KEYS ? o + lane : own, j = KEYS ? own : o + lane;
      spt_pair_gradient pair = {0.0f, 0.0f};
      if (o + lane < end) {
        pair = spt_lone_pair<T>(p, s, head, i, j, p.lse[stats + i], p.delta[stats + i]);
      }
      int rows = (int)spt_least(SPT_WARP, end - o);
      if (KEYS) {
        add_rows<T>(first, pair.ds, p.q, s.number, s.q_start + o, head, rows, begin_feature, v.d);
        add_rows<T>(second, pair.p, p.grad, s.number, s.q_start + o, head, rows, begin_feature,
                    v.dv);
      } else {
        add_rows<T>(first, pair.ds, p.k, s.number, s.k_start + o, kv_head, rows, begin_feature,
                    v.d);
      }
    }
  }
  int64_t at = (KEYS ? s.k_start : s.q_start) + own;
  store_row<T>(KEYS ? p.dk : p.dq, s.number, at, own_head, begin_feature, v.d, first, v.scale);
  if (KEYS) {
    store_row<T>(p.dv, s.number, at, own_head, begin_feature, v.dv, second, 1.0f);
  }
}

/* Grid: (spt_side_blocks of SIMPLE_WARPS rows, chunks of features). */
template <typename T, bool KEYS>
__global__ void simple_kernel(spt_backward p, int64_t chunks) {
  const spt_attention_view &v = p.view;
  int64_t own_head, own;
  spt_span s;
  bool found = spt_find_side<KEYS>(v, SIMPLE_WARPS, &s, &own_head, &own);
  own += threadIdx.x / SPT_WARP;
  if (!found || own >= (KEYS ? s.key_rows : s.query_rows)) {
    return;
  }
  for (int64_t chunk = blockIdx.y; chunk < chunks; chunk += gridDim.y) {
    simple_row<T, KEYS>(p, s, own_head, own, chunk * SIMPLE_CHUNK);
  }
}

spt_status spt_backward_simple(spt_cuda_queue *queue, const spt_backward *p, bool keys,
                               spt_dtype dtype, spt_error *err) {
  const char *op = "attention_backward";
  const spt_attention_view &v = p->view;
  int64_t width = keys ? spt_most(v.d, v.dv) : v.d;
  int64_t chunks = spt_blocks(width, SIMPLE_CHUNK);
  dim3 grid((unsigned)spt_side_blocks(v, keys, SIMPLE_WARPS), (unsigned)spt_least(chunks, 65535));
  const int threads = SIMPLE_WARPS * SPT_WARP;
  if (grid.x == 0) {
    return SPT_OK;
  }
  SPT_WITH_STORAGE(dtype, T, {
    if (keys) {
      SPT_LAUNCH(op, (simple_kernel<T, true>), grid, threads, 0, queue->stream, *p, chunks);
    } else {
      SPT_LAUNCH(op, (simple_kernel<T, false>), grid, threads, 0, queue->stream, *p, chunks);
    }
  });
  return SPT_OK;
}
