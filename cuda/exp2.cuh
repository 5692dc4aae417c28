/* exp2.cuh: 2^x in one instruction (ex2.approx: 2 units in the last place; results below 2^-126 are 0). exp2f
 * scales its argument and its result to have those, too: four instructions. */
#ifndef SPATILE_CUDA_EXP2_CUH
#define SPATILE_CUDA_EXP2_CUH

#include <math.h>

#include "launch.h"

static __device__ __forceinline__ float spt_exp2(float x) {
#if defined(SPT_CUDA_ON_CPU)
  float y = exp2f(x);
  return y < 0x1p-126f ? 0.0f : y;
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

#endif
