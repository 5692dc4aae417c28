/* apply_mask, expand_mask and prune_mask. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "../integer.h"
#include "groups.h"
#include "half.h"
#include "matrix.h"
#include "ops.h"
#include "pool.h"
#include "scratch.h"
#include "select.h"
#include "tier.h"

#define TASK_ELEMENTS 32768 /* a task is worth handing out */
#define SPAN 1024           /* columns of a row of bits at a time */
#define WIDE_BYTES 512      /* a run of so many is set as a whole, a shorter one bit by bit */

/* Rows of one band, that is, under one row of the mask. */
struct mask_job;
typedef void (*block_fn)(const struct mask_job *, int64_t band, int64_t row_begin, int64_t row_end);

struct mask_job {
  const spt_cpu_tier *tier;
  spt_grid grid;
  spt_matrix mask;
  int64_t rows_per_task;
  block_fn block;
};

static bool keeps(const spt_matrix *mask, int64_t band, int64_t group) {
  /* A bool array viewed from bytes may hold more than 0 and 1, which C's bool may not. */
  return ((const uint8_t *)mask->data)[band * mask->row + group * mask->col] != 0;
}

static void rows_of_task(void *context, int64_t task, int worker) {
  (void)worker;
  const struct mask_job *job = context;
  int64_t row = task * job->rows_per_task;
  int64_t end = spt_min(row + job->rows_per_task, job->grid.w.rows);
  while (row < end) {
    int64_t band = row / job->grid.group_rows;
    int64_t stop = spt_min((band + 1) * job->grid.group_rows, end);
    job->block(job, band, row, stop);
    row = stop;
  }
}

/* The columns of the matrix are taken as neighbours in memory: a transposed one is transposed. */
static void run_blocks(const spt_grid *grid, const spt_matrix *mask, block_fn block) {
  struct mask_job job = {
      .tier = spt_cpu_tier_in_use(), .grid = *grid, .mask = *mask, .block = block};
  if (spt_is_column_major(&grid->w)) {
    job.grid = (spt_grid){.w = spt_transposed(grid->w),
                          .group_rows = grid->group_cols,
                          .group_cols = grid->group_rows,
                          .down = grid->across,
                          .across = grid->down};
    job.mask = spt_transposed(*mask);
  }
  if (job.grid.across > 0) {
    job.rows_per_task = spt_ceil_div(TASK_ELEMENTS, job.grid.w.cols);
    spt_parallel_for(spt_ceil_div(job.grid.w.rows, job.rows_per_task), rows_of_task, &job);
  }
}

/* The run of groups of one kind that starts at `group`: its end. */
static int64_t run_end(const spt_matrix *mask, int64_t band, int64_t group) {
  bool kind = keeps(mask, band, group);
  int64_t end = group + 1;
  while (end < mask->cols && keeps(mask, band, end) == kind) {
    end++;
  }
  return end;
}

/* ---- apply_mask --------------------------------------------------------------------------------- */

/* Zero is all bits zero in every storage type. */
static void set_zero(const spt_matrix *w, int64_t row, int64_t col, int64_t end) {
  size_t size = spt_dtype_size(w->dtype);
  if (w->col == 1 || end - col == 1) {
    memset(spt_address(w, row, col), 0, (size_t)(end - col) * size);
    return;
  }
  for (; col < end; col++) {
    memset(spt_address(w, row, col), 0, size);
  }
}

static void zero_runs(const struct mask_job *job, int64_t band, int64_t row_begin,
                      int64_t row_end) {
  const spt_grid *grid = &job->grid;
  for (int64_t group = 0; group < grid->across;) {
    int64_t end = run_end(&job->mask, band, group);
    bool kept = keeps(&job->mask, band, group);
    for (int64_t row = row_begin; !kept && row < row_end; row++) {
      set_zero(&grid->w, row, group * grid->group_cols,
               spt_min(end * grid->group_cols, grid->w.cols));
    }
    group = end;
  }
}

