/* linear_backward_strips: dw = gradᵀ · x of the columns that strips keep, and of nothing else.
 *
 * grad (n, out), x (n, in). A block has 16 neighbouring strips by up to 32 blocks of columns (jobs, cut when
 * w is prepared), a warp each strip: of it up to 8 tiles of 16 x 16 as sums in registers. Tokens go
 * through shared memory a few at a time, two stages by cp.async. Where jobs are few, tokens are split
 * over blocks, as the shapes say; the parts are added up in order when they are written to dw.
 *
 * Bounds, 16 bits: of 80 % pruned a job has about 100 tiles, 34 FLOP for each byte from L2, and 256 bytes
 * from shared memory for each mma of 16x8x16. Float32: 1 shared load for 8 FMAs. */
#include "async_copy.cuh"
#include "linear.h"
#include "mma.cuh"

#define WARPS SPT_JOB_STRIPS
#define TILES SPT_JOB_TILES
#define GRAD_COLUMNS (SPT_JOB_STRIPS * SPT_TILE)
#define X_COLUMNS (SPT_JOB_BLOCKS * SPT_TILE)

/* grad and x: rows aligned to 16 bytes, strides in bytes. */
struct gradient_args {
  const char *grad, *x;
  int64_t grad_row, x_row, grad_width, x_width, n;
  const spt_gradient_job *jobs;
  const spt_tile_at *at;
  int64_t per_split;      /* tokens, a multiple of `tokens` */
  int32_t splits, tokens; /* at a time */
  float *parts;           /* (splits, n_tiles, 256): (column, row) of each */
  int64_t n_tiles;
};

template <typename E>
struct shape {
  static constexpr int GRAD_PITCH = GRAD_COLUMNS * (int)sizeof(E) + 16;
  static constexpr int X_PITCH = X_COLUMNS * (int)sizeof(E) + 16;
};

/* Rows of one matrix, columns [first, first + n), zeros outside. A warp a row; not waited for. */
template <typename E>
static __device__ __forceinline__ void stage_tokens(const char *from, int64_t stride, int64_t width,
                                                    int64_t token, int64_t end, int tokens,
                                                    int64_t first, int n, char *to, int pitch) {
  constexpr int PER_PIECE = 16 / (int)sizeof(E);
  for (int t = (int)(threadIdx.x / SPT_WARP); t < tokens; t += WARPS) {
    const char *row = from + (token + t) * stride;
    for (int c = (int)(threadIdx.x % SPT_WARP) * PER_PIECE; c < n; c += SPT_WARP * PER_PIECE) {
      int64_t there = token + t < end ? spt_least(width - first - c, PER_PIECE) : 0;
      int bytes = (int)spt_most(there, 0) * (int)sizeof(E);
      spt_cp_async_16(to + t * pitch + c * (int)sizeof(E),
                      bytes > 0 ? row + (first + c) * (int64_t)sizeof(E) : from, bytes);
    }
  }
}

/* Each lane: rows g and g + 8 of columns 2 t, 2 t + 1, + 8. */
template <typename T>
struct tensor_sums {
  typedef T element;
  float sum[TILES][2][4];

  __device__ __forceinline__ void start() {
#pragma unroll
    for (int i = 0; i < TILES; i++) {
#pragma unroll
      for (int j = 0; j < 8; j++) {
        sum[i][j / 4][j % 4] = 0.0f;
      }
    }
  }

  /* grad: the strip's columns of `tokens` rows; x: those of the job. Both are turned as they are loaded:
   * tokens are what is summed over. */
  __device__ __forceinline__ void multiply(const char *grad, const char *x, int tokens,
                                           const int (&column)[TILES], int count) {
    int lane = (int)(threadIdx.x % SPT_WARP);
    grad += (lane / 16 * 8 + lane % 8) * shape<T>::GRAD_PITCH + lane / 8 % 2 * 16;
    x += lane % 16 * shape<T>::X_PITCH + lane / 16 * 16;
    for (int t = 0; t < tokens; t += 16) {
      uint32_t a[4];
      spt_ldmatrix_x4_trans(a, grad + t * shape<T>::GRAD_PITCH);
#pragma unroll
      for (int i = 0; i < TILES; i++) {
        if (i < count) {
          uint32_t b[4];
          spt_ldmatrix_x4_trans(b, x + t * shape<T>::X_PITCH + column[i] * 2);
          spt_mma_16x8x16<T>(sum[i][0], a, b[0], b[1]);
          spt_mma_16x8x16<T>(sum[i][1], a, b[2], b[3]);
        }
      }
    }
  }

