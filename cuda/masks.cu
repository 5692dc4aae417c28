/* apply_mask and expand_mask: bool masks of groups of a matrix (out, in); true keeps.
 *
 * Bound by memory. apply_mask writes the pruned weights and reads the mask: kept groups are not touched.
 * Where kept and pruned weights share 16 bytes these are read and written as a whole, since memory
 * takes no less. expand_mask writes one byte a weight. */
#include "groups.cuh"
#include "slots.h"

#define THREADS SPT_GROUP_THREADS
#define MOST_PACKS 16 /* of a thread */
#define LEAST_ROWS 16 /* of a band: rows of lower groups are taken together */

struct mask_job {
  spt_patch patch;
  int32_t mask_rows, group_rows; /* of a band, and the rows of one, where it is of more than one */
  const uint8_t *mask;
  int64_t mask_row, mask_col;
  char *w;
  int64_t row, col; /* strides in elements */
};

/* Bit e: whether column e of the pack is kept. Bytes of a bool array may hold more than 0 and 1. */
template <int N>
static __device__ __forceinline__ uint32_t kept_bits(const mask_job &job, const spt_place &at,
                                                     const spt_cursor &c) {
  const spt_patch &p = job.patch;
  int64_t band = at.band;
  if (job.mask_rows > 1) {
    int piece_row =
        (int)(at.first_row - at.band * p.group_rows); /* a wide band is cut into pieces */
    band = band * job.mask_rows + (piece_row + c.row) / job.group_rows;
  }
  const uint8_t *mask = job.mask + band * job.mask_row + at.first_group * job.mask_col;
  if (p.per_chunk == 1) {
    return *mask != 0 ? (1u << N) - 1 : 0;
  }
  int group = c.col / (int)p.group_cols, within = c.col % (int)p.group_cols;
  if (p.single) {
    return mask[group * job.mask_col] != 0 ? (1u << N) - 1 : 0;
  }
  uint32_t bits = 0;
  bool kept = mask[group * job.mask_col] != 0;
#pragma unroll
  for (int e = 0; e < N; e++) {
    bits |= (uint32_t)kept << e;
    if (++within == (int)p.group_cols && e + 1 < N && c.col + e + 1 < at.cols) {
      within = 0;
      kept = mask[++group * job.mask_col] != 0;
    }
  }
  return bits;
}

/* Zero is all bits zero in every storage type. */
template <typename T, bool PACKED>
__global__ void __launch_bounds__(THREADS) apply_mask_kernel(mask_job job) {
  constexpr int N = spt_pack<T>::N;
  const spt_patch &p = job.patch;
  for (int64_t cell = blockIdx.x; cell < p.cells; cell += gridDim.x) {
    spt_place at = spt_place_of(p, cell);
    T *w = reinterpret_cast<T *>(job.w) + at.first_row * job.row + at.first_col * job.col;
    spt_cursor c(at);
#pragma unroll 4
    for (int i = 0; i < p.packs; i++, c.advance(p, at)) {
      uint32_t kept = c.inside(at) ? kept_bits<N>(job, at, c) : (1u << N) - 1;
      if (kept == (1u << N) - 1) {
        continue;
      }
      T *to = w + c.row * job.row;
      if (PACKED) {
        spt_pack<T> *place = reinterpret_cast<spt_pack<T> *>(to + c.col), x = {};
        if (kept != 0) {
          x = *place;
#pragma unroll
          for (int e = 0; e < N; e++) {
            x.element[e] = kept >> e & 1 ? x.element[e] : (T)0;
          }
        }
        *place = x;
      } else {
#pragma unroll
        for (int e = 0; e < N; e++) {
          if (!(kept >> e & 1) && c.inside(at, e)) {
            to[(c.col + e) * job.col] = 0;
          }
        }
      }
    }
  }
}

