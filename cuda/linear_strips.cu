/* linear_strips: y = act(x · wᵀ + bias) + residual for w in tiles of 16 output rows by 16 columns.
 *
 * x (n, in), y (n, out). A block holds some rows of x (tokens) in shared memory, whole or panel by panel,
 * and its warps go through strips: a warp has one strip by all of the block's tokens in registers. A tile
 * is the A operand of mma.m16n8k16, one load of 16 bytes a lane; tokens are mma's wide side. Strips are
 * taken in order of length, so that those side by side have much the same to do.
 *
 * Bounds, 16 bits: an mma of 16x8x16 needs 256 bytes of x from shared memory, 2 cycles of an SM like the
 * mma itself on sm_80; from L2 come 512 bytes for each tile and block, 2 * tokens FLOP a byte, and x once
 * for each block (panels: once for each round of strips). At 80 % of tiles pruned, 128 tokens and 16
 * strips that is 30 to 40 FLOP a byte of L2. Float32: FMAs, at 1 shared load of x and w for 8. */
#include "async_copy.cuh"
#include "linear_output.cuh"
#include "linear_strips.h"
#include "mma.cuh"
#include "storage.cuh"

#define STAGES SPT_PANEL_STAGES
#define NO_BLOCK INT32_MAX

struct strips_args {
  const char *x;
  int64_t x_row, n, width; /* x's stride in bytes; its columns */
  const char *tiles;
  const int32_t *first, *order, *rows;
  const spt_tile_at *at;
  int32_t n_strips, splits, panel, panels;
};

static __device__ __forceinline__ int lane_of() { return (int)(threadIdx.x % SPT_WARP); }

/* Rows of w end below 2^31. */
static __device__ __forceinline__ int row_of(const strips_args &a, int strip, int r) {
  int at = strip * SPT_TILE + r;
  return a.rows != NULL ? a.rows[at] : at;
}

/* Panel p of a block's tokens, of which `rows` are there; `x` is at the first. Zeros outside. Not waited for. */
template <typename E, int TOKENS>
static __device__ __forceinline__ void stage_panel(const strips_args &a, const char *x, int rows,
                                                   int p, char *to) {
  constexpr int PER_PIECE = 16 / (int)sizeof(E);
  int pieces = a.panel / PER_PIECE, left = (int)a.width - p * a.panel;
  x += (int64_t)p * a.panel * (int)sizeof(E);
  for (int row = (int)(threadIdx.x / SPT_WARP); row < TOKENS; row += (int)(blockDim.x / SPT_WARP)) {
    for (int piece = lane_of(); piece < pieces; piece += SPT_WARP) {
      int there = row < rows ? min(max(left - piece * PER_PIECE, 0), PER_PIECE) : 0;
      const char *from = there > 0 ? x + row * a.x_row + piece * 16 : a.x;
      spt_cp_async_16(to + piece * 16 + row * spt_panel_pitch(a.panel, sizeof(E)), from,
                      there * (int)sizeof(E));
    }
  }
}

/* ---- tensor cores ------------------------------------------------------------------------------ */

/* Which of a lane's two columns count, as a mask of their bits. */
static __device__ __forceinline__ uint32_t pair_mask(uint32_t mask, int k) {
  return (mask >> k & 1 ? 0x0000ffffu : 0u) | (mask >> (k + 1) & 1 ? 0xffff0000u : 0u);
}

/* A warp's strip by 8 NT tokens. Tiles are fetched AHEAD of their use. */
template <typename T, int NT>
struct tensor_engine {
  typedef T element;
  static constexpr int TOKENS = 8 * NT, MOST_WARPS = 16, OWN_BYTES = 0;
  static constexpr int AHEAD = NT >= 16 ? 2 : 4;

  float sum[NT][4];
  uint4 weights[AHEAD];
  spt_tile_at at[AHEAD];
  int tile, end;

