/* Philox4x32-10 (Salmon et al., SC 2011; constants of Random123) for dropout: the plain
 * version, which the scalar tier runs. simd/philox.h gives the same words, a register at a time. */
#ifndef SPATILE_CPU_PHILOX_H
#define SPATILE_CPU_PHILOX_H

#include "tier.h"

#define PHILOX_ROUNDS 10
#define PHILOX_MULTIPLIER_0 0xD2511F53u
#define PHILOX_MULTIPLIER_1 0xCD9E8D57u
#define PHILOX_WEYL_0 0x9E3779B9u
#define PHILOX_WEYL_1 0xBB67AE85u

/* The four words of counter c, in its place. */
static inline void philox_words(uint32_t c[4], uint64_t seed) {
  uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
  for (int round = 0; round < PHILOX_ROUNDS; round++) {
    uint64_t a = (uint64_t)c[0] * PHILOX_MULTIPLIER_0, b = (uint64_t)c[2] * PHILOX_MULTIPLIER_1;
    c[0] = (uint32_t)(b >> 32) ^ c[1] ^ k0;
    c[1] = (uint32_t)b;
    c[2] = (uint32_t)(a >> 32) ^ c[3] ^ k1;
    c[3] = (uint32_t)a;
    k0 += PHILOX_WEYL_0;
    k1 += PHILOX_WEYL_1;
  }
}

/* Whether the probability of (query, key) survives: word key mod 4 of counter
 * (key / 4, query, head, sequence) under the seed as key. */
static inline bool philox_keeps(const spt_attention_dropout *p, uint32_t query, uint32_t key) {
  uint32_t c[4] = {key / 4, query, p->head, p->sequence};
  philox_words(c, p->seed);
  return c[key % 4] >= p->threshold;
}

#endif
