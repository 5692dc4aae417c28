/* Rows of a matrix in memory to a feature-major panel and back. */
#include "vec.h"

/* 16 rows of 16 contiguous floats, transposed. Blocks of 4 x 4 keep it in registers. */
static inline void transpose_16x16(float *to, int64_t to_stride, const float *from,
                                   int64_t from_stride) {
  for (int r = 0; r < 16; r += 4) {
    const float *row = from + r * from_stride;
    for (int c = 0; c < 16; c += 4) {
      __m128 a = _mm_loadu_ps(row + c), b = _mm_loadu_ps(row + from_stride + c);
      __m128 d = _mm_loadu_ps(row + 2 * from_stride + c), e = _mm_loadu_ps(row + 3 * from_stride + c);
      _MM_TRANSPOSE4_PS(a, b, d, e);
      float *out = to + c * to_stride + r;
      _mm_storeu_ps(out, a);
      _mm_storeu_ps(out + to_stride, b);
      _mm_storeu_ps(out + 2 * to_stride, d);
      _mm_storeu_ps(out + 3 * to_stride, e);
    }
  }
}

static void panel_pack(float *panel, const spt_matrix *m, int64_t row) {
  int64_t lanes = m->rows - row < SPT_LANES ? m->rows - row : SPT_LANES;
  int64_t c = 0;
  if (lanes == SPT_LANES && m->dtype == SPT_F32 && m->col == 1) {
    const float *from = (const float *)m->data + row * m->row;
    for (; c + 16 <= m->cols; c += 16) {
      transpose_16x16(panel + c * SPT_LANES, SPT_LANES, from + c, m->row);
    }
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
  if (lanes == SPT_LANES && m->dtype == SPT_F32 && m->col == 1) {
    float *to = (float *)m->data + row * m->row;
    for (; c + 16 <= m->cols; c += 16) {
      transpose_16x16(to + c, m->row, panel + c * SPT_LANES, SPT_LANES);
    }
  }
  for (; c < m->cols; c++) {
    for (int64_t l = 0; l < lanes; l++) {
      spt_store(m->data, m->dtype, (row + l) * m->row + c * m->col, panel[c * SPT_LANES + l]);
    }
  }
}
