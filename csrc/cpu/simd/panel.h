/* Rows of a matrix in memory to a feature-major panel and back. */
#include "vec.h"

#if VEC_WIDTH == 16
/* 16 rows of 16 contiguous floats, transposed. A register is loaded with the same four columns of
 * four rows, four rows apart; then 4 x 4 blocks are transposed within its quarters. */
static inline __attribute__((always_inline)) void transpose_16x16(float *to, int64_t to_stride,
                                                                  const float *from,
                                                                  int64_t from_stride) {
#pragma GCC unroll 4
  for (int c = 0; c < 16; c += 4) {
    __m512 rows[4];
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++) {
      const float *at = from + r * from_stride + c;
      __m512 four = _mm512_castps128_ps512(_mm_loadu_ps(at));
      four = _mm512_insertf32x4(four, _mm_loadu_ps(at + 4 * from_stride), 1);
      four = _mm512_insertf32x4(four, _mm_loadu_ps(at + 8 * from_stride), 2);
      rows[r] = _mm512_insertf32x4(four, _mm_loadu_ps(at + 12 * from_stride), 3);
    }
    __m512 ab_low = _mm512_unpacklo_ps(rows[0], rows[1]);
    __m512 ab_high = _mm512_unpackhi_ps(rows[0], rows[1]);
    __m512 cd_low = _mm512_unpacklo_ps(rows[2], rows[3]);
    __m512 cd_high = _mm512_unpackhi_ps(rows[2], rows[3]);
    _mm512_storeu_ps(to + c * to_stride, _mm512_shuffle_ps(ab_low, cd_low, 0x44));
    _mm512_storeu_ps(to + (c + 1) * to_stride, _mm512_shuffle_ps(ab_low, cd_low, 0xee));
    _mm512_storeu_ps(to + (c + 2) * to_stride, _mm512_shuffle_ps(ab_high, cd_high, 0x44));
    _mm512_storeu_ps(to + (c + 3) * to_stride, _mm512_shuffle_ps(ab_high, cd_high, 0xee));
  }
}
#else
/* 16 rows of 16 contiguous floats, transposed. Blocks of 4 x 4 keep it in registers. */
static inline void transpose_16x16(float *to, int64_t to_stride, const float *from,
                                   int64_t from_stride) {
  for (int r = 0; r < 16; r += 4) {
    const float *row = from + r * from_stride;
    for (int c = 0; c < 16; c += 4) {
      __m128 a = _mm_loadu_ps(row + c), b = _mm_loadu_ps(row + from_stride + c);
      __m128 d = _mm_loadu_ps(row + 2 * from_stride + c),
             e = _mm_loadu_ps(row + 3 * from_stride + c);
      _MM_TRANSPOSE4_PS(a, b, d, e);
      float *out = to + c * to_stride + r;
      _mm_storeu_ps(out, a);
      _mm_storeu_ps(out + to_stride, b);
      _mm_storeu_ps(out + 2 * to_stride, d);
      _mm_storeu_ps(out + 3 * to_stride, e);
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
