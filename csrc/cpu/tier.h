/* tier.h: what one instruction-set tier of the CPU backend provides.
 *
 * Activations inside the backend are feature-major panels: a panel holds 16 tokens, feature f of
 * token lane l at panel[f * 16 + l]. So the tokens fill the SIMD lanes, weights are broadcast
 * scalars, and LayerNorm, softmax and GELU are vertical. Lanes past the last token hold zeros on the
 * way in and anything finite on the way out.
 *
 * The drivers (linear.c, attention.c, ...) cut work into tasks, own the scratch memory and call
 * these; a tier never allocates, locks or fails. */
#ifndef SPATILE_CPU_TIER_H
#define SPATILE_CPU_TIER_H

#include "../backend.h"

#define SPT_LANES 16

/* y = act(w · x + bias) + residual on panels. Panel p of x starts at x + p * x_stride, and so on. */
typedef struct spt_panel_linear {
  const spt_strips *w;
  const float *x, *bias, *residual; /* bias by output row; bias and residual may be NULL */
  float *y;
  int64_t x_stride, y_stride, residual_stride; /* floats from panel to panel */
  spt_activation activation;
} spt_panel_linear;

typedef struct spt_panel_csr {
  const spt_csr *w;
  const float *x, *bias, *residual;
  float *y;
  int64_t x_stride, y_stride, residual_stride;
  spt_activation activation;
} spt_panel_csr;

typedef struct spt_cpu_tier {
  const char *name;

  /* Rows [row, row + 16) of a matrix to a panel of m->cols features, and back. Rows past the end of
   * the matrix are zero lanes, and are not written back. */
  void (*panel_pack)(float *panel, const spt_matrix *m, int64_t row);
  void (*panel_unpack)(const spt_matrix *m, int64_t row, const float *panel);

  void (*panel_linear)(const spt_panel_linear *, int64_t strip_begin, int64_t strip_end,
                       int64_t panel_begin, int64_t panel_end);
  void (*panel_csr)(const spt_panel_csr *, int64_t row_begin, int64_t row_end, int64_t panel_begin,
                    int64_t panel_end);

  /* dx += wᵀ · g for one panel: g has w->out features, dx has w->in. */
  void (*panel_linear_transposed)(const spt_strips *w, const float *g, float *dx);
  /* dw (columns of the strip, 16) = Σ over n tokens of x · gᵀ. x: panels of w->in features;
   * g: (n rounded up to 16, 16) holds the strip's 16 rows for each token. */
  void (*strip_gradient)(const spt_strips *w, int64_t strip, const float *x, int64_t x_stride,
                         const float *g, int64_t n_panels, float *dw);
} spt_cpu_tier;

/* The tier in use; never NULL. */
const spt_cpu_tier *spt_cpu_tier_in_use(void);

extern const spt_cpu_tier spt_cpu_tier_scalar;
extern const spt_cpu_tier spt_cpu_tier_avx2;
extern const spt_cpu_tier spt_cpu_tier_avx512;

#endif
