/* Lanes of several panels into one. Lanes that are kept stay in order, so a register of them comes from
 * a few registers of each row: those are permuted, which took a quarter of the time of gathers. */
#include "vec.h"

/* Lane l of `a` where the mask is set becomes lane index[l] of what is at `from`. */
static inline vec_int vec_permute_into(vec_int a, vec_int mask, vec_int index,
                                       const uint32_t *from) {
  vec_int source = vec_load_pairs((const uint16_t *)from);
#if VEC_WIDTH == 16
  return (vec_int)_mm512_mask_permutexvar_epi32((__m512i)a, _mm512_movepi32_mask((__m512i)mask),
                                                (__m512i)index, (__m512i)source);
#else
  vec_int moved = (vec_int)_mm256_permutevar8x32_epi32((__m256i)source, (__m256i)index);
  return (moved & mask) | (a & ~mask);
#endif
}

typedef struct lane_sources {
  vec_int index, mask[VEC_WIDTH]; /* lanes of the register, and which of them source i gives */
  int64_t base[VEC_WIDTH];
  int n;
} lane_sources;

static lane_sources sources_of(const int64_t *at) {
  lane_sources s = {.n = 0};
  for (int l = 0; l < VEC_WIDTH; l++) {
    if (at[l] < 0) {
      continue;
    }
    int64_t base = at[l] / VEC_WIDTH * VEC_WIDTH;
    if (s.n == 0 || s.base[s.n - 1] != base) {
      s.base[s.n] = base;
      s.mask[s.n++] = (vec_int){0};
    }
    s.index[l] = (int32_t)(at[l] - base);
    s.mask[s.n - 1][l] = -1;
  }
  return s;
}

static void panel_gather(uint32_t *to, const uint32_t *from, const int64_t *at, int64_t rows) {
  for (int v = 0; v < VECS; v++) {
    const lane_sources s = sources_of(at + v * VEC_WIDTH);
    for (int64_t r = 0; r < rows; r++) {
      vec_int row = {0};
      for (int i = 0; i < s.n; i++) {
        row = vec_permute_into(row, s.mask[i], s.index, from + s.base[i] + r * SPT_LANES);
      }
      vec_store_pairs((uint16_t *)(to + r * SPT_LANES + v * VEC_WIDTH), row);
    }
  }
}
