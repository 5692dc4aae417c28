#include "second_order.h"

#include <math.h>
#include <string.h>

#include "half.h"
#include "pool.h"
#include "scratch.h"

#define PANEL SPT_CHOLESKY_PANEL
#define TILE 64             /* rows and columns of the gram at a time: its mirror stays in L1 */
#define MOST_ASYMMETRY 1e-4 /* of the two diagonal entries' mean: what float32 sums may differ by */
#define PRODUCT_LANES 64

/* ---- the damped gram ---------------------------------------------------------------------------- */

static double entry(const spt_matrix *gram, int64_t i, int64_t j) {
  const void *at = spt_address(gram, i, j);
  return gram->dtype == SPT_F64 ? *(const double *)at : (double)*(const float *)at;
}

static spt_status read_diagonal(const spt_second_order_problem *p, spt_hessian *h, spt_error *err) {
  double sum = 0.0;
  for (int64_t i = 0; i < h->n; i++) {
    double value = entry(&p->gram, i, i);
    if (!isfinite(value) || value < 0.0) {
      return spt_fail(err, SPT_INVALID_VALUE,
                      "%s: %s[%lld, %lld] is %g, expected a finite sum of squares", p->op,
                      p->gram_name, (long long)i, (long long)i, value);
    }
    h->dead[i] = value == 0.0;
    sum += value;
  }
  h->shift = p->damping * (sum / (double)h->n);
  if (!(h->shift > 0.0) || !isfinite(h->shift)) {
    return spt_fail(err, SPT_INVALID_VALUE,
                    "%s: the diagonal of %s has the mean %g, expected that of the inputs' squares",
                    p->op, p->gram_name, sum / (double)h->n);
  }
  return SPT_OK;
}

static spt_status read_tile(const spt_second_order_problem *p, spt_hessian *h, int64_t begin,
                            int64_t col_begin, spt_error *err) {
  for (int64_t i = begin; i < spt_min(begin + TILE, h->n); i++) {
    for (int64_t j = spt_max(col_begin, i); j < spt_min(col_begin + TILE, h->n); j++) {
      double value = entry(&p->gram, i, j), mirror = entry(&p->gram, j, i);
      double size = (entry(&p->gram, i, i) + entry(&p->gram, j, j)) / 2.0;
      if (!(fabs(value - mirror) <= MOST_ASYMMETRY * size)) { /* NaN fails as well */
        return spt_fail(err, SPT_INVALID_VALUE,
                        "%s: %s[%lld, %lld] is %g and [%lld, %lld] is %g, expected a symmetric "
                        "matrix of finite numbers",
                        p->op, p->gram_name, (long long)i, (long long)j, value, (long long)j,
                        (long long)i, mirror);
      }
      value = (value + mirror) / 2.0 + (i == j ? h->shift : 0.0);
      h->damped[i * h->row + j] = value;
      h->damped[j * h->row + i] = value;
    }
  }
  return SPT_OK;
}

spt_status spt_hessian_of(const spt_second_order_problem *p, spt_hessian *h, spt_error *err) {
  spt_status status = SPT_OK;
  int64_t n = p->gram.rows;
  *h = (spt_hessian){.tier = spt_cpu_tier_in_use(), .n = n};
  h->row = spt_cholesky_panels(n) * PANEL;
  h->dead = spt_scratch(p->op, n, sizeof(bool), &status, err);
  h->damped = spt_scratch(p->op, n, (size_t)h->row * sizeof(double), &status, err);
  if (status == SPT_OK) {
    status = read_diagonal(p, h, err);
  }
  for (int64_t i = 0; status == SPT_OK && i < n; i += TILE) {
    for (int64_t j = i; status == SPT_OK && j < n; j += TILE) {
      status = read_tile(p, h, i, j, err);
    }
  }
  return status;
}

spt_status spt_hessian_refused(const spt_second_order_problem *p, spt_error *err) {
  return spt_fail(
      err, SPT_INVALID_VALUE,
      "%s: %s with damping %g is not positive definite, expected xT x of the inputs and "
      "enough damping for its inverse",
      p->op, p->gram_name, p->damping);
}

