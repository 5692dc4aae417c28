/* attention, 16 bits, rows of any length: an online softmax over blocks of 64 keys (32 where heads are wider
 * than 128). A block of 4 warps has 128 queries of a head, 32 to a warp, where heads are narrow and there
 * are blocks enough, else 64. V of a block of keys arrives behind its scores, K of the next one behind
 * p v; blocks that no query of the block sees are never read.
 *
 * Importance needs each row's final sum, so K is read a second time, scores and weights are computed again
 * (half as many products again) and columns added to integers in memory, in any order the same.
 *
 * Bound by the tensor cores' mma.sync rate at 32 queries to a warp (a fragment of k or v then serves four
 * products), by shared memory at 16; exp is 1 / 16 of a clock per score and multiprocessor beside
 * 1 / 8 (d 64, sm_80). wgmma and TMA are a later path's. */
#include "attention_mma.cuh"

template <typename T, int WIDTH, int TILES>
struct stream_memory {
  static const int WARPS = SPT_STREAM_WARPS;
  static const int KEYS = WIDTH > 128 ? 32 : 64, STEPS = KEYS / SPT_MMA;
  static const int ROWS = SPT_MMA * TILES; /* of a warp */
  static const int PITCH = WIDTH + 8, RESULT_PITCH = WIDTH + 8;
  T *q, *k, *v;
  float *results; /* (queries, RESULT_PITCH), where all of these were */
  float *columns; /* (warps, KEYS) */
  float *warps;

  __device__ explicit stream_memory(unsigned char *memory, size_t bytes) {
    q = reinterpret_cast<T *>(memory);
    k = q + WARPS * ROWS * PITCH;
    v = k + KEYS * PITCH;
    results = reinterpret_cast<float *>(memory);
    warps = reinterpret_cast<float *>(memory + bytes) - 8;
    columns = warps - WARPS * KEYS;
  }
};

/* What a warp carries along. */
template <int WIDTH, int TILES>
struct stream_state {
  static const bool KEEPS_Q = WIDTH <= 128; /* in registers: else they are read for each block */
  uint32_t q[TILES][KEEPS_Q ? WIDTH / SPT_MMA : 1][4];
  float sums[TILES][WIDTH / 8][4];
  float top[TILES][2], total[TILES][2]; /* total: of this lane's columns */
};

template <typename T, int WIDTH, int TILES>
static __device__ __forceinline__ void read_queries(uint32_t (&to)[4], const T *q_warp, int tile,
                                                    int step, uint32_t sign) {
  const int PITCH = stream_memory<T, WIDTH, TILES>::PITCH;
  spt_ldmatrix_x4(to, spt_lane_rows(q_warp + tile * SPT_MMA * PITCH, PITCH) + step * SPT_MMA);
#pragma unroll
  for (int i = 0; i < 4; i++) {
    to[i] ^= sign;
  }
}

/* The block's scores, -inf where hidden. `key` is its first. */
template <typename T, int WIDTH, int TILES, bool EXTRAS>
static __device__ __forceinline__ void stream_scores(
    float (&s)[TILES][stream_memory<T, WIDTH, TILES>::KEYS / 8][4],
    const stream_state<WIDTH, TILES> &state, const T *q_warp, const T *k, const spt_attend &a,
    const spt_attend_block &b, int row, int64_t key) {
  typedef stream_memory<T, WIDTH, TILES> shape;
  const T *k_lane = spt_lane_keys(k, shape::PITCH);
  uint32_t sign = spt_sign_of_scale(a.view.scale);
#pragma unroll
  for (int m = 0; m < TILES; m++) {
#pragma unroll
    for (int t = 0; t < 2 * shape::STEPS; t++) {
      s[m][t][0] = s[m][t][1] = s[m][t][2] = s[m][t][3] = 0.0f;
    }
  }
#pragma unroll
  for (int f = 0; f < WIDTH / SPT_MMA; f++) {
    uint32_t q[TILES][4];
#pragma unroll
    for (int m = 0; m < TILES; m++) {
      if (state.KEEPS_Q) {
        q[m][0] = state.q[m][f][0];
        q[m][1] = state.q[m][f][1];
        q[m][2] = state.q[m][f][2];
        q[m][3] = state.q[m][f][3];
      } else {
        read_queries<T, WIDTH, TILES>(q[m], q_warp, m, f, sign);
      }
    }
#pragma unroll
    for (int t = 0; t < shape::STEPS; t++) {
      uint32_t keys[4];
      spt_ldmatrix_x4(keys, k_lane + t * SPT_MMA * shape::PITCH + f * SPT_MMA);
#pragma unroll
      for (int m = 0; m < TILES; m++) {
        spt_mma_16x8x16<T>(s[m][2 * t], q[m], keys[0], keys[1]);
        spt_mma_16x8x16<T>(s[m][2 * t + 1], q[m], keys[2], keys[3]);
      }
    }
  }
#pragma unroll
  for (int m = 0; m < TILES; m++) {
    spt_limit_scores<EXTRAS>(s[m], shape::STEPS, a, b, row + m * SPT_MMA, key);
  }
}

