/* The AMX tier's products, reachable from Python: compiled with SPATILE_EMULATE_AMX, or for AMX's own
 * instructions. */
#include "../../csrc/cpu/simd/linear_amx.h"

#define EXPORT __attribute__((visibility("default")))

/* y (panels, 16 strips, 16) = strips of weights times x (panels, pairs, 16, 2). */
EXPORT void multiply(int64_t n_strips, const int64_t *run_ptr, const int64_t *value_ptr,
                     const int32_t *run_start, const int32_t *run_len, const uint16_t *values,
                     int64_t pairs, int64_t panels, const uint16_t *x, float *y) {
  spt_strips_bf16 strips = {.shape = {.out = n_strips * SPT_STRIP,
                                      .in = 2 * pairs,
                                      .n_strips = n_strips,
                                      .run_ptr = run_ptr,
                                      .value_ptr = value_ptr,
                                      .run_start = run_start,
                                      .run_len = run_len},
                            .values = values};
  spt_panel_product p = {.strips_bf16 = &strips,
                         .x_pairs = x,
                         .x_stride = 2 * pairs * SPT_LANES,
                         .y = y,
                         .y_stride = n_strips * SPT_STRIP * SPT_LANES};
  panel_linear_bf16(&p, 0, n_strips, 0, panels);
}

/* One instruction: sum (rows, 16) += a (rows, row bytes) · b, the shapes as `config` says. */
EXPORT void dot(const amx_config *config, float *sum, const uint16_t *a, const uint16_t *b) {
  amx_configure(config);
  amx_load(0, sum, 64);
  amx_load(1, a, 64);
  amx_load(2, b, 64);
  amx_dot_bf16(0, 1, 2);
  amx_store(0, sum, 64);
  amx_release();
}

/* What another library may have left behind: a configuration that fits none of ours. */
EXPORT void configure_otherwise(void) {
  static const amx_config config = {.palette = 1, .row_bytes = {4, 8}, .rows = {1, 2}};
  amx_configure(&config);
}

EXPORT void load_after_product(const void *from) {
  multiply(0, NULL, NULL, NULL, NULL, NULL, 1, 1, from, NULL);
  amx_load(0, from, 64);
}