  __device__ __forceinline__ void fetch(const strips_args &a, int slot, int i) {
    at[slot] = {NO_BLOCK, SPT_WHOLE_TILE};
    if (i < end) {
      at[slot] = a.at[i];
      weights[slot] =
          __ldg(reinterpret_cast<const uint4 *>(a.tiles) + (int64_t)i * SPT_WARP + lane_of());
    }
  }

  __device__ __forceinline__ void start(const strips_args &a, int strip, char *) {
    tile = strip < 0 ? 0 : a.first[strip];
    end = strip < 0 ? 0 : a.first[strip + 1];
#pragma unroll
    for (int j = 0; j < NT; j++) {
      sum[j][0] = sum[j][1] = sum[j][2] = sum[j][3] = 0.0f;
    }
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
      weights[i] = make_uint4(0, 0, 0, 0);
      fetch(a, i, tile + i);
    }
  }

  __device__ __forceinline__ void multiply_tile(const T *x, int pitch, const uint4 &w,
                                                uint32_t mask) {
    int lane = lane_of(), k = 2 * (lane % 4);
    const uint32_t operand[4] = {w.x, w.y, w.z, w.w};
    /* ldmatrix: 8 tokens by 8 columns, the next 8 columns, then the same of the next 8 tokens. */
    const T *from = x + (lane / 16 * 8 + lane % 8) * pitch + lane / 8 % 2 * 8;
    uint32_t low = 0xffffffffu, high = 0xffffffffu;
    if (mask != SPT_WHOLE_TILE) {
      low = pair_mask(mask, k);
      high = pair_mask(mask, k + 8);
    }
#pragma unroll
    for (int j = 0; j < NT; j += 2) {
      uint32_t b[4];
      spt_ldmatrix_x4(b, from + j * 8 * pitch);
      spt_mma_16x8x16<T>(sum[j], operand, b[0] & low, b[1] & high);
      spt_mma_16x8x16<T>(sum[j + 1], operand, b[2] & low, b[3] & high);
    }
  }

  /* Tiles of blocks [begin, stop), whose columns are in the panel. */
  __device__ __forceinline__ void multiply(const strips_args &a, const char *panel, int begin,
                                           int stop) {
    int pitch = spt_panel_pitch(a.panel, sizeof(T)) / (int)sizeof(T);
    while (at[0].block < stop) {
      const T *x = reinterpret_cast<const T *>(panel) + (at[0].block - begin) * SPT_TILE;
      uint4 w = weights[0];
      uint32_t mask = at[0].mask;
#pragma unroll
      for (int i = 0; i + 1 < AHEAD; i++) {
        weights[i] = weights[i + 1];
        at[i] = at[i + 1];
      }
      fetch(a, AHEAD - 1, tile + AHEAD);
      tile++;
      multiply_tile(x, pitch, w, mask);
    }
  }

  __device__ __forceinline__ void finish(const strips_args &a, const spt_linear_output &o,
                                         int64_t token, int strip) {
    int lane = lane_of(), g = lane / 4;
    int low = row_of(a, strip, g), high = row_of(a, strip, g + 8);
    float bias[2] = {spt_bias_at(o, low), spt_bias_at(o, high)};
    bool packed = o.packed && a.rows == NULL;
    /* Four blocks of 8 tokens at a time, and then the others move up: unrolled all the way the activation's
     * code would be there for each register. */
    constexpr int AT_ONCE = NT < 4 ? NT : 4;
#pragma unroll 1
    for (int64_t row = token; row < token + TOKENS && row < o.rows; row += 8 * AT_ONCE) {
#pragma unroll
      for (int j = 0; j < AT_ONCE; j++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
          sum[j][i] = spt_activate(sum[j][i] + bias[i / 2], o.activation);
        }
        if (packed) {
          spt_put_fragment(o, row + j * 8, (int64_t)strip * SPT_TILE, sum[j]);
          continue;
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
          spt_put(o, row + j * 8 + 2 * (lane % 4) + i % 2, i < 2 ? low : high, sum[j][i]);
        }
      }
#pragma unroll
      for (int j = 0; j + AT_ONCE < NT; j++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
          sum[j][i] = sum[j + AT_ONCE][i];
        }
      }
    }
  }
};

