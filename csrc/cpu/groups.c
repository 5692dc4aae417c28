/* Norms, beta, lasso, its gradient and the proximal step: one engine that sums squares per group and
 * then writes what the sums become, or scales the weights by it.
 *
 * The matrix is taken so that its columns are neighbours in memory (a transposed one is transposed,
 * with its grid) and cut into cells: one row of groups, as many whole groups wide as fit SPAN
 * columns. A cell's weights stay in cache between the two passes, so memory is read once. Groups too
 * tall for that are cut into pieces of rows, whose sums are added in order. The cuts depend on shapes
 * alone, so results do not depend on the number of threads.
 *
 * Summing 16 x 16 tiles column by column before the columns are folded needs no horizontal sum in
 * the inner loop. */
#include "../integer.h"
#include "groups.h"

#include <string.h>

#include "ops.h"
#include "pool.h"
#include "scratch.h"
#include "tier.h"

#define SPAN 1024            /* columns at a time: what is kept per column stays in L1 */
#define ROWS 4               /* rows at a time where sums are kept per column */
#define NARROW 64            /* narrower groups are summed by column first */
#define CELL_ELEMENTS 262144 /* 1 MB: one core's L2 */
#define PIECE_ELEMENTS 65536 /* of groups taller than that */
#define TASK_ELEMENTS 32768  /* a task is worth handing out */

struct group_job {
  const spt_cpu_tier *tier;
  spt_matrix w;
  int64_t group_rows, group_cols, down, across;
  spt_matrix beta; /* or data NULL */
  spt_group_rule rule;
  double amount;
  bool mean;           /* of squares, not their sum */
  spt_matrix values;   /* float32 results per group, or data NULL */
  spt_matrix scaled;   /* where weights times values go, or data NULL */
  bool add;            /* to what is there */
  bool weighs_penalty; /* sum of beta * value */

  int64_t chunk_groups, n_chunks; /* groups of a cell, cells along a row of groups */
  int64_t piece_rows, n_pieces;   /* rows of a cell, cells along a group's height */
  int64_t cells_per_task;
  double *partial;   /* (down, n_pieces, across), where n_pieces > 1 */
  double *penalties; /* (down, n_chunks), where asked for */
};

struct cell {
  int64_t band; /* row of groups */
  int64_t piece, chunk;
  int64_t row_begin, row_end, col_begin, col_end, group_begin, n_groups;
};

struct buffers {
  double columns[SPAN], sums[SPAN];
  float x[ROWS * SPAN], y[SPAN], beta[SPAN];
};

static struct cell cell_at(const struct group_job *job, int64_t index) {
  struct cell cell = {.chunk = index % job->n_chunks};
  index /= job->n_chunks;
  cell.piece = index % job->n_pieces;
  cell.band = index / job->n_pieces;
  int64_t band_end = spt_min((cell.band + 1) * job->group_rows, job->w.rows);
  cell.row_begin = cell.band * job->group_rows + cell.piece * job->piece_rows;
  cell.row_end = spt_min(cell.row_begin + job->piece_rows, band_end);
  cell.group_begin = cell.chunk * job->chunk_groups;
  cell.n_groups = spt_min(job->chunk_groups, job->across - cell.group_begin);
  cell.col_begin = cell.group_begin * job->group_cols;
  cell.col_end = spt_min((cell.group_begin + cell.n_groups) * job->group_cols, job->w.cols);
  return cell;
}

static bool is_plain(const spt_matrix *m) {
  return m->dtype == SPT_F32 && (m->col == 1 || m->cols == 1);
}

static const float *row_at(const struct group_job *job, const spt_matrix *m, int64_t row,
                           int64_t col, int64_t n, float *buffer) {
  if (is_plain(m)) {
    return spt_address(m, row, col);
  }
  job->tier->load_row(buffer, spt_address(m, row, col), m->dtype, m->col, n);
  return buffer;
}

/* ---- sums of squares ------------------------------------------------------------------------ */

static void fold_columns(const struct group_job *job, const double *columns, int64_t n,
                         double *sums) {
  int64_t width = job->group_cols;
  for (int64_t c = 0; c < n; c += width) {
    double sum[4] = {0};
    int64_t end = spt_min(c + width, n), i = c;
    for (; i + 4 <= end; i += 4) {
      for (int k = 0; k < 4; k++) {
        sum[k] += columns[i + k];
      }
    }
    for (; i < end; i++) {
      sum[0] += columns[i];
    }
    *sums++ = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  }
}

