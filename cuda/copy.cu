/* copy: y = x for arrays of one shape and any strides, converted between the storage types. Bound by
 * memory: each element is read once and written once. Three forms: neighbours 16 bytes at a time; tiles
 * of 32 x 32 turned over in shared memory where x and y run along different axes, so that both sides
 * touch whole sectors; and one element at a time. The conversions of one dtype to itself move bits. */
#include "context.h"
#include "pack.cuh"
#include "storage.cuh"
#include "view.cuh"

#define COPY_THREADS 256
#define TILE 32
#define TILE_ROWS (COPY_THREADS / TILE)

/* Axes of both arrays, merged, the last one being y's most neighbouring. Strides in elements. */
struct copy_axes {
  int32_t ndim;
  int64_t shape[SPT_MAX_NDIM], x[SPT_MAX_NDIM], y[SPT_MAX_NDIM];
};

static __device__ __forceinline__ uint8_t convert(uint8_t *, uint8_t value) { return value; }
static __device__ __forceinline__ uint16_t convert(uint16_t *, uint16_t value) { return value; }
static __device__ __forceinline__ uint32_t convert(uint32_t *, uint32_t value) { return value; }
static __device__ __forceinline__ uint64_t convert(uint64_t *, uint64_t value) { return value; }
template <typename TY, typename TX>
static __device__ __forceinline__ TY convert(TY *, TX value) {
  return spt_round_to((TY *)nullptr, spt_to_float(value));
}

/* Adds what element (or pack, or tile) i of the first `ndim` axes is away from the start. */
template <typename I>
static __device__ __forceinline__ void find(const copy_axes &a, int ndim, I i, int64_t *x,
                                            int64_t *y) {
  for (int axis = ndim - 1; axis >= 0; axis--) {
    I at = axis > 0 ? i % (I)a.shape[axis] : i;
    *x += (int64_t)at * a.x[axis];
    *y += (int64_t)at * a.y[axis];
    i /= (I)a.shape[axis];
  }
}

/* Division of 64 bits is a call of a hundred instructions: 32 bits where they suffice. */
static __device__ __forceinline__ void find(const copy_axes &a, int ndim, int64_t n, int64_t i,
                                            int64_t *x, int64_t *y) {
  if (n <= UINT32_MAX) {
    find(a, ndim, (uint32_t)i, x, y);
  } else {
    find(a, ndim, (uint64_t)i, x, y);
  }
}

template <typename T, int N>
struct alignas(sizeof(T) * N) copy_pack {
  T element[N];
};

/* n packs of N neighbours; the last axis counts packs, strides still elements. */
template <typename TX, typename TY, int N>
__global__ void copy_packs_kernel(const TX *x, TY *y, copy_axes a, int64_t n) {
  int64_t step = (int64_t)gridDim.x * blockDim.x;
  for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
    int64_t from = 0, to = 0;
    find(a, a.ndim, n, i, &from, &to);
    copy_pack<TX, N> in = *reinterpret_cast<const copy_pack<TX, N> *>(x + from);
    copy_pack<TY, N> out;
#pragma unroll
    for (int j = 0; j < N; j++) {
      out.element[j] = convert((TY *)nullptr, in.element[j]);
    }
    *reinterpret_cast<copy_pack<TY, N> *>(y + to) = out;
  }
}

template <typename TX, typename TY>
__global__ void copy_kernel(const TX *x, TY *y, copy_axes a, int64_t n) {
  int64_t step = (int64_t)gridDim.x * blockDim.x;
  for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
    int64_t from = 0, to = 0;
    find(a, a.ndim, n, i, &from, &to);
    y[to] = convert((TY *)nullptr, x[from]);
  }
}

/* The last two axes are (rows, cols): y's neighbours are columns, x's are rows. */
template <typename TX, typename TY>
__global__ void copy_turned_kernel(const TX *x, TY *y, copy_axes a, int64_t tiles) {
  SPT_SHARED(TX, tile); /* (TILE, TILE + 1) by column and row: x is read along its rows */
  int last = a.ndim - 1, lane = (int)(threadIdx.x % TILE), first = (int)(threadIdx.x / TILE);
  int64_t rows = a.shape[last - 1], cols = a.shape[last];
  int64_t down = (rows + TILE - 1) / TILE, across = (cols + TILE - 1) / TILE;
  for (int64_t t = blockIdx.x; t < tiles; t += gridDim.x) {
    int64_t row = t / across % down * TILE, col = t % across * TILE, from = 0, to = 0;
    find(a, last - 1, tiles, t / across / down, &from, &to);
    for (int c = first; c < TILE; c += TILE_ROWS) {
      if (row + lane < rows && col + c < cols) {
        tile[c * (TILE + 1) + lane] =
            x[from + (row + lane) * a.x[last - 1] + (col + c) * a.x[last]];
      }
    }
    __syncthreads();
    for (int r = first; r < TILE; r += TILE_ROWS) {
      if (row + r < rows && col + lane < cols) {
        y[to + (row + r) * a.y[last - 1] + (col + lane) * a.y[last]] =
            convert((TY *)nullptr, tile[lane * (TILE + 1) + r]);
      }
    }
    __syncthreads();
  }
}

