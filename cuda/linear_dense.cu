/* linear_dense: y = act(a · bᵀ + bias) + residual for matrices without structure, by cuBLASLt where it is
 * there. What that cannot fuse follows in a pass over y. Without it, tiles of 128 x 128 (or 64 x 64 where
 * there are few) by the kernels here: 3 stages of shared memory by cp.async; in 16 bits ldmatrix and
 * mma.m16n8k16, 2 loads of 512 bytes for 4 mma at 64 x 32 a warp; in float32 8 x 8 sums a thread, 16
 * shared loads of 16 bytes for 256 FMAs. Both are bound by their multiplications at large shapes. */
#include "linear_dense.h"

#include "async_copy.cuh"
#include "cublas.h"
#include "linear_output.cuh"
#include "mma.cuh"
#include "view.cuh"

#define THREADS 256
#define STAGES 3
#define ROW_BYTES 64           /* of k, in a stage */
#define PITCH (ROW_BYTES + 16) /* so that 8 rows' pieces of 16 bytes lie in different banks */
#define PIECES (ROW_BYTES / 16)

/* a (m, k) and b (n, k): rows aligned to 16 bytes, strides in bytes. */
struct dense_args {
  const char *a, *b;
  int64_t a_row, b_row, m, n, k;
};

/* Rows [first, first + ROWS) of ROW_BYTES from column k on, zeros outside the matrix. Not waited for. */
template <typename E, int ROWS>
static __device__ __forceinline__ void stage_rows(const char *from, int64_t stride, int64_t first,
                                                  int64_t rows, int64_t k, int64_t width,
                                                  char *to) {
  constexpr int PER_PIECE = 16 / (int)sizeof(E);
  int piece = (int)threadIdx.x % PIECES;
  int64_t column = k + piece * PER_PIECE, left = spt_least(width - column, PER_PIECE);
#pragma unroll
  for (int row = (int)threadIdx.x / PIECES; row < ROWS; row += THREADS / PIECES) {
    int bytes = first + row < rows && left > 0 ? (int)left * (int)sizeof(E) : 0;
    const char *at = from + (first + row) * stride + column * (int64_t)sizeof(E);
    spt_cp_async_16(to + row * PITCH + piece * 16, bytes > 0 ? at : from, bytes);
  }
}

/* ---- tensor cores ------------------------------------------------------------------------------ */

/* 8 warps, 2 by 4, each 16 TM rows of a by 8 TN of b. */
template <typename T, int TM, int TN>
struct tensor_tile {
  typedef T element;
  static constexpr int M = 32 * TM, N = 32 * TN;
  float sum[TM][TN][4];

  __device__ __forceinline__ void start() {
#pragma unroll
    for (int i = 0; i < TM; i++) {
#pragma unroll
      for (int j = 0; j < TN; j++) {
        sum[i][j][0] = sum[i][j][1] = sum[i][j][2] = sum[i][j][3] = 0.0f;
      }
    }
  }
  static __device__ __forceinline__ int first_row() {
    return (int)(threadIdx.x / SPT_WARP / 4) * 16 * TM;
  }
  static __device__ __forceinline__ int first_col() {
    return (int)(threadIdx.x / SPT_WARP % 4) * 8 * TN;
  }

  __device__ __forceinline__ void multiply(const char *a, const char *b) {
    int lane = (int)(threadIdx.x % SPT_WARP);
    a += (first_row() + lane % 16) * PITCH + lane / 16 * 16;
    b += (first_col() + lane / 16 * 8 + lane % 8) * PITCH + lane / 8 % 2 * 16;
#pragma unroll
    for (int k = 0; k < ROW_BYTES; k += 32) {
      uint32_t left[TM][4], right[TN / 2][4];
#pragma unroll
      for (int i = 0; i < TM; i++) {
        spt_ldmatrix_x4(left[i], a + i * 16 * PITCH + k);
      }
#pragma unroll
      for (int j = 0; j < TN / 2; j++) {
        spt_ldmatrix_x4(right[j], b + j * 16 * PITCH + k);
      }
#pragma unroll
      for (int i = 0; i < TM; i++) {
#pragma unroll
        for (int j = 0; j < TN; j++) {
          spt_mma_16x8x16<T>(sum[i][j], left[i], right[j / 2][j % 2 * 2],
                             right[j / 2][j % 2 * 2 + 1]);
        }
      }
    }
  }

