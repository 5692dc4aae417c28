#include "cholesky.h"

#include <string.h>

#include "pool.h"
#include "scratch.h"

#define PANEL SPT_CHOLESKY_PANEL
#define TILE (PANEL * PANEL)
#define TASK_PANELS 4
#define INVERSE_LANES 64 /* columns of the inverse at a time: 512 bytes of each row */

/* ---- the factor ------------------------------------------------------------------------------- */

struct factor_job {
  const spt_cpu_tier *tier;
  double *factor;
  const spt_symmetric *a;
  int64_t panel; /* whose rows are being found */
};

/* Rows [16 panel, 16 panel + 16) of A in the columns of panel j. Past A's end it is the identity. */
static void load_tile(const spt_symmetric *a, int64_t panel, int64_t j, double *tile) {
  for (int64_t i = 0; i < PANEL; i++) {
    int64_t at = panel * PANEL + i, begin = j * PANEL;
    int64_t n = at < a->n ? spt_min(PANEL, a->n - begin) : 0;
    const double *from = a->data + (n > 0 ? (a->index != NULL ? a->index[at] : at) * a->row : 0);
    for (int64_t k = 0; k < n; k++) {
      tile[i * PANEL + k] = from[a->index != NULL ? a->index[begin + k] : begin + k];
    }
    for (int64_t k = n; k < PANEL; k++) {
      tile[i * PANEL + k] = at == begin + k ? 1.0 : 0.0;
    }
  }
}

/* What is left of A in panels [begin, end) of columns once the rows before these are accounted for. */
static void reduce(const struct factor_job *job, int64_t begin, int64_t end) {
  int64_t known = job->panel * PANEL;
  for (int64_t j = begin; j < end; j++) {
    load_tile(job->a, job->panel, j, job->factor + spt_cholesky_panel(j) + known * PANEL);
  }
  for (int64_t k = 0; k < known; k += SPT_F64_DEPTH) {
    for (int64_t j = begin; j < end; j++) {
      double *panel = job->factor + spt_cholesky_panel(j);
      job->tier->f64_subtract_product(
          &(spt_f64_product){.c = panel + known * PANEL,
                             .c_row = PANEL,
                             .c_block = SPT_F64_LANES,
                             .a = panel + k * PANEL,
                             .a_row = PANEL,
                             .a_block = SPT_F64_LANES,
                             .b = job->factor + spt_cholesky_panel(job->panel) + k * PANEL,
                             .b_row = PANEL,
                             .blocks = PANEL / SPT_F64_LANES,
                             .columns = PANEL,
                             .depth = spt_min(SPT_F64_DEPTH, known - k)});
    }
  }
}

static void factor_rows(void *context, int64_t task, int worker) {
  (void)worker;
  const struct factor_job *job = context;
  int64_t known = job->panel * PANEL;
  int64_t begin = job->panel + 1 + task * TASK_PANELS;
  int64_t end = spt_min(begin + TASK_PANELS, spt_cholesky_panels(job->a->n));
  reduce(job, begin, end);
  const double *u = job->factor + spt_cholesky_panel(job->panel) + known * PANEL;
  for (int64_t j = begin; j < end; j++) {
    double *rows = job->factor + spt_cholesky_panel(j) + known * PANEL;
    job->tier->f64_solve(rows, PANEL, SPT_F64_LANES, PANEL / SPT_F64_LANES, u, PANEL, PANEL);
  }
}

bool spt_cholesky_factor(const spt_cpu_tier *tier, double *factor, const spt_symmetric *a) {
  struct factor_job job = {.tier = tier, .factor = factor, .a = a};
  int64_t panels = spt_cholesky_panels(a->n);
  for (job.panel = 0; job.panel < panels; job.panel++) {
    reduce(&job, job.panel, job.panel + 1);
    double *diagonal = factor + spt_cholesky_panel(job.panel) + job.panel * TILE;
    if (!tier->f64_cholesky(diagonal, PANEL, PANEL)) {
      return false;
    }
    spt_parallel_for(spt_ceil_div(panels - job.panel - 1, TASK_PANELS), factor_rows, &job);
  }
  return true;
}

/* ---- solutions -------------------------------------------------------------------------------- */

/* x (16, lanes) = U⁻¹ x for a tile on the diagonal */
static void solve_back(const double *u, double *x, int64_t row, int64_t lanes) {
  for (int64_t i = PANEL - 1; i >= 0; i--) {
    for (int64_t k = i + 1; k < PANEL; k++) {
      for (int64_t lane = 0; lane < lanes; lane++) {
        x[i * row + lane] -= u[i * PANEL + k] * x[k * row + lane];
      }
    }
    for (int64_t lane = 0; lane < lanes; lane++) {
      x[i * row + lane] *= u[i * PANEL + i];
    }
  }
}