static void sum_narrow(const struct group_job *job, const struct cell *cell, struct buffers *b,
                       double *sums) {
  int64_t n = cell->col_end - cell->col_begin;
  double *columns = job->group_cols == 1 ? sums : b->columns;
  memset(columns, 0, (size_t)n * sizeof *columns);
  if (is_plain(&job->w)) {
    job->tier->square_columns(columns, spt_address(&job->w, cell->row_begin, cell->col_begin),
                              job->w.row, cell->row_end - cell->row_begin, n);
  } else {
    for (int64_t row = cell->row_begin; row < cell->row_end; row += ROWS) {
      int64_t rows = spt_min(ROWS, cell->row_end - row);
      for (int64_t r = 0; r < rows; r++) {
        row_at(job, &job->w, row + r, cell->col_begin, n, b->x + r * SPAN);
      }
      job->tier->square_columns(columns, b->x, SPAN, rows, n);
    }
  }
  if (columns != sums) {
    fold_columns(job, columns, n, sums);
  }
}

static void sum_wide(const struct group_job *job, const struct cell *cell, struct buffers *b,
                     double *sums) {
  memset(sums, 0, (size_t)cell->n_groups * sizeof *sums);
  for (int64_t row = cell->row_begin; row < cell->row_end; row++) {
    for (int64_t begin = cell->col_begin; begin < cell->col_end; begin += SPAN) {
      int64_t end = spt_min(begin + SPAN, cell->col_end);
      const float *x = row_at(job, &job->w, row, begin, end - begin, b->x);
      for (int64_t c = begin; c < end;) {
        int64_t group = c / job->group_cols;
        int64_t stop = spt_min((group + 1) * job->group_cols, end);
        sums[group - cell->group_begin] += job->tier->square_sum(x + (c - begin), stop - c);
        c = stop;
      }
    }
  }
}

static void sum_cell(const struct group_job *job, const struct cell *cell, struct buffers *b,
                     double *sums) {
  if (job->group_cols < NARROW) {
    sum_narrow(job, cell, b, sums);
  } else {
    sum_wide(job, cell, b, sums);
  }
}

/* ---- what the sums become ------------------------------------------------------------------- */

static void divide_by_sizes(const struct group_job *job, const struct cell *cell, double *sums) {
  int64_t row = cell->band * job->group_rows;
  int64_t rows = spt_min(row + job->group_rows, job->w.rows) - row;
  for (int64_t g = 0; g < cell->n_groups; g++) {
    int64_t col = (cell->group_begin + g) * job->group_cols;
    int64_t cols = spt_min(col + job->group_cols, job->w.cols) - col;
    sums[g] /= (double)rows * (double)cols;
  }
}