  __device__ __forceinline__ void finish(const spt_linear_output &out, int64_t row, int64_t col) {
    int lane = (int)(threadIdx.x % SPT_WARP);
    int64_t first = row + first_row() + lane / 4, column = col + first_col() + lane % 4 * 2;
    float2 bias[TN];
#pragma unroll
    for (int j = 0; j < TN; j++) {
      bias[j] = make_float2(spt_bias_at(out, column + j * 8), spt_bias_at(out, column + j * 8 + 1));
    }
    /* 16 rows at a time, and then the others move up: less code. */
#pragma unroll 1
    for (int64_t at = first; at < first + 16 * TM; at += 16) {
      const spt_linear_output o = spt_opaque_output(out);
#pragma unroll
      for (int j = 0; j < TN; j++) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
          float2 v = make_float2(spt_activate(sum[0][j][2 * i] + bias[j].x, o.activation),
                                 spt_activate(sum[0][j][2 * i + 1] + bias[j].y, o.activation));
          if (o.packed) {
            spt_put_pair(o, at + i * 8, column + j * 8, v);
          } else {
            spt_put(o, at + i * 8, column + j * 8, v.x);
            spt_put(o, at + i * 8, column + j * 8 + 1, v.y);
          }
        }
      }
#pragma unroll
      for (int i = 0; i + 1 < TM; i++) {
#pragma unroll
        for (int j = 0; j < TN; j++) {
#pragma unroll
          for (int c = 0; c < 4; c++) {
            sum[i][j][c] = sum[i + 1][j][c];
          }
        }
      }
    }
  }
};

/* ---- float32 ----------------------------------------------------------------------------------- */

/* A thread has each 16th row of a by each 16th of b, S of each. */
template <int S>
struct float_tile {
  typedef float element;
  static constexpr int M = 16 * S, N = 16 * S;
  float sum[S][S];

  __device__ __forceinline__ void start() {
#pragma unroll
    for (int i = 0; i < S; i++) {
#pragma unroll
      for (int j = 0; j < S; j++) {
        sum[i][j] = 0.0f;
      }
    }
  }

  __device__ __forceinline__ void multiply(const char *a, const char *b) {
    a += threadIdx.x / 16 * PITCH;
    b += threadIdx.x % 16 * PITCH;
#pragma unroll 1
    for (int k = 0; k < ROW_BYTES; k += 16) {
      float4 left[S];
#pragma unroll
      for (int i = 0; i < S; i++) {
        left[i] = *reinterpret_cast<const float4 *>(a + i * 16 * PITCH + k);
      }
#pragma unroll
      for (int j = 0; j < S; j++) {
        float4 right = *reinterpret_cast<const float4 *>(b + j * 16 * PITCH + k);
#pragma unroll
        for (int i = 0; i < S; i++) {
          float s = fmaf(left[i].x, right.x, sum[i][j]);
          s = fmaf(left[i].y, right.y, s);
          s = fmaf(left[i].z, right.z, s);
          sum[i][j] = fmaf(left[i].w, right.w, s);
        }
      }
    }
  }

  __device__ __forceinline__ void finish(const spt_linear_output &out, int64_t row, int64_t col) {
    int64_t first = row + threadIdx.x / 16, column = col + threadIdx.x % 16;
#pragma unroll 1
    for (int64_t at = first; at < first + M; at += 16) {
      const spt_linear_output o = spt_opaque_output(out);
#pragma unroll
      for (int j = 0; j < S; j++) {
        float bias = spt_bias_at(o, column + j * 16);
        spt_put(o, at, column + j * 16, spt_activate(sum[0][j] + bias, o.activation));
      }
#pragma unroll
      for (int i = 0; i + 1 < S; i++) {
#pragma unroll
        for (int j = 0; j < S; j++) {
          sum[i][j] = sum[i + 1][j];
        }
      }
    }
  }
};

/* ---- kernels ----------------------------------------------------------------------------------- */

/* A block for each tile of y, those of one row of tiles after one another. */
template <typename Tile>
__global__ __launch_bounds__(THREADS, 1) void dense_kernel(dense_args p, spt_linear_output o) {
  typedef typename Tile::element E;
  constexpr int64_t STEP = ROW_BYTES / (int64_t)sizeof(E);
  constexpr int BYTES = (Tile::M + Tile::N) * PITCH;
  SPT_SHARED(char, shared);
  int64_t across = (p.n + Tile::N - 1) / Tile::N;
  int64_t row = blockIdx.x / across * Tile::M, col = blockIdx.x % across * Tile::N;
  int steps = (int)((p.k + STEP - 1) / STEP);
  Tile tile;
  tile.start();
  for (int next = 0; next < steps + STAGES - 1; next++) {
    int step = next - (STAGES - 1);
    if (step >= 0) {
      spt_cp_async_wait<STAGES - 2>();
      __syncthreads(); /* the stage is there, and nobody reads the one before it any more */
    }
    if (next < steps) {
      char *to = shared + next % STAGES * BYTES;
      stage_rows<E, Tile::M>(p.a, p.a_row, row, p.m, next * STEP, p.k, to);
      stage_rows<E, Tile::N>(p.b, p.b_row, col, p.n, next * STEP, p.k, to + Tile::M * PITCH);
    }
    spt_cp_async_commit();
    if (step >= 0) {
      const char *stage = shared + step % STAGES * BYTES;
      tile.multiply(stage, stage + Tile::M * PITCH);
    }
  }
  tile.finish(o, row, col);
}