static void solve_forward(const spt_cpu_tier *tier, const double *factor, int64_t p, double *x,
                          int64_t row, int64_t lanes, int64_t first) {
  const double *panel = factor + spt_cholesky_panel(p);
  for (int64_t k = first * PANEL; k < p * PANEL; k += SPT_F64_DEPTH) {
    tier->f64_subtract_product(&(spt_f64_product){.c = x + p * PANEL * row,
                                                  .c_row = row,
                                                  .c_block = SPT_F64_LANES,
                                                  .a = x + k * row,
                                                  .a_row = row,
                                                  .a_block = SPT_F64_LANES,
                                                  .b = panel + k * PANEL,
                                                  .b_row = PANEL,
                                                  .blocks = lanes / SPT_F64_LANES,
                                                  .columns = PANEL,
                                                  .depth = spt_min(SPT_F64_DEPTH, p * PANEL - k)});
  }
  tier->f64_solve(x + p * PANEL * row, row, SPT_F64_LANES, lanes / SPT_F64_LANES, panel + p * TILE,
                  PANEL, PANEL);
}

static void solve_backward(const spt_cpu_tier *tier, const double *factor, int64_t panels,
                           int64_t p, double *x, int64_t row, int64_t lanes) {
  double turned[TILE];
  for (int64_t j = p + 1; j < panels; j++) {
    const double *tile = factor + spt_cholesky_panel(j) + p * TILE;
    for (int i = 0; i < PANEL; i++) {
      for (int k = 0; k < PANEL; k++) {
        turned[k * PANEL + i] = tile[i * PANEL + k];
      }
    }
    tier->f64_subtract_product(&(spt_f64_product){.c = x + p * PANEL * row,
                                                  .c_row = row,
                                                  .c_block = SPT_F64_LANES,
                                                  .a = x + j * PANEL * row,
                                                  .a_row = row,
                                                  .a_block = SPT_F64_LANES,
                                                  .b = turned,
                                                  .b_row = PANEL,
                                                  .blocks = lanes / SPT_F64_LANES,
                                                  .columns = PANEL,
                                                  .depth = PANEL});
  }
  solve_back(factor + spt_cholesky_panel(p) + p * TILE, x + p * PANEL * row, row, lanes);
}

void spt_cholesky_solve(const spt_cpu_tier *tier, const double *factor, int64_t n, double *x,
                        int64_t row, int64_t lanes, int64_t first) {
  int64_t panels = spt_cholesky_panels(n), begin = first / PANEL;
  for (int64_t p = begin; p < panels; p++) {
    solve_forward(tier, factor, p, x, row, lanes, begin);
  }
  for (int64_t p = panels - 1; p >= begin; p--) {
    solve_backward(tier, factor, panels, p, x, row, lanes);
  }
}

/* ---- the inverse ------------------------------------------------------------------------------ */

struct inverse_job {
  const spt_cpu_tier *tier;
  const double *factor;
  int64_t n;
  double *inverse;
  int64_t row;
  double *workspace; /* (workers, n to a whole panel, INVERSE_LANES) */
};

/* Columns [begin, begin + INVERSE_LANES) from their diagonal down, and their mirror. */
static void invert_columns(void *context, int64_t task, int worker) {
  const struct inverse_job *job = context;
  int64_t rows = spt_cholesky_panels(job->n) * PANEL, begin = task * INVERSE_LANES;
  double *x = job->workspace + worker * rows * INVERSE_LANES;
  memset(x, 0, (size_t)(rows * INVERSE_LANES) * sizeof *x);
  int64_t count = spt_min(INVERSE_LANES, job->n - begin);
  for (int64_t i = 0; i < count; i++) {
    x[(begin + i) * INVERSE_LANES + i] = 1.0;
  }
  spt_cholesky_solve(job->tier, job->factor, job->n, x, INVERSE_LANES, INVERSE_LANES, begin);
  for (int64_t i = begin; i < job->n; i++) {
    for (int64_t k = 0; k < spt_min(count, i - begin + 1); k++) {
      job->inverse[i * job->row + begin + k] = x[i * INVERSE_LANES + k];
      job->inverse[(begin + k) * job->row + i] = x[i * INVERSE_LANES + k];
    }
  }
}

spt_status spt_cholesky_inverse(const char *op, const spt_cpu_tier *tier, const double *factor,
                                int64_t n, double *inverse, int64_t row, spt_error *err) {
  spt_status status = SPT_OK;
  int64_t tasks = spt_ceil_div(n, INVERSE_LANES);
  int workers = (int)spt_min(spt_pool_width(), tasks);
  struct inverse_job job = {.tier = tier, .factor = factor, .n = n, .inverse = inverse, .row = row};
  job.workspace = spt_scratch(op, workers * spt_cholesky_panels(n) * PANEL,
                              INVERSE_LANES * sizeof(double), &status, err);
  if (status == SPT_OK) {
    spt_parallel_for_workers(tasks, workers, invert_columns, &job);
  }
  spt_scratch_free(job.workspace);
  return status;
}
