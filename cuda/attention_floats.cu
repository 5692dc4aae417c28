/* attention, float32: an online softmax over blocks of 64 keys (32 where heads are wider than 96), products
 * by FMAs, so that results are as exact as float32 is. A block's 128 threads are 8 groups of 16; a group
 * has up to 8 queries, and each of its threads 4 keys (then features) of all of them.
 *
 * A row's scores stay with one group: maxima and sums take shuffles alone, and weights pass through shared
 * memory without a barrier. K and V arrive as in attention_streaming.cu, and importance is found as there.
 *
 * Bound by FMAs: of 64 features and 8 queries to a group, 12 loads of 16 bytes for 128 of them. */
#include "attention_forward.cuh"
#include "exp2.cuh"

static const int FLOAT_GROUP = 16; /* threads */
static const int FLOAT_THREADS = SPT_FLOAT_GROUPS * FLOAT_GROUP;

template <int WIDTH, int ROWS>
struct float_memory {
  static const int KEYS = WIDTH > 96 ? 32 : 64, EACH = KEYS / FLOAT_GROUP; /* keys of a thread */
  static const int QUERIES = SPT_FLOAT_GROUPS * ROWS;
  static const int PITCH = WIDTH + 4, WEIGHT_PITCH = KEYS + 4, RESULT_PITCH = WIDTH + 8;
  /* A thread has VECTORS times LANES neighbouring features, 16 LANES apart. */
  static const int LANES = WIDTH % 64 == 0 ? 4 : 2, VECTORS = WIDTH / (FLOAT_GROUP * LANES);
  float *q, *k, *v;
  float *weights; /* (QUERIES, KEYS); later (warps, KEYS) sums of columns */
  float *results; /* (QUERIES, RESULT_PITCH), where all of these were */
  float *warps;

  __device__ float_memory(float *memory, size_t floats) {
    q = results = memory;
    k = q + QUERIES * PITCH;
    v = k + KEYS * PITCH;
    weights = v + KEYS * PITCH;
    warps = memory + floats - 8;
  }
};

template <int WIDTH, int ROWS>
struct float_state {
  typedef float_memory<WIDTH, ROWS> shape;
  float sums[ROWS][shape::VECTORS][shape::LANES];
  float top[ROWS], total[ROWS]; /* total: of this thread's keys */
};

/* Keys that the group's first query sees, each next one a key further. */
struct float_limits {
  int row; /* the group's first in the block */
  int64_t first, last;
};

static __device__ __forceinline__ float exp_below(float s, float top) {
  return spt_exp2((s - top) * 1.44269504088896341f);
}
static __device__ __forceinline__ float or_zero(float top) { return top == -INFINITY ? 0.0f : top; }

static __device__ __forceinline__ float group_max(float x) {
#pragma unroll
  for (int offset = FLOAT_GROUP / 2; offset > 0; offset /= 2) {
    x = fmaxf(x, __shfl_xor_sync(SPT_ALL_LANES, x, offset));
  }
  return x;
}
static __device__ __forceinline__ float group_sum(float x) {
#pragma unroll
  for (int offset = FLOAT_GROUP / 2; offset > 0; offset /= 2) {
    x += __shfl_xor_sync(SPT_ALL_LANES, x, offset);
  }
  return x;
}

/* Scores of the block of keys from `key` on, -inf where hidden. */
template <int WIDTH, int ROWS>
static __device__ __forceinline__ void float_scores(
    float (&s)[ROWS][float_memory<WIDTH, ROWS>::EACH], const float *q, const float *k,
    const spt_attend &a, const spt_attend_block &b, const float_limits &l, int64_t key) {
  typedef float_memory<WIDTH, ROWS> shape;
  int thread = threadIdx.x % FLOAT_GROUP;
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
#pragma unroll
    for (int e = 0; e < shape::EACH; e++) {
      s[r][e] = 0.0f;
    }
  }
#pragma unroll 2
  for (int f = 0; f < WIDTH; f += 4) {
    float4 x[ROWS], y[shape::EACH];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      x[r] = *reinterpret_cast<const float4 *>(q + (l.row + r) * shape::PITCH + f);
    }
