/* The k smallest of n keys in linear time whatever their order: one byte of the keys at a time, the
 * k-th smallest is narrowed down by counting. The keys are only read. */
#ifndef SPATILE_CPU_SELECT_H
#define SPATILE_CPU_SELECT_H

#include <stdint.h>
#include <string.h>

/* The selection: every key below `key`, and `ties` of those that equal it. */
typedef struct spt_selection {
  uint32_t key;
  int64_t ties;
} spt_selection;

/* 1 <= k <= n */
static inline spt_selection spt_select_smallest(const uint32_t *keys, int64_t n, int64_t k) {
  uint32_t prefix = 0,
           known = 0; /* the bits of the k-th smallest found so far, and which they are */
  for (int shift = 24; shift >= 0; shift -= 8) {
    int64_t counts[256] = {0};
    for (int64_t i = 0; i < n; i++) {
      if ((keys[i] & known) == prefix) {
        counts[keys[i] >> shift & 0xff]++;
      }
    }
    uint32_t byte = 0;
    while (k > counts[byte]) {
      k -= counts[byte++];
    }
    prefix |= byte << shift;
    known |= 0xffu << shift;
  }
  return (spt_selection){.key = prefix, .ties = k};
}

#endif
