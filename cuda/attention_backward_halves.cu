/* attention_backward, float16 and bfloat16 up to width 128, on tensor cores. A block of 4 warps owns 64
 * rows and goes through the others 32 at a time (16 beyond width 64), the next tile on its way while one
 * is multiplied; widths are filled up to 32, 64, 96 or 128 with zeros. A warp has 16 own rows: scores
 * come out of the tensor cores own by other, and what becomes of them is the first operand of the sums
 * as it lies in the registers, so that neither P nor dS passes through shared memory.
 * Bound by tensor cores: 4 mma.sync 16x8x16 to 2 or 3 ldmatrix of 16x16, and about 15 instructions for
 * each lane's share of 128 pairs, which 16 of them take at width 64. 7 products of queries x keys x
 * width in all. */
#include "attention_backward_tiles.cuh"

/* A block's work: its own rows, and the others [begin, begin + others) of one head after the other. */
struct half_tiles_work {
  spt_span s;
  int64_t own_head, own, begin;
  int own_rows, others, tiles_per_head, tiles;
};

/* What comes next: tile `tile`, whose others start at begin + offset, of the own head's `g`th head. */
struct half_tiles_cursor {
  int tile, offset, g;

  __device__ __forceinline__ void advance(int step, int others) {
    tile++;
    offset += step;
    if (offset >= others) {
      offset = 0;
      g++;
    }
  }
};

template <class SHAPE>
static __device__ __forceinline__ void plan_work(const spt_attention_view &v, half_tiles_work *w) {
  int64_t own_rows = (SHAPE::KEYS ? w->s.keys : w->s.queries) - w->own, end = 0;
  w->own_rows = (int)spt_most(0, spt_least(own_rows, SHAPE::OWN));
  w->begin = 0;
  if (w->own_rows > 0) {
    spt_others_seen<SHAPE::KEYS>(v, w->s, w->own, w->own + w->own_rows - 1, &w->begin, &end);
    w->begin = w->begin / SHAPE::OTHER * SHAPE::OTHER;
  }
  w->others = (int)spt_most(0, end - w->begin);
  w->tiles_per_head = (w->others + SHAPE::OTHER - 1) / SHAPE::OTHER;
  w->tiles = w->tiles_per_head * (SHAPE::KEYS ? (int)(v.heads / v.kv_heads) : 1);
}

/* low and high of the lane's own rows; high < low where there is no row or nothing is seen. */
template <class SHAPE>
static __device__ __forceinline__ void find_seen(const spt_attention_view &v,
                                                 const half_tiles_work &w, int warp_row,
                                                 half_tiles_registers<SHAPE> *r) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    int row = warp_row + threadIdx.x % 32 / 4 + 8 * half;
    int64_t begin = 1, end = 0;
    if (row < w.own_rows) {
      spt_others_seen<SHAPE::KEYS>(v, w.s, w.own + row, w.own + row, &begin, &end);
    }
    r->low[half] = begin < end ? (int)(begin - w.begin) : 1;
    r->high[half] = begin < end ? (int)(end - 1 - w.begin) : 0;
  }
}

/* The query head of a tile. */
template <class SHAPE>
static __device__ __forceinline__ int64_t head_of(const spt_attention_view &v,
                                                  const half_tiles_work &w, int g) {
  return SHAPE::KEYS ? w.own_head * (v.heads / v.kv_heads) + g : w.own_head;
}

static __host__ __device__ __forceinline__ bool has_added(const spt_attention_view &v) {
  return v.mask.data != NULL || v.bias.data != NULL;
}