/* Scores become weights; what was summed before is rescaled. */
template <int WIDTH, int TILES, int COLUMNS, bool EXTRAS>
static __device__ __forceinline__ void stream_softmax(float (&s)[TILES][COLUMNS][4],
                                                      stream_state<WIDTH, TILES> &state,
                                                      float log2_scale) {
#pragma unroll
  for (int m = 0; m < TILES; m++) {
    float top[2] = {state.top[m][0], state.top[m][1]}, rescale[2];
#pragma unroll
    for (int t = 0; t < COLUMNS; t++) {
      top[0] = fmaxf(top[0], fmaxf(s[m][t][0], s[m][t][1]));
      top[1] = fmaxf(top[1], fmaxf(s[m][t][2], s[m][t][3]));
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
      top[i] = spt_row_max(top[i]);
      float before = state.top[m][i];
      state.top[m][i] = top[i];
      top[i] = spt_finite_top(top[i]);
      rescale[i] = spt_weight_of<EXTRAS>(before, top[i], log2_scale);
      state.total[m][i] *= rescale[i];
    }
#pragma unroll
    for (int t = 0; t < COLUMNS; t++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        s[m][t][i] = spt_weight_of<EXTRAS>(s[m][t][i], top[i / 2], log2_scale);
        state.total[m][i / 2] += s[m][t][i];
      }
    }
#pragma unroll
    for (int t = 0; t < WIDTH / 8; t++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        state.sums[m][t][i] *= rescale[i / 2];
      }
    }
  }
}

template <typename T, int WIDTH, int TILES, bool EXTRAS>
static __device__ __forceinline__ void stream_values(
    float (&s)[TILES][stream_memory<T, WIDTH, TILES>::KEYS / 8][4],
    stream_state<WIDTH, TILES> &state, const T *v, const spt_attend &a, const spt_attend_block &b,
    int row, int64_t key) {
  typedef stream_memory<T, WIDTH, TILES> shape;
  const T *v_lane = spt_lane_rows(v, shape::PITCH);
#pragma unroll
  for (int t = 0; t < shape::STEPS; t++) {
    uint32_t p[TILES][4];
#pragma unroll
    for (int m = 0; m < TILES; m++) {
      if (EXTRAS && a.view.dropout.on) {
        spt_drop_tile(s[m][2 * t], key + t * SPT_MMA, a, b, row + m * SPT_MMA);
        spt_drop_tile(s[m][2 * t + 1], key + t * SPT_MMA + 8, a, b, row + m * SPT_MMA);
      }
      spt_as_operand<T>(p[m], s[m][2 * t], s[m][2 * t + 1]);
    }
#pragma unroll
    for (int f = 0; f < WIDTH / SPT_MMA; f++) {
      uint32_t values[4];
      spt_ldmatrix_x4_trans(values, v_lane + t * SPT_MMA * shape::PITCH + f * SPT_MMA);
#pragma unroll
      for (int m = 0; m < TILES; m++) {
        spt_mma_16x8x16<T>(state.sums[m][2 * f], p[m], values[0], values[1]);
        spt_mma_16x8x16<T>(state.sums[m][2 * f + 1], p[m], values[2], values[3]);
      }
    }
  }
}

