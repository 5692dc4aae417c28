/* philox.cuh: the counter-based generator behind dropout: Philox4x32-10 (Salmon et al., SC 2011, with
 * the constants of Random123), the same words as csrc/cpu/philox.h and spatile.reference.philox. */
#ifndef SPATILE_CUDA_PHILOX_CUH
#define SPATILE_CUDA_PHILOX_CUH

#include "launch.h"

#define SPT_PHILOX_ROUNDS 10

struct spt_philox_counter {
  uint32_t word[4];
};

/* The four words of a counter; the key is the seed, its low half first. About 80 integer operations,
 * of which 20 are 32 x 32 -> 64 bit products. */
static __device__ __forceinline__ spt_philox_counter spt_philox(spt_philox_counter c,
                                                                uint64_t seed) {
  uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
#pragma unroll
  for (int round = 0; round < SPT_PHILOX_ROUNDS; round++) {
    uint64_t a = (uint64_t)c.word[0] * 0xD2511F53u, b = (uint64_t)c.word[2] * 0xCD9E8D57u;
    c = {{(uint32_t)(b >> 32) ^ c.word[1] ^ k0, (uint32_t)b, (uint32_t)(a >> 32) ^ c.word[3] ^ k1,
          (uint32_t)a}};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

/* Attention's dropout: the words of keys 4 n to 4 n + 3 for one query. Key j's probability is kept iff
 * word j mod 4 is at least floor(p · 2^32). Positions are those within the sequence. */
static __device__ __forceinline__ spt_philox_counter spt_philox_of_keys(
    uint64_t seed, uint32_t four_keys, uint32_t query, uint32_t head, uint32_t sequence) {
  return spt_philox({{four_keys, query, head, sequence}}, seed);
}

/* Dropout of an array's elements by their number n: word n / 16 mod 4 of counter n / 64 · 16 + n mod
 * 16. The last word of the counter is none of attention's. */
static __device__ __forceinline__ spt_philox_counter spt_philox_of_elements(uint64_t seed,
                                                                            uint64_t counter) {
  return spt_philox({{(uint32_t)counter, (uint32_t)(counter >> 32), 0, 0xffffffffu}}, seed);
}

#endif
