/* weights.h: packed weights as the device's products read them, made once by `prepare`.
 *
 * A tile is 16 rows of a strip by a block of 16 neighbouring input columns. Patterns whose columns lie
 * elsewhere are brought to that form: kept columns gather in front where that leaves fewer tiles (then x
 * is gathered on every call), and a tile's mask says which of its columns count, for the others must not
 * meet the sum even as zeros: x may hold NaN there. */
#ifndef SPATILE_CUDA_WEIGHTS_H
#define SPATILE_CUDA_WEIGHTS_H

#include "context.h"

#define SPT_TILE 16
#define SPT_TILE_VALUES (SPT_TILE * SPT_TILE)
#define SPT_WHOLE_TILE 0xffff /* the mask of a tile all of whose columns that exist count */

typedef struct spt_tile_at {
  int32_t block; /* columns 16 block to 16 block + 15 of x, gathered */
  uint32_t mask; /* bit k: column 16 block + k counts */
} spt_tile_at;

/* Strips of w, or of w transposed. A strip's tiles follow one another, by block. Arrays are the device's. */
typedef struct spt_gpu_strips {
  int64_t out, in; /* of the matrix */
  int64_t width;   /* columns of x after gathering; in where it is not gathered */
  int32_t n_strips, n_tiles;
  const int32_t *first;   /* (n_strips + 1) a strip's first tile */
  const spt_tile_at *at;  /* (n_tiles) */
  const int32_t *order;   /* (n_strips) the longest first */
  const int32_t *rows;    /* (n_strips * 16) output row or -1; NULL: 16 strip + r */
  const int32_t *columns; /* (width) which column of x, or -1 for zeros; NULL: x as it is */
} spt_gpu_strips;

/* What one block of the weights' gradient computes: of 16 neighbouring strips the tiles of blocks
 * [begin, end), of which no strip has more than SPT_JOB_TILES. */
#define SPT_JOB_STRIPS 16
#define SPT_JOB_TILES 8
#define SPT_JOB_BLOCKS 32
typedef struct spt_gradient_job {
  int32_t strip, begin, end;
  int32_t first[SPT_JOB_STRIPS], count[SPT_JOB_STRIPS]; /* each strip's tiles among them */
} spt_gradient_job;

/* Compressed sparse rows, or columns: of w transposed. */
typedef struct spt_gpu_csr {
  int64_t out, in, nnz;
  const int64_t *row_ptr; /* (out + 1) */
  const int32_t *col;     /* (nnz) */
  const float *values;    /* (nnz) */
} spt_gpu_csr;

typedef struct spt_gpu_weights {
  bool is_csr;
  /* Strips: tiles (n_tiles, 256) of this dtype, or NULL where the values are a dense array's. In 16 bits
   * a tile is in the order of mma's A fragments (spt_place_in_tile), in float32 it is (column, row). */
  spt_dtype dtype;
  const void *tiles;
  spt_gpu_strips forward, transposed;
  const int32_t
      *source;          /* (n_tiles) of transposed: the tile of forward that each is, turned over */
  const int32_t *strip; /* (n_tiles) of forward: its strip */
  const int64_t
      *column; /* (n_tiles) of forward: its first among the kept columns, as values have them */
  const spt_gradient_job *jobs;
  int32_t n_jobs;
  spt_gpu_csr csr, csr_transposed;
  struct spt_cuda_pool *pool; /* whose the memory is */
  void *index, *values;
} spt_gpu_weights;

/* Where element (r, k) of a tile in 16 bits is: lane 4 g + t of a warp has 8 neighbours, rows g and g + 8
 * of columns 2 t, 2 t + 1, 2 t + 8 and 2 t + 9. */
static __host__ __device__ inline int spt_place_in_tile(int r, int k) {
  return ((r % 8) * 4 + k % 8 / 2) * 8 + k % 2 + r / 8 * 2 + k / 8 * 4;
}

/* Tiles of w's values: `dense` (out, in), any storage type and strides, read where the strips keep it. */
SPT_WARN_UNUSED spt_status spt_tiles_of_dense(spt_cuda_queue *, const char *op,
                                              const spt_gpu_weights *, const spt_matrix *dense,
                                              spt_dtype dtype, void *tiles, spt_error *);
/* Tiles of w transposed from w's. */
SPT_WARN_UNUSED spt_status spt_turn_tiles(spt_cuda_queue *, const char *op, const spt_gpu_weights *,
                                          spt_dtype dtype, const void *tiles, void *turned,
                                          spt_error *);

/* Tiles in 16 bits as float32. */
SPT_WARN_UNUSED spt_status spt_widen_tiles(spt_cuda_queue *, const char *op, int32_t n_tiles,
                                           spt_dtype dtype, const void *tiles, float *to,
                                           spt_error *);

/* x as strips read it: gathered where they want that, else as spt_cuda_aligned_rows. */
SPT_WARN_UNUSED spt_status spt_rows_for_strips(spt_cuda_queue *, spt_scratch *, const char *op,
                                               const spt_gpu_strips *, const spt_matrix *x,
                                               spt_dtype dtype, spt_matrix *to, spt_error *);

/* weights_index.cu: everything but the tiles, on the host, in one piece of memory that the caller frees. */
typedef struct spt_host_index {
  void *memory;
  size_t bytes;
} spt_host_index;
SPT_WARN_UNUSED spt_status spt_index_strips(const char *op, const spt_strips *, spt_gpu_weights *,
                                            spt_host_index *, spt_error *);
SPT_WARN_UNUSED spt_status spt_index_csr(const char *op, const spt_csr *, spt_gpu_weights *,
                                         spt_host_index *, spt_error *);
/* Lets the pointers into the index point into its copy. */
void spt_move_index(spt_gpu_weights *, const spt_host_index *, void *copy);

#endif
