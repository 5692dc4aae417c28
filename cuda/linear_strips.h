/* linear_strips.h: how the product with strips cuts its work: pure arithmetic on shapes, so that tests can
 * ask it too. */
#ifndef SPATILE_CUDA_LINEAR_STRIPS_H
#define SPATILE_CUDA_LINEAR_STRIPS_H

#include "view.cuh"
#include "weights.h"

/* Panels of x in shared memory at a time: three are on their way while one is multiplied. */
#define SPT_PANEL_STAGES 4

/* A block has `warps` strips at a time, each warp one, by `tokens` rows of x. `splits` blocks share the
 * strips of the same tokens. x is cut into `panels` of `panel` columns. */
typedef struct spt_strips_plan {
  int tokens, warps, splits, panel, panels;
  size_t shared;
} spt_strips_plan;

/* One row of a panel. 16 bytes more, so that 8 rows' 16-byte pieces lie in different banks. */
static __host__ __device__ inline int spt_panel_pitch(int panel, int size) {
  return panel * size + 16;
}

/* The largest panels that fit; all of x at once where that fits. */
static inline bool spt_plan_panels(const spt_cuda_device *d, int64_t width, int size, int own,
                                   spt_strips_plan *p) {
  int room = (d->shared_per_block - p->warps * own) / (SPT_PANEL_STAGES * p->tokens) - 16;
  int most = room / (size * SPT_TILE) * SPT_TILE;
  if (most < SPT_TILE) {
    return false;
  }
  int64_t blocks = spt_blocks(width, SPT_TILE);
  int64_t panels = spt_most(spt_blocks(blocks * SPT_TILE, most), SPT_PANEL_STAGES);
  p->panel = (int)(spt_most(1, spt_blocks(blocks, panels)) * SPT_TILE);
  p->panels = (int)spt_blocks(blocks * SPT_TILE, p->panel);
  p->shared =
      (size_t)(SPT_PANEL_STAGES * p->tokens * spt_panel_pitch(p->panel, size) + p->warps * own);
  return true;
}

/* Clock cycles, roughly. Each is an assumption, not a measurement: an SM gets about 28 bytes a cycle from
 * L2; an mma of 16x8x16 takes it 2 cycles, as do the shared loads for it; a warp alone needs 10 for one,
 * and 100 for a tile's way; starting takes 1500. In float32 128 multiply-adds are one cycle. */
static inline double spt_strips_cost(const spt_cuda_device *d, const spt_gpu_strips *w, int64_t n,
                                     int size, const spt_strips_plan *p) {
  int64_t blocks = spt_blocks(n, p->tokens) * p->splits;
  int64_t rounds = spt_blocks(spt_blocks(w->n_strips, p->warps), p->splits);
  int64_t beside = spt_most(1, spt_least(16 / p->warps, d->shared_per_block / (int64_t)p->shared));
  beside = spt_least(beside, spt_blocks(blocks, d->sm_count));
  double waves = (double)spt_blocks(blocks, beside * d->sm_count);
  double tiles = (double)w->n_tiles / (double)w->n_strips * (double)rounds; /* of a warp */
  double loads = p->panels <= SPT_PANEL_STAGES ? 1.0 : (double)rounds;
  double bytes =
      loads * p->tokens * (double)w->width * size + tiles * p->warps * SPT_TILE_VALUES * size;
  double products = tiles * p->warps * p->tokens / 8;
  double multiply = products * (size == 2 ? 2.0 : 16.0);
  double alone = tiles * (p->tokens / 8 * (size == 2 ? 10.0 : 64.0) + 100.0);
  double busy = (double)beside * (bytes / 28.0 > multiply ? bytes / 28.0 : multiply);
  return waves * ((busy > alone ? busy : alone) + 1500.0);
}

/* own: bytes of shared memory of each warp; warps: at most. The order in which a row's products are added
 * up depends on w alone: not on the plan, nor on n. (So no split over k: an encoder promises the same bits
 * for a sequence whatever else is in its batch.) */
static inline bool spt_plan_strips(const spt_cuda_device *d, const spt_gpu_strips *w, int64_t n,
                                   int size, int own, int warps, spt_strips_plan *best) {
  double least = 0.0;
  bool found = false;
  for (int tokens = 16; tokens <= 128; tokens *= 2) {
    for (int at_once = 4; at_once <= warps; at_once *= 2) {
      spt_strips_plan p = {tokens, at_once, 1, 0, 0, 0};
      int64_t groups = spt_blocks(w->n_strips, at_once);
      if (!spt_plan_panels(d, w->width, size, own, &p)) {
        continue;
      }
      /* Few, or blocks for each SM once or twice, or each round of strips a block of its own. */
      int64_t each = spt_most(1, (int64_t)d->sm_count / spt_blocks(n, tokens));
      int64_t beside = spt_most(1, d->shared_per_block / (int64_t)p.shared);
      const int64_t candidates[] = {1, 2, 3, 4, each, 2 * each, beside * each, groups};
      for (int64_t splits : candidates) {
        p.splits = (int)spt_least(splits, groups);
        double cost = spt_strips_cost(d, w, n, size, &p);
        if (!found || cost < least) {
          *best = p;
          least = cost;
          found = true;
        }
      }
    }
  }
  return found;
}

/* y = act(x · wᵀ + bias) + residual, as `output` says. x is as spt_rows_for_strips gives it, of the tiles'
 * dtype. In 16 bits tensor cores multiply. */
struct spt_linear_output;
SPT_WARN_UNUSED spt_status spt_strips_product(spt_cuda_queue *, const char *op,
                                              const spt_gpu_strips *, const void *tiles,
                                              const spt_matrix *x, const spt_linear_output *,
                                              spt_error *);

#endif
