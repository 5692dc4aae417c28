/* One cell of a matrix cut into groups: sums of squares, what they become, and scaling by it.
 *
 * A cell is a piece of one row of groups, as many whole groups wide as fit SPT_GROUP_SPAN columns;
 * groups.c makes the cells and runs over them.
 *
 * Squares are added in float32, at most 16 in a chain, then in double: 2e-7 relative. A group whose
 * sum says that squares left float32's range is added again in double, and a factor too large or
 * too small for float32 multiplies in double: so every finite weight counts. */
#ifndef SPATILE_CPU_GROUP_CELLS_H
#define SPATILE_CPU_GROUP_CELLS_H

#include "tier.h"

#define SPT_GROUP_SPAN 1024 /* columns at a time: what is kept per column stays in L1 */

struct spt_group_job {
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
  bool stream;         /* float32 that no cache would keep: spt_scaling */
  bool weighs_penalty; /* sum of beta * value */
  bool stacked;        /* each row is one group: then a cell is many of them, and beta and values
                          are transposed so that those of a cell lie in one row */

  int64_t bands;                  /* rows of cells that hold whole groups */
  int64_t chunk_groups, n_chunks; /* groups of a cell, cells along a row of groups */
  int64_t piece_rows, n_pieces;   /* rows of a cell, cells along a group's height */
  int64_t cells_per_task;
  double *partial;   /* (down, n_pieces, across), where n_pieces > 1 */
  double *penalties; /* (bands, n_chunks), where asked for */
};

struct spt_group_cell {
  int64_t piece, index;      /* index: among the cells of one piece */
  int64_t band, group_begin; /* where beta and values of its groups begin */
  int64_t n_groups;
  int64_t row_begin, row_end, col_begin, col_end;
};

struct spt_group_buffers {
  double sums[SPT_GROUP_SPAN];
  float columns[SPT_GROUP_SPAN + SPT_LANES], x[SPT_GROUP_SPAN], y[SPT_GROUP_SPAN];
  float factors[SPT_GROUP_SPAN];
  uint32_t bits[SPT_GROUP_SPAN];
};

/* sums (n_groups): of the squares of the cell's weights; of a group of one weight, its size. */
void spt_group_sums(const struct spt_group_job *, const struct spt_group_cell *,
                    struct spt_group_buffers *, double *sums);

/* Complete sums become norms and those become values, in place; stores what is stored of them. */
void spt_group_finish(const struct spt_group_job *, const struct spt_group_cell *,
                      struct spt_group_buffers *, double *sums);

/* The cell's weights times its groups' values go where the job says. */
void spt_group_scale(const struct spt_group_job *, const struct spt_group_cell *,
                     struct spt_group_buffers *, const double *values);

#endif
