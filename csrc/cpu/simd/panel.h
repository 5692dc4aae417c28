/* Rows of a matrix in memory to a feature-major panel and back. */
#include "vec.h"

/* 16 rows of 16 contiguous floats, transposed. Each row is read and each is written by whole
 * registers: rows are often a multiple of 4096 bytes apart, so that they share one set of the cache,
 * and a row that was written in pieces would leave the cache between them. */
#if VEC_WIDTH == 16
static inline void transpose_16x16(float *to, int64_t to_stride, const float *from,
                                   int64_t from_stride) {
  __m512 a[16], b[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) {
    a[i] = _mm512_loadu_ps(from + i * from_stride);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) { /* pairs of rows */
    b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) { /* a[i + c]: column c of each 128 bits, of 4 rows */
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
      __m512d low = _mm512_castps_pd(b[i + half]), high = _mm512_castps_pd(b[i + half + 2]);
      a[i + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
      a[i + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
    }
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; c++) { /* the four 128-bit parts of four such registers */
    __m512 even_top = _mm512_shuffle_f32x4(a[c], a[4 + c], 0x88);
    __m512 odd_top = _mm512_shuffle_f32x4(a[c], a[4 + c], 0xdd);
    __m512 even_low = _mm512_shuffle_f32x4(a[8 + c], a[12 + c], 0x88);
    __m512 odd_low = _mm512_shuffle_f32x4(a[8 + c], a[12 + c], 0xdd);
    _mm512_storeu_ps(to + c * to_stride, _mm512_shuffle_f32x4(even_top, even_low, 0x88));
    _mm512_storeu_ps(to + (4 + c) * to_stride, _mm512_shuffle_f32x4(odd_top, odd_low, 0x88));
    _mm512_storeu_ps(to + (8 + c) * to_stride, _mm512_shuffle_f32x4(even_top, even_low, 0xdd));
    _mm512_storeu_ps(to + (12 + c) * to_stride, _mm512_shuffle_f32x4(odd_top, odd_low, 0xdd));
  }
}
#else
static inline void transpose_8x8(float *to, int64_t to_stride, const float *from,
                                 int64_t from_stride) {
  __m256 a[8], b[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) {
    a[i] = _mm256_loadu_ps(from + i * from_stride);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    a[i] = _mm256_shuffle_ps(b[i], b[i + 2], 0x44);
    a[i + 1] = _mm256_shuffle_ps(b[i], b[i + 2], 0xee);
    a[i + 2] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44);
    a[i + 3] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; c++) {
    _mm256_storeu_ps(to + c * to_stride, _mm256_permute2f128_ps(a[c], a[4 + c], 0x20));
    _mm256_storeu_ps(to + (4 + c) * to_stride, _mm256_permute2f128_ps(a[c], a[4 + c], 0x31));
  }
}

static inline void transpose_16x16(float *to, int64_t to_stride, const float *from,
                                   int64_t from_stride) {
  for (int r = 0; r < 16; r += 8) {
    for (int c = 0; c < 16; c += 8) {
      transpose_8x8(to + c * to_stride + r, to_stride, from + r * from_stride + c, from_stride);
    }
  }
}
#endif

/* 16 neighbouring elements of a row, as floats and back. */
static inline void load_16(float *to, const void *data, spt_dtype dtype, int64_t at) {
  for (int i = 0; i < 16; i += VEC_WIDTH) {
    const uint16_t *half = (const uint16_t *)data + at + i;
    vec_store(to + i, dtype == SPT_F16    ? vec_load_f16(half)
                      : dtype == SPT_BF16 ? vec_load_bf16(half)
                                          : vec_load((const float *)data + at + i));
  }
}

static inline void store_16(void *data, spt_dtype dtype, int64_t at, const float *from) {
  for (int i = 0; i < 16; i += VEC_WIDTH) {
    uint16_t *half = (uint16_t *)data + at + i;
    if (dtype == SPT_F16) {
      vec_store_f16(half, vec_load(from + i));
    } else if (dtype == SPT_BF16) {
      vec_store_bf16(half, vec_load(from + i));
    } else {
      vec_store((float *)data + at + i, vec_load(from + i));
    }
  }
}

/* 16 rows are more streams than the processor's own prefetchers follow. */
#define PACK_AHEAD 48

static void panel_pack(float *panel, const spt_matrix *m, int64_t row) {
  int64_t lanes = m->rows - row < SPT_LANES ? m->rows - row : SPT_LANES;
  int64_t c = 0;
  bool whole = lanes == SPT_LANES && m->dtype == SPT_F32;
  for (; m->col == 1 && c + 16 <= m->cols; c += 16) {
    float *to = panel + c * SPT_LANES;
    if (whole) {
      const float *ahead = (const float *)m->data + row * m->row + c + PACK_AHEAD;
      for (int l = 0; c + PACK_AHEAD < m->cols && l < SPT_LANES; l++) {
        _mm_prefetch((const char *)(ahead + l * m->row), _MM_HINT_T0);
      }
      transpose_16x16(to, SPT_LANES, (const float *)m->data + row * m->row + c, m->row);
      continue;
    }
    float tile[SPT_LANES * 16];
    for (int64_t l = 0; l < lanes; l++) {
      load_16(tile + l * 16, m->data, m->dtype, (row + l) * m->row + c);
    }
    memset(tile + lanes * 16, 0, (size_t)(SPT_LANES - lanes) * 16 * sizeof *tile);
    transpose_16x16(to, SPT_LANES, tile, 16);
  }
  for (; c < m->cols; c++) {
    for (int64_t l = 0; l < SPT_LANES; l++) {
      panel[c * SPT_LANES + l] =
          l < lanes ? spt_load(m->data, m->dtype, (row + l) * m->row + c * m->col) : 0.0f;
    }
  }
}

static void panel_unpack(const spt_matrix *m, int64_t row, const float *panel) {
  int64_t lanes = m->rows - row < SPT_LANES ? m->rows - row : SPT_LANES;
  int64_t c = 0;
  bool whole = lanes == SPT_LANES && m->dtype == SPT_F32;
  for (; m->col == 1 && c + 16 <= m->cols; c += 16) {
    const float *from = panel + c * SPT_LANES;
    if (whole) {
      transpose_16x16((float *)m->data + row * m->row + c, m->row, from, SPT_LANES);
      continue;
    }
    float tile[SPT_LANES * 16];
    transpose_16x16(tile, 16, from, SPT_LANES);
    for (int64_t l = 0; l < lanes; l++) {
      store_16(m->data, m->dtype, (row + l) * m->row + c, tile + l * 16);
    }
  }
  for (; c < m->cols; c++) {
    for (int64_t l = 0; l < lanes; l++) {
      spt_store(m->data, m->dtype, (row + l) * m->row + c * m->col, panel[c * SPT_LANES + l]);
    }
  }
}
