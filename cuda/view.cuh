/* view.cuh: an element of a strided array by its number in row-major order, and small integers. */
#ifndef SPATILE_CUDA_VIEW_CUH
#define SPATILE_CUDA_VIEW_CUH

#include "launch.h"

template <typename T>
struct spt_view {
  T *data;
  int32_t ndim;
  int64_t shape[SPT_MAX_NDIM], stride[SPT_MAX_NDIM];

  explicit spt_view(const spt_tensor &t) : data(static_cast<T *>(t.data)), ndim(t.ndim) {
    for (int i = 0; i < t.ndim; i++) {
      shape[i] = t.shape[i];
      stride[i] = t.stride[i];
    }
  }
  /* The last axis is divided out first; the first needs no division. */
  __device__ __forceinline__ T *at(int64_t i) const {
    int64_t offset = 0;
    for (int axis = ndim - 1; axis > 0; axis--) {
      offset += i % shape[axis] * stride[axis];
      i /= shape[axis];
    }
    return data + offset + i * (ndim > 0 ? stride[0] : 0);
  }
};

static inline int64_t spt_view_elements(const spt_tensor *t) {
  int64_t n = 1;
  for (int i = 0; i < t->ndim; i++) {
    n *= t->shape[i];
  }
  return n;
}

static __host__ __device__ inline int64_t spt_least(int64_t a, int64_t b) { return a < b ? a : b; }
static __host__ __device__ inline int64_t spt_most(int64_t a, int64_t b) { return a > b ? a : b; }

#endif