/* ---- float32 ----------------------------------------------------------------------------------- */

static __device__ __forceinline__ float component(const float4 &v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

/* A warp's strip by 16 TT tokens: a lane has 8 rows, by its half of the warp, of each 16th token. The tile
 * in use lies in the warp's own shared memory, (16 columns, 16 rows). */
template <int TT>
struct float_engine {
  typedef float element;
  static constexpr int TOKENS = 16 * TT, MOST_WARPS = 8, OWN_BYTES = SPT_TILE_VALUES * 4;

  float sum[TT][8];
  float *own;
  float4 weights[2]; /* of the next tile */
  spt_tile_at at;
  int tile, end;

  __device__ __forceinline__ void fetch(const strips_args &a, int i) {
    at = {NO_BLOCK, SPT_WHOLE_TILE};
    if (i < end) {
      at = a.at[i];
      const float4 *from = reinterpret_cast<const float4 *>(a.tiles) + (int64_t)i * 2 * SPT_WARP;
      weights[0] = __ldg(from + lane_of());
      weights[1] = __ldg(from + lane_of() + SPT_WARP);
    }
  }

  __device__ __forceinline__ void start(const strips_args &a, int strip, char *memory) {
    own = reinterpret_cast<float *>(memory);
    tile = strip < 0 ? 0 : a.first[strip];
    end = strip < 0 ? 0 : a.first[strip + 1];
#pragma unroll
    for (int j = 0; j < TT; j++) {
#pragma unroll
      for (int i = 0; i < 8; i++) {
        sum[j][i] = 0.0f;
      }
    }
    weights[0] = weights[1] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    fetch(a, tile);
  }

  /* What was fetched, to the warp's memory. */
  __device__ __forceinline__ void place_weights() {
    __syncwarp();
    reinterpret_cast<float4 *>(own)[lane_of()] = weights[0];
    reinterpret_cast<float4 *>(own)[lane_of() + SPT_WARP] = weights[1];
    __syncwarp();
  }

  __device__ __forceinline__ void multiply_tile(const float *x, int pitch, uint32_t mask) {
    const float *w = own + lane_of() / 16 * 8;
#pragma unroll 1
    for (int k = 0; k < SPT_TILE; k += 4) {
      float4 v[TT];
#pragma unroll
      for (int j = 0; j < TT; j++) {
        v[j] = *reinterpret_cast<const float4 *>(x + j * 16 * pitch + k);
        if (mask != SPT_WHOLE_TILE) {
          v[j].x = mask >> k & 1 ? v[j].x : 0.0f;
          v[j].y = mask >> (k + 1) & 1 ? v[j].y : 0.0f;
          v[j].z = mask >> (k + 2) & 1 ? v[j].z : 0.0f;
          v[j].w = mask >> (k + 3) & 1 ? v[j].w : 0.0f;
        }
      }
#pragma unroll
      for (int i = 0; i < 4; i++) {
        float4 low = *reinterpret_cast<const float4 *>(w + (k + i) * SPT_TILE);
        float4 high = *reinterpret_cast<const float4 *>(w + (k + i) * SPT_TILE + 4);
#pragma unroll
        for (int j = 0; j < TT; j++) {
          float value = component(v[j], i);
#pragma unroll
          for (int r = 0; r < 4; r++) {
            sum[j][r] = fmaf(component(low, r), value, sum[j][r]);
            sum[j][r + 4] = fmaf(component(high, r), value, sum[j][r + 4]);
          }
        }
      }
    }
  }

  __device__ __forceinline__ void multiply(const strips_args &a, const char *panel, int begin,
                                           int stop) {
    int pitch = spt_panel_pitch(a.panel, 4) / 4;
    const float *x = reinterpret_cast<const float *>(panel) + lane_of() % 16 * pitch;
    while (at.block < stop) {
      int column = (at.block - begin) * SPT_TILE;
      uint32_t mask = at.mask;
      place_weights();
      fetch(a, ++tile);
      multiply_tile(x + column, pitch, mask);
    }
  }

  __device__ __forceinline__ void finish(const strips_args &a, const spt_linear_output &o,
                                         int64_t token, int strip) {
    int half = lane_of() / 16 * 8;
    bool packed = o.packed && a.rows == NULL;
    float bias[8];
#pragma unroll
    for (int i = 0; i < 8; i++) {
      bias[i] = spt_bias_at(o, row_of(a, strip, half + i));
    }
#pragma unroll 1
    for (int64_t row = token + lane_of() % 16; row < token + TOKENS; row += 16) {
#pragma unroll
      for (int i = 0; i < 8; i++) {
        sum[0][i] = spt_activate(sum[0][i] + bias[i], o.activation);
      }
      if (packed) {
        int64_t col = (int64_t)strip * SPT_TILE + half;
        spt_put_four(o, row, col, make_float4(sum[0][0], sum[0][1], sum[0][2], sum[0][3]));
        spt_put_four(o, row, col + 4, make_float4(sum[0][4], sum[0][5], sum[0][6], sum[0][7]));
      } else {
#pragma unroll
        for (int i = 0; i < 8; i++) {
          spt_put(o, row, row_of(a, strip, half + i), sum[0][i]);
        }
      }
#pragma unroll
      for (int j = 0; j + 1 < TT; j++) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
          sum[j][i] = sum[j + 1][i];
        }
      }
    }
  }
};