/* Keys [key, key + KEYS) of `x`, k or v. */
template <typename T, int WIDTH, int TILES>
static __device__ __forceinline__ void stage_keys(T *to, const spt_heads &x, bool wide,
                                                  int64_t width, const spt_attend_block &b,
                                                  int64_t key, int64_t end) {
  typedef stream_memory<T, WIDTH, TILES> shape;
  const T *from = spt_token_row<T>(x, b.s.number, b.s.k_start + key, b.kv_head);
  spt_stage_rows(to, shape::PITCH, shape::KEYS, WIDTH, from, x,
                 (int)spt_least(shape::KEYS, end - key), (int)width, wide, (int)threadIdx.x,
                 shape::WARPS * SPT_WARP);
  spt_cp_async_commit();
}

/* Once more over the keys [begin, end), with each row's final top and 1 / sum: their importance. */
template <typename T, int WIDTH, int TILES, bool EXTRAS>
static __device__ __forceinline__ void stream_columns(const stream_state<WIDTH, TILES> &state,
                                                      const float (&inverse)[TILES][2],
                                                      const stream_memory<T, WIDTH, TILES> &m,
                                                      const spt_attend &a,
                                                      const spt_attend_block &b, int row,
                                                      int64_t begin, int64_t end) {
  typedef stream_memory<T, WIDTH, TILES> shape;
  const T *q_warp = m.q + row * shape::PITCH;
  float *columns = m.columns + threadIdx.x / SPT_WARP * shape::KEYS;
  T *now = m.k, *next = m.v;
  __syncthreads(); /* k and v are free */
  stage_keys<T, WIDTH, TILES>(now, a.k, a.wide_k, a.view.d, b, begin, end);
  for (int64_t key = begin; key < end; key += shape::KEYS) {
    if (key + shape::KEYS < end) {
      stage_keys<T, WIDTH, TILES>(next, a.k, a.wide_k, a.view.d, b, key + shape::KEYS, end);
    } else {
      spt_cp_async_commit();
    }
    spt_cp_async_wait<1>();
    __syncthreads();
    float s[TILES][2 * shape::STEPS][4];
    stream_scores<T, WIDTH, TILES, EXTRAS>(s, state, q_warp, now, a, b, row, key);
#pragma unroll
    for (int t = 0; t < 2 * shape::STEPS; t += 4) {
      float sum = 0.0f;
#pragma unroll
      for (int i = 0; i < TILES; i++) {
#pragma unroll
        for (int e = 0; e < 16; e++) {
          float &x = s[i][t + e / 4][e % 4];
          x = spt_weight_of<EXTRAS>(x, spt_finite_top(state.top[i][e % 4 / 2]), a.log2_scale);
        }
        sum += spt_column_sum(s[i][t], s[i][t + 1], s[i][t + 2], s[i][t + 3], inverse[i]);
      }
      columns[t * 8 + spt_column_of_lane()] = sum;
    }
    __syncthreads();
    if (threadIdx.x < shape::KEYS && key + threadIdx.x < end) {
      float sum = 0.0f;
      for (int w = 0; w < shape::WARPS; w++) {
        sum += m.columns[w * shape::KEYS + threadIdx.x];
      }
      spt_add_share(a, b, key + threadIdx.x, sum);
    }
    T *free = now;
    now = next;
    next = free;
  }
}

template <typename T, int WIDTH, int TILES>
static __device__ __forceinline__ void stream_start(stream_state<WIDTH, TILES> &state,
                                                    const T *q_warp, float scale) {
  uint32_t sign = spt_sign_of_scale(scale);
#pragma unroll
  for (int m = 0; m < TILES; m++) {
#pragma unroll
    for (int f = 0; state.KEEPS_Q && f < WIDTH / SPT_MMA; f++) {
      read_queries<T, WIDTH, TILES>(state.q[m][state.KEEPS_Q ? f : 0], q_warp, m, f, sign);
    }
  }
}