template <bool PACKED>
__global__ void __launch_bounds__(THREADS) expand_mask_kernel(mask_job job) {
  constexpr int N = spt_pack<uint8_t>::N;
  const spt_patch &p = job.patch;
  for (int64_t cell = blockIdx.x; cell < p.cells; cell += gridDim.x) {
    spt_place at = spt_place_of(p, cell);
    uint8_t *w =
        reinterpret_cast<uint8_t *>(job.w) + at.first_row * job.row + at.first_col * job.col;
    spt_cursor c(at);
#pragma unroll 4
    for (int i = 0; i < p.packs; i++, c.advance(p, at)) {
      if (!c.inside(at)) {
        continue;
      }
      uint32_t kept = kept_bits<N>(job, at, c);
      uint8_t *to = w + c.row * job.row;
      if (PACKED) {
        spt_pack<uint32_t> x;
#pragma unroll
        for (int word = 0; word < 4; word++) { /* four bits to four bytes */
          uint32_t four = kept >> 4 * word & 15;
          x.element[word] = (four * 0x00204081u) & 0x01010101u;
        }
        *reinterpret_cast<spt_pack<uint32_t> *>(to + c.col) = x;
      } else {
#pragma unroll
        for (int e = 0; e < N; e++) {
          if (c.inside(at, e)) {
            to[(c.col + e) * job.col] = (uint8_t)(kept >> e & 1);
          }
        }
      }
    }
  }
}

/* ---- launchers ---------------------------------------------------------------------------------- */

/* size: bytes of an element of the grid's matrix. */
static mask_job job_of(const spt_grid &of, const spt_matrix &mask, int size, bool *packed) {
  spt_grid grid = of;
  bool turn = spt_turn_grid(&grid);
  mask_job job = {};
  job.group_rows = (int32_t)spt_least(grid.group_rows, LEAST_ROWS);
  job.mask_rows = (int32_t)spt_blocks(LEAST_ROWS, job.group_rows);
  grid.group_rows *= job.mask_rows;
  grid.down = spt_blocks(grid.down, job.mask_rows);
  job.patch = spt_patch_of(&grid, SPT_PACK_BYTES / size, MOST_PACKS);
  job.mask = static_cast<const uint8_t *>(mask.data);
  job.mask_row = turn ? mask.col : mask.row;
  job.mask_col = turn ? mask.row : mask.col;
  job.w = static_cast<char *>(grid.w.data);
  job.row = grid.w.row;
  job.col = grid.w.col;
  *packed = spt_patch_is_packed(job.patch, grid.w, size);
  return job;
}

template <typename T>
static spt_status launch_apply(spt_cuda_queue *queue, const mask_job &job, bool packed,
                               spt_error *err) {
  const char *op = "apply_mask_";
  unsigned blocks = (unsigned)spt_least(job.patch.cells, SPT_GROUP_BLOCKS);
  if (packed) {
    SPT_LAUNCH(op, (apply_mask_kernel<T, true>), blocks, THREADS, 0, queue->stream, job);
  } else {
    SPT_LAUNCH(op, (apply_mask_kernel<T, false>), blocks, THREADS, 0, queue->stream, job);
  }
  return SPT_OK;
}

spt_status spt_cuda_apply_mask(void *state, const spt_apply_mask_problem *p, spt_error *err) {
  if (p->grid.down == 0 || p->grid.across == 0) {
    return SPT_OK;
  }
  bool packed, wide = p->grid.w.dtype == SPT_F32;
  mask_job job = job_of(p->grid, p->mask, wide ? 4 : 2, &packed);
  return wide ? launch_apply<uint32_t>(spt_queue_of(state), job, packed, err)
              : launch_apply<uint16_t>(spt_queue_of(state), job, packed, err);
}

spt_status spt_cuda_expand_mask(void *state, const spt_expand_mask_problem *p, spt_error *err) {
  const char *op = "expand_mask";
  if (p->grid.down == 0 || p->grid.across == 0) {
    return SPT_OK;
  }
  bool packed;
  spt_cuda_queue *queue = spt_queue_of(state);
  mask_job job = job_of(p->grid, p->mask, 1, &packed);
  unsigned blocks = (unsigned)spt_least(job.patch.cells, SPT_GROUP_BLOCKS);
  if (packed) {
    SPT_LAUNCH(op, (expand_mask_kernel<true>), blocks, THREADS, 0, queue->stream, job);
  } else {
    SPT_LAUNCH(op, (expand_mask_kernel<false>), blocks, THREADS, 0, queue->stream, job);
  }
  return SPT_OK;
}
