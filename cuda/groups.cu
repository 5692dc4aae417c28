/* Norms, beta, lasso, its gradient and the proximal step of groups of weights (out, in).
 *
 * Bound by memory: norms, beta and lasso read w once; the gradient writes as much again, and reads as much
 * again where it is added; shrink reads and writes w. About 8 operations a weight, where a GPU has time
 * for 20 and more.
 *
 * A group that fits a block is summed and scaled by one kernel, w being held in shared memory in
 * between. One that does not (a column, a head) is cut into parts: a kernel for their sums, one that adds
 * these, and one that scales, which reads w again; it starts where the first one ended, so that a matrix
 * up to the size of the L2 cache is read from memory once.
 *
 * Squares are added in float32, a few in a chain, chains as pairs of floats, and only what threads are
 * left with as doubles: double is slow on consumers' GPUs, and this way a weight costs a small
 * fraction of one operation in it. float32's range is too short for squares of float32 and bfloat16, so
 * a sum that is out of range, of a group that is not zero throughout, is done again in double: rare, and
 * without a cost (a scale for each group would need a pass of its own, three sums three times the
 * work). */
#include "group_cells.cuh"
#include "slots.h"

#define MOST_HELD 8  /* packs of a thread: 32 KB of a block */
#define MOST_READ 16 /* where they need not be held */
#define SUM_THREADS 1024

/* ---- kernels ------------------------------------------------------------------------------------ */

/* Whole groups: everything. Parts of groups: their sums. */
template <typename T, bool PACKED, bool SINGLE, bool HELD>
__global__ void __launch_bounds__(THREADS, PACKED ? 4 : 3) group_kernel(group_job job) {
  SPT_SHARED(unsigned char, memory);
  const spt_patch &p = job.patch;
  group_sum *sums = reinterpret_cast<group_sum *>(memory);
  int n_sums = THREADS * (SINGLE ? 1 : p.pack), width = n_sums / THREADS * p.tx;
  spt_raw *held = reinterpret_cast<spt_raw *>(sums + n_sums);
  double penalty = 0.0;
  for (int64_t cell = blockIdx.x; cell < p.cells; cell += gridDim.x) {
    spt_place at = spt_place_of(p, cell);
    sum_squares<T, PACKED, SINGLE, HELD>(job, at, sums, held);
    __syncthreads();
    fold<T, SINGLE>(job, at, sums, &penalty);
    __syncthreads();
    if (HELD) {
      const double *factors = reinterpret_cast<double *>(sums + at.b * p.ty * width);
      scale<T, PACKED, SINGLE, true>(job, at, factors, p.group_cols / (SINGLE ? p.pack : 1), held);
      __syncthreads();
    }
  }
  if (job.penalties != NULL && job.partial == NULL) {
    store_block_sum(penalty, reinterpret_cast<double *>(memory), job.penalties);
  }
}

/* Groups of parts: a warp adds each one's. */
__global__ void __launch_bounds__(THREADS) finish_kernel(group_job job) {
  SPT_SHARED(double, memory);
  const spt_patch &p = job.patch;
  int64_t groups = p.down * p.across, parts = spt_parts(p), warps = THREADS / SPT_WARP;
  int lane = (int)threadIdx.x % SPT_WARP;
  double penalty = 0.0;
  for (int64_t g = blockIdx.x * warps + threadIdx.x / SPT_WARP; g < groups;
       g += gridDim.x * warps) {
    double *of_group = job.partial + g * parts, sum = 0.0;
    for (int64_t i = lane; i < parts; i += SPT_WARP) {
      sum += of_group[i];
    }
    sum = spt_warp_sum(sum);
    if (lane == 0) {
      of_group[0] = finish(job, sum, g / p.across, g % p.across, &penalty);
    }
  }
  if (job.penalties != NULL) {
    store_block_sum(penalty, memory, job.penalties);
  }
}

/* Groups of parts: backwards, what the sums read last being still in the cache. */
template <typename T, bool PACKED, bool SINGLE>
__global__ void __launch_bounds__(THREADS, PACKED ? 4 : 3) scale_kernel(group_job job) {
  const spt_patch &p = job.patch;
  for (int64_t i = blockIdx.x; i < p.cells; i += gridDim.x) {
    spt_place at = spt_place_of(p, p.cells - 1 - i);
    const double *factors = job.partial + (at.band * p.across + at.first_group) * spt_parts(p);
    scale<T, PACKED, SINGLE, false>(job, at, factors, spt_parts(p), nullptr);
  }
}