/* Many short runs: every weight keeps its bits or loses all of them. */
static void apply_block(const struct mask_job *job, int64_t band, int64_t row_begin,
                        int64_t row_end) {
  const spt_grid *grid = &job->grid;
  const spt_matrix *w = &grid->w;
  int64_t size = (int64_t)spt_dtype_size(w->dtype);
  if (w->col != 1 || grid->group_cols * size >= WIDE_BYTES ||
      run_end(&job->mask, band, 0) == grid->across) {
    zero_runs(job, band, row_begin, row_end);
    return;
  }
  int64_t groups = SPAN / grid->group_cols;
  for (int64_t group = 0; group < grid->across; group += groups) {
    uint32_t bits[SPAN], *to = bits;
    int64_t end = spt_min(group + groups, grid->across), col = group * grid->group_cols;
    int64_t n = spt_min(end * grid->group_cols, w->cols) - col;
    for (int64_t g = group; g < end; g++) {
      uint32_t kept = keeps(&job->mask, band, g) ? UINT32_MAX : 0;
      for (int64_t c = 0; c < grid->group_cols; c++) {
        *to++ = kept;
      }
    }
    job->tier->and_rows(spt_address(w, row_begin, col), size, w->row, bits, row_end - row_begin, n);
  }
}

spt_status spt_cpu_apply_mask(void *state, const spt_apply_mask_problem *p, spt_error *err) {
  (void)state;
  (void)err;
  run_blocks(&p->grid, &p->mask, apply_block);
  return SPT_OK;
}

/* ---- expand_mask -------------------------------------------------------------------------------- */

/* A store of 16 bytes is one instruction: short groups take one and overlap the next group. */
static void expand_row(const struct mask_job *job, int64_t band, uint8_t *to) {
  int64_t width = job->grid.group_cols, cols = job->grid.w.cols;
  for (int64_t group = 0, col = 0; group < job->grid.across; group++, col += width) {
    uint8_t kept = keeps(&job->mask, band, group);
    if (width <= 16 && col + 16 <= cols) {
      memset(to + col, kept, 16);
    } else {
      memset(to + col, kept, (size_t)spt_min(width, cols - col));
    }
  }
}

static void expand_block(const struct mask_job *job, int64_t band, int64_t row_begin,
                         int64_t row_end) {
  const spt_matrix *w = &job->grid.w;
  uint8_t *first = spt_address(w, row_begin, 0);
  if (w->col == 1) {
    expand_row(job, band, first);
    for (int64_t row = row_begin + 1; row < row_end; row++) {
      memcpy(spt_address(w, row, 0), first, (size_t)w->cols);
    }
    return;
  }
  for (int64_t row = row_begin; row < row_end; row++) {
    for (int64_t col = 0; col < w->cols; col++) {
      *(uint8_t *)spt_address(w, row, col) = keeps(&job->mask, band, col / job->grid.group_cols);
    }
  }
}

spt_status spt_cpu_expand_mask(void *state, const spt_expand_mask_problem *p, spt_error *err) {
  (void)state;
  (void)err;
  run_blocks(&p->grid, &p->mask, expand_block);
  return SPT_OK;
}

/* ---- prune_mask --------------------------------------------------------------------------------- */

/* Scores are not negative, so their bits order as they do. */
static void keep_largest(const uint32_t *keys, int64_t n, double sparsity, bool *keep) {
  int64_t pruned = spt_min((int64_t)floor(sparsity * (double)n + 0.5), n - 1);
  if (pruned <= 0) {
    memset(keep, true, (size_t)n * sizeof *keep);
    return;
  }
  spt_selection least = spt_select_smallest(keys, n, pruned);
  for (int64_t i = n - 1; i >= 0; i--) { /* from the end: of equals the earlier is kept */
    bool equal = keys[i] == least.key;
    keep[i] = !((keys[i] < least.key) | (equal & (least.ties > 0)));
    least.ties -= equal;
  }
}

struct prune_job {
  const spt_prune_mask_problem *p;
  float *scores;
  bool *keep;
  int64_t n;     /* of all matrices, or the largest's */
  int64_t width; /* groups of a row, where rows compete among themselves */
};