/* ---- the kernel -------------------------------------------------------------------------------- */

/* Worked out where it is wanted: registers are scarce in between. */
template <int TOKENS>
static __device__ __forceinline__ int64_t first_token(const strips_args &a) {
  return (int64_t)(blockIdx.x / (unsigned)a.splits) * TOKENS;
}

/* x (n, width), tiles (n_tiles, 256), y as in `o`. Grid: (blocks of tokens) * splits. */
template <typename Engine>
__global__ __launch_bounds__(Engine::MOST_WARPS *SPT_WARP,
                             1) void strips_kernel(strips_args a, spt_linear_output o) {
  typedef typename Engine::element E;
  SPT_SHARED(char, shared);
  int warp = (int)(threadIdx.x / SPT_WARP), warps = (int)(blockDim.x / SPT_WARP);
  int bytes = Engine::TOKENS * spt_panel_pitch(a.panel, sizeof(E));
  int split = (int)(blockIdx.x % (unsigned)a.splits), groups = (a.n_strips + warps - 1) / warps;
  int rounds = (groups - split + a.splits - 1) / a.splits;
  const char *x = a.x + first_token<Engine::TOKENS>(a) * a.x_row;
  int rows = (int)spt_least(a.n - first_token<Engine::TOKENS>(a), Engine::TOKENS);
  /* Panels that all fit stay; else they go round, once for each round of strips. */
  bool stays = a.panels <= STAGES;
  int loads = stays ? a.panels : a.panels * rounds, step = 0;
  for (int i = 0; i < STAGES - 1; i++) {
    if (i < loads) {
      stage_panel<E, Engine::TOKENS>(a, x, rows, i, shared + i * bytes);
    }
    spt_cp_async_commit();
  }
  for (int round = 0; round < rounds; round++) {
    int at = (split + round * a.splits) * warps + warp;
    int strip = at < a.n_strips ? a.order[at] : -1;
    Engine engine;
    engine.start(a, strip, shared + STAGES * bytes + warp * Engine::OWN_BYTES);
    for (int p = 0; p < a.panels; p++, step++) {
      if (step < loads) {
        spt_cp_async_wait<STAGES - 2>();
        __syncthreads(); /* the panel is there, and nobody reads the one before it any more */
        int next = step + STAGES - 1;
        if (next < loads) {
          stage_panel<E, Engine::TOKENS>(a, x, rows, next % a.panels,
                                         shared + next % STAGES * bytes);
        }
        spt_cp_async_commit();
      }
      int blocks = a.panel / SPT_TILE;
      engine.multiply(a, shared + (stays ? p : step % STAGES) * bytes, p * blocks,
                      (p + 1) * blocks);
    }
    if (strip >= 0) {
      engine.finish(a, o, first_token<Engine::TOKENS>(a), strip);
    }
  }
}