__global__ void __launch_bounds__(SUM_THREADS)
    penalty_kernel(const double *penalties, int64_t n, double *penalty) {
  SPT_SHARED(double, memory);
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < n; i += SUM_THREADS) {
    sum += penalties[i];
  }
  store_block_sum(sum, memory, penalty);
}

/* ---- launchers ---------------------------------------------------------------------------------- */

static group_array array_of(const spt_matrix *m, bool turn) {
  group_array a = {};
  if (m != NULL && m->data != NULL) {
    a.data = static_cast<char *>(m->data);
    a.dtype = m->dtype;
    a.row = turn ? m->col : m->row;
    a.col = turn ? m->row : m->col;
  }
  return a;
}

/* What an op asks for. Matrices are NULL, or have data NULL, where absent. */
struct group_request {
  const char *op;
  const spt_grid *grid;
  const spt_matrix *beta, *values, *scaled;
  group_rule rule;
  double amount;
  bool add, mean;
  double *penalty; /* on the host */
};

template <typename T, bool PACKED>
static spt_status launch_cells(spt_cuda_queue *queue, const char *op, const group_job &job,
                               unsigned blocks, spt_error *err) {
  const spt_patch &p = job.patch;
  bool held = job.scaled.data != NULL && job.partial == NULL;
  int64_t sums = THREADS * (int64_t)sizeof(group_sum) * (p.single ? 1 : p.pack);
  int64_t shared = sums + (held ? THREADS * (int64_t)SPT_PACK_BYTES * p.packs : 0);
  if (held && p.single) {
    SPT_LAUNCH(op, (group_kernel<T, PACKED, true, true>), blocks, THREADS, shared, queue->stream,
               job);
  } else if (held) {
    SPT_LAUNCH(op, (group_kernel<T, PACKED, false, true>), blocks, THREADS, shared, queue->stream,
               job);
  } else if (p.single) {
    SPT_LAUNCH(op, (group_kernel<T, PACKED, true, false>), blocks, THREADS, shared, queue->stream,
               job);
  } else {
    SPT_LAUNCH(op, (group_kernel<T, PACKED, false, false>), blocks, THREADS, shared, queue->stream,
               job);
  }
  return SPT_OK;
}

template <typename T, bool PACKED>
static spt_status launch_scaling(spt_cuda_queue *queue, const char *op, const group_job &job,
                                 unsigned blocks, spt_error *err) {
  if (job.patch.single) {
    SPT_LAUNCH(op, (scale_kernel<T, PACKED, true>), blocks, THREADS, 0, queue->stream, job);
  } else {
    SPT_LAUNCH(op, (scale_kernel<T, PACKED, false>), blocks, THREADS, 0, queue->stream, job);
  }
  return SPT_OK;
}

/* blocks: in, those of the cells; out, those that have left a penalty. */
static spt_status launch_groups(spt_cuda_queue *queue, const char *op, const group_job &job,
                                bool packed, int64_t *blocks, spt_error *err) {
  unsigned cells = (unsigned)*blocks;
  SPT_WITH_STORAGE(job.w.dtype, T, {
    auto launch = packed ? launch_cells<T, true> : launch_cells<T, false>;
    SPT_TRY(launch(queue, op, job, cells, err));
  });
  if (job.partial == NULL) {
    return SPT_OK;
  }
  *blocks = spt_least(spt_blocks(job.patch.down * job.patch.across, THREADS / SPT_WARP), *blocks);
  SPT_LAUNCH(op, finish_kernel, (unsigned)*blocks, THREADS, THREADS * sizeof(double), queue->stream,
             job);
  if (job.scaled.data != NULL) {
    SPT_WITH_STORAGE(job.w.dtype, T, {
      auto launch = packed ? launch_scaling<T, true> : launch_scaling<T, false>;
      SPT_TRY(launch(queue, op, job, cells, err));
    });
  }
  return SPT_OK;
}

static bool packs_fit(const spt_patch &p, const spt_matrix *m, bool turn, spt_dtype dtype) {
  return m == NULL || m->data == NULL ||
         (m->dtype == dtype &&
          spt_patch_is_packed(p, turn ? spt_turned(*m) : *m, spt_storage_bytes(dtype)));
}

