/* Norms, beta, lasso, its gradient and the proximal step: one engine that sums squares per group and
 * then writes what the sums become, or scales the weights by it.
 *
 * The matrix is taken so that its columns are neighbours in memory (a transposed one is transposed,
 * with its grid) and cut into cells (group_cells.h). A cell's weights stay in cache between the two
 * passes, so memory is read once. Groups too tall for that are cut into pieces of rows, whose sums are
 * added in order. The cuts depend on shapes alone, so results do not depend on the number of
 * threads. */
#include "groups.h"

#include <string.h>

#include "../integer.h"
#include "group_cells.h"
#include "matrix.h"
#include "ops.h"
#include "pool.h"
#include "scratch.h"

#define SPAN SPT_GROUP_SPAN
#define CELL_ELEMENTS 262144 /* 1 MB: one core's L2 */
#define PIECE_ELEMENTS 65536 /* of groups taller than that */
/* An array of so many weights is written around the caches, which would keep little of it: a line that
 * is written as a whole need not be read first (1.3 times the speed at 9 MB; at 2 MB, which an L3
 * keeps, two thirds). */
#define STREAM_ELEMENTS 2097152
#define TASK_ELEMENTS 32768 /* a task is worth handing out */
#define BATCH_ELEMENTS 4096 /* both passes find as many in L1 */

static struct spt_group_cell cell_at(const struct spt_group_job *job, int64_t index) {
  int64_t chunk = index % job->n_chunks;
  int64_t piece = index / job->n_chunks % job->n_pieces;
  int64_t band = index / job->n_chunks / job->n_pieces;
  struct spt_group_cell cell = {.piece = piece, .index = band * job->n_chunks + chunk};
  if (job->stacked) {
    cell.row_begin = band * job->piece_rows;
    cell.row_end = spt_min(cell.row_begin + job->piece_rows, job->w.rows);
    cell.col_end = job->w.cols;
    cell.group_begin = cell.row_begin;
    cell.n_groups = cell.row_end - cell.row_begin;
    return cell;
  }
  int64_t band_end = spt_min((band + 1) * job->group_rows, job->w.rows);
  cell.row_begin = band * job->group_rows + piece * job->piece_rows;
  cell.row_end = spt_min(cell.row_begin + job->piece_rows, band_end);
  cell.band = band;
  cell.group_begin = chunk * job->chunk_groups;
  cell.n_groups = spt_min(job->chunk_groups, job->across - cell.group_begin);
  cell.col_begin = cell.group_begin * job->group_cols;
  cell.col_end = spt_min((cell.group_begin + cell.n_groups) * job->group_cols, job->w.cols);
  return cell;
}

/* ---- tasks ------------------------------------------------------------------------------------ */

/* As many cells as their values have room for, then the second pass over all of them: long runs
 * through one array and then the other suit the prefetchers. */
static void whole_groups(void *context, int64_t task, int worker) {
  (void)worker;
  const struct spt_group_job *job = context;
  struct spt_group_buffers b;
  int64_t cols = spt_min(job->chunk_groups * job->group_cols, job->w.cols);
  int64_t end = spt_min((task + 1) * job->cells_per_task, job->bands * job->n_chunks);
  for (int64_t begin = task * job->cells_per_task; begin < end;) {
    int64_t used = 0, stop = begin;
    for (; stop < end; stop++) {
      struct spt_group_cell cell = cell_at(job, stop);
      if (used + cell.n_groups > SPAN ||
          (stop > begin && (stop - begin) * job->piece_rows * cols >= BATCH_ELEMENTS)) {
        break;
      }
      spt_group_sums(job, &cell, &b, b.sums + used);
      spt_group_finish(job, &cell, &b, b.sums + used);
      used += cell.n_groups;
    }
    for (used = 0; job->scaled.data != NULL && begin < stop; begin++) {
      struct spt_group_cell cell = cell_at(job, begin);
      spt_group_scale(job, &cell, &b, b.sums + used);
      used += cell.n_groups;
    }
    begin = stop;
  }
}

static double *partial_at(const struct spt_group_job *job, const struct spt_group_cell *cell,
                          int64_t piece) {
  return job->partial + (cell->band * job->n_pieces + piece) * job->across + cell->group_begin;
}

static void sum_piece(void *context, int64_t index, int worker) {
  (void)worker;
  const struct spt_group_job *job = context;
  struct spt_group_buffers b;
  struct spt_group_cell cell = cell_at(job, index);
  spt_group_sums(job, &cell, &b, partial_at(job, &cell, cell.piece));
}

