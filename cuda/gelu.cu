/* gelu: y = GELU(x), any strides. Bound by memory in float32: 8 bytes moved for about 25 operations. In
 * 16 bits the operations weigh as much, so packs of 8 spare the others: addresses, loads, stores. */
#include "activation.cuh"
#include "context.h"
#include "pack.cuh"
#include "slots.h"

#define GELU_THREADS 256

template <bool TANH>
static __device__ __forceinline__ float gelu_of(float x) {
  return TANH ? spt_gelu_tanh(x) : spt_gelu(x);
}

/* x, y: n neighbours, aligned to 16 bytes. */
template <typename T, bool TANH>
__global__ void gelu_packs_kernel(const T *x, T *y, int64_t n) {
  constexpr int N = spt_pack<T>::N;
  int64_t step = (int64_t)gridDim.x * blockDim.x, packs = n / N;
  int64_t first = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  for (int64_t p = first; p < packs; p += step) {
    float v[N];
    spt_load_pack(v, x + p * N);
#pragma unroll
    for (int i = 0; i < N; i++) {
      v[i] = gelu_of<TANH>(v[i]);
    }
    spt_store_pack(y + p * N, v);
  }
  if (packs * N + first < n) { /* fewer than N are left */
    spt_store(y + packs * N + first, gelu_of<TANH>(spt_load(x + packs * N + first)));
  }
}

/* x, y: up to SPT_MAX_NDIM axes, n elements in all. */
template <bool TANH>
__global__ void gelu_kernel(spt_any_view x, spt_any_view y, int64_t n) {
  int64_t step = (int64_t)gridDim.x * blockDim.x;
  for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
    spt_store_any(y.at(i), y.dtype, gelu_of<TANH>(spt_load_any(x.at(i), x.dtype)));
  }
}

template <bool TANH>
static spt_status gelu_by(const spt_cuda_queue *queue, const spt_gelu_problem *p, int64_t n,
                          spt_error *err) {
  int64_t most = 64 * (int64_t)queue->device->sm_count;
  if (p->x.ndim == 1 && spt_has_packed_rows(&p->x, p->x.dtype) &&
      spt_has_packed_rows(&p->y, p->x.dtype)) {
    SPT_WITH_STORAGE(p->x.dtype, T, {
      const T *x = static_cast<const T *>(p->x.data);
      int64_t blocks = spt_blocks(spt_blocks(n, spt_pack<T>::N), GELU_THREADS);
      SPT_LAUNCH("gelu", (gelu_packs_kernel<T, TANH>), (unsigned)spt_least(blocks, most),
                 GELU_THREADS, 0, queue->stream, x, static_cast<T *>(p->y.data), n);
    });
    return SPT_OK;
  }
  spt_any_view x(p->x, p->x.ndim), y(p->y, p->y.ndim);
  unsigned blocks = (unsigned)spt_least(spt_blocks(n, GELU_THREADS), most);
  SPT_LAUNCH("gelu", (gelu_kernel<TANH>), blocks, GELU_THREADS, 0, queue->stream, x, y, n);
  return SPT_OK;
}

spt_status spt_cuda_gelu(void *state, const spt_gelu_problem *p, spt_error *err) {
  const spt_cuda_queue *queue = spt_queue_of(state);
  int64_t n = spt_view_elements(&p->x);
  if (n == 0) {
    return SPT_OK;
  }
  return p->activation == SPT_ACT_GELU_TANH ? gelu_by<true>(queue, p, n, err)
                                            : gelu_by<false>(queue, p, n, err);
}
