/* weights: packed weights on the device: prepare, tiles from values of any form, x as strips read it.
 * Bound by memory: tiles are written once, values read once. */
#include "weights.h"

#include <stdlib.h>
#include <string.h>

#include "memory.h"
#include "pack.cuh"
#include "slots.h"

#define TILE_THREADS SPT_TILE_VALUES

/* Where a tile's values come from. */
struct value_source {
  const char *data;
  int32_t dtype;
  bool dense; /* (out, in) by strides in bytes, or (kept columns, 16) */
  int64_t row, col;
  const int32_t *rows, *columns; /* the strips' */
  int64_t out, width;
};

/* Element (r, k) of tile i: column k is the mask's popc(lower bits)-th of the tile. */
static __device__ __forceinline__ float value_at(const value_source &from, const spt_tile_at &at,
                                                 int64_t strip, int64_t column, int r, int k) {
  int64_t row = strip * SPT_TILE + r, col = (int64_t)at.block * SPT_TILE + k;
  if ((at.mask >> k & 1) == 0 || col >= from.width ||
      (from.columns != NULL && from.columns[col] < 0)) {
    return 0.0f;
  }
  if (from.rows != NULL) {
    row = from.rows[row];
  }
  if (row < 0 || row >= from.out) {
    return 0.0f;
  }
  int64_t offset;
  if (from.dense) {
    col = from.columns != NULL ? from.columns[col] : col;
    offset = row * from.row + col * from.col;
  } else {
    int64_t kept = column + __popc(at.mask & ((1u << k) - 1));
    offset = (kept * SPT_STRIP + r) * (from.dtype == SPT_F32 ? 4 : 2);
  }
  return spt_load_any(from.data + offset, from.dtype);
}

template <typename T>
static __device__ __forceinline__ int place_of(int r, int k) {
  return sizeof(T) == 2 ? spt_place_in_tile(r, k) : k * SPT_TILE + r;
}

/* tiles (n, 256). A block has a thread for each element; threads that follow one another read along rows
 * of a dense array, along kept columns otherwise. */
template <typename T>
__global__ void tiles_kernel(value_source from, const spt_tile_at *at, const int32_t *strip,
                             const int64_t *column, int n, T *tiles) {
  int major = (int)threadIdx.x / SPT_TILE, minor = (int)threadIdx.x % SPT_TILE;
  int r = from.dense ? major : minor, k = from.dense ? minor : major;
  for (int64_t i = blockIdx.x; i < n; i += gridDim.x) {
    float value = value_at(from, at[i], strip[i], column[i], r, k);
    spt_store(tiles + i * SPT_TILE_VALUES + place_of<T>(r, k), value);
  }
}

/* turned (n, 256): tile i is tile source[i] turned over. */
template <typename T>
__global__ void turned_kernel(const T *tiles, const int32_t *source, int n, T *turned) {
  int r = (int)threadIdx.x / SPT_TILE, k = (int)threadIdx.x % SPT_TILE;
  for (int64_t i = blockIdx.x; i < n; i += gridDim.x) {
    turned[i * SPT_TILE_VALUES + place_of<T>(r, k)] =
        tiles[(int64_t)source[i] * SPT_TILE_VALUES + place_of<T>(k, r)];
  }
}

/* tiles and to (n, 256). */
template <typename T>
__global__ void widened_kernel(const T *tiles, int n, float *to) {
  int r = (int)threadIdx.x % SPT_TILE, k = (int)threadIdx.x / SPT_TILE;
  for (int64_t i = blockIdx.x; i < n; i += gridDim.x) {
    to[i * SPT_TILE_VALUES + place_of<float>(r, k)] =
        spt_load(tiles + i * SPT_TILE_VALUES + place_of<T>(r, k));
  }
}

/* to (n, width), neighbours: column c is x's columns[c], or zeros. */
template <typename T>
__global__ void gather_columns_kernel(const char *x, int x_dtype, int64_t x_row, int64_t x_col,
                                      const int32_t *columns, int64_t width, int64_t n, T *to) {
  int64_t total = n * width, step = (int64_t)gridDim.x * blockDim.x;
  for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < total; i += step) {
    int64_t row = i / width;
    int32_t column = columns[i - row * width];
    spt_store(to + i, column < 0 ? 0.0f : spt_load_any(x + row * x_row + column * x_col, x_dtype));
  }
}

