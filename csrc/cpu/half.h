/* float16 and bfloat16 to float32 and back, round to nearest even, without special instructions. */
#ifndef SPATILE_CPU_HALF_H
#define SPATILE_CPU_HALF_H

#include <stdint.h>
#include <string.h>

#include "../spatile.h"

static inline float spt_float_of_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

static inline uint32_t spt_bits_of_float(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

static inline float spt_float_of_bf16(uint16_t h) { return spt_float_of_bits((uint32_t)h << 16); }

static inline uint16_t spt_bf16_of_float(float value) {
  uint32_t bits = spt_bits_of_float(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    return (uint16_t)(bits >> 16 | 0x40); /* rounding could carry a NaN's payload into infinity */
  }
  return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline float spt_float_of_f16(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7fff;
  if (rest >= 0x7c00) { /* infinity, NaN */
    return spt_float_of_bits(sign | 0x7f800000u | (rest & 0x3ff) << 13);
  }
  /* Scaling by 2^112 moves the exponent's bias and turns subnormals into normals by itself. */
  float magnitude = spt_float_of_bits(rest << 13) * 0x1p112f;
  return spt_float_of_bits(sign | spt_bits_of_float(magnitude));
}

static inline uint16_t spt_f16_of_float(float value) {
  uint32_t bits = spt_bits_of_float(value), sign = bits >> 16 & 0x8000;
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) {
    return (uint16_t)(sign | 0x7e00);
  }
  if (bits >= 0x477ff000u) { /* 65520 and above round to infinity */
    return (uint16_t)(sign | 0x7c00);
  }
  if (bits < 0x38800000u) { /* below 2^-14: the sum's own rounding yields the subnormal */
    float shifted = spt_float_of_bits(bits) + 0.5f;
    return (uint16_t)(sign | (spt_bits_of_float(shifted) - 0x3f000000u));
  }
  uint32_t rounded = bits + 0xfff + (bits >> 13 & 1);
  return (uint16_t)(sign | (rounded - 0x38000000u) >> 13);
}

static inline float spt_load(const void *data, spt_dtype dtype, int64_t i) {
  switch (dtype) {
    case SPT_F16:
      return spt_float_of_f16(((const uint16_t *)data)[i]);
    case SPT_BF16:
      return spt_float_of_bf16(((const uint16_t *)data)[i]);
    default:
      return ((const float *)data)[i];
  }
}

static inline void spt_store(void *data, spt_dtype dtype, int64_t i, float value) {
  switch (dtype) {
    case SPT_F16:
      ((uint16_t *)data)[i] = spt_f16_of_float(value);
      break;
    case SPT_BF16:
      ((uint16_t *)data)[i] = spt_bf16_of_float(value);
      break;
    default:
      ((float *)data)[i] = value;
  }
}

#endif