spt_status spt_hessian_invert(const spt_second_order_problem *p, spt_hessian *h, bool keep,
                              spt_error *err) {
  spt_status status = SPT_OK;
  spt_symmetric all = {.data = h->damped, .row = h->row, .n = h->n};
  double *factor = spt_scratch(p->op, spt_cholesky_panel(spt_cholesky_panels(h->n)), sizeof(double),
                               &status, err);
  if (status == SPT_OK && !spt_cholesky_factor(h->tier, factor, &all)) {
    status = spt_hessian_refused(p, err);
  }
  if (!keep) {
    spt_scratch_free(h->damped);
    h->damped = NULL;
  }
  if (status == SPT_OK) {
    h->inverse = spt_scratch(p->op, h->n, (size_t)h->row * sizeof(double), &status, err);
  }
  if (status == SPT_OK) {
    status = spt_cholesky_inverse(p->op, h->tier, factor, h->n, h->inverse, h->row, err);
  }
  spt_scratch_free(factor);
  return status;
}

void spt_hessian_free(spt_hessian *h) {
  spt_scratch_free(h->dead);
  spt_scratch_free(h->damped);
  spt_scratch_free(h->inverse);
}

/* ---- blocks of weights ------------------------------------------------------------------------ */

spt_status spt_check_weights(const spt_second_order_problem *p, spt_error *err) {
  const spt_matrix *w = &p->grid.w;
  for (int64_t i = 0; i < w->rows; i++) {
    for (int64_t j = 0; j < w->cols; j++) {
      if (!isfinite(spt_load(spt_address(w, i, j), w->dtype, 0))) {
        return spt_fail(
            err, SPT_INVALID_VALUE,
            "%s: %s holds NaN or infinity in group (%lld, %lld), expected finite weights", p->op,
            p->w_name, (long long)(i / p->grid.group_rows), (long long)(j / p->grid.group_cols));
      }
    }
  }
  return SPT_OK;
}

void spt_load_block(const spt_grid *grid, const spt_matrix *w, int64_t band, double *block) {
  int64_t lanes = spt_block_lanes(grid), rows = spt_block_rows(grid, band);
  memset(block, 0, (size_t)(w->cols * lanes) * sizeof *block);
  for (int64_t r = 0; r < rows; r++) {
    const void *from = spt_address(w, band * grid->group_rows + r, 0);
    for (int64_t col = 0; col < w->cols; col++) {
      block[col * lanes + r] = spt_load(from, w->dtype, col * w->col);
    }
  }
}

/* ---- products --------------------------------------------------------------------------------- */

/* Terms [begin, begin + n) of `count` rows of A: (n, 16). */
static void pack_rows(const spt_symmetric_product *p, int64_t first, int64_t count, int64_t begin,
                      int64_t n, double *packed) {
  for (int64_t i = 0; i < count; i++) {
    int64_t at = p->rows != NULL ? p->rows[first + i] : first + i;
    const double *row = p->a + at * p->a_row;
    for (int64_t k = 0; k < n; k++) {
      packed[k * PANEL + i] = row[p->columns != NULL ? p->columns[begin + k] : begin + k];
    }
    if (p->shift != 0.0 && p->columns == NULL && at >= begin && at < begin + n) {
      packed[(at - begin) * PANEL + i] -= p->shift;
    }
  }
}

/* 16 rows, 64 lanes at a time: so their sums stay in L1 as well. */
static void multiply_rows(void *context, int64_t task, int worker) {
  (void)worker;
  const spt_symmetric_product *p = context;
  double packed[SPT_F64_DEPTH * PANEL], sum[PANEL * PRODUCT_LANES];
  int64_t chunks = spt_ceil_div(p->lanes, PRODUCT_LANES);
  int64_t first = task / chunks * PANEL, lane = task % chunks * PRODUCT_LANES;
  int64_t count = spt_min(PANEL, p->count - first);
  int64_t lanes = spt_min(PRODUCT_LANES, p->lanes - lane);
  memset(sum, 0, sizeof sum);
  for (int64_t k = 0; k < p->depth; k += SPT_F64_DEPTH) {
    int64_t n = spt_min(SPT_F64_DEPTH, p->depth - k);
    pack_rows(p, first, count, k, n, packed);
    p->tier->f64_subtract_product(&(spt_f64_product){.c = sum,
                                                     .c_row = PRODUCT_LANES,
                                                     .c_block = SPT_F64_LANES,
                                                     .a = p->from + k * p->lanes + lane,
                                                     .a_row = p->lanes,
                                                     .a_block = SPT_F64_LANES,
                                                     .b = packed,
                                                     .b_row = PANEL,
                                                     .blocks = lanes / SPT_F64_LANES,
                                                     .columns = count,
                                                     .depth = n});
  }
  for (int64_t i = 0; i < count; i++) {
    int64_t at = p->scatter ? p->rows[first + i] : first + i;
    for (int64_t l = 0; l < lanes; l++) {
      p->to[at * p->lanes + lane + l] += sum[i * PRODUCT_LANES + l];
    }
  }
}