  __device__ __forceinline__ void store(float *tiles, int count) const {
    int lane = (int)(threadIdx.x % SPT_WARP);
#pragma unroll
    for (int i = 0; i < TILES; i++) {
      if (i < count) {
#pragma unroll
        for (int j = 0; j < 8; j++) {
          int r = lane / 4 + j % 4 / 2 * 8, k = j / 4 * 8 + lane % 4 * 2 + j % 2;
          tiles[i * SPT_TILE_VALUES + k * SPT_TILE + r] = sum[i][j / 4][j % 4];
        }
      }
    }
  }
};

/* Each lane: 2 rows by 4 columns. */
struct float_sums {
  typedef float element;
  float sum[TILES][2][4];

  __device__ __forceinline__ void start() {
#pragma unroll
    for (int i = 0; i < TILES; i++) {
#pragma unroll
      for (int j = 0; j < 8; j++) {
        sum[i][j / 4][j % 4] = 0.0f;
      }
    }
  }

  __device__ __forceinline__ void multiply(const char *grad, const char *x, int tokens,
                                           const int (&column)[TILES], int count) {
    int lane = (int)(threadIdx.x % SPT_WARP);
    grad += lane / 4 * 8;
    x += lane % 4 * 16;
    for (int t = 0; t < tokens; t++) {
      float2 g = *reinterpret_cast<const float2 *>(grad + t * shape<float>::GRAD_PITCH);
#pragma unroll
      for (int i = 0; i < TILES; i++) {
        if (i < count) {
          float4 v =
              *reinterpret_cast<const float4 *>(x + t * shape<float>::X_PITCH + column[i] * 4);
          float (&s)[2][4] = sum[i];
          s[0][0] = fmaf(g.x, v.x, s[0][0]);
          s[0][1] = fmaf(g.x, v.y, s[0][1]);
          s[0][2] = fmaf(g.x, v.z, s[0][2]);
          s[0][3] = fmaf(g.x, v.w, s[0][3]);
          s[1][0] = fmaf(g.y, v.x, s[1][0]);
          s[1][1] = fmaf(g.y, v.y, s[1][1]);
          s[1][2] = fmaf(g.y, v.z, s[1][2]);
          s[1][3] = fmaf(g.y, v.w, s[1][3]);
        }
      }
    }
  }

  __device__ __forceinline__ void store(float *tiles, int count) const {
    int lane = (int)(threadIdx.x % SPT_WARP);
#pragma unroll
    for (int i = 0; i < TILES; i++) {
      if (i < count) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
          float *to = tiles + i * SPT_TILE_VALUES + (lane % 4 * 4 + j) * SPT_TILE + lane / 4 * 2;
          *reinterpret_cast<float2 *>(to) = make_float2(sum[i][0][j], sum[i][1][j]);
        }
      }
    }
  }
};

