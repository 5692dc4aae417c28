/* Symmetric positive definite matrices in double: A = UᵀU, solutions of A x = b, the inverse.
 *
 * The factor is kept by panels of 16 columns j: panel p holds U's elements (k, j), k up to the panel's
 * end, at spt_cholesky_panel(p) + k * 16 + j % 16. On its diagonal are reciprocals. Work is shared out
 * over the pool, and the same bits come out whatever its size. */
#ifndef SPATILE_CPU_CHOLESKY_H
#define SPATILE_CPU_CHOLESKY_H

#include "../integer.h"
#include "tier.h"

#define SPT_CHOLESKY_PANEL 16

/* Element (i, j) is data[index[i] * row + index[j]], index NULL standing for i and j themselves. */
typedef struct spt_symmetric {
  const double *data;
  int64_t row;
  const int64_t *index;
  int64_t n;
} spt_symmetric;

static inline int64_t spt_cholesky_panels(int64_t n) { return spt_ceil_div(n, SPT_CHOLESKY_PANEL); }

/* The first element of panel p; of the number of panels, how many doubles the factor takes. */
static inline int64_t spt_cholesky_panel(int64_t p) {
  return SPT_CHOLESKY_PANEL * SPT_CHOLESKY_PANEL / 2 * p * (p + 1);
}

/* False where a is not positive definite, as far as doubles tell. */
bool spt_cholesky_factor(const spt_cpu_tier *, double *factor, const spt_symmetric *a);

/* x = A⁻¹ x, where x is (n to a whole panel, lanes), zero past n, its rows `row` apart; lanes are a
 * multiple of 8. Rows before `first`, a multiple of 16, are zero, and are not wanted either. */
void spt_cholesky_solve(const spt_cpu_tier *, const double *factor, int64_t n, double *x,
                        int64_t row, int64_t lanes, int64_t first);

/* inverse (n, n), its rows `row` apart. */
SPT_WARN_UNUSED spt_status spt_cholesky_inverse(const char *op, const spt_cpu_tier *,
                                                const double *factor, int64_t n, double *inverse,
                                                int64_t row, spt_error *);

#endif