static void keep_in_row(void *context, int64_t row, int worker) {
  (void)worker;
  const struct prune_job *job = context;
  int64_t at = row * job->width;
  keep_largest((const uint32_t *)job->scores + at, job->width, job->p->sparsity, job->keep + at);
}

static spt_status score_matrix(const struct prune_job *job, int64_t i, int64_t at, spt_error *err) {
  const spt_grid *grid = &job->p->grids[i];
  int64_t n = grid->down * grid->across;
  spt_matrix to = {.data = job->scores + at,
                   .dtype = SPT_F32,
                   .rows = grid->down,
                   .cols = grid->across,
                   .row = grid->across,
                   .col = 1};
  SPT_TRY(spt_cpu_group_scores("prune_mask", grid, &to, err));
  for (int64_t g = 0; g < n; g++) {
    if (!isfinite(job->scores[at + g])) {
      char index[32] = "";
      if (job->p->n_matrices > 1) {
        snprintf(index, sizeof index, "[%lld]", (long long)i);
      }
      return spt_fail(
          err, SPT_INVALID_VALUE,
          "prune_mask: w%s holds NaN or infinity in group (%lld, %lld), expected finite "
          "weights",
          index, (long long)(g / grid->across), (long long)(g % grid->across));
    }
  }
  return SPT_OK;
}

static void store_mask(const struct prune_job *job, int64_t i, int64_t at) {
  const spt_matrix *mask = &job->p->masks[i];
  const bool *keep = job->keep + at;
  bool *to = mask->data;
  for (int64_t row = 0; row < mask->rows; row++) {
    for (int64_t col = 0; col < mask->cols; col++) {
      to[row * mask->row + col * mask->col] = *keep++;
    }
  }
}

static spt_status prune_together(struct prune_job *job, spt_error *err) {
  const spt_prune_mask_problem *p = job->p;
  for (int64_t i = 0, at = 0; i < p->n_matrices; i++) {
    SPT_TRY(score_matrix(job, i, at, err));
    at += p->grids[i].down * p->grids[i].across;
  }
  keep_largest((const uint32_t *)job->scores, job->n, p->sparsity, job->keep);
  for (int64_t i = 0, at = 0; i < p->n_matrices; i++) {
    store_mask(job, i, at);
    at += p->grids[i].down * p->grids[i].across;
  }
  return SPT_OK;
}

static spt_status prune_each(struct prune_job *job, spt_error *err) {
  const spt_prune_mask_problem *p = job->p;
  for (int64_t i = 0; i < p->n_matrices; i++) {
    int64_t down = p->grids[i].down, across = p->grids[i].across;
    SPT_TRY(score_matrix(job, i, 0, err));
    bool by_row = p->scope == SPT_SCOPE_ROW_BALANCED;
    job->width = by_row ? across : down * across;
    if (down * across > 0) {
      spt_parallel_for(by_row ? down : 1, keep_in_row, job);
    }
    store_mask(job, i, 0);
  }
  return SPT_OK;
}

spt_status spt_cpu_prune_mask(void *state, const spt_prune_mask_problem *p, spt_error *err) {
  (void)state;
  spt_status status = SPT_OK;
  struct prune_job job = {.p = p};
  for (int64_t i = 0; i < p->n_matrices; i++) {
    int64_t n = p->grids[i].down * p->grids[i].across;
    if (p->scope != SPT_SCOPE_GLOBAL) {
      job.n = spt_max(job.n, n);
    } else if (__builtin_add_overflow(job.n, n, &job.n)) {
      return spt_fail(err, SPT_OUT_OF_MEMORY, "prune_mask: more groups than 64 bits count");
    }
  }
  job.scores = spt_scratch("prune_mask", job.n, sizeof(float), &status, err);
  job.keep = spt_scratch("prune_mask", job.n, sizeof(bool), &status, err);
  if (status == SPT_OK) {
    status = p->scope == SPT_SCOPE_GLOBAL ? prune_together(&job, err) : prune_each(&job, err);
  }
  spt_scratch_free(job.scores);
  spt_scratch_free(job.keep);
  return status;
}