/* Grid: jobs * splits. */
template <typename Sums>
__global__ __launch_bounds__(WARPS *SPT_WARP) void gradient_kernel(gradient_args p) {
  typedef typename Sums::element E;
  SPT_SHARED(char, shared);
  const spt_gradient_job *job = p.jobs + blockIdx.x / (unsigned)p.splits;
  int64_t split = blockIdx.x % (unsigned)p.splits;
  int64_t begin = split * p.per_split, end = spt_least(p.n, begin + p.per_split);
  int warp = (int)(threadIdx.x / SPT_WARP), tokens = p.tokens;
  int grad_bytes = tokens * shape<E>::GRAD_PITCH, bytes = grad_bytes + tokens * shape<E>::X_PITCH;
  int first = job->first[warp], count = job->count[warp],
      columns = (job->end - job->begin) * SPT_TILE;
  int column[TILES];
#pragma unroll
  for (int i = 0; i < TILES; i++) {
    column[i] = i < count ? (p.at[first + i].block - job->begin) * SPT_TILE : 0;
  }
  Sums sums;
  sums.start();
  int steps = (int)((spt_most(end - begin, 0) + tokens - 1) / tokens);
  for (int next = 0; next <= steps; next++) {
    if (next < steps) {
      char *to = shared + next % 2 * bytes;
      int64_t token = begin + (int64_t)next * tokens;
      stage_tokens<E>(p.grad, p.grad_row, p.grad_width, token, end, tokens,
                      (int64_t)job->strip * SPT_TILE, GRAD_COLUMNS, to, shape<E>::GRAD_PITCH);
      stage_tokens<E>(p.x, p.x_row, p.x_width, token, end, tokens, (int64_t)job->begin * SPT_TILE,
                      columns, to + grad_bytes, shape<E>::X_PITCH);
    }
    spt_cp_async_commit();
    if (next > 0) {
      spt_cp_async_wait<1>();
      __syncthreads(); /* all of the stage is there */
      const char *stage = shared + (next - 1) % 2 * bytes;
      sums.multiply(stage + warp * SPT_TILE * (int)sizeof(E), stage + grad_bytes, tokens, column,
                    count);
      __syncthreads(); /* and nobody needs it any more */
    }
  }
  sums.store(p.parts + (split * p.n_tiles + first) * SPT_TILE_VALUES, count);
}

/* What of tile i goes where: dw (kept columns, 16), or (out, in) with `dense`; strides in bytes. */
struct gradient_target {
  char *dw;
  int32_t dtype;
  bool dense;
  int64_t row, col, out, width;
  const spt_tile_at *at;
  const int32_t *strip, *rows, *columns;
  const int64_t *column;
};

/* dw: the splits' parts added up in order. A block a tile; threads that follow one another write along rows
 * of a dense dw, along kept columns otherwise. */
__global__ void put_gradient_kernel(gradient_target d, const float *parts, int splits, int64_t n) {
  int major = (int)threadIdx.x / SPT_TILE, minor = (int)threadIdx.x % SPT_TILE;
  int r = d.dense ? major : minor, k = d.dense ? minor : major;
  for (int64_t i = blockIdx.x; i < n; i += gridDim.x) {
    spt_tile_at at = d.at[i];
    int64_t row = (int64_t)d.strip[i] * SPT_TILE + r, col = (int64_t)at.block * SPT_TILE + k;
    if ((at.mask >> k & 1) == 0 || col >= d.width || (d.columns != NULL && d.columns[col] < 0)) {
      continue;
    }
    row = d.rows != NULL ? d.rows[row] : row;
    bool exists = row >= 0 && row < d.out;
    float sum = 0.0f;
    for (int s = 0; s < splits && exists; s++) {
      sum += parts[(s * n + i) * SPT_TILE_VALUES + k * SPT_TILE + r];
    }
    if (d.dense) {
      col = d.columns != NULL ? d.columns[col] : col;
      if (exists) {
        spt_store_any(d.dw + row * d.row + col * d.col, d.dtype, sum);
      }
    } else {
      int64_t kept = d.column[i] + __popc(at.mask & ((1u << k) - 1));
      spt_store_any(d.dw + kept * d.row + r * d.col, d.dtype, sum);
    }
  }
}

/* ---- launchers --------------------------------------------------------------------------------- */

