/* attention_forward.cuh: what attention's kernels share beside attention.cuh: a problem with its results,
 * a block's place in it, rows staged into shared memory, results and importance out of it. */
#ifndef SPATILE_CUDA_ATTENTION_FORWARD_CUH
#define SPATILE_CUDA_ATTENTION_FORWARD_CUH

#include "async_copy.cuh"
#include "attention.cuh"
#include "attention_shapes.h"
#include "warp.cuh"

/* Importance before it is finished, in scratch memory. A token's is either a sum for each block, or one
 * integer that all blocks add to: in units so small that it is exact, and in any order the same. */
struct spt_attend_sums {
  float *heads;               /* (slots, heads); NULL where no importance is wanted */
  float *tokens;              /* (slots, heads, token_pitch), or NULL */
  unsigned long long *shares; /* (tokens), or NULL */
  int64_t token_pitch;
  float share_units; /* how many of them a probability of 1 is */
};

struct spt_attend {
  spt_attention_view view;
  spt_heads q, k, v, out, lse;
  bool wide_q, wide_k, wide_v, wide_out; /* spt_is_wide */
  const uint8_t *kept;                   /* as in attention_run.h, or NULL */
  int64_t kept_stride;
  const int32_t *head;
  spt_attend_sums sums;
  float log2_scale; /* |scale| log2(e) */
};

/* Where a share's key has met NaN. Below it there is room for all that is added. */
#define SPT_SHARE_IS_NAN (1ull << 63)

/* Blocks go through (slot, head), heads first: those of a slot read the same mask, and a sequence's keys
 * stay in L2. */
struct spt_attend_block {
  spt_span s;
  int64_t slot, head, kv_head;
  int64_t first;      /* query */
  int rows, all_rows; /* queries that count, and with those that get zeros */
  bool sums;          /* its partial sums are read */
};

/* False where the slot is nobody's. */
static __device__ __forceinline__ bool spt_find_block(const spt_attend &a, int tile,
                                                      spt_attend_block *b) {
  b->slot = blockIdx.x / (unsigned)a.view.heads;
  b->head = blockIdx.x % (unsigned)a.view.heads;
  b->kv_head = b->head / (a.view.heads / a.view.kv_heads);
  if (!spt_find_queries(a.view, b->slot, tile, &b->s, &b->first)) {
    return false;
  }
  b->rows = (int)spt_most(0, spt_least(tile, b->s.queries - b->first));
  b->all_rows = (int)spt_least(tile, b->s.query_rows - b->first);
  b->sums = a.sums.heads != NULL && b->rows > 0;
  if (a.kept != NULL && a.kept[b->s.number * a.kept_stride + a.head[b->head]] == 0) {
    b->rows = 0;
  }
  return true;
}

/* ---- rows in and out ----------------------------------------------------------------------------- */

/* Whether rows may be copied 16 bytes at a time. */
static inline bool spt_is_wide(const spt_heads &x) {
  int64_t size = x.dtype == SPT_F32 ? 4 : 2;
  return x.feature == 1 && (uintptr_t)x.data % 16 == 0 && x.token * size % 16 == 0 &&
         x.head * size % 16 == 0 && x.sequence * size % 16 == 0;
}

/* tile (fill, full), `pitch` apart, from `rows` rows of `width`: zeros elsewhere. Rows arrive by
 * cp.async: commit and wait. Called by `threads` threads, this one the `thread`th; full is a multiple
 * of 16 bytes. */
template <typename T>
static __device__ __forceinline__ void spt_stage_rows(T *tile, int pitch, int fill, int full,
                                                      const T *from, const spt_heads &x, int rows,
                                                      int width, bool wide, int thread,
                                                      int threads) {
  const int each = wide ? 16 / (int)sizeof(T) : 1;
  int columns = full / each;
  int row = thread / columns, column = thread % columns;
  int row_step = threads / columns, column_step = threads % columns;
  while (row < fill) {
    T *to = tile + row * pitch + column * each;
    int left = row < rows ? width - column * each : 0; /* elements that there are from here on */
    const T *at = from + row * x.token + column * each * x.feature;
    if (wide) {
      int bytes = left <= 0 ? 0 : left >= each ? 16 : left * (int)sizeof(T);
      spt_cp_async_16(to, bytes > 0 ? at : from, bytes);
    } else {
      *to = left > 0 ? *at : T{};
    }
    row += row_step;
    column += column_step;
    if (column >= columns) {
      column -= columns;
      row++;
    }
  }
}

static __device__ __forceinline__ void spt_store_result(const spt_heads &out, int64_t at,
                                                        float value) {
  if (out.dtype == SPT_F32) {
    static_cast<float *>(out.data)[at] = value;
  } else if (out.dtype == SPT_F16) {
    spt_store(static_cast<spt_half *>(out.data) + at, value);
  } else {
    spt_store(static_cast<spt_bfloat *>(out.data) + at, value);
  }
}

/* Four results at once where rows are wide: 8 or 16 bytes. */
static __device__ __forceinline__ void spt_store_four(const spt_heads &out, int64_t at, float4 x) {
  if (out.dtype == SPT_F32) {
    *reinterpret_cast<float4 *>(static_cast<float *>(out.data) + at) = x;
    return;
  }
  uint2 *to = reinterpret_cast<uint2 *>(static_cast<uint16_t *>(out.data) + at);
  *to = out.dtype == SPT_F16
            ? make_uint2(spt_pack_pair<spt_half>(x.x, x.y), spt_pack_pair<spt_half>(x.z, x.w))
            : make_uint2(spt_pack_pair<spt_bfloat>(x.x, x.y), spt_pack_pair<spt_bfloat>(x.z, x.w));
}

