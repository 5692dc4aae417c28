#include "group_cells.h"

#include <math.h>
#include <string.h>

#include "../integer.h"
#include "matrix.h"
#include "half.h"

#define CHAIN 16 /* rows whose squares are added in float32 */

/* Sums between these are right: a square below float32's normal range is lost in a sum that is at
 * least 2^46 times as large, for groups of up to 2^20 weights in a cell. */
#define LEAST_SUM 0x1p-80
#define MOST_SUM 0x1p126

typedef struct spt_group_job group_job;
typedef struct spt_group_cell group_cell;
typedef struct spt_group_buffers buffers;

static bool is_direct(const spt_matrix *m) { return m->col == 1 || m->cols == 1; }

static bool is_plain(const spt_matrix *m) { return m->dtype == SPT_F32 && is_direct(m); }

static const float *row_at(const group_job *job, const spt_matrix *m, int64_t row, int64_t col,
                           int64_t n, float *buffer) {
  if (is_plain(m)) {
    return spt_address(m, row, col);
  }
  job->tier->load_row(buffer, spt_address(m, row, col), m->dtype, m->col, n);
  return buffer;
}

/* ---- sums of squares ------------------------------------------------------------------------ */

/* Each row of the cell is a group. */
static void sum_rows(const group_job *job, const group_cell *cell, buffers *b, double *sums) {
  const spt_matrix *w = &job->w;
  if (is_direct(w)) {
    job->tier->square_rows(sums, b->bits, spt_address(w, cell->row_begin, cell->col_begin),
                           w->dtype, w->row, cell->row_end - cell->row_begin,
                           cell->col_end - cell->col_begin);
    return;
  }
  for (int64_t row = cell->row_begin; row < cell->row_end; row++) {
    for (int64_t col = cell->col_begin; col < cell->col_end; col += SPT_GROUP_SPAN) {
      int64_t n = spt_min(SPT_GROUP_SPAN, cell->col_end - col), g = row - cell->row_begin;
      const float *x = row_at(job, w, row, col, n, b->x);
      job->tier->square_rows(sums + g, b->bits + g, x, SPT_F32, 0, 1, n);
    }
  }
}

/* Column by column over a few rows, then over the columns of each group. A group wider than the span
 * is the only one of its cell, and taken a span at a time. */
static void sum_columns(const group_job *job, const group_cell *cell, buffers *b, double *sums) {
  const spt_matrix *w = &job->w;
  int64_t chain = is_direct(w) ? CHAIN : 1;
  for (int64_t row = cell->row_begin; row < cell->row_end; row += chain) {
    int64_t rows = spt_min(chain, cell->row_end - row);
    for (int64_t col = cell->col_begin; col < cell->col_end; col += SPT_GROUP_SPAN) {
      int64_t n = spt_min(SPT_GROUP_SPAN, cell->col_end - col);
      int64_t width = spt_min(job->group_cols, SPT_GROUP_SPAN);
      if (is_direct(w)) {
        job->tier->square_columns(b->columns, b->bits, spt_address(w, row, col), w->dtype, w->row,
                                  rows, n);
      } else {
        job->tier->square_columns(b->columns, b->bits, row_at(job, w, row, col, n, b->x), SPT_F32,
                                  0, 1, n);
      }
      memset(b->columns + n, 0, (size_t)(cell->n_groups * width - n) * sizeof *b->columns);
      job->tier->fold_columns(sums, b->columns, cell->n_groups, width);
    }
  }
}

static double exact_sum(const group_job *job, const group_cell *cell, int64_t g) {
  const spt_matrix *w = &job->w;
  int64_t row = cell->row_begin, row_end = cell->row_end, col = cell->col_begin;
  int64_t col_end = cell->col_end;
  if (job->stacked) {
    row += g;
    row_end = row + 1;
  } else {
    col += g * job->group_cols;
    col_end = spt_min(col + job->group_cols, col_end);
  }
  double sum = 0.0;
  for (; row < row_end; row++) {
    for (int64_t c = col; c < col_end; c++) {
      double value = spt_load(w->data, w->dtype, row * w->row + c * w->col);
      sum += value * value;
    }
  }
  return sum;
}

/* Whether any weight of the group has a bit set other than its sign. */
static bool is_zero(const group_job *job, const group_cell *cell, const uint32_t *bits, int64_t g) {
  int64_t width = job->stacked ? 1 : spt_min(job->group_cols, SPT_GROUP_SPAN);
  int64_t cols = cell->col_end - cell->col_begin;
  int64_t end = spt_min((g + 1) * width, job->stacked ? cell->n_groups : cols);
  uint32_t any = 0;
  for (int64_t i = g * width; i < end; i++) {
    any |= bits[i];
  }
  return (any & 0x7fffffffu) == 0;
}

void spt_group_sums(const group_job *job, const group_cell *cell, buffers *b, double *sums) {
  int64_t n = cell->n_groups, cols = cell->col_end - cell->col_begin;
  if (job->group_rows * job->group_cols == 1) { /* no square, no root */
    const float *x = row_at(job, &job->w, cell->row_begin, cell->col_begin, n, b->x);
    job->tier->magnitudes(sums, x, n);
    return;
  }
  memset(sums, 0, (size_t)n * sizeof *sums);
  memset(b->bits, 0, (size_t)spt_min(job->stacked ? n : cols, SPT_GROUP_SPAN) * sizeof *b->bits);
  if (job->stacked) {
    sum_rows(job, cell, b, sums);
  } else {
    sum_columns(job, cell, b, sums);
  }
  for (int64_t g = 0; g < n; g++) {
    if (!(sums[g] >= LEAST_SUM && sums[g] <= MOST_SUM) && !is_zero(job, cell, b->bits, g)) {
      sums[g] = exact_sum(job, cell, g);
    }
  }
}

