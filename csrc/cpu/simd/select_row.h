/* Loops over the keys of a row (select.h), compiled once for each tier. */
#include "../select.h"

/* Keys of n scores; false where one is NaN. */
static bool select_keys(uint32_t *keys, const float *scores, int64_t n) {
  uint32_t nan = 0;
  for (int64_t i = 0; i < n; i++) {
    nan |= scores[i] != scores[i];
    keys[i] = spt_select_key(scores[i]);
  }
  return nan == 0;
}

/* How many of fewer than 2^31 keys are below the pivot. */
static int64_t count_below(const uint32_t *keys, int64_t n, uint32_t pivot) {
  uint32_t count = 0;
  for (int64_t i = 0; i < n; i++) {
    count += keys[i] < pivot;
  }
  return count;
}

#if defined(__AVX512F__)
#include <immintrin.h>

static inline void store_first(void *to, __m512i words, int n) {
  _mm512_mask_storeu_epi32(to, (__mmask16)((1u << n) - 1), words);
}

/* Keys in [low, high] to `to`, in their order; returns how many. */
static int64_t keys_between(uint32_t *to, const uint32_t *keys, int64_t n, uint32_t low,
                            uint32_t high) {
  const __m512i base = _mm512_set1_epi32((int)low), span = _mm512_set1_epi32((int)(high - low));
  int64_t kept = 0;
  for (int64_t i = 0; i < n; i += 16) {
    __mmask16 here = n - i < 16 ? (__mmask16)((1u << (n - i)) - 1) : 0xffff;
    __m512i key = _mm512_maskz_loadu_epi32(here, keys + i);
    __mmask16 inside = _mm512_mask_cmple_epu32_mask(here, _mm512_sub_epi32(key, base), span);
    int count = __builtin_popcount(inside);
    store_first(to + kept, _mm512_maskz_compress_epi32(inside, key), count);
    kept += count;
  }
  return kept;
}

/* Of the lanes in `equal` the first `*ties`. */
static inline __mmask16 first_ties(__mmask16 equal, int64_t *ties) {
  uint32_t taken = equal;
  while (__builtin_popcount(taken) > *ties) {
    taken &= ~(1u << (31 - __builtin_clz(taken)));
  }
  *ties -= __builtin_popcount(taken);
  return (__mmask16)taken;
}

static void keep_row(const spt_kept_row *row, spt_selection most) {
  const __m512i key = _mm512_set1_epi32((int)most.key);
  const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  int64_t kept = 0;
  for (int64_t i = 0; i < row->n; i += 16) {
    __mmask16 here = row->n - i < 16 ? (__mmask16)((1u << (row->n - i)) - 1) : 0xffff;
    __m512i keys = _mm512_maskz_loadu_epi32(here, row->keys + i);
    __mmask16 taken = _mm512_mask_cmplt_epu32_mask(here, keys, key);
    __mmask16 equal = _mm512_mask_cmpeq_epu32_mask(here, keys, key);
    if (equal != 0) {
      taken |= first_ties(equal, &most.ties);
    }
    int count = __builtin_popcount(taken), more = count > 8 ? count - 8 : 0;
    __m512i index = _mm512_maskz_compress_epi32(taken, lanes);
    __m512i first = _mm512_set1_epi64(row->first + i);
    __m512i low = _mm512_cvtepi32_epi64(_mm512_castsi512_si256(index));
    __m512i high = _mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64(index, 1));
    _mm512_mask_storeu_epi64(row->indices + kept, (__mmask8)((1u << (count - more)) - 1),
                             _mm512_add_epi64(low, first));
    if (more > 0) {
      _mm512_mask_storeu_epi64(row->indices + kept + 8, (__mmask8)((1u << more) - 1),
                               _mm512_add_epi64(high, first));
    }
    if (row->values != NULL) {
      __m512i words = _mm512_maskz_loadu_epi32(taken, row->scores + i);
      store_first(row->values + kept, _mm512_maskz_compress_epi32(taken, words), count);
    }
    kept += count;
  }
}
#else
static int64_t keys_between(uint32_t *to, const uint32_t *keys, int64_t n, uint32_t low,
                            uint32_t high) {
  int64_t kept = 0;
  for (int64_t i = 0; i < n; i++) {
    to[kept] = keys[i]; /* counted or not: a branch here would be taken at random */
    kept += keys[i] - low <= high - low;
  }
  return kept;
}

static void keep_row(const spt_kept_row *row, spt_selection most) {
  int64_t kept = 0;
  for (int64_t i = 0; kept < row->k; i++) {
    bool equal = row->keys[i] == most.key;
    bool taken = row->keys[i] < most.key || (equal && most.ties > 0);
    row->indices[kept] = row->first + i;
    if (row->values != NULL) {
      row->values[kept] = row->scores[i];
    }
    most.ties -= equal;
    kept += taken;
  }
}
#endif