/* A tile of the others on its way into its stage, its dropout drawn. */
template <typename T, class SHAPE>
static __device__ __forceinline__ void start_tile(const spt_backward &p, const half_tiles_work &w,
                                                  const half_tiles_cursor &at,
                                                  unsigned char *memory) {
  const bool keys = SHAPE::KEYS;
  const spt_attention_view &v = p.view;
  half_tiles_stage<T, SHAPE> to(memory, at.tile % 2);
  int64_t head = head_of<SHAPE>(v, w, at.g), other = w.begin + at.offset;
  int64_t other_head = keys ? head : head / (v.heads / v.kv_heads), query = keys ? other : w.own;
  int64_t token = (keys ? w.s.q_start : w.s.k_start) + other;
  load_half_tile<T, SHAPE, SHAPE::OTHER>(to.first, keys ? p.q : p.k, w.s.number, token, other_head,
                                         w.others - at.offset, v.d, p.wide);
  load_half_tile<T, SHAPE, SHAPE::OTHER>(to.second, keys ? p.grad : p.v, w.s.number, token,
                                         other_head, w.others - at.offset, v.dv, p.wide);
  if (keys || at.tile < 2) {
    int64_t stats = spt_stats_row(v, w.s, head) + query;
    int there = keys ? w.others - at.offset : w.own_rows;
    for (int i = threadIdx.x; i < 2 * SHAPE::QUERIES; i += SHAPE::THREADS) {
      int row = i % SHAPE::QUERIES;
      const float *from = (i < SHAPE::QUERIES ? p.lse : p.delta) + stats;
      spt_cp_async_4(to.lse + i, row < there ? from + row : from, row < there ? 4 : 0);
    }
  }
  spt_cp_async_commit();
  spt_draw_tile<SHAPE::QUERIES, SHAPE::OWN * SHAPE::OTHER / SHAPE::QUERIES>(
      to.kept, v, w.s, head, query, keys ? w.own : other);
  if (has_added(v)) {
    gather_added<SHAPE>(to.added, v, w.s, head, w.own, other);
  }
}

/* product and dp become P o K and dS times `unit`. */
template <typename T, class SHAPE>
static __device__ __forceinline__ void weigh_pairs(const spt_attention_view &v,
                                                   const half_tiles_cursor &at, int warp_row,
                                                   float unit, const half_tiles_stage<T, SHAPE> &m,
                                                   const half_tiles_registers<SHAPE> &r,
                                                   float (&product)[SHAPE::OTHER_COLUMNS][4],
                                                   float (&dp)[SHAPE::OTHER_COLUMNS][4]) {
  const bool keys = SHAPE::KEYS;
  bool added = has_added(v);
  int lane = threadIdx.x % 32;
#pragma unroll
  for (int n = 0; n < SHAPE::OTHER_COLUMNS; n++) {
#pragma unroll
    for (int e = 0; e < 4; e++) {
      int x = warp_row + lane / 4 + e / 2 * 8, y = n * 8 + lane % 4 * 2 + e % 2;
      int query = keys ? y : x, key = keys ? x : y, other = at.offset + y;
      float score = product[n][e] * v.scale;
      bool seen = other >= r.low[e / 2] && other <= r.high[e / 2];
      if (added) {
        float more = m.added[y * SHAPE::ADDED_PITCH + x];
        score += more;
        seen = seen && more != -INFINITY; /* whatever the score is, NaN too */
      }
      float kept = spt_kept_of_tile<SHAPE::QUERIES>(m.kept, v, query, key);
      spt_pair_gradient pair =
          spt_gradient_of_seen(score, dp[n][e], m.lse[query], m.delta[query], kept);
      product[n][e] = seen ? pair.p : 0.0f;
      dp[n][e] = seen ? pair.ds * unit : 0.0f;
    }
  }
}

