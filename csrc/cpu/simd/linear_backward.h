/* The weight gradient of strips, from activations as the caller has them: token after token.
 *
 * A register holds the 16 rows of one column. A step loads the strip's gradients of one token and
 * multiplies them with 16 neighbouring inputs of that token, broadcast straight from memory: one load
 * per FMA, which is as many as the load ports give. */
#include "vec.h"

#if VEC_WIDTH == 16
#define GRADIENT_COLUMNS 16
#else
#define GRADIENT_COLUMNS 4
#endif

#define TOKENS_AHEAD 48

static inline __attribute__((always_inline)) void column_gradients(const float *x, int64_t x_row,
                                                                   const float *g, int64_t tokens,
                                                                   float *dw, const int columns) {
  vec sum[16][VECS];
  for (int k = 0; k < columns; k++) {
    for (int v = 0; v < VECS; v++) {
      sum[k][v] = vec_load(dw + k * SPT_STRIP + v * VEC_WIDTH);
    }
  }
  for (int64_t t = 0; t < tokens; t++) {
    _mm_prefetch((const char *)(x + (t + TOKENS_AHEAD) * x_row), _MM_HINT_T0);
    vec grad[VECS];
    for (int v = 0; v < VECS; v++) {
      grad[v] = vec_load(g + t * SPT_STRIP + v * VEC_WIDTH);
    }
#pragma GCC unroll 16
    for (int k = 0; k < columns; k++) {
      vec value = vec_set(x[t * x_row + k]);
      for (int v = 0; v < VECS; v++) {
        sum[k][v] += value * grad[v];
      }
    }
  }
  for (int k = 0; k < columns; k++) {
    for (int v = 0; v < VECS; v++) {
      vec_store(dw + k * SPT_STRIP + v * VEC_WIDTH, sum[k][v]);
    }
  }
}

static void strip_gradient(const spt_strips *w, int64_t strip, const float *x, int64_t x_row,
                           const float *g, int64_t tokens, float *dw) {
  for (int64_t run = w->run_ptr[strip]; run < w->run_ptr[strip + 1]; run++) {
    const float *xs = x + w->run_start[run];
    int32_t k = 0;
    for (; k + GRADIENT_COLUMNS <= w->run_len[run]; k += GRADIENT_COLUMNS) {
      column_gradients(xs + k, x_row, g, tokens, dw, GRADIENT_COLUMNS);
      dw += GRADIENT_COLUMNS * SPT_STRIP;
    }
    for (; k < w->run_len[run]; k++) {
      column_gradients(xs + k, x_row, g, tokens, dw, 1);
      dw += SPT_STRIP;
    }
  }
}