static double weighted_sum(const double *norms, const float *beta, int64_t n) {
  double sum[4] = {0}; /* chains, so that the additions overlap */
  int64_t g = 0;
  for (; g + 4 <= n; g += 4) {
    for (int k = 0; k < 4; k++) {
      sum[k] += beta != NULL ? beta[g + k] * norms[g + k] : norms[g + k];
    }
  }
  for (; g < n; g++) {
    sum[0] += beta != NULL ? beta[g] * norms[g] : norms[g];
  }
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/* The norms of a cell's groups become values, in place; stores what is stored of them. */
static void finish_norms(const struct group_job *job, const struct cell *cell, struct buffers *b,
                         double *norms) {
  int64_t n = cell->n_groups;
  const float *beta = NULL;
  if (job->beta.data != NULL) {
    beta = row_at(job, &job->beta, cell->band, cell->group_begin, n, b->beta);
  }
  if (job->weighs_penalty) {
    job->penalties[cell->band * job->n_chunks + cell->chunk] = weighted_sum(norms, beta, n);
  }
  job->tier->group_values(norms, beta, job->rule, job->amount, n);
  if (job->values.data != NULL) {
    void *to = spt_address(&job->values, cell->band, cell->group_begin);
    if (is_plain(&job->values)) {
      job->tier->narrow_row(to, norms, n);
    } else {
      job->tier->narrow_row(b->x, norms, n);
      job->tier->store_row(to, SPT_F32, job->values.col, b->x, n);
    }
  }
}

/* The same, from complete sums of squares. */
static void finish_sums(const struct group_job *job, const struct cell *cell, struct buffers *b,
                        double *sums) {
  if (job->mean) {
    divide_by_sizes(job, cell, sums);
  }
  job->tier->square_roots(sums, cell->n_groups);
  finish_norms(job, cell, b, sums);
}

/* A cell's values repeated over the columns of their groups. */
static const double *value_columns(const struct group_job *job, const struct cell *cell,
                                   const double *values, double *columns) {
  if (job->group_cols == 1 || cell->n_groups == 1) {
    return values;
  }
  int64_t n = cell->col_end - cell->col_begin;
  for (int64_t g = 0, c = 0; c < n; g++) {
    for (int64_t end = spt_min(c + job->group_cols, n); c < end; c++) {
      columns[c] = values[g];
    }
  }
  return columns;
}

static void scale_cell(const struct group_job *job, const struct cell *cell, struct buffers *b,
                       const double *values) {
  const spt_matrix *to = &job->scaled;
  const double *factor = value_columns(job, cell, values, b->columns);
  int step = cell->n_groups == 1 ? 0 : 1;
  for (int64_t row = cell->row_begin; row < cell->row_end; row++) {
    for (int64_t col = cell->col_begin; col < cell->col_end; col += SPAN) {
      int64_t n = spt_min(SPAN, cell->col_end - col);
      const float *x = row_at(job, &job->w, row, col, n, b->x);
      void *at = spt_address(to, row, col);
      float *y = is_plain(to) ? at : b->y;
      if (job->add) {
        if (y != at) {
          job->tier->load_row(y, at, to->dtype, to->col, n);
        }
        job->tier->add_scaled_row(y, factor, step, x, n);
      } else {
        job->tier->scale_row(y, factor, step, x, n);
      }
      if (y != at) {
        job->tier->store_row(at, to->dtype, to->col, y, n);
      }
    }
  }
}

/* ---- tasks ------------------------------------------------------------------------------------ */

static void values_of_cell(const struct group_job *job, const struct cell *cell, struct buffers *b,
                           double *values) {
  if (job->group_rows * job->group_cols == 1) { /* no square, no root */
    const float *x = row_at(job, &job->w, cell->row_begin, cell->col_begin, cell->n_groups, b->x);
    job->tier->magnitudes(values, x, cell->n_groups);
    finish_norms(job, cell, b, values);
  } else {
    sum_cell(job, cell, b, values);
    finish_sums(job, cell, b, values);
  }
}

/* As many cells as their values have room for, then the second pass over all of them: long runs
 * through one array and then the other suit the prefetchers. */
static void whole_groups(void *context, int64_t task, int worker) {
  (void)worker;
  const struct group_job *job = context;
  struct buffers b;
  int64_t end = spt_min((task + 1) * job->cells_per_task, job->down * job->n_chunks);
  for (int64_t begin = task * job->cells_per_task; begin < end;) {
    int64_t used = 0, stop = begin;
    for (; stop < end; stop++) {
      struct cell cell = cell_at(job, stop);
      if (used + cell.n_groups > SPAN) {
        break;
      }
      values_of_cell(job, &cell, &b, b.sums + used);
      used += cell.n_groups;
    }
    for (used = 0; job->scaled.data != NULL && begin < stop; begin++) {
      struct cell cell = cell_at(job, begin);
      scale_cell(job, &cell, &b, b.sums + used);
      used += cell.n_groups;
    }
    begin = stop;
  }
}

static double *partial_at(const struct group_job *job, const struct cell *cell, int64_t piece) {
  return job->partial + (cell->band * job->n_pieces + piece) * job->across + cell->group_begin;
}

static void sum_piece(void *context, int64_t index, int worker) {
  (void)worker;
  const struct group_job *job = context;
  struct buffers b;
  struct cell cell = cell_at(job, index);
  sum_cell(job, &cell, &b, partial_at(job, &cell, cell.piece));
}

/* The sums of all pieces, then their values, in the place of the first piece's. */
static void finish_pieces(void *context, int64_t index, int worker) {
  (void)worker;
  const struct group_job *job = context;
  struct buffers b;
  int64_t first = index / job->n_chunks * job->n_pieces * job->n_chunks + index % job->n_chunks;
  struct cell cell = cell_at(job, first);
  double *sums = partial_at(job, &cell, 0);
  for (int64_t piece = 1; piece < job->n_pieces; piece++) {
    const double *more = partial_at(job, &cell, piece);
    for (int64_t g = 0; g < cell.n_groups; g++) {
      sums[g] += more[g];
    }
  }
  finish_sums(job, &cell, &b, sums);
}

static void scale_piece(void *context, int64_t index, int worker) {
  (void)worker;
  const struct group_job *job = context;
  struct buffers b;
  struct cell cell = cell_at(job, index);
  scale_cell(job, &cell, &b, partial_at(job, &cell, 0));
}

/* ---- the engine ------------------------------------------------------------------------------- */

static void orient(struct group_job *job, const spt_grid *grid) {
  bool turn = spt_is_column_major(&grid->w);
  job->w = grid->w;
  job->group_rows = turn ? grid->group_cols : grid->group_rows;
  job->group_cols = turn ? grid->group_rows : grid->group_cols;
  job->down = turn ? grid->across : grid->down;
  job->across = turn ? grid->down : grid->across;
  spt_matrix *matrices[] = {&job->w, &job->beta, &job->values, &job->scaled};
  for (int i = 0; turn && i < 4; i++) {
    *matrices[i] = spt_transposed(*matrices[i]);
  }
}

static void plan(struct group_job *job) {
  job->chunk_groups = job->group_cols < SPAN ? SPAN / job->group_cols : 1;
  job->n_chunks = spt_ceil_div(job->across, job->chunk_groups);
  int64_t cols = spt_min(job->chunk_groups * job->group_cols, job->w.cols);
  int64_t fits = PIECE_ELEMENTS / cols > 0 ? PIECE_ELEMENTS / cols : 1;
  job->piece_rows = job->group_rows * cols <= CELL_ELEMENTS ? job->group_rows : fits;
  job->n_pieces = spt_ceil_div(job->group_rows, job->piece_rows);
  job->cells_per_task = spt_ceil_div(TASK_ELEMENTS, job->piece_rows * cols);
}

static spt_status run(const char *op, const spt_grid *grid, struct group_job *job, double *penalty,
                      spt_error *err) {
  spt_status status = SPT_OK;
  if (penalty != NULL) {
    *penalty = 0.0;
  }
  if (grid->down == 0 || grid->across == 0) {
    return SPT_OK;
  }
  job->tier = spt_cpu_tier_in_use();
  orient(job, grid);
  plan(job);
  int64_t cells = job->down * job->n_chunks, pieces = cells * job->n_pieces;
  if (job->n_pieces > 1) {
    job->partial =
        spt_scratch(op, job->down * job->n_pieces * job->across, sizeof(double), &status, err);
  }
  if (penalty != NULL) {
    job->penalties = spt_scratch(op, cells, sizeof(double), &status, err);
    job->weighs_penalty = true;
  }
  if (status == SPT_OK && job->n_pieces == 1) {
    spt_parallel_for(spt_ceil_div(cells, job->cells_per_task), whole_groups, job);
  } else if (status == SPT_OK) {
    spt_parallel_for(pieces, sum_piece, job);
    spt_parallel_for(cells, finish_pieces, job);
    if (job->scaled.data != NULL) {
      spt_parallel_for(pieces, scale_piece, job);
    }
  }
  for (int64_t i = 0; status == SPT_OK && penalty != NULL && i < cells; i++) {
    *penalty += job->penalties[i];
  }
  spt_scratch_free(job->partial);
  spt_scratch_free(job->penalties);
  return status;
}

spt_status spt_cpu_group_norms(void *state, const spt_group_norms_problem *p, spt_error *err) {
  (void)state;
  struct group_job job = {.rule = SPT_GROUP_NORM, .values = p->norms};
  return run("group_norms", &p->grid, &job, NULL, err);
}

spt_status spt_cpu_group_scores(const char *op, const spt_grid *grid, const spt_matrix *scores,
                                spt_error *err) {
  struct group_job job = {.rule = SPT_GROUP_NORM, .values = *scores, .mean = true};
  return run(op, grid, &job, NULL, err);
}

spt_status spt_cpu_group_beta(void *state, const spt_group_beta_problem *p, spt_error *err) {
  (void)state;
  struct group_job job = {.rule = SPT_GROUP_BETA, .amount = p->eps, .values = p->beta};
  return run("group_beta", &p->grid, &job, NULL, err);
}

spt_status spt_cpu_group_lasso(void *state, const spt_group_lasso_problem *p, spt_error *err) {
  (void)state;
  struct group_job job = {.rule = SPT_GROUP_NORM, .beta = p->beta};
  return run("group_lasso", &p->grid, &job, p->penalty, err);
}

spt_status spt_cpu_group_lasso_grad(void *state, const spt_group_lasso_grad_problem *p,
                                    spt_error *err) {
  (void)state;
  struct group_job job = {.rule = SPT_GROUP_GRAD,
                          .amount = p->strength,
                          .beta = p->beta,
                          .scaled = p->grad,
                          .add = p->add};
  return run(p->add ? "add_group_lasso_grad_" : "group_lasso_grad", &p->grid, &job, NULL, err);
}

spt_status spt_cpu_group_shrink(void *state, const spt_group_shrink_problem *p, spt_error *err) {
  (void)state;
  struct group_job job = {
      .rule = SPT_GROUP_SHRINK, .amount = p->strength, .beta = p->beta, .scaled = p->grid.w};
  return run("group_shrink_", &p->grid, &job, NULL, err);
}
