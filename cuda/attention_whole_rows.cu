/* attention on the fly, 16 bits, for rows of up to 512 keys: E.T.'s operator. A block has 16, 32 or 64
 * queries of a head, and all keys that they see; a warp has 16 of the queries and up to 256 keys, whose
 * scores stay in its registers from q k^T over one exact softmax to p v, as the A operand of which they
 * are already laid out. Nothing but q, k, v and the results meets global memory.
 *
 * Importance comes along: columns are summed from the registers, by warp, then by block, then by
 * attention.cu's second kernel, always in the same order.
 *
 * Bound: short sequences by launch and latency (16 x 128 tokens of 12 heads of 64: 12.6 MB, 3 us on an
 * H200; K and V come in one go, V behind the scores), longer ones by shared memory: a fragment of k or v
 * (512 bytes by ldmatrix) serves two products of 16 x 8 x 16, as 16 queries to a warp have it. */
#include "attention_mma.cuh"

/* A block's shared memory, as spt_whole_rows_shared counts it. */
template <typename T>
struct whole_memory {
  int k_pitch, v_pitch, result_pitch, width, v_width;
  T *q, *k, *v;
  float *results;       /* (key warps, tile, result_pitch), where q and k were */
  float *tops, *totals; /* (key warps, tile) */
  float *columns;       /* (row warps, span) */
  float *warps;

  __device__ whole_memory(unsigned char *memory, const spt_attend &a, const spt_attention_plan &p) {
    width = spt_round_up(a.view.d, SPT_MMA);
    v_width = spt_round_up(a.view.dv, 32);
    k_pitch = spt_half_pitch(width);
    v_pitch = spt_half_pitch(v_width);
    result_pitch = spt_result_pitch((int)a.view.dv);
    q = reinterpret_cast<T *>(memory);
    k = q + p.tile * k_pitch;
    results = reinterpret_cast<float *>(memory);
    size_t scores = (size_t)(p.tile + p.span) * k_pitch * sizeof(T);
    size_t sums = (size_t)p.key_warps * p.tile * result_pitch * sizeof(float);
    v = reinterpret_cast<T *>(memory + (scores > sums ? scores : sums));
    tops = reinterpret_cast<float *>(v + p.span * v_pitch);
    totals = tops + p.key_warps * p.tile;
    columns = totals + p.key_warps * p.tile;
    warps = columns + p.row_warps * p.span;
  }
};

/* A warp's share of the block. */
struct whole_warp {
  int row, key_warp; /* first row */
  int first, steps;  /* keys from the block's first on, 16 to a step */
};

/* K behind the first commit, V behind the second. */
template <typename T>
static __device__ __forceinline__ void stage_whole(const spt_attend &a, const spt_attend_block &b,
                                                   const spt_attention_plan &p,
                                                   const whole_memory<T> &m, int64_t begin,
                                                   int span) {
  const T *q = spt_token_row<T>(a.q, b.s.number, b.s.q_start + b.first, b.head);
  const T *k = spt_token_row<T>(a.k, b.s.number, b.s.k_start + begin, b.kv_head);
  const T *v = spt_token_row<T>(a.v, b.s.number, b.s.k_start + begin, b.kv_head);
  int fill = (span + SPT_MMA - 1) / SPT_MMA * SPT_MMA, thread = threadIdx.x, threads = blockDim.x;
  spt_stage_rows(m.q, m.k_pitch, p.tile, m.width, q, a.q, b.rows, (int)a.view.d, a.wide_q, thread,
                 threads);
  spt_stage_rows(m.k, m.k_pitch, fill, m.width, k, a.k, span, (int)a.view.d, a.wide_k, thread,
                 threads);
  spt_cp_async_commit();
  spt_stage_rows(m.v, m.v_pitch, fill, m.v_width, v, a.v, span, (int)a.view.dv, a.wide_v, thread,
                 threads);
  spt_cp_async_commit();
}

