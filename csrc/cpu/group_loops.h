/* Loops on groups that read alike in every tier: the compiler makes of them what the tier's flags
 * allow. */
#include <math.h>

#include "tier.h"

static void square_roots(double *sum, int64_t n) {
  for (int64_t g = 0; g < n; g++) {
    sum[g] = sqrt(sum[g]);
  }
}

static void magnitudes(double *norm, const float *x, int64_t n) {
  for (int64_t g = 0; g < n; g++) {
    norm[g] = fabs((double)x[g]);
  }
}

static void narrow_row(float *y, const double *x, int64_t n) {
  for (int64_t c = 0; c < n; c++) {
    y[c] = (float)x[c];
  }
}

static void and_rows(void *w, int64_t size, int64_t stride, const uint32_t *bits, int64_t rows,
                     int64_t n) {
  for (int64_t r = 0; r < rows; r++) {
    uint32_t *word = (uint32_t *)w + r * stride;
    uint16_t *half = (uint16_t *)w + r * stride;
    if (size == 4) {
#pragma GCC ivdep
      for (int64_t c = 0; c < n; c++) {
        word[c] &= bits[c];
      }
    } else {
#pragma GCC ivdep
      for (int64_t c = 0; c < n; c++) {
        half[c] &= (uint16_t)bits[c];
      }
    }
  }
}