/* As many tokens at a time as two stages of shared memory hold; blocks for every SM where tokens last. */
static spt_status plan(const spt_cuda_queue *queue, const char *op, int64_t jobs, int grad_pitch,
                       int x_pitch, int least, gradient_args *p, size_t *shared, spt_error *err) {
  int room = queue->device->shared_per_block / 2 / (grad_pitch + x_pitch);
  p->tokens = room >= 64 ? 64 : room >= 32 ? 32 : room >= 16 ? 16 : 8;
  if (room < p->tokens || p->tokens < least) {
    return spt_fail(err, SPT_UNSUPPORTED, "%s: a block has %d bytes of shared memory", op,
                    queue->device->shared_per_block);
  }
  int64_t wanted = spt_blocks(queue->device->sm_count, jobs), steps = spt_blocks(p->n, p->tokens);
  int64_t splits = spt_most(1, spt_least(wanted, steps / 4));
  p->per_split = spt_most(1, spt_blocks(steps, splits)) * p->tokens;
  p->splits = (int32_t)spt_most(1, spt_blocks(p->n, p->per_split));
  *shared = (size_t)(2 * p->tokens * (grad_pitch + x_pitch));
  return SPT_OK;
}

template <typename Sums>
static spt_status launch(spt_cuda_queue *queue, spt_scratch *scratch, const char *op,
                         const spt_gpu_weights *w, gradient_args *p, spt_error *err) {
  typedef typename Sums::element E;
  size_t shared = 0;
  SPT_TRY(plan(queue, op, w->n_jobs, shape<E>::GRAD_PITCH, shape<E>::X_PITCH,
               sizeof(E) == 2 ? 16 : 8, p, &shared, err));
  SPT_TRY(scratch->take(&p->parts, p->splits * p->n_tiles * SPT_TILE_VALUES, err));
  SPT_LAUNCH(op, gradient_kernel<Sums>, (unsigned)(w->n_jobs * p->splits), WARPS * SPT_WARP, shared,
             queue->stream, *p);
  return SPT_OK;
}

static gradient_target target_of(const spt_gpu_weights *w, const spt_matrix *dw, bool dense) {
  int64_t size = spt_storage_bytes(dw->dtype);
  gradient_target d = {};
  d.dw = static_cast<char *>(dw->data);
  d.dtype = dw->dtype;
  d.dense = dense;
  d.row = dw->row * size;
  d.col = dw->col * size;
  d.out = w->forward.out;
  d.width = w->forward.width;
  d.at = w->forward.at;
  d.strip = w->strip;
  d.rows = w->forward.rows;
  d.columns = w->forward.columns;
  d.column = w->column;
  return d;
}

spt_status spt_strips_gradient(spt_cuda_queue *queue, const char *op, const spt_gpu_weights *w,
                               const spt_matrix *grad, const spt_matrix *x, const spt_matrix *dw,
                               bool dense, spt_error *err) {
  spt_scratch scratch(queue, op);
  spt_dtype dtype = grad->dtype == x->dtype ? grad->dtype : SPT_F32;
  spt_matrix g, v;
  gradient_args p = {};
  if (w->n_jobs == 0) {
    return SPT_OK;
  }
  SPT_TRY(spt_rows_for_strips(queue, &scratch, op, &w->transposed, grad, dtype, &g, err));
  SPT_TRY(spt_rows_for_strips(queue, &scratch, op, &w->forward, x, dtype, &v, err));
  p.grad = static_cast<const char *>(g.data);
  p.x = static_cast<const char *>(v.data);
  p.grad_row = g.row * spt_storage_bytes(dtype);
  p.x_row = v.row * spt_storage_bytes(dtype);
  p.grad_width = w->transposed.width;
  p.x_width = w->forward.width;
  p.n = x->rows;
  p.jobs = w->jobs;
  p.at = w->forward.at;
  p.n_tiles = w->forward.n_tiles;
  if (dtype == SPT_F32) {
    SPT_TRY(launch<float_sums>(queue, &scratch, op, w, &p, err));
  } else if (dtype == SPT_F16) {
    SPT_TRY(launch<tensor_sums<spt_half>>(queue, &scratch, op, w, &p, err));
  } else {
    SPT_TRY(launch<tensor_sums<spt_bfloat>>(queue, &scratch, op, w, &p, err));
  }
  unsigned blocks = (unsigned)spt_least(p.n_tiles, 64 * (int64_t)queue->device->sm_count);
  SPT_LAUNCH(op, put_gradient_kernel, blocks, SPT_TILE_VALUES, 0, queue->stream,
             target_of(w, dw, dense), p.parts, (int)p.splits, p.n_tiles);
  return SPT_OK;
}