/* y = act(sum + bias) + residual, four columns a thread: all of them packed, or one by one. sum (m, n): rows
 * `stride` elements apart; it may be y itself. */
__global__ void finish_kernel(const char *sum, int dtype, int64_t stride, spt_linear_output o,
                              bool packed) {
  int64_t across = (o.cols + 3) / 4, n = o.rows * across, size = dtype == SPT_F32 ? 4 : 2;
  int64_t step = (int64_t)gridDim.x * blockDim.x;
  for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
    int64_t row = i / across, col = (i - row * across) * 4;
    const char *from = sum + (row * stride + col) * size;
    float v[4];
    if (packed && dtype == SPT_F32) {
      float4 four = *reinterpret_cast<const float4 *>(from);
      v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
    } else if (packed) {
      uint2 four = *reinterpret_cast<const uint2 *>(from);
      float2 low = spt_widen_pair(dtype, four.x), high = spt_widen_pair(dtype, four.y);
      v[0] = low.x, v[1] = low.y, v[2] = high.x, v[3] = high.y;
    } else {
      for (int j = 0; j < 4; j++) {
        v[j] = col + j < o.cols ? spt_load_any(from + j * size, dtype) : 0.0f;
      }
    }
#pragma unroll
    for (int j = 0; j < 4; j++) {
      v[j] = spt_activate(v[j] + spt_bias_at(o, col + j), o.activation);
    }
    if (packed) {
      spt_put_four(o, row, col, make_float4(v[0], v[1], v[2], v[3]));
    } else {
      for (int j = 0; j < 4; j++) {
        spt_put(o, row, col + j, v[j]);
      }
    }
  }
}

/* ---- launchers: our own ------------------------------------------------------------------------- */

template <typename Tile>
static spt_status launch(spt_cuda_queue *queue, const char *op, const dense_args &p,
                         const spt_linear_output &o, spt_error *err) {
  int64_t tiles = spt_blocks(p.m, Tile::M) * spt_blocks(p.n, Tile::N);
  if (tiles > INT32_MAX) {
    return spt_fail(err, SPT_UNSUPPORTED,
                    "%s: y has %lld tiles of %d x %d, expected up to 2**31 - 1", op,
                    (long long)tiles, Tile::M, Tile::N);
  }
  size_t shared = (size_t)STAGES * (Tile::M + Tile::N) * PITCH;
  SPT_LAUNCH(op, dense_kernel<Tile>, (unsigned)tiles, THREADS, shared, queue->stream, p, o);
  return SPT_OK;
}

static spt_status multiply_here(spt_cuda_queue *queue, const char *op, const spt_dense_product *p,
                                spt_error *err) {
  spt_scratch scratch(queue, op);
  spt_matrix a, b;
  SPT_TRY(spt_cuda_aligned_rows(queue, &scratch, op, &p->a, p->operands, &a, err));
  SPT_TRY(spt_cuda_aligned_rows(queue, &scratch, op, &p->b, p->operands, &b, err));
  int64_t size = spt_storage_bytes(p->operands);
  dense_args args = {static_cast<const char *>(a.data),
                     static_cast<const char *>(b.data),
                     a.row * size,
                     b.row * size,
                     p->y.rows,
                     p->y.cols,
                     p->a.cols};
  spt_linear_output o = spt_linear_output_of(&p->y, &p->bias, &p->residual, p->activation);
  bool large = spt_blocks(args.m, 128) * spt_blocks(args.n, 128) >= queue->device->sm_count;
  switch (p->operands) {
    case SPT_F16:
      return large ? launch<tensor_tile<spt_half, 4, 4>>(queue, op, args, o, err)
                   : launch<tensor_tile<spt_half, 2, 2>>(queue, op, args, o, err);
    case SPT_BF16:
      return large ? launch<tensor_tile<spt_bfloat, 4, 4>>(queue, op, args, o, err)
                   : launch<tensor_tile<spt_bfloat, 2, 2>>(queue, op, args, o, err);
    default:
      return large ? launch<float_tile<8>>(queue, op, args, o, err)
                   : launch<float_tile<4>>(queue, op, args, o, err);
  }
}

/* ---- launchers: cuBLAS -------------------------------------------------------------------------- */

