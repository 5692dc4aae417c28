/* opaque.cuh: a value that the compiler takes for another each time. A rolled loop whose body tests what
 * stays the same is else written out once for each outcome: the tests of types, activation, bias and
 * residual in linear_dense.cu gave hundreds of copies and minutes of compiling. */
#ifndef SPATILE_CUDA_OPAQUE_CUH
#define SPATILE_CUDA_OPAQUE_CUH

#include "launch.h"

#if defined(SPT_CUDA_ON_CPU)
template <typename T>
static inline T spt_opaque(T value) {
  return value;
}
#else
static __device__ __forceinline__ int32_t spt_opaque(int32_t value) {
  asm volatile("" : "+r"(value));
  return value;
}
static __device__ __forceinline__ const char *spt_opaque(const char *value) {
  asm volatile("" : "+l"(value));
  return value;
}
#endif

#endif
