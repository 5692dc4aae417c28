/* gelu: y = GELU(x), any strides. Bound by memory: 2 elements moved for about 20 operations. */
#include "activation.cuh"
#include "context.h"
#include "slots.h"
#include "storage.cuh"
#include "view.cuh"

/* x, y: up to SPT_MAX_NDIM axes, n elements in all. */
template <typename T, bool TANH>
__global__ void gelu_kernel(spt_view<const T> x, spt_view<T> y, int64_t n) {
  int64_t step = (int64_t)gridDim.x * blockDim.x;
  for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
    float value = spt_load(x.at(i));
    spt_store(y.at(i), TANH ? spt_gelu_tanh(value) : spt_gelu(value));
  }
}

spt_status spt_cuda_gelu(void *state, const spt_gelu_problem *p, spt_error *err) {
  spt_cuda_queue *queue = spt_queue_of(state);
  int64_t n = spt_view_elements(&p->x);
  if (n == 0) {
    return SPT_OK;
  }
  const int threads = 256;
  unsigned blocks = (unsigned)spt_least(spt_blocks(n, threads), 32 * (int64_t)queue->device->sm_count);
  SPT_WITH_STORAGE(p->x.dtype, T, {
    spt_view<const T> x(p->x);
    spt_view<T> y(p->y);
    if (p->activation == SPT_ACT_GELU_TANH) {
      SPT_LAUNCH("gelu", (gelu_kernel<T, true>), blocks, threads, 0, queue->stream, x, y, n);
    } else {
      SPT_LAUNCH("gelu", (gelu_kernel<T, false>), blocks, threads, 0, queue->stream, x, y, n);
    }
  });
  return SPT_OK;
}
