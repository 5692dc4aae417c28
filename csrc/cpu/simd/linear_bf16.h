/* panel_linear_bf16 by the loop of linear.h, a pair of columns for a column. */
#include "linear.h"

static void panel_linear_bf16(const spt_panel_product *p, int64_t strip_begin, int64_t strip_end,
                              int64_t panel_begin, int64_t panel_end) {
  strip_operands o = {.p = p,
                      .w = &p->strips_bf16->shape,
                      .values = (const word *)p->strips_bf16->values,
                      .x = (const word *)p->x_pairs,
                      .x_stride = p->x_stride / 2};
  int lines = lines_ahead(panel_end - panel_begin, LINEAR_ROWS_BF16);
  for (int64_t strip = strip_begin; strip < strip_end; strip++) {
    multiply_strip(&o, strip, panel_begin, panel_end, lines, true);
  }
}