/* Rows or columns that are neighbours, in the wanted type, as cuBLAS wants them; else a copy. */
static spt_status operand_of(spt_cuda_queue *queue, spt_scratch *scratch, const char *op,
                             const spt_matrix *m, spt_dtype dtype, spt_cublas_operand *to,
                             spt_error *err) {
  bool same = m->dtype == dtype;
  if (same && m->col == 1 && (m->row >= m->cols || m->rows == 1)) {
    *to = {m->data, m->rows == 1 ? m->cols : m->row, false};
    return SPT_OK;
  }
  if (same && m->row == 1 && (m->col >= m->rows || m->cols == 1)) {
    *to = {m->data, m->cols == 1 ? m->rows : m->col, true};
    return SPT_OK;
  }
  spt_matrix copy;
  SPT_TRY(spt_cuda_aligned_rows(queue, scratch, op, m, dtype, &copy, err));
  *to = {copy.data, copy.row, false};
  return SPT_OK;
}

static bool is_rows_of(const spt_matrix *m, spt_dtype dtype) {
  return m->data != NULL && m->dtype == dtype && (m->col == 1 || m->cols == 1) &&
         (m->row >= m->cols || m->rows == 1);
}

/* What cuBLAS did not do of what follows the sums: `sum` is y, or scratch memory. */
static spt_status finish(spt_cuda_queue *queue, const char *op, const spt_dense_product *p,
                         const spt_cublas_product *c, spt_error *err) {
  const spt_matrix none = {};
  spt_linear_output o = spt_linear_output_of(&p->y, c->bias != NULL ? &none : &p->bias,
                                             c->residual != NULL ? &none : &p->residual,
                                             c->gelu_tanh ? SPT_ACT_NONE : p->activation);
  if (c->y == p->y.data && o.bias == NULL && o.residual == NULL && o.activation == SPT_ACT_NONE) {
    return SPT_OK;
  }
  int64_t work = spt_blocks(spt_blocks(c->n, 4) * c->m, 256);
  bool packed = o.packed && c->y_stride % 4 == 0 && (uintptr_t)c->y % 16 == 0;
  SPT_LAUNCH(op, finish_kernel, (unsigned)spt_least(work, 32 * (int64_t)queue->device->sm_count),
             256, 0, queue->stream, static_cast<const char *>(c->y), (int)c->y_dtype, c->y_stride,
             o, packed);
  return SPT_OK;
}

/* Fused: bias and residual of y's own type, and GELU in its tanh form. Not fused: GELU by erf and tanh, which
 * cuBLAS does not have, and ReLU, whose NaN there is nobody's promise. */
static spt_status multiply_by_cublas(spt_cuda_queue *queue, const char *op,
                                     const spt_dense_product *p, bool *done, spt_error *err) {
  spt_scratch scratch(queue, op);
  spt_cublas_product c = {};
  c.m = p->y.rows;
  c.n = p->y.cols;
  c.k = p->a.cols;
  c.operands = p->operands;
  *done = false;
  if (c.m == 0 || c.n == 0 || c.k == 0) {
    return SPT_OK;
  }
  SPT_TRY(operand_of(queue, &scratch, op, &p->a, p->operands, &c.a, err));
  SPT_TRY(operand_of(queue, &scratch, op, &p->b, p->operands, &c.b, err));
  c.y_dtype = is_rows_of(&p->y, p->operands) ? p->operands : SPT_F32;
  if (is_rows_of(&p->y, c.y_dtype)) {
    c.y = p->y.data;
    c.y_stride = c.m == 1 ? c.n : p->y.row;
  } else {
    float *sums;
    SPT_TRY(scratch.take(&sums, c.m * c.n, err));
    c.y = sums;
    c.y_stride = c.n;
  }
  if (p->bias.data != NULL && p->bias.dtype == c.y_dtype && (p->bias.col == 1 || c.n == 1) &&
      (uintptr_t)p->bias.data % 16 == 0) {
    c.bias = p->bias.data;
  }
  bool bias_done = c.bias != NULL || p->bias.data == NULL;
  c.gelu_tanh = p->activation == SPT_ACT_GELU_TANH && bias_done;
  if (p->activation == SPT_ACT_NONE && bias_done && is_rows_of(&p->residual, c.y_dtype)) {
    c.residual = p->residual.data;
    c.residual_stride = c.m == 1 ? c.n : p->residual.row;
  }
  SPT_TRY(spt_cublas_multiply(queue, op, &c, done, err));
  return *done ? finish(queue, op, p, &c, err) : SPT_OK;
}

spt_status spt_dense_multiply(spt_cuda_queue *queue, const char *op, const spt_dense_product *p,
                              spt_error *err) {
  if (p->y.rows == 0 || p->y.cols == 0) {
    return SPT_OK;
  }
  bool done = false;
  if (spt_cublas_is_there()) {
    SPT_TRY(multiply_by_cublas(queue, op, p, &done, err));
  }
  return done ? SPT_OK : multiply_here(queue, op, p, err);
}
