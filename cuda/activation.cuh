/* activation.cuh: what follows a product, on one float. */
#ifndef SPATILE_CUDA_ACTIVATION_CUH
#define SPATILE_CUDA_ACTIVATION_CUH

#include <math.h>

#include "launch.h"

static __device__ __forceinline__ float spt_gelu(float x) {
  return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
}

static __device__ __forceinline__ float spt_gelu_tanh(float x) {
  return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
}

static __device__ __forceinline__ float spt_activate(float x, int activation) {
  switch (activation) {
    case SPT_ACT_GELU:
      return spt_gelu(x);
    case SPT_ACT_GELU_TANH:
      return spt_gelu_tanh(x);
    case SPT_ACT_RELU:
      return x < 0.0f ? 0.0f : x; /* NaN stays */
    case SPT_ACT_TANH:
      return tanhf(x);
    default:
      return x;
  }
}

#endif
