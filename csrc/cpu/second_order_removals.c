/* The order in which each block of weights loses its groups: optimal brain surgeon, greedily.
 *
 * With H⁻¹ of the columns that are left, removing the columns q of a block costs
 * Σ_rows w_q ((H⁻¹)_qq)⁻¹ w_qᵀ. With (H⁻¹)_qq = UᵀU, Z = U⁻ᵀ w_q and P = U⁻ᵀ (H⁻¹)_q,: that is |Z|², and the
 * removal is w -= Pᵀ Z, H⁻¹ -= Pᵀ P. Choosing needs no more of H⁻¹ than its diagonal blocks, and removing
 * no more than the rows q: so these are brought up to date when they are due, from the P of all steps so
 * far (the block's history), and the rest never. That is n³/6 multiply-adds, which read half of what
 * updating half of H⁻¹ would read and write, and take half the memory of H⁻¹.
 *
 * Groups that are left fill the first slots: the last one takes the place of the one that goes. So
 * columns are whole rows of lanes, whatever a group's width, and the history shrinks as it grows. */
#include <math.h>
#include <string.h>

#include "ops.h"
#include "pool.h"
#include "scratch.h"
#include "second_order.h"

#define LANES SPT_F64_LANES
#define TASK_BLOCKS 16 /* of 8 columns */
#define TASK_WEIGHTS 4096

struct removal_job {
  const spt_second_order_removals_problem *p;
  const spt_hessian *h;
  int64_t width, groups; /* columns of a group, groups of a block */
  int64_t columns;       /* groups * width: past the matrix is the identity */
  int64_t lanes;         /* of a block's weights */
  int64_t panel_row;     /* columns in whole lanes, and as many more as a load may reach */
  int64_t square_row;    /* width in whole lanes */
  int visitors;          /* that may share the work of one block */
  double *workspace;
  int64_t workspace_size; /* doubles of a worker */
  int64_t *slots;         /* (workers, groups) */
  bool *failed;           /* (blocks) */
};

/* One block on its way. */
struct elimination {
  const struct removal_job *job;
  int64_t *slot;   /* the group in each slot */
  int64_t left;    /* groups */
  int64_t known;   /* rows of P so far */
  double *history; /* P, by 8 columns: block b at history_at(b), its rows 8 apart */
  double *chosen;  /* (known, width): P's columns q */
  double *panel;   /* (width, panel_row): this step's P */
  double *weights; /* (groups, width, lanes) */
  double *squares; /* (groups, width, square_row): diagonal blocks of H⁻¹ */
  double *cost;    /* (groups) */
  double *factor;  /* (width, square_row): U */
  double *solved;  /* (width, lanes): Z */
  double *scratch; /* (visitors, width, square_row + lanes) */
};

/* Block b of columns outlives the steps up to columns - 8 b, so that is how long its history gets. */
static double *history_at(const struct elimination *e, int64_t b) {
  return e->history + LANES * (b * e->job->columns - LANES / 2 * b * (b - 1));
}

static int64_t history_size(int64_t columns) {
  int64_t b = spt_ceil_div(columns, LANES);
  return LANES * (b * columns - LANES / 2 * b * (b - 1));
}

static int64_t width_of(const struct removal_job *job, int64_t group) {
  return spt_min(job->width, job->h->n - group * job->width);
}

/* Pieces of one workspace, in whole lanes. With `base` NULL: how many doubles that is. */
static int64_t lay_out(const struct removal_job *job, struct elimination *e, double *base) {
  struct {
    double **piece;
    int64_t size;
  } pieces[] = {
      {&e->history, history_size(job->columns)},
      {&e->chosen, job->columns * job->width},
      {&e->panel, job->width * job->panel_row},
      {&e->weights, job->columns * job->lanes},
      {&e->squares, job->columns * job->square_row},
      {&e->cost, job->groups},
      {&e->factor, job->width * job->square_row},
      {&e->solved, job->width * job->lanes},
      {&e->scratch, job->visitors * job->width * (job->square_row + job->lanes)},
  };
  int64_t size = 0;
  for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
    *pieces[i].piece = base != NULL ? base + size : NULL;
    size += spt_ceil_div(pieces[i].size, LANES) * LANES;
  }
  return size;
}