#pragma unroll
    for (int e = 0; e < shape::EACH; e++) {
      y[e] = *reinterpret_cast<const float4 *>(k + (thread + e * FLOAT_GROUP) * shape::PITCH + f);
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
#pragma unroll
      for (int e = 0; e < shape::EACH; e++) {
        float sum = fmaf(x[r].x, y[e].x, s[r][e]);
        sum = fmaf(x[r].y, y[e].y, sum);
        sum = fmaf(x[r].z, y[e].z, sum);
        s[r][e] = fmaf(x[r].w, y[e].w, sum);
      }
    }
  }
  int64_t end = spt_least(b.s.keys, l.last + ROWS); /* of the last row, and one more */
  bool pairs = a.view.mask.data != NULL || a.view.bias.data != NULL;
  if (!pairs && key >= l.first + ROWS - 1 && key + shape::KEYS <= end - ROWS + 1 &&
      l.row + ROWS <= b.rows) {
    return;
  }
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
#pragma unroll
    for (int e = 0; e < shape::EACH; e++) {
      int64_t j = key + thread + e * FLOAT_GROUP;
      if (l.row + r >= b.rows || j >= b.s.keys || j < l.first + r || j > l.last + r) {
        s[r][e] = -INFINITY;
      } else if (pairs) {
        s[r][e] = spt_pair_score(a.view, b.s.number, b.head, b.first + l.row + r, j, s[r][e]);
      }
    }
  }
}

/* Scores become weights; what was summed before is rescaled. */
template <int WIDTH, int ROWS>
static __device__ __forceinline__ void float_softmax(
    float (&s)[ROWS][float_memory<WIDTH, ROWS>::EACH], float_state<WIDTH, ROWS> &state) {
  typedef float_memory<WIDTH, ROWS> shape;
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    float top = state.top[r];
#pragma unroll
    for (int e = 0; e < shape::EACH; e++) {
      top = fmaxf(top, s[r][e]);
    }
    top = group_max(top);
    float rescale = exp_below(state.top[r], or_zero(top));
    state.top[r] = top;
    top = or_zero(top);
    float total = state.total[r] * rescale;
#pragma unroll
    for (int e = 0; e < shape::EACH; e++) {
      s[r][e] = exp_below(s[r][e], top);
      total += s[r][e];
    }
    state.total[r] = total;
#pragma unroll
    for (int v = 0; v < shape::VECTORS; v++) {
#pragma unroll
      for (int i = 0; i < shape::LANES; i++) {
        state.sums[r][v][i] *= rescale;
      }
    }
  }
}

/* Zeros where dropout hits. Four neighbouring threads have the same four keys: each asks for every fourth
 * row, and the others are told. */
template <int WIDTH, int ROWS>
static __device__ __forceinline__ void float_drop(float (&s)[ROWS][float_memory<WIDTH, ROWS>::EACH],
                                                  const spt_attend &a, const spt_attend_block &b,
                                                  const float_limits &l, int64_t key) {
  typedef float_memory<WIDTH, ROWS> shape;
  int lane = threadIdx.x % SPT_WARP, mine = lane % 4;
#pragma unroll
  for (int e = 0; e < shape::EACH; e++) {
    int64_t quad = (key + lane % FLOAT_GROUP + e * FLOAT_GROUP) / 4;
#pragma unroll
    for (int first = 0; first < ROWS; first += 4) {
      uint32_t asked =
          spt_kept_quad(a.view.dropout, b.s.number, b.head, b.first + l.row + first + mine, quad);
#pragma unroll
      for (int r = first; r < first + 4 && r < ROWS; r++) {
        uint32_t kept = __shfl_sync(SPT_ALL_LANES, asked, lane - mine + r - first);
        s[r][e] = (kept >> mine & 1) != 0 ? s[r][e] : 0.0f;
      }
    }
  }
}

