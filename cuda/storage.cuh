/* storage.cuh: elements of device arrays as floats. float32, float16 and bfloat16 are stored, float32 is
 * what is computed with; rounding is to nearest even. */
#ifndef SPATILE_CUDA_STORAGE_CUH
#define SPATILE_CUDA_STORAGE_CUH

#include <stdint.h>
#include <string.h>

#include "launch.h"

#if !defined(SPT_CUDA_ON_CPU)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

struct spt_half {
  uint16_t bits;
};
struct spt_bfloat {
  uint16_t bits;
};

#if defined(SPT_CUDA_ON_CPU)
static inline float spt_bits_to_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
static inline uint32_t spt_float_to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}
static inline float spt_to_float(spt_half h) {
  uint32_t sign = (uint32_t)(h.bits & 0x8000) << 16, rest = h.bits & 0x7fff;
  if (rest >= 0x7c00) {
    return spt_bits_to_float(sign | 0x7f800000 | (rest & 0x3ff) << 13);
  }
  /* Normal and subnormal alike: the exponent is put right by a multiplication. */
  return spt_bits_to_float(sign | rest << 13) * 0x1p112f;
}
static inline float spt_to_float(spt_bfloat b) { return spt_bits_to_float((uint32_t)b.bits << 16); }
static inline spt_half spt_round_to(spt_half *, float value) {
  uint32_t bits = spt_float_to_bits(value), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
  if (rest > 0x7f800000) {
    return {(uint16_t)(sign | 0x7e00)};
  }
  if (rest >= 0x47800000) { /* 65536 and more */
    return {(uint16_t)(sign | 0x7c00)};
  }
  if (rest < 0x38800000) { /* subnormal: adding 0.5 leaves the rounded multiple of 2^-24 below it */
    uint32_t small = spt_float_to_bits(spt_bits_to_float(rest) + 0.5f) - 0x3f000000;
    return {(uint16_t)(sign | small)};
  }
  uint32_t rounded = (rest + 0xfff + (rest >> 13 & 1)) >> 13;
  return {(uint16_t)(sign | (rounded - (112 << 10)))};
}
static inline spt_bfloat spt_round_to(spt_bfloat *, float value) {
  uint32_t bits = spt_float_to_bits(value);
  if ((bits & 0x7fffffff) > 0x7f800000) {
    return {(uint16_t)(bits >> 16 | 0x40)};
  }
  return {(uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
#else
static __device__ __forceinline__ float spt_to_float(spt_half h) {
  return __half2float(__ushort_as_half(h.bits));
}
static __device__ __forceinline__ float spt_to_float(spt_bfloat b) {
  return __uint_as_float((uint32_t)b.bits << 16);
}
static __device__ __forceinline__ spt_half spt_round_to(spt_half *, float value) {
  return {__half_as_ushort(__float2half_rn(value))};
}
static __device__ __forceinline__ spt_bfloat spt_round_to(spt_bfloat *, float value) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(value))};
}
#endif

static __device__ __forceinline__ float spt_to_float(float value) { return value; }
static __device__ __forceinline__ float spt_round_to(float *, float value) { return value; }

/* spt_load(p + i), spt_store(p + i, value): p of any of the three types. */
template <typename T>
static __device__ __forceinline__ float spt_load(const T *p) {
  return spt_to_float(*p);
}
template <typename T>
static __device__ __forceinline__ void spt_store(T *p, float value) {
  *p = spt_round_to((T *)nullptr, value);
}

/* Two neighbours as they lie in memory, the first in the low half: T is spt_half or spt_bfloat. One
 * instruction from sm_80 on. */
template <typename T>
static __device__ __forceinline__ uint32_t spt_pack_pair(float first, float second);
#if defined(SPT_CUDA_ON_CPU)
template <typename T>
static inline uint32_t spt_pack_pair(float first, float second) {
  T *type = nullptr;
  return (uint32_t)spt_round_to(type, second).bits << 16 | spt_round_to(type, first).bits;
}
#else
template <>
__device__ __forceinline__ uint32_t spt_pack_pair<spt_half>(float first, float second) {
  __half2 pair = __floats2half2_rn(first, second);
  return *reinterpret_cast<const uint32_t *>(&pair);
}
template <>
__device__ __forceinline__ uint32_t spt_pack_pair<spt_bfloat>(float first, float second) {
  __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
  return *reinterpret_cast<const uint32_t *>(&pair);
}
#endif

/* Runs `body` with `T` as the type that `dtype` stores. Launchers only. */
#define SPT_WITH_STORAGE(dtype, T, ...) \
  do {                                  \
    if ((dtype) == SPT_F32) {           \
      using T = float;                  \
      __VA_ARGS__;                      \
    } else if ((dtype) == SPT_F16) {    \
      using T = spt_half;               \
      __VA_ARGS__;                      \
    } else {                            \
      using T = spt_bfloat;             \
      __VA_ARGS__;                      \
    }                                   \
  } while (0)

#endif
