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
#elif defined(__AVX2__)
#include <immintrin.h>

/* For each set of 8 lanes their numbers, a byte each, one after another: what AVX2 has instead of
 * instructions that compress. */
#define LANE(set, lane)                                                                          \
  ((set) >> (lane) & 1 ? (uint64_t)(lane) << 8 * __builtin_popcount((set) & ((1 << (lane)) - 1)) \
                       : 0)
#define LANES_OF(set)                                                                        \
  (LANE(set, 0) | LANE(set, 1) | LANE(set, 2) | LANE(set, 3) | LANE(set, 4) | LANE(set, 5) | \
   LANE(set, 6) | LANE(set, 7))
#define SETS_4(set) LANES_OF(set), LANES_OF((set) + 1), LANES_OF((set) + 2), LANES_OF((set) + 3)
#define SETS_16(set) SETS_4(set), SETS_4((set) + 4), SETS_4((set) + 8), SETS_4((set) + 12)
#define SETS_64(set) SETS_16(set), SETS_16((set) + 16), SETS_16((set) + 32), SETS_16((set) + 48)
static const uint64_t lanes_of[256] = {SETS_64(0), SETS_64(64), SETS_64(128), SETS_64(192)};
#undef SETS_64
#undef SETS_16
#undef SETS_4
#undef LANES_OF
#undef LANE

/* The set's words, in their order, in the first lanes. */
static inline __m256i compress(__m256i words, int set) {
  __m128i lanes = _mm_cvtsi64_si128((long long)lanes_of[set]);
  return _mm256_permutevar8x32_epi32(words, _mm256_cvtepu8_epi32(lanes));
}

static inline int set_of(__m256i mask) { return _mm256_movemask_ps(_mm256_castsi256_ps(mask)); }

/* Lanes of a that are at most b's, as unsigned numbers. */
static inline int at_most(__m256i a, __m256i b) {
  return set_of(_mm256_cmpeq_epi32(_mm256_min_epu32(a, b), a));
}

/* Keys in [low, high] to `to`, in their order; returns how many. Up to 8 more are written, within n. */
static int64_t keys_between(uint32_t *to, const uint32_t *keys, int64_t n, uint32_t low,
                            uint32_t high) {
  const __m256i base = _mm256_set1_epi32((int)low), span = _mm256_set1_epi32((int)(high - low));
  int64_t kept = 0, i = 0;
  for (; i + 8 <= n; i += 8) {
    __m256i key = _mm256_loadu_si256((const __m256i *)(keys + i));
    int inside = at_most(_mm256_sub_epi32(key, base), span);
    _mm256_storeu_si256((__m256i *)(to + kept), compress(key, inside));
    kept += __builtin_popcount((unsigned)inside);
  }
  for (; i < n; i++) {
    to[kept] = keys[i]; /* counted or not: a branch here would be taken at random */
    kept += keys[i] - low <= high - low;
  }
  return kept;
}

/* Of a set's lanes the first `*ties`. */
static inline int first_ties(int equal, int64_t *ties) {
  while (__builtin_popcount((unsigned)equal) > *ties) {
    equal &= ~(1 << (31 - __builtin_clz((unsigned)equal)));
  }
  *ties -= __builtin_popcount((unsigned)equal);
  return equal;
}

/* Which of 8 keys are selected. */
static inline int selected(const uint32_t *keys, __m256i key, int64_t *ties) {
  __m256i here = _mm256_loadu_si256((const __m256i *)keys);
  int taken = at_most(here, key), equal = set_of(_mm256_cmpeq_epi32(here, key));
  return equal == 0 ? taken : (taken & ~equal) | first_ties(equal, ties);
}

static void keep_row(const spt_kept_row *row, spt_selection most) {
  const __m256i key = _mm256_set1_epi32((int)most.key);
  int64_t kept = 0, i = 0;
  /* Eight are written whatever is taken, so the last few go one by one. */
  for (; i + 8 <= row->n && kept + 8 <= row->k; i += 8) {
    int taken = selected(row->keys + i, key, &most.ties);
    __m128i lanes = _mm_cvtsi64_si128((long long)lanes_of[taken]);
    __m256i first = _mm256_set1_epi64x(row->first + i);
    __m256i *to = (__m256i *)(row->indices + kept);
    _mm256_storeu_si256(to, _mm256_add_epi64(_mm256_cvtepu8_epi64(lanes), first));
    lanes = _mm_srli_epi64(lanes, 32);
    _mm256_storeu_si256(to + 1, _mm256_add_epi64(_mm256_cvtepu8_epi64(lanes), first));
    if (row->values != NULL) {
      __m256i words = _mm256_loadu_si256((const __m256i *)(row->scores + i));
      _mm256_storeu_si256((__m256i *)(row->values + kept), compress(words, taken));
    }
    kept += __builtin_popcount((unsigned)taken);
  }
  while (kept < row->k) {
    bool whole = i + 8 <= row->n;
    int taken =
        whole ? selected(row->keys + i, key, &most.ties) : spt_is_selected(&most, row->keys[i]);
    for (; taken != 0; taken &= taken - 1, kept++) {
      int64_t at = i + __builtin_ctz((unsigned)taken);
      row->indices[kept] = row->first + at;
      if (row->values != NULL) {
        row->values[kept] = row->scores[at];
      }
    }
    i += whole ? 8 : 1;
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
