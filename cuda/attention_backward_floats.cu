/* attention_backward, float32 up to width 128: tiles in shared memory, multiplied by FMAs, so that results
 * are as exact as float32 is. A block of 128 threads owns 64 rows (32 of width 128) and goes through
 * the others 32 at a time; widths are filled up to 32, 64 or 128 with zeros.
 * Bound by FMAs: 8 shared loads of 16 bytes per 64 of them in the two score products, 3 per 32 in the
 * sums, none of which meets a bank twice. The two sides together do 7 products where 5 would do, if
 * dq were added up across blocks. */
#include "attention_backward.cuh"

template <int WIDTH>
struct float_tiles {
  static const int OWN = WIDTH > 64 ? 32 : 64, OTHER = 32, THREADS = 128;
  static const int PITCH = WIDTH + 4;             /* 16 bytes past a row: 8 rows meet 32 banks */
  static const int PAIR_PITCH = OWN + 4;          /* pairs are kept by other, then own */
  static const int OWN_STEP = 16, OTHER_STEP = 8; /* threads along each in the score products */
  static const int OWN_EACH = OWN / OWN_STEP, OTHER_EACH = OTHER / OTHER_STEP;
  static const int COLUMNS = WIDTH / 4; /* threads along features in the sums */
  static const int ROWS_EACH = OWN * COLUMNS / THREADS;
  static const int FLOATS =
      2 * (OWN + OTHER) * PITCH + 2 * OTHER * PAIR_PITCH + 2 * SPT_BACKWARD_OWN;
  static const int BYTES = FLOATS * (int)sizeof(float) + OWN * OTHER / 4;
};

/* A block's shared memory. */
template <int WIDTH>
struct float_tiles_memory {
  typedef float_tiles<WIDTH> shape;
  float *own[2], *other[2]; /* first and second */
  float *p, *ds;
  float *lse, *delta; /* of the side that holds the queries */
  uint8_t *kept;

  __device__ explicit float_tiles_memory(float *memory) {
    own[0] = memory;
    own[1] = own[0] + shape::OWN * shape::PITCH;
    other[0] = own[1] + shape::OWN * shape::PITCH;
    other[1] = other[0] + shape::OTHER * shape::PITCH;
    p = other[1] + shape::OTHER * shape::PITCH;
    ds = p + shape::OTHER * shape::PAIR_PITCH;
    lse = ds + shape::OTHER * shape::PAIR_PITCH;
    delta = lse + SPT_BACKWARD_OWN;
    kept = reinterpret_cast<uint8_t *>(delta + SPT_BACKWARD_OWN);
  }
};

/* (rows, width) to (ROWS, WIDTH) of pitch WIDTH + 4, times factor, zeros around it. */
template <int ROWS, int WIDTH>
static __device__ void load_float_tile(float *to, const spt_heads &x, int64_t sequence,
                                       int64_t token, int64_t head, int64_t rows, int64_t width,
                                       bool wide, float factor) {
  const float *from = spt_token_row<float>(x, sequence, token, head);
  if (wide) { /* 16 bytes at a time */
    for (int i = threadIdx.x; i < ROWS * (WIDTH / 4); i += blockDim.x) {
      int row = i / (WIDTH / 4), c = i % (WIDTH / 4) * 4;
      float4 value = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      if (row < rows && c < width) {
        value = *reinterpret_cast<const float4 *>(from + row * x.token + c);
        value.x *= factor, value.y *= factor, value.z *= factor, value.w *= factor;
      }
      *reinterpret_cast<float4 *>(to + row * (WIDTH + 4) + c) = value;
    }
    return;
  }
  for (int i = threadIdx.x; i < ROWS * WIDTH; i += blockDim.x) {
    int row = i / WIDTH, c = i % WIDTH;
    bool inside = row < rows && c < width;
    to[row * (WIDTH + 4) + c] = inside ? from[row * x.token + c * x.feature] * factor : 0.0f;
  }
}

/* sums[a][b] = own row (first + 16 a) . other row (first + 8 b), feature by feature as attention_floats.cu
 * does: rounded as they were then, scores give the probabilities that out was made of. */
template <int WIDTH>
static __device__ __forceinline__ void multiply_rows(
    float (&sums)[float_tiles<WIDTH>::OWN_EACH][float_tiles<WIDTH>::OTHER_EACH], const float *own,
    const float *other) {
  typedef float_tiles<WIDTH> shape;
  const int owns = shape::OWN_EACH, others = shape::OTHER_EACH;
#pragma unroll
  for (int i = 0; i < owns * others; i++) {
    sums[i / others][i % others] = 0.0f;
  }
#pragma unroll 2
  for (int c = 0; c < WIDTH; c += 4) {
    float4 x[owns], y[others];
#pragma unroll
    for (int a = 0; a < owns; a++) {
      x[a] = *reinterpret_cast<const float4 *>(own + a * shape::OWN_STEP * shape::PITCH + c);
    }
#pragma unroll
    for (int b = 0; b < others; b++) {
      y[b] = *reinterpret_cast<const float4 *>(other + b * shape::OTHER_STEP * shape::PITCH + c);
    }
#pragma unroll
    for (int i = 0; i < owns * others; i++) {
      const float4 &left = x[i / others], &right = y[i % others];
      float sum = fmaf(left.x, right.x, sums[i / others][i % others]);
      sum = fmaf(left.y, right.y, sum);
      sum = fmaf(left.z, right.z, sum);
      sums[i / others][i % others] = fmaf(left.w, right.w, sum);
    }
  }
}