/* The sums of all pieces, then their values, in the place of the first piece's. */
static void finish_pieces(void *context, int64_t index, int worker) {
  (void)worker;
  const struct spt_group_job *job = context;
  struct spt_group_buffers b;
  int64_t first = index / job->n_chunks * job->n_pieces * job->n_chunks + index % job->n_chunks;
  struct spt_group_cell cell = cell_at(job, first);
  double *sums = partial_at(job, &cell, 0);
  for (int64_t piece = 1; piece < job->n_pieces; piece++) {
    const double *more = partial_at(job, &cell, piece);
    for (int64_t g = 0; g < cell.n_groups; g++) {
      sums[g] += more[g];
    }
  }
  spt_group_finish(job, &cell, &b, sums);
}

static void scale_piece(void *context, int64_t index, int worker) {
  (void)worker;
  const struct spt_group_job *job = context;
  struct spt_group_buffers b;
  struct spt_group_cell cell = cell_at(job, index);
  spt_group_scale(job, &cell, &b, partial_at(job, &cell, 0));
}

/* ---- the engine ------------------------------------------------------------------------------- */

static void orient(struct spt_group_job *job, const spt_grid *grid) {
  bool turn = spt_is_column_major(&grid->w);
  job->w = grid->w;
  job->group_rows = turn ? grid->group_cols : grid->group_rows;
  job->group_cols = turn ? grid->group_rows : grid->group_cols;
  job->down = turn ? grid->across : grid->down;
  job->across = turn ? grid->down : grid->across;
  job->stacked = job->group_rows == 1 && job->across == 1 && job->group_cols > 1;
  spt_matrix *matrices[] = {&job->w, &job->scaled, &job->beta, &job->values};
  for (int i = 0; i < 4; i++) {
    if (turn != (i >= 2 && job->stacked)) {
      *matrices[i] = spt_transposed(*matrices[i]);
    }
  }
}

static void plan(struct spt_group_job *job) {
  job->chunk_groups = job->group_cols < SPAN ? SPAN / job->group_cols : 1;
  job->n_chunks = spt_ceil_div(job->across, job->chunk_groups);
  int64_t cols = spt_min(job->chunk_groups * job->group_cols, job->w.cols);
  if (job->stacked) {
    job->piece_rows = spt_min(SPAN, spt_ceil_div(BATCH_ELEMENTS, cols));
    job->bands = spt_ceil_div(job->down, job->piece_rows);
    job->n_pieces = 1;
  } else {
    int64_t fits = spt_max(PIECE_ELEMENTS / cols / 16 * 16, 16);
    job->piece_rows = job->group_rows * cols <= CELL_ELEMENTS ? job->group_rows : fits;
    job->bands = job->down;
    job->n_pieces = spt_ceil_div(job->group_rows, job->piece_rows);
  }
  job->cells_per_task = spt_ceil_div(TASK_ELEMENTS, job->piece_rows * cols);
}

static spt_status run(const char *op, const spt_grid *grid, struct spt_group_job *job,
                      double *penalty, spt_error *err) {
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
  job->stream = job->scaled.data != NULL && job->scaled.data != job->w.data && !job->add &&
                job->w.dtype == SPT_F32 && job->w.rows * job->w.cols >= STREAM_ELEMENTS;
  int64_t cells = job->bands * job->n_chunks, pieces = cells * job->n_pieces;
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
  struct spt_group_job job = {.rule = SPT_GROUP_NORM, .values = p->norms};
  return run("group_norms", &p->grid, &job, NULL, err);
}

spt_status spt_cpu_group_scores(const char *op, const spt_grid *grid, const spt_matrix *scores,
                                spt_error *err) {
  struct spt_group_job job = {.rule = SPT_GROUP_NORM, .values = *scores, .mean = true};
  return run(op, grid, &job, NULL, err);
}

spt_status spt_cpu_group_beta(void *state, const spt_group_beta_problem *p, spt_error *err) {
  (void)state;
  struct spt_group_job job = {.rule = SPT_GROUP_BETA, .amount = p->eps, .values = p->beta};
  return run("group_beta", &p->grid, &job, NULL, err);
}

spt_status spt_cpu_group_lasso(void *state, const spt_group_lasso_problem *p, spt_error *err) {
  (void)state;
  struct spt_group_job job = {.rule = SPT_GROUP_NORM, .beta = p->beta};
  return run("group_lasso", &p->grid, &job, p->penalty, err);
}

spt_status spt_cpu_group_lasso_grad(void *state, const spt_group_lasso_grad_problem *p,
                                    spt_error *err) {
  (void)state;
  struct spt_group_job job = {.rule = SPT_GROUP_GRAD,
                              .amount = p->strength,
                              .beta = p->beta,
                              .scaled = p->grad,
                              .add = p->add};
  return run(p->add ? "add_group_lasso_grad_" : "group_lasso_grad", &p->grid, &job, NULL, err);
}

spt_status spt_cpu_group_shrink(void *state, const spt_group_shrink_problem *p, spt_error *err) {
  (void)state;
  struct spt_group_job job = {
      .rule = SPT_GROUP_SHRINK, .amount = p->strength, .beta = p->beta, .scaled = p->grid.w};
  return run("group_shrink_", &p->grid, &job, NULL, err);
}
