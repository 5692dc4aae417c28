/* rows.cuh: ops along rows (softmax, layer_norm), which read a row once: a row of up to 1024 elements is
 * a warp's, in registers; a wider one a block's, as floats in shared memory, or read again where it is
 * wider still. Lane or thread t holds packs t, t + 32, ... of a row: that depends on the row's width and
 * its dtype alone, so sums come out the same to the bit whatever the strides. */
#ifndef SPATILE_CUDA_ROWS_CUH
#define SPATILE_CUDA_ROWS_CUH

#include "context.h"
#include "pack.cuh"
#include "warp.cuh"

#define SPT_WARP_ROW 1024 /* elements: 32 a lane */
#define SPT_WARP_ROW_THREADS 128
#define SPT_WARP_ROW_BLOCKS 4 /* on a multiprocessor at least: at most 128 registers a thread */
/* A block's at most. Kernels say so: such a block cannot be launched where a thread has over 64 registers. */
#define SPT_BLOCK_ROW_THREADS 1024

/* Packs a lane holds at most. */
template <typename T>
struct spt_warp_row {
  static constexpr int PACKS = SPT_WARP_ROW / SPT_WARP / spt_pack<T>::N;
};

/* Pack p of a row that begins at `row`, and `fill` past its n elements. PACKED: T, neighbours, aligned;
 * else what `v` says. */
template <typename T, bool PACKED>
static __device__ __forceinline__ void spt_load_row(float (&to)[spt_pack<T>::N], const char *row,
                                                    const spt_any_view &v, int64_t p, int64_t n,
                                                    float fill) {
  constexpr int N = spt_pack<T>::N;
  int64_t first = p * N;
  if (PACKED && first + N <= n) {
    spt_load_pack(to, reinterpret_cast<const T *>(row) + first);
    return;
  }
#pragma unroll
  for (int i = 0; i < N; i++) {
    to[i] = fill;
    if (first + i < n) {
      to[i] = PACKED ? spt_load(reinterpret_cast<const T *>(row) + first + i)
                     : spt_load_any(row + (first + i) * v.step, v.dtype);
    }
  }
}

template <typename T, bool PACKED>
static __device__ __forceinline__ void spt_store_row(char *row, const spt_any_view &v,
                                                     const float (&from)[spt_pack<T>::N], int64_t p,
                                                     int64_t n) {
  constexpr int N = spt_pack<T>::N;
  int64_t first = p * N;
  if (PACKED && first + N <= n) {
    spt_store_pack(reinterpret_cast<T *>(row) + first, from);
    return;
  }
#pragma unroll
  for (int i = 0; i < N; i++) {
    if (first + i < n) {
      if (PACKED) {
        spt_store(reinterpret_cast<T *>(row) + first + i, from[i]);
      } else {
        spt_store_any(row + (first + i) * v.step, v.dtype, from[i]);
      }
    }
  }
}

/* A pack of floats to shared memory, 16-byte aligned, and back. */
template <int N>
static __device__ __forceinline__ void spt_keep(float *to, const float (&from)[N]) {
#pragma unroll
  for (int i = 0; i < N; i += 4) {
    *reinterpret_cast<float4 *>(to + i) =
        make_float4(from[i], from[i + 1], from[i + 2], from[i + 3]);
  }
}

template <int N>
static __device__ __forceinline__ void spt_kept(float (&to)[N], const float *from) {
#pragma unroll
  for (int i = 0; i < N; i += 4) {
    float4 four = *reinterpret_cast<const float4 *>(from + i);
    to[i] = four.x;
    to[i + 1] = four.y;
    to[i + 2] = four.z;
    to[i + 3] = four.w;
  }
}

/* Over the block's threads, for all of them. partial: 32 floats of shared memory. */
static __device__ __forceinline__ float spt_block_sum(float value, float *partial) {
  int lane = (int)(threadIdx.x % SPT_WARP);
  value = spt_warp_sum(value);
  __syncthreads(); /* of whoever still reads what was there */
  if (lane == 0) {
    partial[threadIdx.x / SPT_WARP] = value;
  }
  __syncthreads();
  return spt_warp_sum(lane < (int)(blockDim.x / SPT_WARP) ? partial[lane] : 0.0f);
}

static __device__ __forceinline__ float spt_block_max(float value, float *partial) {
  int lane = (int)(threadIdx.x % SPT_WARP);
  value = spt_warp_max(value);
  __syncthreads();
  if (lane == 0) {
    partial[threadIdx.x / SPT_WARP] = value;
  }
  __syncthreads();
  return spt_warp_max(lane < (int)(blockDim.x / SPT_WARP) ? partial[lane] : -INFINITY);
}

/* How rows of n elements are cut over warps or blocks. */
struct spt_row_plan {
  bool by_warp;
  bool cached; /* by block: the row is kept in shared memory, behind 32 floats for sums */
  int threads;
  unsigned blocks;
  size_t shared;
};

static inline spt_row_plan spt_plan_rows(const spt_cuda_queue *queue, int64_t rows, int64_t n) {
  spt_row_plan plan = {};
  int64_t most = 64 * (int64_t)queue->device->sm_count;
  plan.by_warp = n <= SPT_WARP_ROW;
  if (plan.by_warp) {
    plan.threads = SPT_WARP_ROW_THREADS;
    plan.blocks = (unsigned)spt_least(spt_blocks(rows, plan.threads / SPT_WARP), most);
    return plan;
  }
  plan.threads = n <= 4096 ? 256 : n <= 16384 ? 512 : SPT_BLOCK_ROW_THREADS;
  plan.blocks = (unsigned)spt_least(rows, most);
  size_t partial = SPT_WARP * sizeof(float), row = ((size_t)n + 8) * sizeof(float);
  plan.cached = partial + row <= (size_t)queue->device->shared_per_block;
  plan.shared = partial + (plan.cached ? row : 0);
  return plan;
}

/* Runs `body` with P packs a lane, as few as serve rows of n. */
#define SPT_WITH_PACKS(T, n, P, ...)                     \
  do {                                                   \
    constexpr int most_ = spt_warp_row<T>::PACKS;        \
    int64_t lanes_ = (int64_t)SPT_WARP * spt_pack<T>::N; \
    if ((n) <= lanes_) {                                 \
      constexpr int P = 1;                               \
      __VA_ARGS__;                                       \
    } else if ((n) <= 2 * lanes_) {                      \
      constexpr int P = 2;                               \
      __VA_ARGS__;                                       \
    } else if ((n) <= 3 * lanes_) {                      \
      constexpr int P = 3;                               \
      __VA_ARGS__;                                       \
    } else if ((n) <= 4 * lanes_) {                      \
      constexpr int P = 4;                               \
      __VA_ARGS__;                                       \
    } else {                                             \
      constexpr int P = most_;                           \
      __VA_ARGS__;                                       \
    }                                                    \
  } while (0)

/* The same for kernels of slow paths, of which two will do. */
#define SPT_WITH_FEW_PACKS(T, n, P, ...)             \
  do {                                               \
    if ((n) <= (int64_t)SPT_WARP * spt_pack<T>::N) { \
      constexpr int P = 1;                           \
      __VA_ARGS__;                                   \
    } else {                                         \
      constexpr int P = spt_warp_row<T>::PACKS;      \
      __VA_ARGS__;                                   \
    }                                                \
  } while (0)

static inline int64_t spt_row_total(const spt_tensor *t) {
  int64_t rows = 1;
  for (int i = 0; i < t->ndim - 1; i++) {
    rows *= t->shape[i];
  }
  return rows;
}

#endif