/* Weights to where the group reads them. */
template <int WIDTH, int ROWS>
static __device__ __forceinline__ void float_weights(
    const float (&s)[ROWS][float_memory<WIDTH, ROWS>::EACH], float *weights,
    const float_limits &l) {
  typedef float_memory<WIDTH, ROWS> shape;
  int thread = threadIdx.x % FLOAT_GROUP;
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
#pragma unroll
    for (int e = 0; e < shape::EACH; e++) {
      weights[(l.row + r) * shape::WEIGHT_PITCH + thread + e * FLOAT_GROUP] = s[r][e];
    }
  }
  __syncwarp();
}

template <int WIDTH, int ROWS>
static __device__ __forceinline__ void float_values(float_state<WIDTH, ROWS> &state,
                                                    const float *weights, const float *v,
                                                    const float_limits &l) {
  typedef float_memory<WIDTH, ROWS> shape;
  int first = threadIdx.x % FLOAT_GROUP * shape::LANES;
#pragma unroll 1
  for (int key = 0; key < shape::KEYS; key += 4) {
    float p[ROWS][4];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      float4 x =
          *reinterpret_cast<const float4 *>(weights + (l.row + r) * shape::WEIGHT_PITCH + key);
      p[r][0] = x.x;
      p[r][1] = x.y;
      p[r][2] = x.z;
      p[r][3] = x.w;
    }
#pragma unroll
    for (int j = 0; j < 4; j++) {
#pragma unroll
      for (int n = 0; n < shape::VECTORS; n++) {
        const float *at = v + (key + j) * shape::PITCH + first + n * FLOAT_GROUP * shape::LANES;
        float x[shape::LANES];
        if (shape::LANES == 4) {
          float4 four = *reinterpret_cast<const float4 *>(at);
          x[0] = four.x;
          x[1] = four.y;
          x[shape::LANES - 2] = four.z;
          x[shape::LANES - 1] = four.w;
        } else {
          float2 two = *reinterpret_cast<const float2 *>(at);
          x[0] = two.x;
          x[1] = two.y;
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
#pragma unroll
          for (int i = 0; i < shape::LANES; i++) {
            state.sums[r][n][i] = fmaf(p[r][j], x[i], state.sums[r][n][i]);
          }
        }
      }
    }
  }
  __syncwarp(); /* before the weights are written again */
}

/* Keys [key, key + KEYS) of `x`, k or v. */
template <int WIDTH, int ROWS>
static __device__ __forceinline__ void stage_float_keys(float *to, const spt_heads &x, bool wide,
                                                        int64_t width, const spt_attend_block &b,
                                                        int64_t key, int64_t end) {
  typedef float_memory<WIDTH, ROWS> shape;
  const float *from = spt_token_row<float>(x, b.s.number, b.s.k_start + key, b.kv_head);
  spt_stage_rows(to, shape::PITCH, shape::KEYS, WIDTH, from, x,
                 (int)spt_least(shape::KEYS, end - key), (int)width, wide, (int)threadIdx.x,
                 FLOAT_THREADS);
  spt_cp_async_commit();
}