template <typename T, int STEPS>
static __device__ __forceinline__ void whole_scores(float (&s)[2 * STEPS][4], const spt_attend &a,
                                                    const whole_memory<T> &m, const whole_warp &w) {
  const T *q = spt_lane_rows(m.q + w.row * m.k_pitch, m.k_pitch);
  const T *k = spt_lane_keys(m.k + w.first * m.k_pitch, m.k_pitch);
  uint32_t sign = spt_sign_of_scale(a.view.scale);
#pragma unroll
  for (int t = 0; t < 2 * STEPS; t++) {
    s[t][0] = s[t][1] = s[t][2] = s[t][3] = 0.0f;
  }
  for (int f = 0; f < m.width; f += SPT_MMA) {
    uint32_t queries[4];
    spt_ldmatrix_x4(queries, q + f);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      queries[i] ^= sign;
    }
#pragma unroll
    for (int t = 0; t < STEPS; t++) {
      if (t < w.steps) {
        spt_add_scores<T>(s[2 * t], s[2 * t + 1], queries, k + t * SPT_MMA * m.k_pitch + f);
      }
    }
  }
}

/* A row's value over the warps that share it; `all` (key warps, tile). */
template <bool MAX>
static __device__ __forceinline__ void over_key_warps(float (&x)[2], float *all,
                                                      const spt_attention_plan &p,
                                                      const whole_warp &w) {
  int row = w.row + threadIdx.x % SPT_WARP / 4;
  if (threadIdx.x % 4 == 0) {
    all[w.key_warp * p.tile + row] = x[0];
    all[w.key_warp * p.tile + row + 8] = x[1];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 2; i++) {
    float sum = all[row + 8 * i];
    for (int k = 1; k < p.key_warps; k++) {
      float y = all[k * p.tile + row + 8 * i];
      sum = MAX ? fmaxf(sum, y) : sum + y;
    }
    x[i] = sum;
  }
}

/* Scores become exp(score - top); sum is the row's. */
template <int STEPS, bool EXTRAS>
static __device__ __forceinline__ void whole_softmax(float (&s)[2 * STEPS][4], float (&top)[2],
                                                     float (&sum)[2], float *tops, float *totals,
                                                     const spt_attend &a,
                                                     const spt_attention_plan &p,
                                                     const whole_warp &w) {
  top[0] = top[1] = -INFINITY;
  sum[0] = sum[1] = 0.0f;
#pragma unroll
  for (int t = 0; t < 2 * STEPS; t++) {
    if (t / 2 < w.steps) {
      top[0] = fmaxf(top[0], fmaxf(s[t][0], s[t][1]));
      top[1] = fmaxf(top[1], fmaxf(s[t][2], s[t][3]));
    }
  }
  top[0] = spt_row_max(top[0]);
  top[1] = spt_row_max(top[1]);
  if (p.key_warps > 1) {
    over_key_warps<true>(top, tops, p, w);
  }
  top[0] = spt_finite_top(top[0]);
  top[1] = spt_finite_top(top[1]);
#pragma unroll
  for (int t = 0; t < 2 * STEPS; t++) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (t / 2 < w.steps) {
        s[t][i] = spt_weight_of<EXTRAS>(s[t][i], top[i / 2], a.log2_scale);
        sum[i / 2] += s[t][i];
      } else {
        s[t][i] = 0.0f;
      }
    }
  }
  sum[0] = spt_row_sum(sum[0]);
  sum[1] = spt_row_sum(sum[1]);
  if (p.key_warps > 1) {
    over_key_warps<false>(sum, totals, p, w);
  }
}