/* ---- launchers --------------------------------------------------------------------------------- */

static unsigned grid_for(const spt_cuda_queue *queue, int64_t blocks) {
  return (unsigned)spt_least(blocks, 64 * (int64_t)queue->device->sm_count);
}

static spt_status make_tiles(spt_cuda_queue *queue, const char *op, const spt_gpu_weights *w,
                             value_source from, spt_dtype dtype, void *tiles, spt_error *err) {
  const spt_gpu_strips *f = &w->forward;
  if (f->n_tiles == 0) {
    return SPT_OK;
  }
  from.rows = f->rows;
  from.columns = f->columns;
  from.out = f->out;
  from.width = f->width;
  SPT_WITH_STORAGE(dtype, T, {
    SPT_LAUNCH(op, tiles_kernel<T>, grid_for(queue, f->n_tiles), TILE_THREADS, 0, queue->stream,
               from, f->at, w->strip, w->column, f->n_tiles, static_cast<T *>(tiles));
  });
  return SPT_OK;
}

spt_status spt_tiles_of_dense(spt_cuda_queue *queue, const char *op, const spt_gpu_weights *w,
                              const spt_matrix *dense, spt_dtype dtype, void *tiles,
                              spt_error *err) {
  value_source from = {};
  int64_t size = spt_storage_bytes(dense->dtype);
  from.data = static_cast<const char *>(dense->data);
  from.dtype = dense->dtype;
  from.dense = true;
  from.row = dense->row * size;
  from.col = dense->col * size;
  return make_tiles(queue, op, w, from, dtype, tiles, err);
}

spt_status spt_turn_tiles(spt_cuda_queue *queue, const char *op, const spt_gpu_weights *w,
                          spt_dtype dtype, const void *tiles, void *turned, spt_error *err) {
  int n = w->transposed.n_tiles;
  if (n == 0) {
    return SPT_OK;
  }
  SPT_WITH_STORAGE(dtype, T, {
    SPT_LAUNCH(op, turned_kernel<T>, grid_for(queue, n), TILE_THREADS, 0, queue->stream,
               static_cast<const T *>(tiles), w->source, n, static_cast<T *>(turned));
  });
  return SPT_OK;
}

spt_status spt_widen_tiles(spt_cuda_queue *queue, const char *op, int32_t n, spt_dtype dtype,
                           const void *tiles, float *to, spt_error *err) {
  if (n == 0) {
    return SPT_OK;
  }
  if (dtype == SPT_F16) {
    SPT_LAUNCH(op, widened_kernel<spt_half>, grid_for(queue, n), TILE_THREADS, 0, queue->stream,
               static_cast<const spt_half *>(tiles), n, to);
  } else {
    SPT_LAUNCH(op, widened_kernel<spt_bfloat>, grid_for(queue, n), TILE_THREADS, 0, queue->stream,
               static_cast<const spt_bfloat *>(tiles), n, to);
  }
  return SPT_OK;
}

spt_status spt_rows_for_strips(spt_cuda_queue *queue, spt_scratch *scratch, const char *op,
                               const spt_gpu_strips *w, const spt_matrix *x, spt_dtype dtype,
                               spt_matrix *to, spt_error *err) {
  if (w->columns == NULL) {
    return spt_cuda_aligned_rows(queue, scratch, op, x, dtype, to, err);
  }
  int64_t size = spt_storage_bytes(x->dtype), total = x->rows * w->width;
  char *piece;
  SPT_TRY(scratch->take(&piece, total * spt_storage_bytes(dtype), err));
  *to = *x;
  to->data = piece;
  to->dtype = dtype;
  to->cols = to->row = w->width; /* a multiple of 16 */
  to->col = 1;
  if (total == 0) {
    return SPT_OK;
  }
  SPT_WITH_STORAGE(dtype, T, {
    SPT_LAUNCH(op, gather_columns_kernel<T>, grid_for(queue, spt_blocks(total, 256)), 256, 0,
               queue->stream, static_cast<const char *>(x->data), (int)x->dtype, x->row * size,
               x->col * size, w->columns, w->width, x->rows, reinterpret_cast<T *>(piece));
  });
  return SPT_OK;
}

