#include "../half.h"
#include "../tier.h"

static void panel_pack(float *panel, const spt_matrix *m, int64_t row) {
  for (int64_t c = 0; c < m->cols; c++) {
    for (int64_t l = 0; l < SPT_LANES; l++) {
      bool inside = row + l < m->rows;
      int64_t at = (row + l) * m->row + c * m->col;
      panel[c * SPT_LANES + l] = inside ? spt_load(m->data, m->dtype, at) : 0.0f;
    }
  }
}

static void panel_gather(uint32_t *to, const uint32_t *from, const int64_t *at, int64_t rows) {
  for (int64_t r = 0; r < rows; r++) {
    for (int l = 0; l < SPT_LANES; l++) {
      to[r * SPT_LANES + l] = at[l] < 0 ? 0 : from[at[l] + r * SPT_LANES];
    }
  }
}

static void panel_unpack(const spt_matrix *m, int64_t row, const float *panel) {
  for (int64_t c = 0; c < m->cols; c++) {
    for (int64_t l = 0; l < SPT_LANES && row + l < m->rows; l++) {
      spt_store(m->data, m->dtype, (row + l) * m->row + c * m->col, panel[c * SPT_LANES + l]);
    }
  }
}