/* ---- what the sums become ------------------------------------------------------------------- */

static void divide_by_sizes(const group_job *job, const group_cell *cell, double *sums) {
  int64_t row = cell->band * job->group_rows, n = cell->n_groups;
  int64_t rows = spt_min(row + job->group_rows, job->w.rows) - row;
  double size = (double)rows * (double)job->group_cols;
  int64_t begin = (cell->group_begin + n - 1) * job->group_cols; /* of the last, maybe narrower */
  double last = (double)rows * (double)(spt_min(begin + job->group_cols, job->w.cols) - begin);
  if (!job->stacked) {
    sums[--n] /= last;
  }
  for (int64_t g = 0; g < n; g++) {
    sums[g] /= size;
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

void spt_group_finish(const group_job *job, const group_cell *cell, buffers *b, double *sums) {
  int64_t n = cell->n_groups;
  const float *beta = NULL;
  if (job->group_rows * job->group_cols > 1) {
    if (job->mean) {
      divide_by_sizes(job, cell, sums);
    }
    job->tier->square_roots(sums, n);
  }
  if (job->beta.data != NULL) {
    beta = row_at(job, &job->beta, cell->band, cell->group_begin, n, b->y);
  }
  if (job->weighs_penalty) {
    job->penalties[cell->index] = weighted_sum(sums, beta, n);
  }
  job->tier->group_values(sums, beta, job->rule, job->amount, n);
  if (job->values.data != NULL) {
    void *to = spt_address(&job->values, cell->band, cell->group_begin);
    if (is_plain(&job->values)) {
      job->tier->narrow_row(to, sums, n);
    } else {
      job->tier->narrow_row(b->x, sums, n);
      job->tier->store_row(to, SPT_F32, job->values.col, b->x, n);
    }
  }
}

/* ---- scaling -------------------------------------------------------------------------------- */

/* Where values leave float32, or what they multiply would. */
static void scale_exactly(const group_job *job, const group_cell *cell, const double *values) {
  const spt_matrix *w = &job->w, *to = &job->scaled;
  for (int64_t row = cell->row_begin; row < cell->row_end; row++) {
    for (int64_t col = cell->col_begin; col < cell->col_end; col++) {
      int64_t at = row * to->row + col * to->col;
      double value =
          values[job->stacked ? row - cell->row_begin : (col - cell->col_begin) / job->group_cols];
      value *= spt_load(w->data, w->dtype, row * w->row + col * w->col);
      value += job->add ? spt_load(to->data, to->dtype, at) : 0.0f;
      spt_store(to->data, to->dtype, at, (float)value);
    }
  }
}

/* Rows through float32 buffers: other strides, or two storage types. */
static void scale_by_row(const group_job *job, const group_cell *cell, buffers *b,
                         spt_scaling scaling) {
  const spt_matrix *to = &job->scaled;
  const float *factor = scaling.factor;
  scaling.dtype = SPT_F32;
  scaling.stream = false;
  scaling.rows = 1;
  scaling.y = b->y;
  for (int64_t row = cell->row_begin; row < cell->row_end; row++, factor += scaling.row_step) {
    for (int64_t col = cell->col_begin; col < cell->col_end; col += SPT_GROUP_SPAN) {
      void *at = spt_address(to, row, col);
      scaling.cols = spt_min(SPT_GROUP_SPAN, cell->col_end - col);
      scaling.x = row_at(job, &job->w, row, col, scaling.cols, b->x);
      scaling.factor = factor;
      if (job->add) {
        job->tier->load_row(b->y, at, to->dtype, to->col, scaling.cols);
      }
      job->tier->scale_rows(&scaling);
      job->tier->store_row(at, to->dtype, to->col, b->y, scaling.cols);
    }
  }
}

void spt_group_scale(const group_job *job, const group_cell *cell, buffers *b,
                     const double *values) {
  const spt_matrix *w = &job->w, *to = &job->scaled;
  bool each_column = !job->stacked && cell->n_groups > 1;
  float *factor = b->factors;
  if (!job->tier->narrow_factors(factor, values, cell->n_groups)) {
    scale_exactly(job, cell, values);
    return;
  }
  if (each_column && job->group_cols > 1) {
    job->tier->repeat_row(b->columns, factor, cell->n_groups, job->group_cols);
    factor = b->columns;
  }
  spt_scaling scaling = {.y = spt_address(to, cell->row_begin, cell->col_begin),
                         .x = spt_address(w, cell->row_begin, cell->col_begin),
                         .dtype = w->dtype,
                         .y_stride = to->row,
                         .x_stride = w->row,
                         .factor = factor,
                         .row_step = job->stacked,
                         .each_column = each_column,
                         .rows = cell->row_end - cell->row_begin,
                         .cols = cell->col_end - cell->col_begin,
                         .add = job->add,
                         .stream = job->stream};
  if (w->dtype == to->dtype && is_direct(w) && is_direct(to)) {
    job->tier->scale_rows(&scaling);
  } else {
    scale_by_row(job, cell, b, scaling);
  }
}