/* A warp's part of one tile. */
template <typename T, class SHAPE>
static __device__ __forceinline__ void run_tile(const spt_attention_view &v,
                                                const half_tiles_cursor &at, float unit,
                                                unsigned char *memory,
                                                half_tiles_registers<SHAPE> &r) {
  bool seen = (at.offset <= r.high[0] && at.offset + SHAPE::OTHER > r.low[0]) ||
              (at.offset <= r.high[1] && at.offset + SHAPE::OTHER > r.low[1]);
  if (!__any_sync(0xffffffffu, seen)) {
    return;
  }
  half_tiles_stage<T, SHAPE> m(memory, at.tile % 2);
  float product[SHAPE::OTHER_COLUMNS][4], dp[SHAPE::OTHER_COLUMNS][4];
  int warp_row = threadIdx.x / 32 * SHAPE::WARP_ROWS;
  const T *own1 = reinterpret_cast<const T *>(memory) + warp_row * SHAPE::PITCH;
  const T *own2 = own1 + SHAPE::OWN * SHAPE::PITCH;
  multiply_sides<T, SHAPE>(product, r.own[0], own1, m.first);
  multiply_sides<T, SHAPE>(dp, r.own[1], own2, m.second);
  weigh_pairs<T, SHAPE>(v, at, warp_row, unit, m, r, product, dp);
  if constexpr (SHAPE::KEYS) {
    add_products<T, SHAPE>(r.second, product, m.second);
  }
  add_products<T, SHAPE>(r.first, dp, m.first);
}

/* Grid: spt_side_blocks of OWN rows. */
template <typename T, class SHAPE>
__global__ void __launch_bounds__(SHAPE::THREADS, SHAPE::WIDTH > 64 ? 2 : 3)
    half_tiles_kernel(spt_backward p, bool wide_first, bool wide_second) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  if (std::is_same<T, spt_bfloat>::value) {
    return; /* never launched, see spt_backward_halves_fits: not to be compiled for minutes */
  }
#endif
  const bool keys = SHAPE::KEYS;
  SPT_SHARED(unsigned char, memory);
  const spt_attention_view &v = p.view;
  half_tiles_work w;
  if (!spt_find_side<keys>(v, SHAPE::OWN, &w.s, &w.own_head, &w.own)) {
    return;
  }
  plan_work<SHAPE>(v, &w);
  T *own1 = reinterpret_cast<T *>(memory), *own2 = own1 + SHAPE::OWN * SHAPE::PITCH;
  int64_t own_token = (keys ? w.s.k_start : w.s.q_start) + w.own;
  int warp_row = threadIdx.x / 32 * SHAPE::WARP_ROWS;
  float unit = 1.0f;
  if (std::is_same<T, spt_half>::value) {
    unit = spt_gradient_unit(p, w.s, keys ? w.own_head : w.own_head / (v.heads / v.kv_heads));
  }
  half_tiles_registers<SHAPE> r;
  find_seen<SHAPE>(v, w, warp_row, &r);
  half_tiles_cursor at = {0, 0, 0}, next = {0, 0, 0};
  if (w.tiles > 0) { /* the own rows come in one group with the first tile */
    load_half_tile<T, SHAPE, SHAPE::OWN>(own1, keys ? p.k : p.q, w.s.number, own_token, w.own_head,
                                         w.own_rows, v.d, p.wide);
    load_half_tile<T, SHAPE, SHAPE::OWN>(own2, keys ? p.v : p.grad, w.s.number, own_token,
                                         w.own_head, w.own_rows, v.dv, p.wide);
    start_tile<T, SHAPE>(p, w, next, memory);
  }
