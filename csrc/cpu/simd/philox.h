/* Philox (philox.h) for the queries of a panel at once. Even and odd lanes go separately in 64-bit
 * elements, where one instruction multiplies 32 x 32 bits to 64 and upper halves may hold anything. */
#ifndef SPATILE_CPU_SIMD_PHILOX_H
#define SPATILE_CPU_SIMD_PHILOX_H

#include "../philox.h"
#include "vec.h"

typedef uint64_t vec_long __attribute__((vector_size(VEC_BYTES)));
typedef uint32_t vec_unsigned __attribute__((vector_size(VEC_BYTES)));

static inline vec_long even_lanes(void) {
  static const uint64_t numbers[8] = {0, 2, 4, 6, 8, 10, 12, 14};
  vec_long lanes;
  memcpy(&lanes, numbers, sizeof lanes);
  return lanes;
}

static inline vec_long multiply_32(vec_long a, uint32_t b) {
#if VEC_WIDTH == 16
  return (vec_long)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(b));
#else
  return (vec_long)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(b));
#endif
}

/* keep[w][v]: all bits where key 4 * block + w survives for the queries of register v, else none;
 * lane 0 is `query`. */
static inline void philox_keep(vec_int keep[4][VECS], const spt_attention_dropout *p,
                               uint32_t block, uint32_t query) {
  for (int v = 0; v < VECS; v++) {
    vec_long c[2][4];
    for (int odd = 0; odd < 2; odd++) {
      c[odd][0] = block - (vec_long){0};
      c[odd][2] = p->head - (vec_long){0};
      c[odd][3] = p->sequence - (vec_long){0};
      c[odd][1] = even_lanes() + (uint64_t)(query + (uint32_t)(v * VEC_WIDTH + odd));
    }
    uint32_t k0 = (uint32_t)p->seed, k1 = (uint32_t)(p->seed >> 32);
    for (int round = 0; round < PHILOX_ROUNDS; round++) {
#pragma GCC unroll 2
      for (int odd = 0; odd < 2; odd++) {
        vec_long a = multiply_32(c[odd][0], PHILOX_MULTIPLIER_0);
        vec_long b = multiply_32(c[odd][2], PHILOX_MULTIPLIER_1);
        c[odd][0] = b >> 32 ^ c[odd][1] ^ k0;
        c[odd][1] = b;
        c[odd][2] = a >> 32 ^ c[odd][3] ^ k1;
        c[odd][3] = a;
      }
      k0 += PHILOX_WEYL_0;
      k1 += PHILOX_WEYL_1;
    }
    for (int w = 0; w < 4; w++) {
      vec_unsigned words = (vec_unsigned)((c[0][w] & 0xffffffffu) | c[1][w] << 32);
      keep[w][v] = (vec_int)(words >= p->threshold);
    }
  }
}

#endif
