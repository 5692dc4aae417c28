/* prune_mask: masks (bool, true keeps) of which an exact number of groups is false: of n groups that
 * compete, those of the lowest score, norm / sqrt(elements inside); of equals the earlier is kept.
 *
 * Scores are what groups.cu gives, float32; they are not negative, so their bits order as they do. The
 * score of rank k is found by radix select: 11, 10 and 10 bits at a time, from the top, the digit that
 * holds rank k is found by counting. Few groups (a row's, or a matrix's tiles) are one block's work; of
 * many, blocks count digits together. Bound by memory where every weight is a group: w is read once,
 * scores are written once and read five times, mostly from the cache; else by launches.
 *
 * The host waits once, for whether a score is not finite. */
#include <math.h>
#include <stdio.h>

#include <memory>
#include <new>

#include "groups.cuh"
#include "prune_mask.cuh"
#include "slots.h"

#define FEW 16384     /* groups that one block may choose from, where there are few units */
#define MANY_UNITS 64 /* so many blocks fill the GPU, however large the units */
#define COUNTING_BLOCKS 512
#define BATCH_GROUPS ((int64_t)1 << 24) /* matrices are taken together up to so many groups */

/* ---- launchers ---------------------------------------------------------------------------------- */

/* Matrices [begin, end) and their groups in a row, in scratch memory. */
struct prune_batch {
  const spt_prune_mask_problem *p;
  int64_t begin, end, n;
  float *scores;
  uint8_t *keep;
};

static int64_t groups_of(const spt_prune_mask_problem *p, int64_t i) {
  return p->grids[i].down * p->grids[i].across;
}

static int64_t pruned_of(double sparsity, int64_t n) {
  return spt_most(spt_least((int64_t)floor(sparsity * (double)n + 0.5), n - 1), 0);
}

static spt_status score(spt_cuda_queue *queue, const char *op, const prune_batch &batch,
                        int64_t first, unsigned long long *bad, spt_error *err) {
  for (int64_t i = batch.begin, at = 0; i < batch.end; i++) {
    const spt_grid *grid = &batch.p->grids[i];
    spt_matrix to = {};
    to.data = batch.scores + at;
    to.dtype = SPT_F32;
    to.rows = grid->down;
    to.cols = grid->across;
    to.row = grid->across;
    to.col = 1;
    SPT_TRY(spt_cuda_group_scores(queue, op, grid, &to, err));
    at += groups_of(batch.p, i);
  }
  unsigned blocks = (unsigned)spt_least(spt_blocks(batch.n, 4 * THREADS), 4 * COUNTING_BLOCKS);
  SPT_LAUNCH(op, refuse_kernel, blocks, THREADS, 0, queue->stream,
             reinterpret_cast<const uint32_t *>(batch.scores), batch.n, first, bad);
  return SPT_OK;
}

/* What competes with what: returns how many units, and writes them where `units` is not NULL. */
static int64_t list_units(const prune_batch &batch, prune_unit *units) {
  const spt_prune_mask_problem *p = batch.p;
  int64_t count = 0, at = 0;
  if (p->scope == SPT_SCOPE_GLOBAL) {
    if (units != NULL) {
      units[0] = {0, batch.n, pruned_of(p->sparsity, batch.n)};
    }
    return 1;
  }
  for (int64_t i = batch.begin; i < batch.end; i++) {
    int64_t n = groups_of(p, i);
    int64_t rows = n == 0 ? 0 : p->scope == SPT_SCOPE_ROW_BALANCED ? p->grids[i].down : 1;
    for (int64_t row = 0; units != NULL && row < rows; row++) {
      units[count + row] = {at + row * (n / rows), n / rows, pruned_of(p->sparsity, n / rows)};
    }
    count += rows;
    at += n;
  }
  return count;
}

static spt_status choose_of_many(spt_cuda_queue *queue, const char *op, const prune_batch &batch,
                                 const prune_unit &unit, spt_error *err) {
  spt_scratch scratch(queue, op);
  const uint32_t *keys = reinterpret_cast<const uint32_t *>(batch.scores) + unit.begin;
  int64_t chunks = spt_blocks(unit.n, CHUNK), *equals;
  prune_rank *rank;
  unsigned long long *counts;
  size_t spare = WARPS * sizeof(int64_t);
  SPT_TRY(scratch.take(&rank, 1, err));
  SPT_TRY(scratch.take(&counts, DIGITS, err));
  SPT_TRY(scratch.take(&equals, chunks, err));
  SPT_LAUNCH(op, start_kernel, 1, THREADS, 0, queue->stream, rank, unit, counts);
  unsigned blocks = (unsigned)spt_least(chunks, COUNTING_BLOCKS);
  for (int digit = 0; digit < 3 && unit.pruned > 0; digit++) {
    SPT_LAUNCH(op, count_kernel, blocks, THREADS, DIGITS * sizeof(uint32_t), queue->stream, keys,
               unit.n, digit, rank, counts);
    SPT_LAUNCH(op, find_kernel, 1, THREADS, spare, queue->stream, digit, rank, counts);
  }
  blocks = (unsigned)spt_least(chunks, 1 << 20);
  SPT_LAUNCH(op, equals_kernel, blocks, THREADS, spare, queue->stream, keys, unit.n, rank, equals);
  SPT_LAUNCH(op, equals_before_kernel, 1, THREADS, spare, queue->stream, rank, equals, chunks);
  SPT_LAUNCH(op, keep_kernel, blocks, THREADS, spare, queue->stream, keys, batch.keep + unit.begin,
             unit.n, rank, equals);
  return SPT_OK;
}

