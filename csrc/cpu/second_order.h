/* What second_order_removals and second_order_apply share: the damped gram and its inverse, and blocks
 * of weights in double.
 *
 * A block is the rows of w under one row of the grid. It lies transposed, (columns, lanes): lane r is
 * its row r, and lanes past its rows are zero. */
#ifndef SPATILE_CPU_SECOND_ORDER_H
#define SPATILE_CPU_SECOND_ORDER_H

#include "cholesky.h"
#include "matrix.h"

typedef struct spt_hessian {
  const spt_cpu_tier *tier;
  int64_t n, row;  /* columns; from row to row, whole panels */
  double *damped;  /* (n, row) */
  double *inverse; /* (n, row), once it was asked for */
  double shift;    /* what damping added to the diagonal */
  bool *dead;      /* (n): inputs that were always zero */
} spt_hessian;

SPT_WARN_UNUSED spt_status spt_hessian_of(const spt_second_order_problem *, spt_hessian *,
                                          spt_error *);
/* Without `keep` the damped gram goes as soon as it is factored. */
SPT_WARN_UNUSED spt_status spt_hessian_invert(const spt_second_order_problem *, spt_hessian *,
                                              bool keep, spt_error *);
void spt_hessian_free(spt_hessian *);
spt_status spt_hessian_refused(const spt_second_order_problem *, spt_error *);

SPT_WARN_UNUSED spt_status spt_check_weights(const spt_second_order_problem *, spt_error *);

static inline int64_t spt_block_lanes(const spt_grid *grid) {
  return spt_ceil_div(grid->group_rows, SPT_F64_LANES) * SPT_F64_LANES;
}
static inline int64_t spt_block_rows(const spt_grid *grid, int64_t band) {
  return spt_min(grid->group_rows, grid->w.rows - band * grid->group_rows);
}
void spt_load_block(const spt_grid *, const spt_matrix *w, int64_t band, double *block);

/* to (count, lanes) -= A[rows][columns] · from (depth, lanes), with the index NULL standing for all and
 * `shift` taken from A's diagonal. Row i goes to row rows[i] of `to` where it scatters. */
typedef struct spt_symmetric_product {
  const spt_cpu_tier *tier;
  const double *a;
  int64_t a_row;
  double shift;
  const int64_t *rows, *columns;
  int64_t count, depth, lanes;
  const double *from;
  double *to;
  bool scatter;
} spt_symmetric_product;
void spt_symmetric_multiply(const spt_symmetric_product *);

/* errors[r] = x · A · xᵀ for each row x of w - minus, minus being optional. A is the gram; or with
 * `damped` the damped one, for inputs that were not always zero. */
SPT_WARN_UNUSED spt_status spt_row_errors(const char *op, const spt_hessian *, bool damped,
                                          const spt_matrix *w, const spt_matrix *minus,
                                          double *errors, spt_error *);

#endif