/* P and dS of all pairs of the tile, into shared memory. */
template <int WIDTH, bool KEYS>
static __device__ void float_pairs(const spt_backward &p, const spt_span &s, int64_t head,
                                   int64_t own, int64_t other, const float_tiles_memory<WIDTH> &m) {
  typedef float_tiles<WIDTH> shape;
  int own_first = threadIdx.x / shape::OTHER_STEP, other_first = threadIdx.x % shape::OTHER_STEP;
  float score[shape::OWN_EACH][shape::OTHER_EACH], dp[shape::OWN_EACH][shape::OTHER_EACH];
  multiply_rows<WIDTH>(score, m.own[0] + own_first * shape::PITCH,
                       m.other[0] + other_first * shape::PITCH);
  multiply_rows<WIDTH>(dp, m.own[1] + own_first * shape::PITCH,
                       m.other[1] + other_first * shape::PITCH);
#pragma unroll
  for (int a = 0; a < shape::OWN_EACH; a++) {
#pragma unroll
    for (int b = 0; b < shape::OTHER_EACH; b++) {
      int x = own_first + a * shape::OWN_STEP, y = other_first + b * shape::OTHER_STEP;
      int row = KEYS ? y : x, column = KEYS ? x : y;
      int64_t i = (KEYS ? other : own) + row, j = (KEYS ? own : other) + column;
      float kept = spt_kept_of_tile<KEYS ? shape::OTHER : shape::OWN>(m.kept, p.view, row, column);
      spt_pair_gradient pair = spt_gradient_of_pair(p.view, s, head, i, j, score[a][b], dp[a][b],
                                                    m.lse[row], m.delta[row], kept);
      m.p[y * shape::PAIR_PITCH + x] = pair.p;
      m.ds[y * shape::PAIR_PITCH + x] = pair.ds;
    }
  }
}

/* sums[r][..] += weight of (other, own r) * the other row's four features, over all others. */
template <int WIDTH>
static __device__ __forceinline__ void add_weighted_rows(
    float (&sums)[float_tiles<WIDTH>::ROWS_EACH][4], const float *weights, const float *other) {
  typedef float_tiles<WIDTH> shape;
#pragma unroll 2
  for (int o = 0; o < shape::OTHER; o++) {
    float4 x = *reinterpret_cast<const float4 *>(other + o * shape::PITCH);
#pragma unroll
    for (int r = 0; r < shape::ROWS_EACH; r += 4) {
      float4 w = *reinterpret_cast<const float4 *>(weights + o * shape::PAIR_PITCH + r);
      const float by_row[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
      for (int i = 0; i < 4; i++) {
        sums[r + i][0] = fmaf(by_row[i], x.x, sums[r + i][0]);
        sums[r + i][1] = fmaf(by_row[i], x.y, sums[r + i][1]);
        sums[r + i][2] = fmaf(by_row[i], x.z, sums[r + i][2]);
        sums[r + i][3] = fmaf(by_row[i], x.w, sums[r + i][3]);
      }
    }
  }
}

template <int ROWS>
static __device__ __forceinline__ void store_float_rows(const spt_heads &x, int64_t sequence,
                                                        int64_t token, int64_t head, int64_t rows,
                                                        int column, int64_t width,
                                                        const float (&sums)[ROWS][4],
                                                        float factor) {
  if (x.data == NULL) {
    return;
  }
  float *to = spt_token_row<float>(x, sequence, token, head);
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
#pragma unroll
    for (int c = 0; c < 4; c++) {
      if (r < rows && column + c < width) {
        to[r * x.token + (column + c) * x.feature] = sums[r][c] * factor;
      }
    }
  }
}

/* Others [o, o + OTHER) of one head, their stats and dropout. */
template <int WIDTH, bool KEYS>
static __device__ void load_float_others(const spt_backward &p, const spt_span &s, int64_t head,
                                         int64_t own, int64_t other, int64_t end,
                                         const float_tiles_memory<WIDTH> &m) {
  typedef float_tiles<WIDTH> shape;
  const int queries = KEYS ? shape::OTHER : shape::OWN, keys = KEYS ? shape::OWN : shape::OTHER;
  int64_t other_head = KEYS ? head : head / (p.view.heads / p.view.kv_heads);
  int64_t token = (KEYS ? s.q_start : s.k_start) + other, query = KEYS ? other : own;
  load_float_tile<shape::OTHER, WIDTH>(m.other[0], KEYS ? p.q : p.k, s.number, token, other_head,
                                       end - other, p.view.d, p.wide, KEYS ? p.view.scale : 1.0f);
  load_float_tile<shape::OTHER, WIDTH>(m.other[1], KEYS ? p.grad : p.v, s.number, token, other_head,
                                       end - other, p.view.dv, p.wide, 1.0f);
  spt_load_stats(m.lse, m.delta, p, spt_stats_row(p.view, s, head) + query, queries,
                 s.queries - query);
  spt_draw_tile<queries, keys>(m.kept, p.view, s, head, query, KEYS ? own : other);
}

