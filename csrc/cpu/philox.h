/* Philox4x32-10 (Salmon et al., SC 2011; constants of Random123) for attention's dropout: the four
 * words that decide keys 4 n to 4 n + 3, for 16 neighbouring queries at once. Compiled once per tier:
 * each line of the loop is one vector operation where the tier has any. */
#ifndef SPATILE_CPU_PHILOX_H
#define SPATILE_CPU_PHILOX_H

#include "tier.h"

/* keep[w][l] is 1 where key 4 * block + w survives for query + l, else 0. */
static inline void philox_keep(float keep[4][SPT_LANES], const spt_attention_dropout *p,
                               uint32_t block, uint32_t query) {
  uint32_t c0[SPT_LANES], c1[SPT_LANES], c2[SPT_LANES], c3[SPT_LANES];
  for (uint32_t l = 0; l < SPT_LANES; l++) {
    c0[l] = block;
    c1[l] = query + l;
    c2[l] = p->head;
    c3[l] = p->sequence;
  }
  uint32_t k0 = (uint32_t)p->seed, k1 = (uint32_t)(p->seed >> 32);
  for (int round = 0; round < 10; round++) {
    for (int l = 0; l < SPT_LANES; l++) {
      uint64_t a = (uint64_t)c0[l] * 0xD2511F53u, b = (uint64_t)c2[l] * 0xCD9E8D57u;
      c0[l] = (uint32_t)(b >> 32) ^ c1[l] ^ k0;
      c1[l] = (uint32_t)b;
      c2[l] = (uint32_t)(a >> 32) ^ c3[l] ^ k1;
      c3[l] = (uint32_t)a;
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  for (int l = 0; l < SPT_LANES; l++) {
    keep[0][l] = c0[l] >= p->threshold ? 1.0f : 0.0f;
    keep[1][l] = c1[l] >= p->threshold ? 1.0f : 0.0f;
    keep[2][l] = c2[l] >= p->threshold ? 1.0f : 0.0f;
    keep[3][l] = c3[l] >= p->threshold ? 1.0f : 0.0f;
  }
}

#endif