void spt_symmetric_multiply(const spt_symmetric_product *p) {
  int64_t tasks = spt_ceil_div(p->count, PANEL) * spt_ceil_div(p->lanes, PRODUCT_LANES);
  spt_parallel_for(tasks, multiply_rows, (void *)p);
}

/* ---- errors of rows --------------------------------------------------------------------------- */

struct error_job {
  const spt_hessian *h;
  bool damped;
  spt_grid rows; /* PRODUCT_LANES at a time, whatever the blocks are */
  const spt_matrix *minus;
  int64_t lanes;
  double *workspace; /* (workers, 2, columns, lanes) */
  double *errors;
};

static bool load_rows(const struct error_job *job, int64_t piece, double *x, double *other) {
  int64_t size = job->h->n * job->lanes;
  bool any = false;
  spt_load_block(&job->rows, &job->rows.w, piece, x);
  if (job->minus != NULL) {
    spt_load_block(&job->rows, job->minus, piece, other);
    for (int64_t i = 0; i < size; i++) {
      x[i] -= other[i];
    }
  }
  for (int64_t col = 0; job->damped && col < job->h->n; col++) {
    if (job->h->dead[col]) {
      memset(x + col * job->lanes, 0, (size_t)job->lanes * sizeof *x);
    }
  }
  for (int64_t i = 0; i < size; i++) {
    any |= x[i] != 0.0;
  }
  return any;
}

static void errors_of_rows(void *context, int64_t piece, int worker) {
  const struct error_job *job = context;
  int64_t n = job->h->n, lanes = job->lanes, rows = spt_block_rows(&job->rows, piece);
  double *x = job->workspace + worker * 2 * n * lanes, *product = x + n * lanes;
  double *errors = job->errors + piece * job->rows.group_rows;
  memset(errors, 0, (size_t)rows * sizeof *errors);
  if (!load_rows(job, piece, x, product)) {
    return;
  }
  memset(product, 0, (size_t)(n * lanes) * sizeof *product);
  spt_symmetric_multiply(&(spt_symmetric_product){.tier = job->h->tier,
                                                  .a = job->h->damped,
                                                  .a_row = job->h->row,
                                                  .shift = job->damped ? 0.0 : job->h->shift,
                                                  .count = n,
                                                  .depth = n,
                                                  .lanes = lanes,
                                                  .from = x,
                                                  .to = product});
  for (int64_t col = 0; col < n; col++) {
    for (int64_t r = 0; r < rows; r++) {
      errors[r] -= product[col * lanes + r] * x[col * lanes + r];
    }
  }
  for (int64_t r = 0; r < rows; r++) {
    errors[r] = fmax(errors[r], 0.0); /* rounding alone may leave less */
  }
}

spt_status spt_row_errors(const char *op, const spt_hessian *h, bool damped, const spt_matrix *w,
                          const spt_matrix *minus, double *errors, spt_error *err) {
  spt_status status = SPT_OK;
  struct error_job job = {.h = h, .damped = damped, .minus = minus, .errors = errors};
  job.rows = (spt_grid){.w = *w, .group_rows = spt_min(PRODUCT_LANES, w->rows)};
  job.lanes = spt_block_lanes(&job.rows);
  int64_t pieces = spt_ceil_div(w->rows, job.rows.group_rows);
  int workers = (int)spt_min(spt_pool_width(), pieces);
  job.workspace =
      spt_scratch(op, workers * 2 * h->n, (size_t)job.lanes * sizeof(double), &status, err);
  if (status == SPT_OK) {
    spt_parallel_for_workers(pieces, workers, errors_of_rows, &job);
  }
  spt_scratch_free(job.workspace);
  return status;
}