template <int STEPS>
static __device__ __forceinline__ void whole_columns(const float (&s)[2 * STEPS][4],
                                                     const float (&inverse)[2], float *columns,
                                                     const spt_attention_plan &p,
                                                     const whole_warp &w) {
  float *to = columns + w.row / SPT_MMA * p.span + w.first;
#pragma unroll
  for (int t = 0; t < 2 * STEPS; t += 4) {
    float sum = spt_column_sum(s[t], s[t + 1], s[t + 2], s[t + 3], inverse);
    int key = t * 8 + spt_column_of_lane();
    if (key < w.steps * SPT_MMA) {
      to[key] = sum;
    }
  }
}

/* p v, divided by the rows' sums, into `results`: 32 features at a time. */
template <typename T, int STEPS>
static __device__ __forceinline__ void whole_values(const uint32_t (&p)[STEPS][4],
                                                    const float (&factor)[2],
                                                    const whole_memory<T> &m, float *results,
                                                    const whole_warp &w) {
  const T *v = spt_lane_rows(m.v + w.first * m.v_pitch, m.v_pitch);
  int lane = threadIdx.x % SPT_WARP;
  float *to = results + (w.row + lane / 4) * m.result_pitch + lane % 4 * 2;
  for (int f = 0; f < m.v_width; f += 32) {
    float sums[4][4] = {{0.0f}};
#pragma unroll
    for (int t = 0; t < STEPS; t++) {
      if (t < w.steps) {
        const T *at = v + t * SPT_MMA * m.v_pitch + f;
        spt_add_values<T>(sums[0], sums[1], p[t], at);
        spt_add_values<T>(sums[2], sums[3], p[t], at + SPT_MMA);
      }
    }
#pragma unroll
    for (int t = 0; t < 4; t++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        float value = factor[i / 2] == 0.0f ? 0.0f : sums[t][i] * factor[i / 2];
        to[i / 2 * 8 * m.result_pitch + f + t * 8 + i % 2] = value;
      }
    }
  }
}

/* The block's column sums to where they are finished. */
template <typename T>
static __device__ __forceinline__ void store_whole_columns(const spt_attend &a,
                                                           const spt_attend_block &b,
                                                           const spt_attention_plan &p,
                                                           const whole_memory<T> &m, int64_t begin,
                                                           int span) {
  float *to = a.sums.tokens + (b.slot * a.view.heads + b.head) * a.sums.token_pitch;
  int64_t keys = a.sums.tokens != NULL ? b.s.keys : span;
  for (int64_t i = threadIdx.x; i < keys; i += blockDim.x) {
    int64_t j = a.sums.tokens != NULL ? i - begin : i;
    float sum = 0.0f;
    for (int r = 0; r < p.row_warps && j >= 0 && j < span; r++) {
      sum += m.columns[r * p.span + j];
    }
    if (a.sums.tokens != NULL) {
      to[i] = sum;
    } else {
      spt_add_share(a, b, begin + j, sum);
    }
  }
}