/* Results to shared memory, divided by the rows' sums; lse. */
template <typename T, int WIDTH, int TILES, bool EXTRAS>
static __device__ __forceinline__ void stream_finish(const stream_state<WIDTH, TILES> &state,
                                                     const float (&sum)[TILES][2],
                                                     const float (&inverse)[TILES][2],
                                                     const stream_memory<T, WIDTH, TILES> &memory,
                                                     const spt_attend &a, const spt_attend_block &b,
                                                     int row) {
  typedef stream_memory<T, WIDTH, TILES> shape;
  int lane = threadIdx.x % SPT_WARP;
#pragma unroll
  for (int m = 0; m < TILES; m++) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      int at = row + m * SPT_MMA + lane / 4 + 8 * i;
      float factor = inverse[m][i] * a.view.dropout.kept_scale;
      float *to = memory.results + at * shape::RESULT_PITCH + lane % 4 * 2;
#pragma unroll
      for (int t = 0; t < WIDTH / 8; t++) {
        to[t * 8] = factor == 0.0f ? 0.0f : state.sums[m][t][2 * i] * factor;
        to[t * 8 + 1] = factor == 0.0f ? 0.0f : state.sums[m][t][2 * i + 1] * factor;
      }
      if (lane % 4 == 0 && at < b.all_rows) {
        float top = spt_finite_top(state.top[m][i]);
        spt_store_lse(a, b, at, spt_lse_of<EXTRAS>(top, sum[m][i], a.view.scale));
      }
    }
  }
}

template <typename T, int WIDTH, int TILES, bool EXTRAS>
__global__ void __launch_bounds__(SPT_STREAM_WARPS *SPT_WARP)
    streaming_kernel(spt_attend a, int bytes) {
  typedef stream_memory<T, WIDTH, TILES> shape;
  SPT_SHARED(unsigned char, shared);
  spt_attend_block b;
  if (!spt_has_products<T>::value || !spt_find_block(a, shape::WARPS * shape::ROWS, &b)) {
    return;
  }
  int64_t begin, end;
  spt_keys_seen(a.view, b.s, b.first, b.first + b.rows - 1, &begin, &end);
  if (b.rows == 0 || begin >= end) {
    spt_store_nothing(a, b);
    return;
  }
  begin = begin / SPT_MMA * SPT_MMA;
  stream_memory<T, WIDTH, TILES> m(shared, (size_t)bytes);
  int row = threadIdx.x / SPT_WARP * shape::ROWS;
  const T *q = spt_token_row<T>(a.q, b.s.number, b.s.q_start + b.first, b.head);
  const T *q_warp = m.q + row * shape::PITCH;
  spt_stage_rows(m.q, shape::PITCH, shape::WARPS * shape::ROWS, WIDTH, q, a.q, b.rows,
                 (int)a.view.d, a.wide_q, (int)threadIdx.x, shape::WARPS * SPT_WARP);
  stage_keys<T, WIDTH, TILES>(m.k, a.k, a.wide_k, a.view.d, b, begin, end);

  stream_state<WIDTH, TILES> state;
#pragma unroll
  for (int i = 0; i < TILES; i++) {
    state.top[i][0] = state.top[i][1] = -INFINITY;
    state.total[i][0] = state.total[i][1] = 0.0f;
#pragma unroll
    for (int t = 0; t < WIDTH / 8; t++) {
      state.sums[i][t][0] = state.sums[i][t][1] = state.sums[i][t][2] = state.sums[i][t][3] = 0.0f;
    }
  }
  for (int64_t key = begin; key < end; key += shape::KEYS) {
    spt_cp_async_wait<0>();
    __syncthreads(); /* k is here, and nobody reads v */
    stage_keys<T, WIDTH, TILES>(m.v, a.v, a.wide_v, a.view.dv, b, key, end);
    if (key == begin) {
      stream_start<T, WIDTH, TILES>(state, q_warp, a.view.scale);
    }
    float s[TILES][2 * shape::STEPS][4];
    stream_scores<T, WIDTH, TILES, EXTRAS>(s, state, q_warp, m.k, a, b, row, key);
    stream_softmax<WIDTH, TILES, 2 * shape::STEPS, EXTRAS>(s, state, a.log2_scale);
    spt_cp_async_wait<0>();
    __syncthreads(); /* v is here, and nobody reads k */
    if (key + shape::KEYS < end) {
      stage_keys<T, WIDTH, TILES>(m.k, a.k, a.wide_k, a.view.d, b, key + shape::KEYS, end);
    }
    stream_values<T, WIDTH, TILES, EXTRAS>(s, state, m.v, a, b, row, key);
  }

  float sum[TILES][2], inverse[TILES][2];
#pragma unroll
  for (int i = 0; i < TILES; i++) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
      sum[i][r] = spt_row_sum(state.total[i][r]);
      inverse[i][r] = sum[i][r] == 0.0f ? 0.0f : 1.0f / sum[i][r];
    }
  }
  if (b.sums) {
    stream_columns<T, WIDTH, TILES, EXTRAS>(state, inverse, m, a, b, row, begin, end);
  }
  __syncthreads(); /* nobody reads q, k, v */
  stream_finish<T, WIDTH, TILES, EXTRAS>(state, sum, inverse, m, a, b, row);
  __syncthreads();
  float magnitude = spt_store_rows(a, b, m.results, shape::RESULT_PITCH, 1, 0);
  if (b.sums) {
    spt_store_head_sum(a, b, magnitude, m.warps);
  }
}