/* Grid: spt_side_blocks of OWN rows. */
template <int WIDTH, bool KEYS>
__global__ void __launch_bounds__(float_tiles<WIDTH>::THREADS, 2)
    float_tiles_kernel(spt_backward p) {
  typedef float_tiles<WIDTH> shape;
  SPT_SHARED(float, memory);
  float_tiles_memory<WIDTH> m(memory);
  const spt_attention_view &v = p.view;
  int64_t own_head, own, group = v.heads / v.kv_heads;
  spt_span s;
  if (!spt_find_side<KEYS>(v, shape::OWN, &s, &own_head, &own)) {
    return;
  }
  int64_t own_token = (KEYS ? s.k_start : s.q_start) + own;
  int64_t own_rows = (KEYS ? s.keys : s.queries) - own;
  int column = threadIdx.x % shape::COLUMNS * 4;
  int own_row = threadIdx.x / shape::COLUMNS * shape::ROWS_EACH;
  float first[shape::ROWS_EACH][4] = {}, second[shape::ROWS_EACH][4] = {};
  if (own_rows > 0) {
    load_float_tile<shape::OWN, WIDTH>(m.own[0], KEYS ? p.k : p.q, s.number, own_token, own_head,
                                       own_rows, v.d, p.wide, KEYS ? 1.0f : v.scale);
    load_float_tile<shape::OWN, WIDTH>(m.own[1], KEYS ? p.v : p.grad, s.number, own_token, own_head,
                                       own_rows, v.dv, p.wide, 1.0f);
    for (int64_t g = 0; g < (KEYS ? group : 1); g++) {
      int64_t head = KEYS ? own_head * group + g : own_head, begin, end;
      spt_others_seen<KEYS>(v, s, own, own + spt_least(own_rows, shape::OWN) - 1, &begin, &end);
      for (int64_t o = begin / shape::OTHER * shape::OTHER; o < end; o += shape::OTHER) {
        __syncthreads(); /* the tiles before have been read */
        load_float_others<WIDTH, KEYS>(p, s, head, own, o, end, m);
        __syncthreads();
        float_pairs<WIDTH, KEYS>(p, s, head, own, o, m);
        __syncthreads();
        add_weighted_rows<WIDTH>(first, m.ds + own_row, m.other[0] + column);
        if (KEYS) {
          add_weighted_rows<WIDTH>(second, m.p + own_row, m.other[1] + column);
        }
      }
    }
  }
  int64_t rows = (KEYS ? s.key_rows : s.query_rows) - own - own_row;
  store_float_rows(KEYS ? p.dk : p.dq, s.number, own_token + own_row, own_head, rows, column, v.d,
                   first, KEYS ? 1.0f : v.scale); /* q is scaled already */
  if (KEYS) {
    store_float_rows(p.dv, s.number, own_token + own_row, own_head, rows, column, v.dv, second,
                     1.0f);
  }
}

bool spt_backward_floats_fits(const spt_cuda_queue *queue, const spt_backward *p) {
  int64_t width = spt_most(p->view.d, p->view.dv);
  int bytes = width <= 32   ? float_tiles<32>::BYTES
              : width <= 64 ? float_tiles<64>::BYTES
                            : float_tiles<128>::BYTES;
  return width <= 128 && bytes <= queue->device->shared_per_block;
}

template <int WIDTH>
static spt_status launch_float_tiles(spt_cuda_queue *queue, const spt_backward *p, bool keys,
                                     spt_error *err) {
  typedef float_tiles<WIDTH> shape;
  const char *op = "attention_backward";
  unsigned grid = (unsigned)spt_side_blocks(p->view, keys, shape::OWN);
  if (grid == 0) {
    return SPT_OK;
  }
  if (keys) {
    SPT_LAUNCH(op, (float_tiles_kernel<WIDTH, true>), grid, shape::THREADS, shape::BYTES,
               queue->stream, *p);
  } else {
    SPT_LAUNCH(op, (float_tiles_kernel<WIDTH, false>), grid, shape::THREADS, shape::BYTES,
               queue->stream, *p);
  }
  return SPT_OK;
}

spt_status spt_backward_floats(spt_cuda_queue *queue, const spt_backward *p, bool keys,
                               spt_error *err) {
  int64_t width = spt_most(p->view.d, p->view.dv);
  if (width <= 32) {
    return launch_float_tiles<32>(queue, p, keys, err);
  }
  return width <= 64 ? launch_float_tiles<64>(queue, p, keys, err)
                     : launch_float_tiles<128>(queue, p, keys, err);
}