/* ---- prepare ----------------------------------------------------------------------------------- */

static spt_status upload_index(spt_cuda_queue *queue, const char *op, spt_gpu_weights *w,
                               const spt_host_index *index, spt_error *err) {
  SPT_TRY(spt_cuda_pool_take(queue->pool, op, index->bytes, &w->index, err));
  SPT_TRY(spt_cuda_to_device(queue, op, w->index, index->memory, index->bytes, err));
  spt_move_index(w, index, w->index);
  return SPT_OK;
}

/* The host's values go to scratch memory, and from there to tiles. */
static spt_status upload_values(spt_cuda_queue *queue, const char *op, const spt_strips *strips,
                                spt_gpu_weights *w, spt_error *err) {
  spt_scratch scratch(queue, op);
  bool half = strips->values == NULL;
  int64_t size = half ? 2 : 4, base = strips->value_ptr[0];
  size_t bytes = (size_t)((strips->value_ptr[strips->n_strips] - base) * SPT_STRIP * size);
  const char *host = half ? reinterpret_cast<const char *>(strips->half)
                          : reinterpret_cast<const char *>(strips->values);
  char *values;
  SPT_TRY(scratch.take(&values, (int64_t)bytes, err));
  if (bytes > 0) {
    SPT_TRY(spt_cuda_to_device(queue, op, values, host + base * SPT_STRIP * size, bytes, err));
  }
  value_source from = {};
  from.data = values;
  from.dtype = half ? strips->half_dtype : SPT_F32;
  size_t tiles = (size_t)w->forward.n_tiles * SPT_TILE_VALUES * spt_dtype_size(w->dtype);
  SPT_TRY(spt_cuda_pool_take(queue->pool, op, tiles, &w->values, err));
  w->tiles = w->values;
  return make_tiles(queue, op, w, from, w->dtype, w->values, err);
}

static spt_status prepare_strips(spt_cuda_queue *queue, const char *op, const spt_weight *weight,
                                 spt_dtype compute, spt_gpu_weights *w, spt_error *err) {
  const spt_strips *strips = weight->strips;
  spt_host_index index = {};
  SPT_TRY(spt_index_strips(op, strips, w, &index, err));
  spt_status status = upload_index(queue, op, w, &index, err);
  free(index.memory);
  SPT_TRY(status);
  if (weight->dense.data != NULL) {
    return SPT_OK;
  }
  w->dtype = compute == SPT_BF16 ? SPT_BF16 : strips->values != NULL ? SPT_F32 : strips->half_dtype;
  return upload_values(queue, op, strips, w, err);
}

static spt_status prepare_csr(spt_cuda_queue *queue, const char *op, const spt_csr *csr,
                              spt_gpu_weights *w, spt_error *err) {
  spt_host_index index = {};
  w->is_csr = true;
  SPT_TRY(spt_index_csr(op, csr, w, &index, err));
  spt_status status = upload_index(queue, op, w, &index, err);
  free(index.memory);
  return status;
}

spt_status spt_cuda_prepare(void *state, const spt_weight *weight, spt_dtype compute,
                            void **prepared, spt_error *err) {
  const char *op = "linear";
  spt_cuda_queue *queue = spt_queue_of(state);
  spt_gpu_weights *w = static_cast<spt_gpu_weights *>(calloc(1, sizeof *w));
  *prepared = NULL;
  if (w == NULL) {
    return spt_fail(err, SPT_OUT_OF_MEMORY, "%s: no memory", op);
  }
  w->pool = queue->pool;
  spt_status status = weight->csr != NULL ? prepare_csr(queue, op, weight->csr, w, err)
                                          : prepare_strips(queue, op, weight, compute, w, err);
  if (status != SPT_OK) {
    spt_cuda_prepared_free(state, w);
    return status;
  }
  *prepared = w;
  return SPT_OK;
}

void spt_cuda_prepared_free(void *state, void *prepared) {
  (void)state;
  spt_gpu_weights *w = static_cast<spt_gpu_weights *>(prepared);
  if (w == NULL) {
    return;
  }
  if (w->index != NULL) {
    spt_cuda_pool_give(w->pool, w->index, true);
  }
  if (w->values != NULL) {
    spt_cuda_pool_give(w->pool, w->values, true);
  }
  free(w);
}