template <typename T, int WIDTH, int TILES, bool EXTRAS>
static spt_status launch_streaming(spt_cuda_queue *queue, const spt_attend *a,
                                   const spt_attention_plan *p, int64_t slots, spt_error *err) {
  SPT_LAUNCH("attention", (streaming_kernel<T, WIDTH, TILES, EXTRAS>),
             (unsigned)(slots * a->view.heads), SPT_STREAM_WARPS * SPT_WARP, p->shared,
             queue->stream, *a, (int)p->shared);
  return SPT_OK;
}

template <typename T, bool EXTRAS>
static spt_status stream_by_width(spt_cuda_queue *queue, const spt_attend *a,
                                  const spt_attention_plan *p, int64_t slots, spt_error *err) {
  const int most =
      EXTRAS ? 1 : 2; /* with pairs looked at one by one, 2 take more than 255 registers */
  bool large = p->tile > SPT_STREAM_WARPS * SPT_MMA;
  switch (p->width) {
    case 32:
      return large ? launch_streaming<T, 32, most, EXTRAS>(queue, a, p, slots, err)
                   : launch_streaming<T, 32, 1, EXTRAS>(queue, a, p, slots, err);
    case 64:
      return large ? launch_streaming<T, 64, most, EXTRAS>(queue, a, p, slots, err)
                   : launch_streaming<T, 64, 1, EXTRAS>(queue, a, p, slots, err);
    case 96:
      return launch_streaming<T, 96, 1, EXTRAS>(queue, a, p, slots, err);
    case 128:
      return launch_streaming<T, 128, 1, EXTRAS>(queue, a, p, slots, err);
    default:
      return launch_streaming<T, 256, 1, EXTRAS>(queue, a, p, slots, err);
  }
}

spt_status spt_attend_streaming(spt_cuda_queue *queue, const spt_attend *a,
                                const spt_attention_plan *p, int64_t slots, spt_error *err) {
  bool half = a->q.dtype == SPT_F16;
  if (spt_has_extras(a)) {
    return half ? stream_by_width<spt_half, true>(queue, a, p, slots, err)
                : stream_by_width<spt_bfloat, true>(queue, a, p, slots, err);
  }
  return half ? stream_by_width<spt_half, false>(queue, a, p, slots, err)
              : stream_by_width<spt_bfloat, false>(queue, a, p, slots, err);
}
