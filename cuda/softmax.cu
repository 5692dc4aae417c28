/* softmax over rows (rows, n) of any strides. Bound by memory: each element is read once and written
 * once, with one exponential, up to rows that fit shared memory (about 12,000 elements on any GPU, 56,000
 * on Hopper); wider ones are read three times, from L2 where they fit that. */
#include "rows.cuh"
#include "slots.h"

/* A row of -infinity: nothing is subtracted, as -inf - -inf is NaN, and the sum is 0. NaN, which a maximum
 * passes over, makes the sum NaN and with it the whole row. */
static __device__ __forceinline__ float shift_of(float top) {
  return top == -INFINITY ? 0.0f : top;
}
static __device__ __forceinline__ float scale_of(float sum) {
  return sum == 0.0f ? 0.0f : 1.0f / sum;
}

template <typename T, int PACKS, bool PACKED>
__global__ void __launch_bounds__(SPT_WARP_ROW_THREADS, PACKED ? SPT_WARP_ROW_BLOCKS : 2)
    softmax_warp_kernel(spt_any_view x, spt_any_view y, int64_t rows, int32_t n) {
  constexpr int N = spt_pack<T>::N;
  int lane = (int)(threadIdx.x % SPT_WARP);
  int64_t warps = blockDim.x / SPT_WARP, step = gridDim.x * warps;
  for (int64_t r = blockIdx.x * warps + threadIdx.x / SPT_WARP; r < rows; r += step) {
    const char *from = x.at(r);
    float v[PACKS][N], top = -INFINITY, sum = 0.0f;
#pragma unroll
    for (int k = 0; k < PACKS; k++) {
      spt_load_row<T, PACKED>(v[k], from, x, lane + k * SPT_WARP, n, -INFINITY);
    }
#pragma unroll
    for (int k = 0; k < PACKS; k++) {
#pragma unroll
      for (int i = 0; i < N; i++) {
        top = fmaxf(top, v[k][i]);
      }
    }
    float shift = shift_of(spt_warp_max(top));
#pragma unroll
    for (int k = 0; k < PACKS; k++) {
#pragma unroll
      for (int i = 0; i < N; i++) {
        v[k][i] = expf(v[k][i] - shift);
        sum += v[k][i];
      }
    }
    float scale = scale_of(spt_warp_sum(sum));
    char *to = y.at(r);
#pragma unroll
    for (int k = 0; k < PACKS; k++) {
#pragma unroll
      for (int i = 0; i < N; i++) {
        v[k][i] *= scale;
      }
      spt_store_row<T, PACKED>(to, y, v[k], lane + k * SPT_WARP, n);
    }
  }
}

/* A thread finds in `kept` what it put there itself. */
template <typename T, bool PACKED>
__global__ void __launch_bounds__(SPT_BLOCK_ROW_THREADS)
    softmax_block_kernel(spt_any_view x, spt_any_view y, int64_t rows, int64_t n, bool cached) {
  constexpr int N = spt_pack<T>::N;
  SPT_SHARED(float, partial);
  float *kept = partial + SPT_WARP, v[N];
  int64_t packs = (n + N - 1) / N;
  for (int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
    const char *from = x.at(r);
    float top = -INFINITY, sum = 0.0f;
#pragma unroll 2
    for (int64_t p = threadIdx.x; p < packs; p += blockDim.x) {
      spt_load_row<T, PACKED>(v, from, x, p, n, -INFINITY);
#pragma unroll
      for (int i = 0; i < N; i++) {
        top = fmaxf(top, v[i]);
      }
      if (cached) {
        spt_keep(kept + p * N, v);
      }
    }
    float shift = shift_of(spt_block_max(top, partial));
    for (int64_t p = threadIdx.x; p < packs; p += blockDim.x) {
      if (cached) {
        spt_kept(v, kept + p * N);
      } else {
        spt_load_row<T, PACKED>(v, from, x, p, n, -INFINITY);
      }
#pragma unroll
      for (int i = 0; i < N; i++) {
        v[i] = expf(v[i] - shift);
        sum += v[i];
      }
      if (cached) {
        spt_keep(kept + p * N, v);
      }
    }
    float scale = scale_of(spt_block_sum(sum, partial));
    char *to = y.at(r);
    for (int64_t p = threadIdx.x; p < packs; p += blockDim.x) {
      if (cached) {
        spt_kept(v, kept + p * N);
      } else {
        spt_load_row<T, PACKED>(v, from, x, p, n, -INFINITY);
      }
#pragma unroll
      for (int i = 0; i < N; i++) {
        v[i] = (cached ? v[i] : expf(v[i] - shift)) * scale;
      }
      spt_store_row<T, PACKED>(to, y, v, p, n);
    }
  }
}

template <typename T>
static spt_status softmax_by_warp(const spt_cuda_queue *queue, const spt_row_plan &plan,
                                  const spt_softmax_problem *p, bool packed, int64_t rows,
                                  spt_error *err) {
  int32_t n = (int32_t)p->x.shape[p->x.ndim - 1];
  spt_any_view x(p->x, p->x.ndim - 1), y(p->y, p->y.ndim - 1);
  if (!packed) {
    SPT_WITH_FEW_PACKS(T, n, P,
                       SPT_LAUNCH("softmax", (softmax_warp_kernel<T, P, false>), plan.blocks,
                                  plan.threads, 0, queue->stream, x, y, rows, n));
    return SPT_OK;
  }
  SPT_WITH_PACKS(T, n, P,
                 SPT_LAUNCH("softmax", (softmax_warp_kernel<T, P, true>), plan.blocks, plan.threads,
                            0, queue->stream, x, y, rows, n));
  return SPT_OK;
}

template <typename T>
static spt_status softmax_of(const spt_cuda_queue *queue, const spt_softmax_problem *p,
                             spt_error *err) {
  int64_t n = p->x.shape[p->x.ndim - 1], rows = spt_row_total(&p->x);
  bool packed = spt_has_packed_rows(&p->x, p->x.dtype) && spt_has_packed_rows(&p->y, p->x.dtype);
  spt_row_plan plan = spt_plan_rows(queue, rows, n);
  if (plan.by_warp) {
    return softmax_by_warp<T>(queue, plan, p, packed, rows, err);
  }
  spt_any_view x(p->x, p->x.ndim - 1), y(p->y, p->y.ndim - 1);
  if (packed) {
    SPT_LAUNCH("softmax", (softmax_block_kernel<T, true>), plan.blocks, plan.threads, plan.shared,
               queue->stream, x, y, rows, n, plan.cached);
  } else {
    SPT_LAUNCH("softmax", (softmax_block_kernel<T, false>), plan.blocks, plan.threads, plan.shared,
               queue->stream, x, y, rows, n, plan.cached);
  }
  return SPT_OK;
}

spt_status spt_cuda_softmax(void *state, const spt_softmax_problem *p, spt_error *err) {
  const spt_cuda_queue *queue = spt_queue_of(state);
  if (spt_view_elements(&p->x) == 0) {
    return SPT_OK;
  }
  SPT_WITH_STORAGE(p->x.dtype, T, return softmax_of<T>(queue, p, err));
  return SPT_OK;
}