template <int WIDTH, int ROWS>
static __device__ __forceinline__ void float_columns(const float_state<WIDTH, ROWS> &state,
                                                     const float (&inverse)[ROWS],
                                                     const float_memory<WIDTH, ROWS> &m,
                                                     const spt_attend &a, const spt_attend_block &b,
                                                     const float_limits &l, int64_t begin,
                                                     int64_t end) {
  typedef float_memory<WIDTH, ROWS> shape;
  int thread = threadIdx.x % FLOAT_GROUP, warp = threadIdx.x / SPT_WARP;
  float *now = m.k, *next = m.v;
  __syncthreads(); /* k, v and the weights are free */
  stage_float_keys<WIDTH, ROWS>(now, a.k, a.wide_k, a.view.d, b, begin, end);
  for (int64_t key = begin; key < end; key += shape::KEYS) {
    if (key + shape::KEYS < end) {
      stage_float_keys<WIDTH, ROWS>(next, a.k, a.wide_k, a.view.d, b, key + shape::KEYS, end);
    } else {
      spt_cp_async_commit();
    }
    spt_cp_async_wait<1>();
    __syncthreads();
    float s[ROWS][shape::EACH];
    float_scores<WIDTH, ROWS>(s, m.q, now, a, b, l, key);
#pragma unroll
    for (int e = 0; e < shape::EACH; e++) {
      float sum = 0.0f;
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        sum += exp_below(s[r][e], or_zero(state.top[r])) * inverse[r];
      }
      sum += __shfl_xor_sync(SPT_ALL_LANES, sum, FLOAT_GROUP);
      if (threadIdx.x % SPT_WARP < FLOAT_GROUP) {
        m.weights[warp * shape::KEYS + thread + e * FLOAT_GROUP] = sum;
      }
    }
    __syncthreads();
    if (threadIdx.x < shape::KEYS && key + threadIdx.x < end) {
      float sum = 0.0f;
      for (int w = 0; w < FLOAT_THREADS / SPT_WARP; w++) {
        sum += m.weights[w * shape::KEYS + threadIdx.x];
      }
      spt_add_share(a, b, key + threadIdx.x, sum);
    }
    float *free = now;
    now = next;
    next = free;
  }
}

/* Results to shared memory, divided by the rows' sums; lse. */
template <int WIDTH, int ROWS>
static __device__ __forceinline__ void float_finish(const float_state<WIDTH, ROWS> &state,
                                                    const float (&sum)[ROWS],
                                                    const float (&inverse)[ROWS], float *results,
                                                    const spt_attend &a, const spt_attend_block &b,
                                                    const float_limits &l) {
  typedef float_memory<WIDTH, ROWS> shape;
  int thread = threadIdx.x % FLOAT_GROUP;
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    float factor = inverse[r] * a.view.dropout.kept_scale;
    float *to = results + (l.row + r) * shape::RESULT_PITCH + thread * shape::LANES;
#pragma unroll
    for (int n = 0; n < shape::VECTORS; n++) {
#pragma unroll
      for (int i = 0; i < shape::LANES; i++) {
        float value = factor == 0.0f ? 0.0f : state.sums[r][n][i] * factor;
        to[n * FLOAT_GROUP * shape::LANES + i] = value;
      }
    }
    if (thread == 0 && l.row + r < b.all_rows) {
      float lse = sum[r] == 0.0f ? -INFINITY : or_zero(state.top[r]) + logf(sum[r]);
      spt_store_lse(a, b, l.row + r, lse);
    }
  }
}