#pragma unroll 1
  while (at.tile < w.tiles) {
    spt_cp_async_wait<0>();
    __syncthreads(); /* this tile is there, and the one before has been read */
    next.advance(SHAPE::OTHER, w.others);
    if (next.tile < w.tiles) {
      start_tile<T, SHAPE>(p, w, next, memory);
    }
    if (SHAPE::KEEP_OWN && at.tile == 0) {
#pragma unroll
      for (int step = 0; step < SHAPE::KEPT_STEPS; step++) {
        int from = warp_row * SHAPE::PITCH + step * 16;
        spt_ldmatrix_x4(r.own[0][step], spt_lane_rows(own1 + from, SHAPE::PITCH));
        spt_ldmatrix_x4(r.own[1][step], spt_lane_rows(own2 + from, SHAPE::PITCH));
      }
    }
    run_tile<T, SHAPE>(v, at, unit, memory, r);
    at = next;
  }
  /* A warp's own rows in shared memory are read by nobody else: now results pass through them. */
  int64_t rows = (keys ? w.s.key_rows : w.s.query_rows) - w.own - warp_row;
  int rows_here = (int)spt_least(rows, SHAPE::WARP_ROWS);
  store_half_sums<T, SHAPE>(own1 + warp_row * SHAPE::PITCH, keys ? p.dk : p.dq, w.s.number,
                            own_token + warp_row, w.own_head, rows_here, v.d, wide_first,
                            v.scale / unit, r.first);
  if constexpr (SHAPE::KEYS) {
    store_half_sums<T, SHAPE>(own2 + warp_row * SHAPE::PITCH, p.dv, w.s.number,
                              own_token + warp_row, w.own_head, rows_here, v.dv, wide_second, 1.0f,
                              r.second);
  }
}

/* ---- launchers ----------------------------------------------------------------------------------- */

bool spt_backward_halves_fits(const spt_cuda_queue *queue, const spt_backward *p, spt_dtype dtype) {
  int64_t width = spt_most(p->view.d, p->view.dv);
  int bytes = width <= 64   ? half_tiles<64, false>::BYTES_WITH_ADDED
              : width <= 96 ? half_tiles<96, false>::BYTES_WITH_ADDED
                            : half_tiles<128, false>::BYTES_WITH_ADDED;
  return width <= 128 && bytes <= queue->device->shared_per_block &&
         (dtype == SPT_F16 || queue->device->capability >= 80);
}

template <typename T, int WIDTH>
static spt_status launch_half_tiles(spt_cuda_queue *queue, const spt_backward *p, bool keys,
                                    spt_error *err) {
  const char *op = "attention_backward";
  using keys_shape = half_tiles<WIDTH, true>;
  using queries_shape = half_tiles<WIDTH, false>;
  bool added = has_added(p->view);
  unsigned grid = (unsigned)spt_side_blocks(p->view, keys, SPT_BACKWARD_OWN);
  if (grid == 0) {
    return SPT_OK;
  }
  if (keys) {
    SPT_LAUNCH(op, (half_tiles_kernel<T, keys_shape>), grid, keys_shape::THREADS,
               added ? keys_shape::BYTES_WITH_ADDED : keys_shape::BYTES, queue->stream, *p,
               spt_rows_are_wide(p->dk, p->view.d), spt_rows_are_wide(p->dv, p->view.dv));
  } else {
    SPT_LAUNCH(op, (half_tiles_kernel<T, queries_shape>), grid, queries_shape::THREADS,
               added ? queries_shape::BYTES_WITH_ADDED : queries_shape::BYTES, queue->stream, *p,
               spt_rows_are_wide(p->dq, p->view.d), false);
  }
  return SPT_OK;
}

template <typename T>
static spt_status launch_width(spt_cuda_queue *queue, const spt_backward *p, bool keys,
                               spt_error *err) {
  int64_t width = spt_most(p->view.d, p->view.dv);
  if (width <= 32) {
    return launch_half_tiles<T, 32>(queue, p, keys, err);
  }
  if (width <= 64) {
    return launch_half_tiles<T, 64>(queue, p, keys, err);
  }
  return width <= 96 ? launch_half_tiles<T, 96>(queue, p, keys, err)
                     : launch_half_tiles<T, 128>(queue, p, keys, err);
}

spt_status spt_backward_halves(spt_cuda_queue *queue, const spt_backward *p, bool keys,
                               spt_dtype dtype, spt_error *err) {
  return dtype == SPT_F16 ? launch_width<spt_half>(queue, p, keys, err)
                          : launch_width<spt_bfloat>(queue, p, keys, err);
}