static spt_status run(spt_cuda_queue *queue, const group_request &r, spt_error *err) {
  if (r.penalty != NULL) {
    *r.penalty = 0.0;
  }
  if (r.grid->down == 0 || r.grid->across == 0) {
    return SPT_OK;
  }
  spt_scratch scratch(queue, r.op);
  spt_grid grid = *r.grid;
  bool turn = spt_turn_grid(&grid), single = grid.group_rows * grid.group_cols == 1;
  spt_dtype dtype = grid.w.dtype;
  int size = (int)spt_storage_bytes(dtype);
  group_job job = {};
  job.w = array_of(&r.grid->w, turn);
  job.beta = array_of(r.beta, turn);
  job.values = array_of(r.values, turn);
  job.scaled = array_of(r.scaled, turn);
  job.rule = r.rule;
  job.amount = r.amount;
  job.add = r.add;
  job.mean = r.mean;
  job.patch = single ? spt_element_patch(grid, SPT_PACK_BYTES / size)
                     : spt_patch_of(&grid, SPT_PACK_BYTES / size,
                                    job.scaled.data != NULL ? MOST_HELD : MOST_READ);
  bool packed =
      packs_fit(job.patch, &r.grid->w, turn, dtype) && packs_fit(job.patch, r.scaled, turn, dtype);
  job.packed_values = packs_fit(job.patch, r.values, turn, SPT_F32);
  int64_t blocks = spt_least(job.patch.cells, SPT_GROUP_BLOCKS), parts = spt_parts(job.patch);
  if (parts > 1 && !single) {
    SPT_TRY(scratch.take(&job.partial, job.patch.down * job.patch.across * parts, err));
  }
  if (r.penalty != NULL) {
    SPT_TRY(scratch.take(&job.penalties, blocks + 1, err));
  }
  SPT_TRY(single ? spt_cuda_group_elements(queue, r.op, job, packed, blocks, err)
                 : launch_groups(queue, r.op, job, packed, &blocks, err));
  if (r.penalty != NULL) {
    double *sum = job.penalties + blocks; /* one block's work, its sum behind what it adds */
    SPT_LAUNCH(r.op, penalty_kernel, 1, SUM_THREADS, SUM_THREADS * sizeof(double), queue->stream,
               job.penalties, blocks, sum);
    return spt_cuda_to_host(queue, r.op, r.penalty, sum, sizeof *sum, err);
  }
  return SPT_OK;
}

spt_status spt_cuda_group_norms(void *state, const spt_group_norms_problem *p, spt_error *err) {
  group_request r = {};
  r.op = "group_norms";
  r.grid = &p->grid;
  r.values = &p->norms;
  return run(spt_queue_of(state), r, err);
}

spt_status spt_cuda_group_scores(spt_cuda_queue *queue, const char *op, const spt_grid *grid,
                                 const spt_matrix *scores, spt_error *err) {
  group_request r = {};
  r.op = op;
  r.grid = grid;
  r.values = scores;
  r.mean = true;
  return run(queue, r, err);
}

spt_status spt_cuda_group_beta(void *state, const spt_group_beta_problem *p, spt_error *err) {
  group_request r = {};
  r.op = "group_beta";
  r.grid = &p->grid;
  r.values = &p->beta;
  r.rule = GROUP_BETA;
  r.amount = p->eps;
  return run(spt_queue_of(state), r, err);
}

spt_status spt_cuda_group_lasso(void *state, const spt_group_lasso_problem *p, spt_error *err) {
  group_request r = {};
  r.op = "group_lasso";
  r.grid = &p->grid;
  r.beta = &p->beta;
  r.penalty = p->penalty;
  return run(spt_queue_of(state), r, err);
}

spt_status spt_cuda_group_lasso_grad(void *state, const spt_group_lasso_grad_problem *p,
                                     spt_error *err) {
  group_request r = {};
  r.op = p->add ? "add_group_lasso_grad_" : "group_lasso_grad";
  r.grid = &p->grid;
  r.beta = &p->beta;
  r.scaled = &p->grad;
  r.rule = GROUP_GRAD;
  r.amount = p->strength;
  r.add = p->add;
  return run(spt_queue_of(state), r, err);
}

spt_status spt_cuda_group_shrink(void *state, const spt_group_shrink_problem *p, spt_error *err) {
  group_request r = {};
  r.op = "group_shrink_";
  r.grid = &p->grid;
  r.beta = &p->beta;
  r.scaled = &p->grid.w;
  r.rule = GROUP_SHRINK;
  r.amount = p->strength;
  return run(spt_queue_of(state), r, err);
}
