/* groups.cuh: how blocks of threads cover a matrix that is cut into groups; for groups.cu and masks.cu.
 *
 * The matrix is first turned so that its columns are the nearer dimension in memory. A row of groups is a
 * band. A block takes a cell: a few bands, and of each a chunk of whole groups side by side (or a span of
 * one wide group) and all rows or a piece of them. Threads lie over it so that neighbours read
 * neighbouring packs of 16 bytes; a thread has one column of packs and steps down its band, or, in a wide
 * group, also along it. The cuts depend on shapes alone, never on addresses, strides or the device: so do
 * the orders in which squares are added, and results. */
#ifndef SPATILE_CUDA_GROUPS_CUH
#define SPATILE_CUDA_GROUPS_CUH

#include "context.h"
#include "pack.cuh"

#define SPT_GROUP_THREADS 256
#define SPT_GROUP_WIDE 64 /* packs: a group as wide as that is alone in its chunk */
#define SPT_GROUP_BLOCKS ((int64_t)1 << 20) /* of a launch; a block takes further cells in turn */

struct spt_patch {
  int64_t rows, cols, group_rows, group_cols, down, across;
  int32_t pack;          /* elements of a pack */
  int32_t tx, ty, bands; /* threads along a row, down a band, and bands: 256 in all */
  int32_t steps;         /* packs of a thread in one row, tx packs apart */
  int32_t packs;         /* of a thread in all */
  int32_t per_chunk;     /* groups side by side */
  int32_t team;          /* lanes that add the sums of a group */
  bool single;           /* every pack is of one group */
  int64_t spans, pieces; /* into which a group is cut along columns and rows: its parts */
  int64_t piece_rows;
  int64_t chunks, stacks, cells; /* chunks * pieces * stacks: stacks of bands */
};

static __host__ __device__ __forceinline__ int64_t spt_parts(const spt_patch &p) {
  return p.spans * p.pieces;
}

/* A thread's share of a cell. Its rows and columns count from the cell's first; there may be none. */
struct spt_place {
  int64_t stack, first_group, part; /* of the cell */
  int64_t band, first_row, first_col;
  int32_t rows, cols;  /* inside the matrix, of the thread's band and piece */
  int32_t row, col, b; /* the thread's first, and its band in the cell */
};

static __device__ __forceinline__ spt_place spt_place_of(const spt_patch &p, int64_t cell) {
  spt_place at;
  int64_t chunk = cell % p.chunks, piece = cell / p.chunks % p.pieces;
  int64_t span = chunk % p.spans;
  at.stack = cell / p.chunks / p.pieces;
  at.first_group = chunk / p.spans * p.per_chunk;
  at.part = piece * p.spans + span;
  at.b = (int)(threadIdx.x / (unsigned)(p.tx * p.ty));
  at.row = (int)(threadIdx.x / (unsigned)p.tx % (unsigned)p.ty);
  at.col = (int)(threadIdx.x % (unsigned)p.tx) * p.pack;
  at.band = at.stack * p.bands + at.b;
  at.first_row = at.band * p.group_rows + piece * p.piece_rows;
  int64_t row_end = spt_least((at.band + 1) * p.group_rows, p.rows);
  at.rows = (int)spt_most(0, spt_least(p.piece_rows, row_end - at.first_row));
  int64_t span_cols = (int64_t)p.steps * p.tx * p.pack;
  at.first_col = at.first_group * p.group_cols + span * span_cols;
  int64_t col_end = spt_least((at.first_group + p.per_chunk) * p.group_cols, p.cols);
  at.cols = (int)spt_least(span_cols, col_end - at.first_col);
  return at;
}

/* The thread's packs, one after another: down its column, after all steps of a row. */
struct spt_cursor {
  int32_t row, col, step;

  __device__ __forceinline__ explicit spt_cursor(const spt_place &at)
      : row(at.row), col(at.col), step(0) {}
  __device__ __forceinline__ void advance(const spt_patch &p, const spt_place &at) {
    if (++step == p.steps) {
      step = 0;
      col = at.col;
      row += p.ty;
    } else {
      col += p.tx * p.pack;
    }
  }
  __device__ __forceinline__ bool inside(const spt_place &at, int e = 0) const {
    return row < at.rows && col + e < at.cols;
  }
};

/* ---- host: the plan ----------------------------------------------------------------------------- */

static inline int64_t spt_power_below(int64_t n) { /* the largest power of two that is at most n */
  int64_t power = 1;
  while (power <= n / 2) {
    power *= 2;
  }
  return power;
}

/* n, or the nearest power of two within [least, most] that is at most n. */
static inline int32_t spt_threads_for(int64_t n, int64_t least, int64_t most) {
  return (int32_t)spt_power_below(spt_most(least, spt_least(n, most)));
}

/* Groups of a chunk of tx packs, such that the next chunk begins at a whole pack where that can be. */
static inline int64_t spt_chunk_groups(const spt_patch &p, int64_t tx) {
  int64_t fits = tx * p.pack / p.group_cols, whole = 1;
  while (whole * p.group_cols % p.pack != 0) {
    whole *= 2; /* packs are powers of two */
  }
  return spt_least(fits >= whole ? fits / whole * whole : fits, p.across);
}