/* The block's rows of `out`: sums over `parts` of (rows, pitch) floats in shared memory, each
 * part_pitch apart. Rows that don't count become zeros. Returns this thread's sum of |out|. */
static __device__ __forceinline__ float spt_store_rows(const spt_attend &a,
                                                       const spt_attend_block &b, const float *sums,
                                                       int pitch, int parts, int part_pitch) {
  int dv = (int)a.view.dv;
  bool wide = a.wide_out && dv % 4 == 0;
  int each = wide ? 4 : 1, columns = dv / each;
  int64_t start =
      b.s.number * a.out.sequence + (b.s.q_start + b.first) * a.out.token + b.head * a.out.head;
  float magnitude = 0.0f;
  for (int i = threadIdx.x; i < b.all_rows * columns; i += blockDim.x) {
    int row = i / columns, column = i % columns * each;
    int64_t at = start + row * a.out.token + column * a.out.feature;
    const float *from = sums + row * pitch + column;
    if (wide) {
      float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      for (int p = 0; p < parts && row < b.rows; p++) {
        float4 y = *reinterpret_cast<const float4 *>(from + p * part_pitch);
        x = make_float4(x.x + y.x, x.y + y.y, x.z + y.z, x.w + y.w);
      }
      spt_store_four(a.out, at, x);
      magnitude += fabsf(x.x) + fabsf(x.y) + fabsf(x.z) + fabsf(x.w);
    } else {
      float x = 0.0f;
      for (int p = 0; p < parts && row < b.rows; p++) {
        x += from[p * part_pitch];
      }
      spt_store_result(a.out, at, x);
      magnitude += fabsf(x);
    }
  }
  return magnitude;
}

/* lse of a row of the block that gets a result. */
static __device__ __forceinline__ void spt_store_lse(const spt_attend &a, const spt_attend_block &b,
                                                     int row, float lse) {
  if (a.lse.data != NULL) {
    *(spt_token_row<float>(a.lse, b.s.number, b.s.q_start + b.first + row, b.head)) = lse;
  }
}

/* Zeros, and lse -inf: for a block none of whose queries counts, or sees a key. */
static __device__ void spt_store_nothing(const spt_attend &a, const spt_attend_block &b) {
  spt_attend_block nothing = b;
  nothing.rows = 0;
  spt_store_rows(a, nothing, NULL, 0, 0, 0);
  for (int row = threadIdx.x; row < b.all_rows; row += blockDim.x) {
    spt_store_lse(a, b, row, -INFINITY);
  }
  if (b.sums) {
    int64_t at = b.slot * a.view.heads + b.head;
    for (int64_t j = threadIdx.x; a.sums.tokens != NULL && j < b.s.keys; j += blockDim.x) {
      a.sums.tokens[at * a.sums.token_pitch + j] = 0.0f;
    }
    if (threadIdx.x == 0) {
      a.sums.heads[at] = 0.0f;
    }
  }
}

/* ---- importance ---------------------------------------------------------------------------------- */

/* The block's sum of |out|; every thread brings its part, `shared` has room for a float per warp. */
static __device__ void spt_store_head_sum(const spt_attend &a, const spt_attend_block &b,
                                          float magnitude, float *shared) {
  magnitude = spt_warp_sum(magnitude);
  if (threadIdx.x % SPT_WARP == 0) {
    shared[threadIdx.x / SPT_WARP] = magnitude;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    float sum = 0.0f;
    for (unsigned w = 0; w < blockDim.x / SPT_WARP; w++) {
      sum += shared[w];
    }
    a.sums.heads[b.slot * a.view.heads + b.head] = sum;
  }
}

/* Probabilities add to a key's share. */
static __device__ __forceinline__ void spt_add_share(const spt_attend &a, const spt_attend_block &b,
                                                     int64_t key, float sum) {
  int64_t start = a.view.packed ? b.s.k_start : b.s.number * a.view.keys;
  unsigned long long *to = a.sums.shares + start + key;
  if (sum != sum) {
    atomicOr(to, SPT_SHARE_IS_NAN);
  } else {
    atomicAdd(to, (unsigned long long)(sum * a.sums.share_units + 0.5f));
  }
}

/* ---- launchers ----------------------------------------------------------------------------------- */

/* What needs the kernels that look at pairs one by one. A scale of 0, too: -inf * 0 is NaN, so it must meet
 * the products before what is hidden becomes -inf. */
static inline bool spt_has_extras(const spt_attend *a) {
  return a->view.mask.data != NULL || a->view.bias.data != NULL || a->view.dropout.on ||
         !(a->log2_scale > 0.0f);
}

/* Each file's; grid: (slots * heads) blocks. */
SPT_WARN_UNUSED spt_status spt_attend_simply(spt_cuda_queue *, const spt_attend *, int64_t slots,
                                             spt_error *);
SPT_WARN_UNUSED spt_status spt_attend_whole_rows(spt_cuda_queue *, const spt_attend *,
                                                 const spt_attention_plan *, int64_t slots,
                                                 spt_error *);
SPT_WARN_UNUSED spt_status spt_attend_streaming(spt_cuda_queue *, const spt_attend *,
                                                const spt_attention_plan *, int64_t slots,
                                                spt_error *);
SPT_WARN_UNUSED spt_status spt_attend_floats(spt_cuda_queue *, const spt_attend *,
                                             const spt_attention_plan *, int64_t slots,
                                             spt_error *);

#endif
