/* The k smallest of n keys, in linear time whatever their order. */
#ifndef SPATILE_CPU_SELECT_H
#define SPATILE_CPU_SELECT_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "half.h"

/* Smaller keys for larger scores; 0 is no score's. Adding 0 makes -0 equal to 0. */
static inline uint32_t spt_select_key(float score) {
  uint32_t bits = spt_bits_of_float(score + 0.0f);
  return bits >> 31 ? bits : ~bits & 0x7fffffffu;
}

/* The selection: every key below `key`, and `ties` of those that equal it. */
typedef struct spt_selection {
  uint32_t key;
  int64_t ties;
} spt_selection;

/* In the keys' order: of those that equal the last selected one the first are. */
static inline bool spt_is_selected(spt_selection *s, uint32_t key) {
  return key < s->key || (key == s->key && s->ties-- > 0);
}

/* A row of which k of n are selected: their indices, `first` being that of its first, and where
 * `values` is given their scores too. */
typedef struct spt_kept_row {
  const uint32_t *keys;
  const float *scores;
  int64_t n, k, first;
  float *values;
  int64_t *indices;
} spt_kept_row;

#define SPT_SELECT_BITS 11

/* 1 <= k <= n: a few bits at a time, from the top, the k-th smallest is narrowed down by counting. The
 * keys are only read. */
static inline spt_selection spt_select_smallest(const uint32_t *keys, int64_t n, int64_t k) {
  /* More bits are fewer passes, but more counters to clear. */
  int digit = n < 4096 ? 8 : SPT_SELECT_BITS;
  uint32_t prefix = 0,
           known = 0; /* the bits of the k-th smallest found so far, and which they are */
  for (int shift = 32; shift > 0;) {
    int bits = digit < shift ? digit : shift;
    int64_t counts[1 << SPT_SELECT_BITS];
    uint32_t mask = (1u << bits) - 1, value = 0;
    shift -= bits;
    memset(counts, 0, sizeof *counts << bits);
    for (int64_t i = 0; i < n; i++) {
      if ((keys[i] & known) == prefix) {
        counts[keys[i] >> shift & mask]++;
      }
    }
    while (k > counts[value]) {
      k -= counts[value++];
    }
    prefix |= value << shift;
    known |= mask << shift;
    if (counts[value] == 1) { /* its other bits need no counting */
      int64_t i = 0;
      while ((keys[i] & known) != prefix) {
        i++;
      }
      return (spt_selection){.key = keys[i], .ties = 1};
    }
  }
  return (spt_selection){.key = prefix, .ties = k};
}

#endif