/* ---- a visit: what a removal does to one group that stays ------------------------------------------ */

static void update(const struct elimination *e, int64_t slot) {
  const struct removal_job *job = e->job;
  const spt_cpu_tier *tier = job->h->tier;
  const double *p = e->panel + slot * job->width;
  double *square = e->squares + e->slot[slot] * job->width * job->square_row;
  double *weights = e->weights + e->slot[slot] * job->width * job->lanes;
  spt_f64_product product = {.c_block = LANES,
                             .a_block = LANES,
                             .b = p,
                             .b_row = job->panel_row,
                             .columns = job->width,
                             .depth = job->width};
  product.c = square;
  product.c_row = job->square_row;
  product.a = p;
  product.a_row = job->panel_row;
  product.blocks = job->square_row / LANES;
  tier->f64_subtract_product(&product);
  product.c = weights;
  product.c_row = product.a_row = job->lanes;
  product.a = e->solved;
  product.blocks = job->lanes / LANES;
  tier->f64_subtract_product(&product);
}

/* U and Z of a group; its cost, or NaN where doubles no longer tell. */
static double solve_group(const struct elimination *e, int64_t group, double *u, double *z) {
  const struct removal_job *job = e->job;
  const spt_cpu_tier *tier = job->h->tier;
  int64_t square = job->width * job->square_row, weights = job->width * job->lanes;
  memcpy(u, e->squares + group * square, (size_t)square * sizeof *u);
  memcpy(z, e->weights + group * weights, (size_t)weights * sizeof *z);
  if (!tier->f64_cholesky(u, job->square_row, job->width)) {
    return NAN;
  }
  tier->f64_solve(z, job->lanes, LANES, job->lanes / LANES, u, job->square_row, job->width);
  return tier->f64_dot(z, z, weights);
}

static int64_t slots_per_task(const struct removal_job *job) {
  return spt_ceil_div(TASK_WEIGHTS, job->width * job->lanes);
}

static void visit_slots(void *context, int64_t task, int worker) {
  const struct elimination *e = context;
  const struct removal_job *job = e->job;
  double *u = e->scratch + worker * job->width * (job->square_row + job->lanes);
  double *z = u + job->width * job->square_row;
  int64_t end = spt_min((task + 1) * slots_per_task(job), e->left);
  for (int64_t s = task * slots_per_task(job); s < end; s++) {
    if (e->known > 0) {
      update(e, s);
    }
    e->cost[e->slot[s]] = solve_group(e, e->slot[s], u, z);
  }
}

static void visit_all(struct elimination *e) {
  int64_t tasks = spt_ceil_div(e->left, slots_per_task(e->job));
  spt_parallel_for_workers(tasks, e->job->visitors, visit_slots, e);
}

/* ---- a removal ------------------------------------------------------------------------------------ */

/* The slot of the group that is cheapest per weight, of equals the last group's; -1 where a cost is
 * unknown. The rows of a block are the same for all of its groups. */
static int64_t cheapest(const struct elimination *e) {
  int64_t best = -1;
  double best_price = INFINITY;
  for (int64_t s = 0; s < e->left; s++) {
    int64_t group = e->slot[s];
    double price = e->cost[group] / (double)width_of(e->job, group);
    if (isnan(price)) {
      return -1;
    }
    if (best < 0 || price < best_price || (price == best_price && group > e->slot[best])) {
      best = s;
      best_price = price;
    }
  }
  return best;
}

/* What the history says of the columns in slot q; then the last slot's columns take their place. */
static void take_out(struct elimination *e, int64_t q) {
  int64_t width = e->job->width, last = e->left - 1;
  for (int64_t i = 0; i < width; i++) {
    int64_t to = q * width + i, from = last * width + i;
    double *to_lane = history_at(e, to / LANES) + to % LANES;
    const double *from_lane = history_at(e, from / LANES) + from % LANES;
    for (int64_t k = 0; k < e->known; k++) {
      e->chosen[k * width + i] = to_lane[k * LANES];
      to_lane[k * LANES] = from_lane[k * LANES];
    }
  }
  e->slot[q] = e->slot[last];
  e->left = last;
}