template <int WIDTH, int ROWS>
__global__ void __launch_bounds__(FLOAT_THREADS) attend_floats_kernel(spt_attend a, int floats) {
  typedef float_memory<WIDTH, ROWS> shape;
  SPT_SHARED(float, shared);
  spt_attend_block b;
  if (!spt_find_block(a, shape::QUERIES, &b)) {
    return;
  }
  int64_t begin, end;
  spt_keys_seen(a.view, b.s, b.first, b.first + b.rows - 1, &begin, &end);
  if (b.rows == 0 || begin >= end) {
    spt_store_nothing(a, b);
    return;
  }
  begin = begin / FLOAT_GROUP * FLOAT_GROUP; /* dropout goes by four keys */
  float_memory<WIDTH, ROWS> m(shared, (size_t)floats);
  float_limits l = {(int)threadIdx.x / FLOAT_GROUP * ROWS, 0, 0};
  l.first = spt_first_key(a.view, b.s, b.first + l.row);
  l.last = spt_last_key(a.view, b.s, b.first + l.row);
  const float *q = spt_token_row<float>(a.q, b.s.number, b.s.q_start + b.first, b.head);
  spt_stage_rows(m.q, shape::PITCH, shape::QUERIES, WIDTH, q, a.q, b.rows, (int)a.view.d, a.wide_q,
                 (int)threadIdx.x, FLOAT_THREADS);
  stage_float_keys<WIDTH, ROWS>(m.k, a.k, a.wide_k, a.view.d, b, begin, end);

  float_state<WIDTH, ROWS> state;
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    state.top[r] = -INFINITY;
    state.total[r] = 0.0f;
#pragma unroll
    for (int n = 0; n < shape::VECTORS * shape::LANES; n++) {
      state.sums[r][n / shape::LANES][n % shape::LANES] = 0.0f;
    }
  }
  for (int64_t key = begin; key < end; key += shape::KEYS) {
    spt_cp_async_wait<0>();
    __syncthreads(); /* k is here, and nobody reads v */
    stage_float_keys<WIDTH, ROWS>(m.v, a.v, a.wide_v, a.view.dv, b, key, end);
    if (key == begin) { /* scaled before the products */
      for (int i = threadIdx.x; i < shape::QUERIES * WIDTH; i += FLOAT_THREADS) {
        m.q[i / WIDTH * shape::PITCH + i % WIDTH] *= a.view.scale;
      }
      __syncthreads();
    }
    float s[ROWS][shape::EACH];
    float_scores<WIDTH, ROWS>(s, m.q, m.k, a, b, l, key);
    float_softmax<WIDTH, ROWS>(s, state);
    if (a.view.dropout.on) {
      float_drop<WIDTH, ROWS>(s, a, b, l, key);
    }
    float_weights<WIDTH, ROWS>(s, m.weights, l);
    spt_cp_async_wait<0>();
    __syncthreads(); /* v is here, and nobody reads k */
    if (key + shape::KEYS < end) {
      stage_float_keys<WIDTH, ROWS>(m.k, a.k, a.wide_k, a.view.d, b, key + shape::KEYS, end);
    }
    float_values<WIDTH, ROWS>(state, m.weights, m.v, l);
  }

  float sum[ROWS], inverse[ROWS];
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    sum[r] = group_sum(state.total[r]);
    inverse[r] = sum[r] == 0.0f ? 0.0f : 1.0f / sum[r];
  }
  if (b.sums) {
    float_columns<WIDTH, ROWS>(state, inverse, m, a, b, l, begin, end);
  }
  __syncthreads(); /* nobody reads q, k, v */
  float_finish<WIDTH, ROWS>(state, sum, inverse, m.results, a, b, l);
  __syncthreads();
  float magnitude = spt_store_rows(a, b, m.results, shape::RESULT_PITCH, 1, 0);
  if (b.sums) {
    spt_store_head_sum(a, b, magnitude, m.warps);
  }
}

template <int WIDTH, int ROWS>
static spt_status launch_floats(spt_cuda_queue *queue, const spt_attend *a,
                                const spt_attention_plan *p, int64_t slots, spt_error *err) {
  SPT_LAUNCH("attention", (attend_floats_kernel<WIDTH, ROWS>), (unsigned)(slots * a->view.heads),
             FLOAT_THREADS, p->shared, queue->stream, *a, (int)(p->shared / sizeof(float)));
  return SPT_OK;
}

template <int WIDTH>
static spt_status floats_by_rows(spt_cuda_queue *queue, const spt_attend *a,
                                 const spt_attention_plan *p, int64_t slots, spt_error *err) {
  const int most = WIDTH > 128 ? 4 : 8;
  switch (p->tile / SPT_FLOAT_GROUPS) {
    case 8:
      return launch_floats<WIDTH, most>(queue, a, p, slots, err);
    case 4:
      return launch_floats<WIDTH, 4>(queue, a, p, slots, err);
    default:
      return launch_floats<WIDTH, 2>(queue, a, p, slots, err);
  }
}

spt_status spt_attend_floats(spt_cuda_queue *queue, const spt_attend *a,
                             const spt_attention_plan *p, int64_t slots, spt_error *err) {
  switch (p->width) {
    case 32:
      return floats_by_rows<32>(queue, a, p, slots, err);
    case 64:
      return floats_by_rows<64>(queue, a, p, slots, err);
    case 96:
      return floats_by_rows<96>(queue, a, p, slots, err);
    case 128:
      return floats_by_rows<128>(queue, a, p, slots, err);
    default:
      return floats_by_rows<256>(queue, a, p, slots, err);
  }
}