/* ---- launchers -------------------------------------------------------------------------------- */

static int64_t size_of(int64_t value) { return value < 0 ? -value : value; }

/* Axes of one element go, the others are sorted by y's stride and merged where both arrays allow it. */
static copy_axes axes_of(const spt_tensor *x, const spt_tensor *y) {
  copy_axes sorted = {}, merged = {};
  for (int i = 0; i < y->ndim; i++) {
    if (y->shape[i] == 1) {
      continue;
    }
    int at = sorted.ndim++;
    for (; at > 0 && size_of(sorted.y[at - 1]) < size_of(y->stride[i]); at--) {
      sorted.shape[at] = sorted.shape[at - 1];
      sorted.x[at] = sorted.x[at - 1];
      sorted.y[at] = sorted.y[at - 1];
    }
    sorted.shape[at] = y->shape[i];
    sorted.x[at] = x->stride[i];
    sorted.y[at] = y->stride[i];
  }
  for (int i = 0; i < sorted.ndim; i++) {
    int at = merged.ndim;
    bool joins = at > 0 && merged.x[at - 1] == sorted.x[i] * sorted.shape[i] &&
                 merged.y[at - 1] == sorted.y[i] * sorted.shape[i];
    at = joins ? at - 1 : merged.ndim++;
    merged.shape[at] = (joins ? merged.shape[at] : 1) * sorted.shape[i];
    merged.x[at] = sorted.x[i];
    merged.y[at] = sorted.y[i];
  }
  if (merged.ndim == 0) {
    merged.ndim = 1;
    merged.shape[0] = merged.x[0] = merged.y[0] = 1;
  }
  return merged;
}

static bool are_packs(const copy_axes &a, const void *x, const void *y, int64_t x_size,
                      int64_t y_size, int64_t n) {
  int last = a.ndim - 1;
  if (n < 2 || a.x[last] != 1 || a.y[last] != 1 || a.shape[last] % n != 0 ||
      (uintptr_t)x % (uintptr_t)(n * x_size) != 0 || (uintptr_t)y % (uintptr_t)(n * y_size) != 0) {
    return false;
  }
  for (int i = 0; i < last; i++) {
    if (a.x[i] % n != 0 || a.y[i] % n != 0) {
      return false;
    }
  }
  return true;
}

/* Puts the axis along which x's neighbours lie before the last one, where tiles are worth it. */
static bool turn(copy_axes *a) {
  int last = a->ndim - 1, found = -1;
  if (size_of(a->x[last]) <= 1 || a->shape[last] < TILE / 2) {
    return false;
  }
  for (int i = 0; i < last; i++) {
    if (size_of(a->x[i]) == 1 && a->shape[i] >= TILE / 2) {
      found = i;
    }
  }
  if (found < 0) {
    return false;
  }
  int64_t shape = a->shape[found], x = a->x[found], y = a->y[found];
  for (int i = found; i < last - 1; i++) {
    a->shape[i] = a->shape[i + 1];
    a->x[i] = a->x[i + 1];
    a->y[i] = a->y[i + 1];
  }
  a->shape[last - 1] = shape;
  a->x[last - 1] = x;
  a->y[last - 1] = y;
  return true;
}

template <typename TX, typename TY>
static spt_status copy_as(spt_cuda_queue *queue, const char *op, const void *from, void *to,
                          copy_axes a, int64_t n, spt_error *err) {
  constexpr int N = SPT_PACK_BYTES / (int)(sizeof(TX) > sizeof(TY) ? sizeof(TX) : sizeof(TY));
  const TX *x = static_cast<const TX *>(from);
  TY *y = static_cast<TY *>(to);
  int64_t most = 64 * (int64_t)queue->device->sm_count;
  int last = a.ndim - 1;
  if (are_packs(a, x, y, sizeof(TX), sizeof(TY), N)) {
    a.shape[last] /= N;
    a.x[last] = a.y[last] = N;
    unsigned blocks = (unsigned)spt_least(spt_blocks(n / N, COPY_THREADS), most);
    SPT_LAUNCH(op, (copy_packs_kernel<TX, TY, N>), blocks, COPY_THREADS, 0, queue->stream, x, y, a,
               n / N);
  } else if (turn(&a)) {
    int64_t tiles = spt_blocks(a.shape[last - 1], TILE) * spt_blocks(a.shape[last], TILE);
    tiles *= n / (a.shape[last - 1] * a.shape[last]);
    SPT_LAUNCH(op, (copy_turned_kernel<TX, TY>), (unsigned)spt_least(tiles, most), COPY_THREADS,
               TILE * (TILE + 1) * sizeof(TX), queue->stream, x, y, a, tiles);
  } else {
    unsigned blocks = (unsigned)spt_least(spt_blocks(n, COPY_THREADS), most);
    SPT_LAUNCH(op, (copy_kernel<TX, TY>), blocks, COPY_THREADS, 0, queue->stream, x, y, a, n);
  }
  return SPT_OK;
}