/* Rows `group` of the inverse as it was at first, in the columns that are left. */
static void load_rows(struct elimination *e, int64_t group) {
  const struct removal_job *job = e->job;
  int64_t width = job->width;
  for (int64_t i = 0; i < width; i++) {
    double *to = e->panel + i * job->panel_row;
    const double *from = job->h->inverse + (group * width + i) * job->h->row;
    bool inside = i < width_of(job, group);
    for (int64_t s = 0; s < e->left; s++, to += width) {
      int64_t n = inside ? width_of(job, e->slot[s]) : 0;
      const double *columns = from + e->slot[s] * width;
      for (int64_t j = 0; j < n; j++) {
        to[j] = columns[j];
      }
      for (int64_t j = n; j < width; j++) {
        to[j] = 0.0;
      }
    }
    memset(to, 0, (size_t)(job->panel_row - e->left * width) * sizeof *to);
  }
}

/* P in some blocks of columns: what the history leaves of the inverse's rows, times U⁻ᵀ. */
static void eliminate_columns(void *context, int64_t task, int worker) {
  (void)worker;
  const struct elimination *e = context;
  const struct removal_job *job = e->job;
  int64_t begin = task * TASK_BLOCKS;
  int64_t end = spt_min(begin + TASK_BLOCKS, spt_ceil_div(e->left * job->width, LANES));
  for (int64_t k = 0; k < e->known; k += SPT_F64_DEPTH) {
    for (int64_t b = begin; b < end; b++) {
      job->h->tier->f64_subtract_product(
          &(spt_f64_product){.c = e->panel + b * LANES,
                             .c_row = job->panel_row,
                             .a = history_at(e, b) + k * LANES,
                             .a_row = LANES,
                             .b = e->chosen + k * job->width,
                             .b_row = job->width,
                             .blocks = 1,
                             .columns = job->width,
                             .depth = spt_min(SPT_F64_DEPTH, e->known - k)});
    }
  }
  job->h->tier->f64_solve(e->panel + begin * LANES, job->panel_row, LANES, end - begin, e->factor,
                          job->square_row, job->width);
  for (int64_t b = begin; b < end; b++) {
    double *to = history_at(e, b) + e->known * LANES;
    for (int64_t i = 0; i < job->width; i++) {
      memcpy(to + i * LANES, e->panel + i * job->panel_row + b * LANES, LANES * sizeof *to);
    }
  }
}

static void remove_group(struct elimination *e, int64_t q) {
  int64_t group = e->slot[q];
  solve_group(e, group, e->factor, e->solved);
  take_out(e, q);
  load_rows(e, group);
  int64_t blocks = spt_ceil_div(e->left * e->job->width, LANES);
  spt_parallel_for(spt_ceil_div(blocks, TASK_BLOCKS), eliminate_columns, e);
  e->known += e->job->width;
  visit_all(e);
}

/* ---- a block -------------------------------------------------------------------------------------- */

static void start(struct elimination *e, int64_t band) {
  const struct removal_job *job = e->job;
  const spt_grid *grid = &job->p->of.grid;
  int64_t width = job->width, square = width * job->square_row;
  memset(e->weights, 0, (size_t)(job->columns * job->lanes) * sizeof(double));
  memset(e->squares, 0, (size_t)(job->groups * square) * sizeof(double));
  spt_load_block(grid, &grid->w, band, e->weights);
  for (int64_t col = 0; col < job->columns; col++) {
    double *row = e->squares + col / width * square + col % width * job->square_row;
    if (col >= job->h->n) {
      row[col % width] = 1.0;
      continue;
    }
    if (job->h->dead[col]) {
      memset(e->weights + col * job->lanes, 0, (size_t)job->lanes * sizeof(double));
    }
    int64_t first = col / width * width;
    memcpy(row, job->h->inverse + col * job->h->row + first,
           (size_t)width_of(job, col / width) * sizeof *row);
  }
  for (int64_t g = 0; g < job->groups; g++) {
    e->slot[g] = g;
  }
  e->left = job->groups;
  e->known = 0;
}