static inline void spt_plan_narrow(spt_patch *p) {
  /* 256 bytes of a row suffice where there are many rows; else the more the better. The widths that
   * leave the fewest threads without a column win. */
  const int64_t tall[] = {16, 32, 64, 128, 256}, low[] = {64, 128, 256, 32, 16};
  const int64_t *widths = p->group_rows >= 64 ? tall : low;
  double best = 0.0;
  for (int i = 0; i < 5; i++) {
    int64_t tx = spt_least(widths[i], spt_power_below(2 * spt_blocks(p->cols, p->pack) - 1));
    int64_t groups = spt_chunk_groups(*p, tx), cols = groups * p->group_cols;
    double used = (double)spt_least(cols, p->cols) / (double)(tx * p->pack);
    if (cols % p->pack != 0 && groups < p->across) {
      used /= 2; /* the next chunk would begin within a pack */
    }
    if (used > 1.05 * best) {
      best = used;
      p->tx = (int32_t)tx;
      p->per_chunk = (int32_t)groups;
    }
  }
  p->steps = 1;
  p->ty = spt_threads_for(p->group_rows / 4, 1, SPT_GROUP_THREADS / p->tx);
}

static inline int64_t spt_plan_wide(spt_patch *p) { /* returns all steps */
  int64_t packs = spt_blocks(p->group_cols, p->pack);
  p->tx = spt_threads_for(packs / 4, 32, SPT_GROUP_THREADS);
  p->per_chunk = 1;
  int64_t steps = spt_blocks(packs, p->tx);
  int64_t ty = spt_least(p->group_rows, spt_least(p->group_rows, 256) * spt_least(steps, 256) / 4);
  p->ty = spt_threads_for(ty, 1, SPT_GROUP_THREADS / p->tx);
  return steps;
}

/* Of a matrix whose columns are its nearer dimension. `pack` is 16 bytes of its elements, `most` how many
 * packs a thread may have. */
static inline spt_patch spt_patch_of(const spt_grid *grid, int pack, int most) {
  spt_patch p = {};
  p.rows = grid->w.rows;
  p.cols = grid->w.cols;
  p.group_rows = grid->group_rows;
  p.group_cols = grid->group_cols;
  p.down = grid->down;
  p.across = grid->across;
  p.pack = pack;
  int64_t steps = 1;
  if (p.group_cols < SPT_GROUP_WIDE * pack) {
    spt_plan_narrow(&p);
  } else {
    steps = spt_plan_wide(&p);
  }
  p.bands = SPT_GROUP_THREADS / p.tx / p.ty;
  while (p.bands / 2 >= p.down && p.ty * 2 <= p.group_rows) { /* few bands: share their rows */
    p.bands /= 2;
    p.ty *= 2;
  }
  p.steps = (int32_t)spt_least(steps, most);
  p.spans = spt_blocks(steps, p.steps);
  int64_t rows = (int64_t)p.ty * (most / p.steps);
  p.pieces = spt_blocks(p.group_rows, rows);
  p.piece_rows = spt_blocks(spt_blocks(p.group_rows, p.pieces), p.ty) * p.ty;
  p.pieces = spt_blocks(p.group_rows, p.piece_rows);
  p.packs = (int32_t)(p.piece_rows / p.ty) * p.steps;
  p.single = p.per_chunk == 1 || p.group_cols % pack == 0;
  int64_t sums = p.per_chunk == 1 ? p.tx : p.single ? p.group_cols / pack : p.group_cols;
  p.team = spt_threads_for(SPT_GROUP_THREADS / ((int64_t)p.bands * p.per_chunk), 1,
                           spt_least(32, sums * p.ty));
  p.chunks = spt_blocks(p.across, p.per_chunk) * p.spans;
  p.stacks = spt_blocks(p.down, p.bands);
  p.cells = p.chunks * p.pieces * p.stacks;
  return p;
}

/* For groups of one weight, which need no sums: bands of 16 rows. */
static inline spt_patch spt_element_patch(spt_grid grid, int pack) {
  grid.group_rows = spt_least(grid.w.rows, 16);
  grid.group_cols = 1;
  grid.down = spt_blocks(grid.w.rows, grid.group_rows);
  grid.across = grid.w.cols;
  return spt_patch_of(&grid, pack, 16);
}

/* Whether packs of the patch may be moved as such: m's columns are neighbours, and packs aligned. */
static inline bool spt_patch_is_packed(const spt_patch &p, const spt_matrix &m, int64_t size) {
  bool starts = p.chunks == 1 || p.per_chunk * p.group_cols % p.pack == 0;
  return starts && m.cols % p.pack == 0 && (m.col == 1 || m.cols == 1) &&
         (uintptr_t)m.data % SPT_PACK_BYTES == 0 &&
         (m.rows == 1 || m.row * size % SPT_PACK_BYTES == 0);
}

static inline spt_matrix spt_turned(const spt_matrix &m) {
  spt_matrix turned = m;
  turned.rows = m.cols;
  turned.cols = m.rows;
  turned.row = m.col;
  turned.col = m.row;
  return turned;
}

/* Turns the grid so that columns are the nearer dimension of its matrix; whether it was not. Rows that
 * are all one stay: squares are added in the order of a plain matrix. */
static inline bool spt_turn_grid(spt_grid *grid) {
  const spt_matrix &w = grid->w;
  int64_t row = w.row < 0 ? -w.row : w.row, col = w.col < 0 ? -w.col : w.col;
  if (w.rows <= 1 || row == 0 || (w.cols > 1 && row >= col)) {
    return false;
  }
  spt_grid turned = *grid;
  turned.w = spt_turned(w);
  turned.group_rows = grid->group_cols;
  turned.group_cols = grid->group_rows;
  turned.down = grid->across;
  turned.across = grid->down;
  *grid = turned;
  return true;
}

/* scores (down, across), float32: norm / sqrt(elements inside) of each group. For prune_mask. */
SPT_WARN_UNUSED spt_status spt_cuda_group_scores(spt_cuda_queue *, const char *op,
                                                 const spt_grid *grid, const spt_matrix *scores,
                                                 spt_error *);

#endif