static int64_t bytes_of(spt_dtype dtype) {
  switch (dtype) {
    case SPT_F64:
    case SPT_I64:
      return 8;
    case SPT_F32:
    case SPT_I32:
      return 4;
    case SPT_F16:
    case SPT_BF16:
      return 2;
    default:
      return 1;
  }
}

/* Bits of one dtype. */
static spt_status copy_bits(spt_cuda_queue *queue, const char *op, const spt_tensor *x,
                            const spt_tensor *y, const copy_axes &a, int64_t n, spt_error *err) {
  int64_t size = bytes_of(x->dtype);
  if (a.ndim == 1 && a.x[0] == 1 && a.y[0] == 1) {
    SPT_CUDA_TRY(op, "copying an array",
                 cudaMemcpyAsync(y->data, x->data, (size_t)(n * size), cudaMemcpyDeviceToDevice,
                                 queue->stream));
    return SPT_OK;
  }
  switch (size) {
    case 8:
      return copy_as<uint64_t, uint64_t>(queue, op, x->data, y->data, a, n, err);
    case 4:
      return copy_as<uint32_t, uint32_t>(queue, op, x->data, y->data, a, n, err);
    case 2:
      return copy_as<uint16_t, uint16_t>(queue, op, x->data, y->data, a, n, err);
    default:
      return copy_as<uint8_t, uint8_t>(queue, op, x->data, y->data, a, n, err);
  }
}

spt_status spt_cuda_copy(spt_cuda_queue *queue, const char *op, const spt_tensor *x,
                         const spt_tensor *y, spt_error *err) {
  int64_t n = spt_view_elements(y);
  if (n == 0) {
    return SPT_OK;
  }
  copy_axes a = axes_of(x, y);
  if (x->dtype == y->dtype) {
    return copy_bits(queue, op, x, y, a, n, err);
  }
  if (x->dtype == SPT_F32 && y->dtype == SPT_F16) {
    return copy_as<float, spt_half>(queue, op, x->data, y->data, a, n, err);
  }
  if (x->dtype == SPT_F32) {
    return copy_as<float, spt_bfloat>(queue, op, x->data, y->data, a, n, err);
  }
  if (x->dtype == SPT_F16 && y->dtype == SPT_F32) {
    return copy_as<spt_half, float>(queue, op, x->data, y->data, a, n, err);
  }
  if (x->dtype == SPT_F16) {
    return copy_as<spt_half, spt_bfloat>(queue, op, x->data, y->data, a, n, err);
  }
  if (y->dtype == SPT_F32) {
    return copy_as<spt_bfloat, float>(queue, op, x->data, y->data, a, n, err);
  }
  return copy_as<spt_bfloat, spt_half>(queue, op, x->data, y->data, a, n, err);
}

static spt_tensor tensor_of(const spt_matrix *m) {
  spt_tensor t = {};
  t.data = m->data;
  t.dtype = m->dtype;
  t.ndim = 2;
  t.shape[0] = m->rows;
  t.shape[1] = m->cols;
  t.stride[0] = m->row;
  t.stride[1] = m->col;
  t.writable = true;
  return t;
}

spt_status spt_cuda_aligned_rows(spt_cuda_queue *queue, spt_scratch *scratch, const char *op,
                                 const spt_matrix *m, spt_dtype dtype, spt_matrix *aligned,
                                 spt_error *err) {
  int64_t size = bytes_of(dtype), per_pack = SPT_PACK_BYTES / size;
  int64_t padded = spt_blocks(m->cols, per_pack) * per_pack;
  *aligned = *m;
  aligned->col = 1;
  /* A stride along which there is one element is anything. */
  aligned->row = m->rows > 1 ? m->row : padded;
  bool is_aligned = m->dtype == dtype && (m->cols <= 1 || m->col == 1) &&
                    (uintptr_t)m->data % SPT_PACK_BYTES == 0 &&
                    aligned->row * size % SPT_PACK_BYTES == 0;
  if (m->data == NULL || is_aligned) {
    return SPT_OK;
  }
  char *piece = NULL;
  SPT_TRY(scratch->take(&piece, m->rows * padded * size, err));
  aligned->data = piece;
  aligned->dtype = dtype;
  aligned->row = padded;
  spt_tensor from = tensor_of(m), to = tensor_of(aligned);
  return spt_cuda_copy(queue, op, &from, &to, err);
}