static void order_block(void *context, int64_t band, int worker) {
  const struct removal_job *job = context;
  struct elimination e = {.job = job, .slot = job->slots + worker * job->groups};
  lay_out(job, &e, job->workspace + worker * job->workspace_size);
  int64_t *order = spt_address(&job->p->order, band, 0);
  double *cost = spt_address(&job->p->cost, band, 0);
  start(&e, band);
  visit_all(&e);
  for (int64_t step = 0; step < job->groups; step++) {
    int64_t q = cheapest(&e);
    if (q < 0) {
      job->failed[band] = true;
      return;
    }
    order[step * job->p->order.col] = e.slot[q];
    cost[step * job->p->cost.col] = e.cost[e.slot[q]];
    if (e.left > 1) {
      remove_group(&e, q);
    }
  }
}

static spt_status order_blocks(const spt_second_order_removals_problem *p, spt_hessian *h,
                               spt_error *err) {
  spt_status status = SPT_OK;
  const spt_grid *grid = &p->of.grid;
  SPT_TRY(spt_hessian_invert(&p->of, h, false, err));
  struct removal_job job = {.p = p, .h = h, .width = grid->group_cols, .groups = grid->across};
  int workers = (int)spt_min(spt_pool_width(), grid->down);
  job.columns = job.groups * job.width;
  job.lanes = spt_block_lanes(grid);
  job.square_row = spt_ceil_div(job.width, LANES) * LANES;
  job.panel_row = (spt_ceil_div(job.columns, LANES) + 1) * LANES;
  job.visitors = grid->down == 1 ? spt_pool_width() : 1;
  struct elimination none;
  job.workspace_size = lay_out(&job, &none, NULL);
  job.workspace = spt_scratch(p->of.op, workers * job.workspace_size, sizeof(double), &status, err);
  job.slots = spt_scratch(p->of.op, workers * job.groups, sizeof(int64_t), &status, err);
  job.failed = spt_scratch(p->of.op, grid->down, sizeof(bool), &status, err);
  if (status == SPT_OK) {
    memset(job.failed, 0, (size_t)grid->down * sizeof(bool));
    spt_parallel_for_workers(grid->down, workers, order_block, &job);
    if (memchr(job.failed, true, (size_t)grid->down) != NULL) {
      status = spt_hessian_refused(&p->of, err);
    }
  }
  spt_scratch_free(job.workspace);
  spt_scratch_free(job.slots);
  spt_scratch_free(job.failed);
  return status;
}

/* ---- blocks that are one group: nothing is left that could make up for it ------------------------------ */

static spt_status weigh_blocks(const spt_second_order_removals_problem *p, const spt_hessian *h,
                               spt_error *err) {
  spt_status status = SPT_OK;
  const spt_grid *grid = &p->of.grid;
  double *errors = spt_scratch(p->of.op, grid->w.rows, sizeof(double), &status, err);
  if (status == SPT_OK) {
    status = spt_row_errors(p->of.op, h, true, &grid->w, NULL, errors, err);
  }
  for (int64_t band = 0; status == SPT_OK && band < grid->down; band++) {
    double sum = 0.0;
    for (int64_t r = 0; r < spt_block_rows(grid, band); r++) {
      sum += errors[band * grid->group_rows + r];
    }
    *(int64_t *)spt_address(&p->order, band, 0) = 0;
    *(double *)spt_address(&p->cost, band, 0) = sum;
  }
  spt_scratch_free(errors);
  return status;
}

spt_status spt_cpu_second_order_removals(void *state, const spt_second_order_removals_problem *p,
                                         spt_error *err) {
  (void)state;
  spt_hessian h = {0};
  if (p->of.grid.across == 0) {
    return SPT_OK;
  }
  spt_status status = spt_check_weights(&p->of, err);
  if (status == SPT_OK) {
    status = spt_hessian_of(&p->of, &h, err);
  }
  if (status == SPT_OK && p->of.grid.down > 0) {
    status = p->of.grid.across == 1 ? weigh_blocks(p, &h, err) : order_blocks(p, &h, err);
  }
  spt_hessian_free(&h);
  return status;
}