template <typename T, int KEYS, bool EXTRAS>
__global__ void __launch_bounds__(128) whole_rows_kernel(spt_attend a, spt_attention_plan p) {
  const int STEPS = KEYS / SPT_MMA;
  SPT_SHARED(unsigned char, shared);
  spt_attend_block b;
  if (!spt_has_products<T>::value || !spt_find_block(a, p.tile, &b)) {
    return;
  }
  int64_t begin, end;
  spt_keys_seen(a.view, b.s, b.first, b.first + b.rows - 1, &begin, &end);
  if (b.rows == 0 || begin >= end) {
    spt_store_nothing(a, b);
    return;
  }
  begin = begin / SPT_MMA * SPT_MMA;
  int span = (int)(end - begin), warp = threadIdx.x / SPT_WARP;
  whole_memory<T> m(shared, a, p);
  whole_warp w = {warp % p.row_warps * SPT_MMA, warp / p.row_warps, warp / p.row_warps * KEYS, 0};
  int left = (span - w.first + SPT_MMA - 1) / SPT_MMA;
  w.steps = left < 0 ? 0 : left > STEPS ? STEPS : left;
  stage_whole(a, b, p, m, begin, span);

  spt_cp_async_wait<1>();
  __syncthreads();
  float s[2 * STEPS][4], top[2], sum[2];
  whole_scores<T, STEPS>(s, a, m, w);
  spt_limit_scores<EXTRAS>(s, w.steps, a, b, w.row, begin + w.first);
  whole_softmax<STEPS, EXTRAS>(s, top, sum, m.tops, m.totals, a, p, w);
  float factor[2] = {sum[0] == 0.0f ? 0.0f : 1.0f / sum[0], sum[1] == 0.0f ? 0.0f : 1.0f / sum[1]};
  int row = w.row + threadIdx.x % SPT_WARP / 4;
  for (int i = 0; i < 2; i++) {
    if (threadIdx.x % 4 == 0 && w.key_warp == 0 && row + 8 * i < b.all_rows) {
      spt_store_lse(a, b, row + 8 * i, spt_lse_of<EXTRAS>(top[i], sum[i], a.view.scale));
    }
  }
  if (b.sums) {
    whole_columns<STEPS>(s, factor, m.columns, p, w);
  }
  uint32_t weights[STEPS][4];
#pragma unroll
  for (int t = 0; t < STEPS; t++) {
    if (EXTRAS && a.view.dropout.on && t < w.steps) {
      spt_drop_tile(s[2 * t], begin + w.first + t * SPT_MMA, a, b, w.row);
      spt_drop_tile(s[2 * t + 1], begin + w.first + t * SPT_MMA + 8, a, b, w.row);
    }
    spt_as_operand<T>(weights[t], s[2 * t], s[2 * t + 1]);
  }
  factor[0] *= a.view.dropout.kept_scale;
  factor[1] *= a.view.dropout.kept_scale;

  spt_cp_async_wait<0>();
  __syncthreads(); /* and every warp is done with q and k */
  int part = p.tile * m.result_pitch;
  whole_values<T, STEPS>(weights, factor, m, m.results + w.key_warp * part, w);
  __syncthreads();
  float magnitude = spt_store_rows(a, b, m.results, m.result_pitch, p.key_warps, part);
  if (b.sums) {
    store_whole_columns(a, b, p, m, begin, span);
    spt_store_head_sum(a, b, magnitude, m.warps);
  }
}

template <typename T, bool EXTRAS>
static spt_status launch_whole_rows(spt_cuda_queue *queue, const spt_attend *a,
                                    const spt_attention_plan *p, int64_t slots, spt_error *err) {
  unsigned blocks = (unsigned)(slots * a->view.heads);
  int threads = p->row_warps * p->key_warps * SPT_WARP;
  if (p->keys == 64) {
    SPT_LAUNCH("attention", (whole_rows_kernel<T, 64, EXTRAS>), blocks, threads, p->shared,
               queue->stream, *a, *p);
  } else if (p->keys == 128) {
    SPT_LAUNCH("attention", (whole_rows_kernel<T, 128, EXTRAS>), blocks, threads, p->shared,
               queue->stream, *a, *p);
  } else {
    SPT_LAUNCH("attention", (whole_rows_kernel<T, 256, EXTRAS>), blocks, threads, p->shared,
               queue->stream, *a, *p);
  }
  return SPT_OK;
}

spt_status spt_attend_whole_rows(spt_cuda_queue *queue, const spt_attend *a,
                                 const spt_attention_plan *p, int64_t slots, spt_error *err) {
  bool half = a->q.dtype == SPT_F16;
  if (spt_has_extras(a)) {
    return half ? launch_whole_rows<spt_half, true>(queue, a, p, slots, err)
                : launch_whole_rows<spt_bfloat, true>(queue, a, p, slots, err);
  }
  return half ? launch_whole_rows<spt_half, false>(queue, a, p, slots, err)
              : launch_whole_rows<spt_bfloat, false>(queue, a, p, slots, err);
}
