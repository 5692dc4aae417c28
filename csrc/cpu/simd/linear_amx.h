/* panel_linear_bf16 by AMX. A block of weights, 16 rows of 16 pairs, is a tile of 16 rows of 64 bytes;
 * 16 pairs of a pair panel are the tile that it multiplies; the sums of 16 rows and 16 tokens come out
 * as a float32 panel holds them. So nothing is rearranged. A run's last block may have 8 pairs.
 *
 * Shapes belong to the registers: with four of their own for the two sizes of a block one
 * configuration serves a whole call, and four are left for sums. */
#include "../amx_tile.h"
#include "linear.h"

#define AMX_PANELS 4
#define AMX_WEIGHTS_16 4
#define AMX_X_16 5
#define AMX_WEIGHTS_8 6
#define AMX_X_8 7

static const amx_config amx_blocks = {
    .palette = 1,
    .row_bytes = {64, 64, 64, 64, [AMX_WEIGHTS_16] = 64, [AMX_X_16] = 64, [AMX_WEIGHTS_8] = 32,
                  [AMX_X_8] = 64},
    .rows = {16, 16, 16, 16, [AMX_WEIGHTS_16] = 16, [AMX_X_16] = 16, [AMX_WEIGHTS_8] = 16,
             [AMX_X_8] = 8},
};

#define PAIR_BYTES (SPT_LANES * 2 * (int64_t)sizeof(uint16_t)) /* of a panel: a tile's row */

#define ADD_PANEL(sum, weights, xs)                 \
  if (panels > sum) {                               \
    amx_load(xs, x + (sum) * x_stride, PAIR_BYTES); \
    amx_dot_bf16(sum, weights, xs);                 \
  }

static inline
    __attribute__((always_inline)) void add_16_pairs(const uint16_t *weight, const uint16_t *x,
                                                     int64_t x_stride, const int panels) {
  amx_load(AMX_WEIGHTS_16, weight, 64);
  ADD_PANEL(0, AMX_WEIGHTS_16, AMX_X_16)
  ADD_PANEL(1, AMX_WEIGHTS_16, AMX_X_16)
  ADD_PANEL(2, AMX_WEIGHTS_16, AMX_X_16)
  ADD_PANEL(3, AMX_WEIGHTS_16, AMX_X_16)
}

static inline __attribute__((always_inline)) void add_8_pairs(const uint16_t *weight,
                                                              const uint16_t *x, int64_t x_stride,
                                                              const int panels) {
  amx_load(AMX_WEIGHTS_8, weight, 32);
  ADD_PANEL(0, AMX_WEIGHTS_8, AMX_X_8)
  ADD_PANEL(1, AMX_WEIGHTS_8, AMX_X_8)
  ADD_PANEL(2, AMX_WEIGHTS_8, AMX_X_8)
  ADD_PANEL(3, AMX_WEIGHTS_8, AMX_X_8)
}

#undef ADD_PANEL

static inline void zero_tile_sums(void) {
  amx_zero(0);
  amx_zero(1);
  amx_zero(2);
  amx_zero(3);
}

#define STORE_PANEL(sum)                                               \
  if (panels > sum) {                                                  \
    amx_store(sum, product[0] + (sum) * SPT_LANES, sizeof product[0]); \
  }

static inline
    __attribute__((always_inline)) void store_tile_sums(float (*product)[AMX_PANELS * SPT_LANES],
                                                        const int panels) {
  STORE_PANEL(0)
  STORE_PANEL(1)
  STORE_PANEL(2)
  STORE_PANEL(3)
}

#undef STORE_PANEL

static inline
    __attribute__((always_inline)) void strip_product_amx(const spt_panel_product *p, int64_t strip,
                                                          int64_t panel, prefetch next,
                                                          const int panels) {
  const spt_strips *w = &p->strips_bf16->shape;
  const uint16_t *weight = p->strips_bf16->values + w->value_ptr[strip] * SPT_STRIP * 2;
  const uint16_t *x_panel = p->x_pairs + panel * p->x_stride;
  zero_tile_sums();
  for (int64_t run = w->run_ptr[strip]; run < w->run_ptr[strip + 1]; run++) {
    const uint16_t *x = x_panel + (int64_t)w->run_start[run] * SPT_LANES * 2;
    for (int32_t left = w->run_len[run]; left > 0; left -= 16) {
      int lines = left < 16 ? (next.lines + 1) / 2 : next.lines;
      for (int i = 0; i < lines; i++, next.at += 64) {
        _mm_prefetch(next.at, _MM_HINT_T1);
      }
      if (left < 16) {
        add_8_pairs(weight, x, p->x_stride, panels);
        weight += 8 * SPT_STRIP * 2;
        break;
      }
      add_16_pairs(weight, x, p->x_stride, panels);
      weight += 16 * SPT_STRIP * 2;
      x += 16 * SPT_LANES * 2;
    }
  }
  float product[SPT_STRIP][AMX_PANELS * SPT_LANES] __attribute__((aligned(64)));
  store_tile_sums(product, panels);
  finish_rows(p, w, strip, 0, SPT_STRIP, panel, panels, product[0], AMX_PANELS * SPT_LANES);
}

static void multiply_strip_amx(const spt_panel_product *p, int64_t strip, int64_t panel_begin,
                               int64_t panel_end, int lines) {
  const int64_t *pairs = p->strips_bf16->shape.value_ptr + strip;
  int64_t far = pairs[1] > pairs[0] + PREFETCH_STEPS ? pairs[1] : pairs[0] + PREFETCH_STEPS;
  const char *ahead = (const char *)(p->strips_bf16->values + far * SPT_STRIP * 2);
  int64_t segment = (pairs[1] - pairs[0]) * lines / 16 * 64;
  for (int64_t panel = panel_begin; panel < panel_end; panel += AMX_PANELS, ahead += segment) {
    prefetch next = {ahead, lines};
    switch (panel_end - panel) {
      case 1:
        strip_product_amx(p, strip, panel, next, 1);
        break;
      case 2:
        strip_product_amx(p, strip, panel, next, 2);
        break;
      case 3:
        strip_product_amx(p, strip, panel, next, 3);
        break;
      default:
        strip_product_amx(p, strip, panel, next, 4);
    }
  }
}

/* The tiles are this thread's, and another library's configuration may be loaded: so both ends of a
 * call are ours. */
static void panel_linear_bf16(const spt_panel_product *p, int64_t strip_begin, int64_t strip_end,
                              int64_t panel_begin, int64_t panel_end) {
  int64_t passes = (panel_end - panel_begin + AMX_PANELS - 1) / AMX_PANELS;
  int lines = (int)((16 + passes - 1) / passes);
  amx_configure(&amx_blocks);
  for (int64_t strip = strip_begin; strip < strip_end; strip++) {
    multiply_strip_amx(p, strip, panel_begin, panel_end, lines);
  }
  amx_release();
}
