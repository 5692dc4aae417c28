/* warp.cuh: sums and maxima over the 32 lanes of a warp, all of them there; every lane gets the result. */
#ifndef SPATILE_CUDA_WARP_CUH
#define SPATILE_CUDA_WARP_CUH

#include <math.h>

#include "launch.h"

#define SPT_WARP 32
#define SPT_ALL_LANES 0xffffffffu

template <typename T>
static __device__ __forceinline__ T spt_warp_sum(T value) {
  for (int offset = SPT_WARP / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(SPT_ALL_LANES, value, offset);
  }
  return value;
}

static __device__ __forceinline__ float spt_warp_max(float value) {
  for (int offset = SPT_WARP / 2; offset > 0; offset /= 2) {
    value = fmaxf(value, __shfl_xor_sync(SPT_ALL_LANES, value, offset));
  }
  return value;
}

#endif
