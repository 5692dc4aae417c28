/* apply_mask, expand_mask and prune_mask. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "../integer.h"
#include "groups.h"
#include "half.h"
#include "ops.h"
#include "pool.h"
#include "scratch.h"
#include "select.h"

struct mask_job {
  spt_grid grid;
  spt_matrix mask;
};

static bool keeps(const spt_matrix *mask, int64_t band, int64_t group) {
  /* A bool array viewed from bytes may hold more than 0 and 1, which C's bool may not. */
  return ((const uint8_t *)mask->data)[band * mask->row + group * mask->col] != 0;
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

static void zero_row(void *context, int64_t row, int worker) {
  (void)worker;
  const struct mask_job *job = context;
  const spt_grid *grid = &job->grid;
  int64_t band = row / grid->group_rows;
  for (int64_t group = 0; group < grid->across;) {
    int64_t end = run_end(&job->mask, band, group);
    if (!keeps(&job->mask, band, group)) {
      set_zero(&grid->w, row, group * grid->group_cols,
               spt_min(end * grid->group_cols, grid->w.cols));
    }
    group = end;
  }
}

spt_status spt_cpu_apply_mask(void *state, const spt_apply_mask_problem *p, spt_error *err) {
  (void)state;
  (void)err;
  struct mask_job job = {.grid = p->grid, .mask = p->mask};
  if (spt_is_column_major(&p->grid.w)) {
    job.grid = (spt_grid){.w = spt_transposed(p->grid.w),
                          .group_rows = p->grid.group_cols,
                          .group_cols = p->grid.group_rows,
                          .down = p->grid.across,
                          .across = p->grid.down};
    job.mask = spt_transposed(p->mask);
  }
  if (job.grid.across > 0) {
    spt_parallel_for(job.grid.w.rows, zero_row, &job);
  }
  return SPT_OK;
}

/* ---- expand_mask -------------------------------------------------------------------------------- */

static void expand_row(void *context, int64_t row, int worker) {
  (void)worker;
  const struct mask_job *job = context;
  const spt_grid *grid = &job->grid;
  int64_t band = row / grid->group_rows;
  bool *to = (bool *)grid->w.data + row * grid->w.row;
  for (int64_t group = 0, col = 0; group < grid->across; group++) {
    bool kept = keeps(&job->mask, band, group);
    int64_t end = spt_min(col + grid->group_cols, grid->w.cols);
    if (grid->w.col == 1) {
      memset(to + col, kept, (size_t)(end - col));
      col = end;
    }
    for (; col < end; col++) {
      to[col * grid->w.col] = kept;
    }
  }
}

spt_status spt_cpu_expand_mask(void *state, const spt_expand_mask_problem *p, spt_error *err) {
  (void)state;
  (void)err;
  struct mask_job job = {.grid = p->grid, .mask = p->mask};
  spt_parallel_for(p->grid.w.rows, expand_row, &job);
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
    job.n = p->scope == SPT_SCOPE_GLOBAL ? job.n + n : n > job.n ? n : job.n;
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
