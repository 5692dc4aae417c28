/* Dropout of a row of elements; tier.h says which survive. */
#include "philox.h"

/* kept[i], i < 64: all bits where element 64 * block + i survives, else none. */
static inline void keep_block(vec_int kept[64 / VEC_WIDTH], const spt_element_dropout *p,
                              uint64_t block) {
  const int registers = SPT_LANES / VEC_WIDTH;
  for (int v = 0; v < registers; v++) {
    vec_long c[2][4];
    for (int odd = 0; odd < 2; odd++) {
      vec_long counter = even_lanes() + (block * SPT_LANES + (uint64_t)(v * VEC_WIDTH + odd));
      c[odd][0] = counter;
      c[odd][1] = counter >> 32;
      c[odd][2] = (vec_long){0};
      c[odd][3] = SPT_DROPOUT_STREAM - (vec_long){0};
    }
    uint32_t k0 = (uint32_t)p->seed, k1 = (uint32_t)(p->seed >> 32);
#pragma GCC unroll 10
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
      kept[w * registers + v] = (vec_int)(words >= p->threshold);
    }
  }
}

static void dropout_row(float *y, const float *x, uint64_t first, int64_t n,
                        const spt_element_dropout *p) {
  vec scale = vec_set(p->kept_scale);
  for (int64_t i = 0; i < n;) {
    vec_int kept[64 / VEC_WIDTH];
    uint64_t block = (first + (uint64_t)i) / 64;
    int64_t from = (int64_t)((first + (uint64_t)i) % 64), left = n - i;
    keep_block(kept, p, block);
    if (from == 0 && left >= 64) {
#pragma GCC unroll 8
      for (int v = 0; v < 64 / VEC_WIDTH; v++) {
        vec scaled = vec_load(x + i + v * VEC_WIDTH) * scale;
        vec_store(y + i + v * VEC_WIDTH, (vec)((vec_int)scaled & kept[v]));
      }
      i += 64;
      continue;
    }
    int32_t bits[64];
    memcpy(bits, kept, sizeof bits);
    for (; from < 64 && i < n; from++, i++) {
      y[i] = bits[from] ? x[i] * p->kept_scale : 0.0f;
    }
  }
}