static spt_status choose(spt_cuda_queue *queue, const char *op, const prune_batch &batch,
                         spt_error *err) {
  int64_t n_units = list_units(batch, NULL), few = 0;
  std::unique_ptr<prune_unit[]> units(new (std::nothrow) prune_unit[(size_t)n_units]);
  if (!units) {
    return spt_fail(err, SPT_OUT_OF_MEMORY, "%s: no memory for a list of %lld rows", op,
                    (long long)n_units);
  }
  list_units(batch, units.get());
  for (int64_t i = 0; i < n_units; i++) { /* those for a block each come to the front */
    if (units[i].n <= FEW || n_units >= MANY_UNITS) {
      units[few++] = units[i];
    } else {
      SPT_TRY(choose_of_many(queue, op, batch, units[i], err));
    }
  }
  if (few == 0) {
    return SPT_OK;
  }
  spt_scratch scratch(queue, op);
  prune_unit *on_device;
  size_t shared = WARPS * sizeof(int64_t) + sizeof(prune_rank) + DIGITS * sizeof(uint32_t);
  SPT_TRY(scratch.take(&on_device, few, err));
  SPT_TRY(
      spt_cuda_to_device(queue, op, on_device, units.get(), (size_t)few * sizeof(prune_unit), err));
  SPT_LAUNCH(op, prune_unit_kernel, (unsigned)few, THREADS, shared, queue->stream,
             reinterpret_cast<const uint32_t *>(batch.scores), batch.keep, on_device);
  return SPT_OK;
}

static spt_status store(spt_cuda_queue *queue, const char *op, const prune_batch &batch,
                        spt_error *err) {
  for (int64_t i = batch.begin, at = 0; i < batch.end; i++) {
    const spt_matrix *mask = &batch.p->masks[i];
    spt_tensor from = {}, to = {};
    from.data = batch.keep + at;
    to.data = mask->data;
    from.dtype = to.dtype = SPT_BOOL;
    from.ndim = to.ndim = 2;
    from.shape[0] = to.shape[0] = mask->rows;
    from.shape[1] = to.shape[1] = mask->cols;
    from.stride[0] = mask->cols;
    from.stride[1] = 1;
    to.stride[0] = mask->row;
    to.stride[1] = mask->col;
    SPT_TRY(spt_cuda_copy(queue, op, &from, &to, err));
    at += groups_of(batch.p, i);
  }
  return SPT_OK;
}

/* Waits for the scores' verdict: bad is the number of the first that is not finite, of all matrices'. */
static spt_status refuse(spt_cuda_queue *queue, const char *op, const spt_prune_mask_problem *p,
                         const unsigned long long *bad, spt_error *err) {
  unsigned long long first;
  SPT_TRY(spt_cuda_to_host(queue, op, &first, bad, sizeof first, err));
  if (first == ~0ull) {
    return SPT_OK;
  }
  int64_t i = 0, g = (int64_t)first;
  while (g >= groups_of(p, i)) {
    g -= groups_of(p, i++);
  }
  char index[32] = "";
  if (p->n_matrices > 1) {
    snprintf(index, sizeof index, "[%lld]", (long long)i);
  }
  return spt_fail(err, SPT_INVALID_VALUE,
                  "%s: w%s holds NaN or infinity in group (%lld, %lld), expected finite weights",
                  op, index, (long long)(g / p->grids[i].across),
                  (long long)(g % p->grids[i].across));
}

spt_status spt_cuda_prune_mask(void *state, const spt_prune_mask_problem *p, spt_error *err) {
  const char *op = "prune_mask";
  spt_cuda_queue *queue = spt_queue_of(state);
  spt_scratch scratch(queue, op);
  unsigned long long *bad, none = ~0ull;
  int64_t first = 0;
  SPT_TRY(scratch.take(&bad, 1, err));
  SPT_TRY(spt_cuda_to_device(queue, op, bad, &none, sizeof none, err));
  for (int64_t i = 0; i < p->n_matrices;) {
    spt_scratch memory(queue, op);
    prune_batch batch = {p, i, i, 0, NULL, NULL};
    bool together = p->scope == SPT_SCOPE_GLOBAL;
    while (batch.end < p->n_matrices &&
           (together || batch.end == i || batch.n + groups_of(p, batch.end) <= BATCH_GROUPS)) {
      if (__builtin_add_overflow(batch.n, groups_of(p, batch.end), &batch.n)) {
        return spt_fail(err, SPT_OUT_OF_MEMORY, "%s: more groups than 64 bits count", op);
      }
      batch.end++;
    }
    i = batch.end;
    if (batch.n == 0) {
      continue;
    }
    SPT_TRY(memory.take(&batch.scores, batch.n, err));
    SPT_TRY(memory.take(&batch.keep, batch.n, err));
    SPT_TRY(score(queue, op, batch, first, bad, err));
    SPT_TRY(choose(queue, op, batch, err));
    SPT_TRY(store(queue, op, batch, err));
    first += batch.n;
  }
  return refuse(queue, op, p, bad, err);
}
