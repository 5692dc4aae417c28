/* The weights that stay under a mask, changed so that the output changes least.
 *
 * With S the columns that a block loses and K those that it keeps, two forms give the same:
 * w_K -= w_S ((H⁻¹)_SS)⁻¹ (H⁻¹)_SK, and w_K += w_S H_SK (H_KK)⁻¹. The one with the smaller system is taken:
 * then its factor costs a 24th of n³ at most. */
#include <string.h>

#include "half.h"
#include "ops.h"
#include "pool.h"
#include "scratch.h"
#include "second_order.h"

#define SOLVE_LANES 64

struct apply_job {
  const spt_second_order_apply_problem *p;
  const spt_hessian *h;
  const bool *keep; /* (blocks, groups) */
  int64_t lanes;
  double *workspace;
  int64_t workspace_size; /* doubles of a worker */
  int64_t *columns;       /* (workers, 2, columns) */
  bool *failed;           /* (blocks) */
};

/* One block. */
struct replacement {
  const struct apply_job *job;
  int64_t *gone, *kept; /* columns: S and K */
  int64_t n_gone, n_kept;
  double *weights;  /* (columns, lanes) */
  double *moved;    /* w_S, where another place is needed for it: the same */
  double *solution; /* (columns to a whole panel, lanes) */
  double *factor;
};

/* keep (blocks, groups), once and for all: the array may change while the call runs. */
static void copy_mask(const spt_matrix *mask, bool *keep) {
  for (int64_t band = 0; band < mask->rows; band++) {
    for (int64_t group = 0; group < mask->cols; group++) {
      /* A bool array viewed from bytes may hold more than 0 and 1, which C's bool may not. */
      *keep++ = ((const uint8_t *)mask->data)[band * mask->row + group * mask->col] != 0;
    }
  }
}

static int64_t pruned_columns(const spt_grid *grid, const bool *keep) {
  int64_t n = 0;
  for (int64_t g = 0; g < grid->across; g++) {
    n += keep[g] ? 0 : spt_min(grid->group_cols, grid->w.cols - g * grid->group_cols);
  }
  return n;
}

/* ---- compensation ------------------------------------------------------------------------------- */

struct solve_job {
  const struct replacement *r;
  int64_t n;
};

static void solve_lanes(void *context, int64_t task, int worker) {
  (void)worker;
  const struct solve_job *s = context;
  int64_t lanes = s->r->job->lanes, begin = task * SOLVE_LANES;
  spt_cholesky_solve(s->r->job->h->tier, s->r->factor, s->n, s->r->solution + begin, lanes,
                     spt_min(SOLVE_LANES, lanes - begin), 0);
}

/* solution (n, lanes) = A[index][index]⁻¹ · solution */
static bool solve(struct replacement *r, const double *a, const int64_t *index, int64_t n) {
  const spt_hessian *h = r->job->h;
  struct solve_job s = {r, n};
  spt_symmetric system = {.data = a, .row = h->row, .index = index, .n = n};
  int64_t past = spt_cholesky_panels(n) * SPT_CHOLESKY_PANEL - n;
  memset(r->solution + n * r->job->lanes, 0, (size_t)(past * r->job->lanes) * sizeof(double));
  if (!spt_cholesky_factor(h->tier, r->factor, &system)) {
    return false;
  }
  spt_parallel_for(spt_ceil_div(r->job->lanes, SOLVE_LANES), solve_lanes, &s);
  return true;
}

/* weights[K] += the compensation for what S holds. */
static bool compensate(struct replacement *r) {
  const spt_hessian *h = r->job->h;
  int64_t lanes = r->job->lanes;
  spt_symmetric_product product = {.tier = h->tier, .a_row = h->row, .lanes = lanes};
  product.rows = r->kept;
  product.count = r->n_kept;
  product.columns = r->gone;
  product.depth = r->n_gone;
  bool by_kept = r->n_kept < r->n_gone;
  double *w_gone = by_kept ? r->moved : r->solution;
  for (int64_t i = 0; i < r->n_gone; i++) {
    memcpy(w_gone + i * lanes, r->weights + r->gone[i] * lanes, (size_t)lanes * sizeof(double));
  }
  product.from = w_gone;
  if (!by_kept) {
    product.a = h->inverse;
    product.to = r->weights;
    product.scatter = true;
    if (!solve(r, h->inverse, r->gone, r->n_gone)) {
      return false;
    }
    spt_symmetric_multiply(&product);
    return true;
  }
  product.a = h->damped;
  product.to = r->solution;
  memset(r->solution, 0, (size_t)(r->n_kept * lanes) * sizeof(double));
  spt_symmetric_multiply(&product); /* -H_KS w_S */
  if (!solve(r, h->damped, r->kept, r->n_kept)) {
    return false;
  }
  for (int64_t i = 0; i < r->n_kept; i++) {
    for (int64_t lane = 0; lane < lanes; lane++) {
      r->weights[r->kept[i] * lanes + lane] -= r->solution[i * lanes + lane];
    }
  }
  return true;
}

/* ---- a block ------------------------------------------------------------------------------------ */