/* ---- launchers --------------------------------------------------------------------------------- */

template <typename Engine>
static spt_status launch(spt_cuda_queue *queue, const char *op, const strips_args &a,
                         const spt_linear_output &o, const spt_strips_plan &plan, spt_error *err) {
  int64_t blocks = spt_blocks(a.n, Engine::TOKENS) * plan.splits;
  SPT_LAUNCH(op, strips_kernel<Engine>, (unsigned)blocks, plan.warps * SPT_WARP, plan.shared,
             queue->stream, a, o);
  return SPT_OK;
}

template <typename T>
static spt_status launch_tensor(spt_cuda_queue *queue, const char *op, const strips_args &a,
                                const spt_linear_output &o, const spt_strips_plan &plan,
                                spt_error *err) {
  switch (plan.tokens) {
    case 16:
      return launch<tensor_engine<T, 2>>(queue, op, a, o, plan, err);
    case 32:
      return launch<tensor_engine<T, 4>>(queue, op, a, o, plan, err);
    case 64:
      return launch<tensor_engine<T, 8>>(queue, op, a, o, plan, err);
    default:
      return launch<tensor_engine<T, 16>>(queue, op, a, o, plan, err);
  }
}

static spt_status launch_float(spt_cuda_queue *queue, const char *op, const strips_args &a,
                               const spt_linear_output &o, const spt_strips_plan &plan,
                               spt_error *err) {
  switch (plan.tokens) {
    case 16:
      return launch<float_engine<1>>(queue, op, a, o, plan, err);
    case 32:
      return launch<float_engine<2>>(queue, op, a, o, plan, err);
    case 64:
      return launch<float_engine<4>>(queue, op, a, o, plan, err);
    default:
      return launch<float_engine<8>>(queue, op, a, o, plan, err);
  }
}

spt_status spt_strips_product(spt_cuda_queue *queue, const char *op, const spt_gpu_strips *w,
                              const void *tiles, const spt_matrix *x, const spt_linear_output *o,
                              spt_error *err) {
  if (x->rows == 0 || w->n_strips == 0) {
    return SPT_OK;
  }
  bool tensor = x->dtype != SPT_F32;
  int size = tensor ? 2 : 4, own = tensor ? 0 : SPT_TILE_VALUES * 4;
  spt_strips_plan plan = {};
  if (!spt_plan_strips(queue->device, w, x->rows, size, own, tensor ? 16 : 8, &plan)) {
    return spt_fail(err, SPT_UNSUPPORTED, "%s: a block has %d bytes of shared memory", op,
                    queue->device->shared_per_block);
  }
  strips_args a = {};
  a.x = static_cast<const char *>(x->data);
  a.x_row = x->row * size;
  a.n = x->rows;
  a.width = w->width;
  a.tiles = static_cast<const char *>(tiles);
  a.first = w->first;
  a.order = w->order;
  a.rows = w->rows;
  a.at = w->at;
  a.n_strips = w->n_strips;
  a.splits = plan.splits;
  a.panel = plan.panel;
  a.panels = plan.panels;
  if (x->dtype == SPT_F16) {
    return launch_tensor<spt_half>(queue, op, a, *o, plan, err);
  }
  if (tensor) {
    return launch_tensor<spt_bfloat>(queue, op, a, *o, plan, err);
  }
  return launch_float(queue, op, a, *o, plan, err);
}
