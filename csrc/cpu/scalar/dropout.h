#include "../philox.h"

static void dropout_row(float *y, const float *x, uint64_t first, int64_t n,
                        const spt_element_dropout *p) {
  for (int64_t i = 0; i < n; i++) {
    uint64_t at = first + (uint64_t)i, counter = at / 64 * SPT_LANES + at % SPT_LANES;
    uint32_t words[4] = {(uint32_t)counter, (uint32_t)(counter >> 32), 0, SPT_DROPOUT_STREAM};
    philox_words(words, p->seed);
    y[i] = words[at / SPT_LANES % 4] >= p->threshold ? x[i] * p->kept_scale : 0.0f;
  }
}