static void store_block(const struct replacement *r, int64_t band) {
  const spt_grid *grid = &r->job->p->of.grid;
  const spt_matrix *pruned = &r->job->p->pruned;
  for (int64_t i = 0; i < spt_block_rows(grid, band); i++) {
    void *to = spt_address(pruned, band * grid->group_rows + i, 0);
    for (int64_t col = 0; col < pruned->cols; col++) {
      spt_store(to, pruned->dtype, col * pruned->col, (float)r->weights[col * r->job->lanes + i]);
    }
  }
}

static void split_columns(struct replacement *r, int64_t band) {
  const spt_grid *grid = &r->job->p->of.grid;
  const bool *keep = r->job->keep + band * grid->across;
  for (int64_t col = 0; col < grid->w.cols; col++) {
    if (keep[col / grid->group_cols]) {
      r->kept[r->n_kept++] = col;
    } else {
      r->gone[r->n_gone++] = col;
    }
  }
}

static void replace_block(void *context, int64_t band, int worker) {
  const struct apply_job *job = context;
  const spt_grid *grid = &job->p->of.grid;
  int64_t n = job->h->n, block = n * job->lanes;
  double *workspace = job->workspace + worker * job->workspace_size;
  struct replacement r = {.job = job,
                          .gone = job->columns + worker * 2 * n,
                          .kept = job->columns + (worker * 2 + 1) * n,
                          .weights = workspace,
                          .moved = workspace + block,
                          .solution = workspace + 2 * block,
                          .factor = workspace + 2 * block + job->h->row * job->lanes};
  split_columns(&r, band);
  spt_load_block(grid, &grid->w, band, r.weights);
  if (r.n_gone > 0 && r.n_kept > 0 && !compensate(&r)) {
    job->failed[band] = true;
  }
  for (int64_t i = 0; i < r.n_gone; i++) {
    memset(r.weights + r.gone[i] * job->lanes, 0, (size_t)job->lanes * sizeof(double));
  }
  store_block(&r, band);
}

static spt_status replace_blocks(const spt_second_order_apply_problem *p, const spt_hessian *h,
                                 const bool *keep, spt_error *err) {
  spt_status status = SPT_OK;
  const spt_grid *grid = &p->of.grid;
  struct apply_job job = {.p = p, .h = h, .keep = keep, .lanes = spt_block_lanes(grid)};
  int workers = (int)spt_min(spt_pool_width(), grid->down);
  job.workspace_size =
      (2 * h->n + h->row) * job.lanes + spt_cholesky_panel(spt_cholesky_panels(h->n / 2));
  job.workspace = spt_scratch(p->of.op, workers * job.workspace_size, sizeof(double), &status, err);
  job.columns = spt_scratch(p->of.op, workers * 2 * h->n, sizeof(int64_t), &status, err);
  job.failed = spt_scratch(p->of.op, grid->down, sizeof(bool), &status, err);
  if (status == SPT_OK) {
    memset(job.failed, 0, (size_t)grid->down * sizeof(bool));
    spt_parallel_for_workers(grid->down, workers, replace_block, &job);
    if (memchr(job.failed, true, (size_t)grid->down) != NULL) {
      status = spt_hessian_refused(&p->of, err);
    }
  }
  spt_scratch_free(job.workspace);
  spt_scratch_free(job.columns);
  spt_scratch_free(job.failed);
  return status;
}

/* What was stored is rounded: its error is the one that counts. */
static spt_status weigh(const spt_second_order_apply_problem *p, const spt_hessian *h,
                        spt_error *err) {
  spt_status status = SPT_OK;
  const spt_matrix *w = &p->of.grid.w;
  double *errors = spt_scratch(p->of.op, w->rows, sizeof(double), &status, err);
  if (status == SPT_OK) {
    status = spt_row_errors(p->of.op, h, false, &p->pruned, w, errors, err);
  }
  for (int64_t r = 0; status == SPT_OK && r < w->rows; r++) {
    *p->cost += errors[r];
  }
  spt_scratch_free(errors);
  return status;
}

spt_status spt_cpu_second_order_apply(void *state, const spt_second_order_apply_problem *p,
                                      spt_error *err) {
  (void)state;
  spt_hessian h = {0};
  const spt_grid *grid = &p->of.grid;
  *p->cost = 0.0;
  if (grid->across == 0) {
    return SPT_OK;
  }
  spt_status status = spt_check_weights(&p->of, err);
  bool *keep = spt_scratch(p->of.op, grid->down, (size_t)grid->across, &status, err);
  if (status == SPT_OK) {
    copy_mask(&p->mask, keep);
    status = spt_hessian_of(&p->of, &h, err);
  }
  for (int64_t band = 0; status == SPT_OK && band < grid->down; band++) {
    int64_t gone = pruned_columns(grid, keep + band * grid->across);
    if (gone > 0 && gone <= h.n - gone && h.inverse == NULL) {
      status = spt_hessian_invert(&p->of, &h, true, err);
    }
  }
  if (status == SPT_OK && grid->down > 0) {
    status = replace_blocks(p, &h, keep, err);
  }
  if (status == SPT_OK && grid->down > 0) {
    status = weigh(p, &h, err);
  }
  spt_hessian_free(&h);
  spt_scratch_free(keep);
  return status;
}
