/* The encoder's rows between two products: embeddings, LayerNorm, merged heads, gathered tokens. A block
 * takes a row, which stays in shared memory between the mean, the variance and the result: each kernel
 * reads and writes a row once, and is bound by that. */
#include "encoder.h"
#include "storage.cuh"
#include "view.cuh"
#include "warp.cuh"

#define ROW_THREADS 128
#define ROW_WARPS (ROW_THREADS / SPT_WARP)

/* The sum over the block's threads, for all of them. partial: ROW_WARPS floats that are free. */
static __device__ float sum_of_block(float value, float *partial) {
  value = spt_warp_sum(value);
  __syncthreads();
  if (threadIdx.x % SPT_WARP == 0) {
    partial[threadIdx.x / SPT_WARP] = value;
  }
  __syncthreads();
  float sum = 0.0f;
  for (int w = 0; w < ROW_WARPS; w++) {
    sum += partial[w];
  }
  return sum;
}

/* row: (width) in shared memory, of which each thread reads what it wrote itself. */
template <typename T>
static __device__ void norm_row(float *row, float *partial, int64_t width, const float *weight,
                                const float *bias, float eps, float *out, T *narrow) {
  float sum = 0.0f;
  for (int64_t f = threadIdx.x; f < width; f += ROW_THREADS) {
    sum += row[f];
  }
  float mean = sum_of_block(sum, partial) / (float)width;
  float squares = 0.0f;
  for (int64_t f = threadIdx.x; f < width; f += ROW_THREADS) {
    float centred = row[f] - mean;
    squares += centred * centred;
  }
  float scale = 1.0f / sqrtf(sum_of_block(squares, partial) / (float)width + eps);
  for (int64_t f = threadIdx.x; f < width; f += ROW_THREADS) {
    float value = (row[f] - mean) * scale * weight[f] + bias[f];
    out[f] = value;
    if (narrow != nullptr) {
      spt_store(narrow + f, value);
    }
  }
}

struct norm_arguments {
  float *x;     /* (rows, width) the result, and where `in_place` the input */
  void *narrow; /* or NULL */
  int64_t width;
  const float *weight, *bias;
  float eps;
};

template <typename T>
__global__ void norm_kernel(norm_arguments a) {
  SPT_SHARED(float, row);
  float *x = a.x + blockIdx.x * a.width, *partial = row + a.width;
  for (int64_t f = threadIdx.x; f < a.width; f += ROW_THREADS) {
    row[f] = x[f];
  }
  T *narrow = a.narrow == nullptr ? nullptr : (T *)a.narrow + blockIdx.x * a.width;
  norm_row(row, partial, a.width, a.weight, a.bias, a.eps, x, narrow);
}

struct embed_tables {
  const float *word, *position, *type; /* type may be NULL */
  const int32_t *ids, *positions, *types;
};

template <typename T>
__global__ void embed_kernel(norm_arguments a, embed_tables e) {
  SPT_SHARED(float, row);
  int64_t token = blockIdx.x;
  const float *word = e.word + e.ids[token] * a.width;
  const float *position = e.position + e.positions[token] * a.width;
  const float *type = nullptr;
  if (e.type != nullptr) {
    type = e.type + (e.types != nullptr ? e.types[token] : 0) * a.width;
  }
  for (int64_t f = threadIdx.x; f < a.width; f += ROW_THREADS) {
    row[f] = type != nullptr ? word[f] + type[f] + position[f] : word[f] + position[f];
  }
  T *narrow = a.narrow == nullptr ? nullptr : (T *)a.narrow + token * a.width;
  norm_row(row, row + a.width, a.width, a.weight, a.bias, a.eps, a.x + token * a.width, narrow);
}

struct merge_tables {
  const float *residual;     /* (rows, width) */
  const float *heads;        /* (rows, n_heads, merged) */
  const float *merged_bias;  /* (width) */
  const int32_t *merged_row; /* (merged) ascending or not, each once */
  int32_t n_heads;
  int64_t merged;
};

template <typename T>
__global__ void merge_kernel(norm_arguments a, merge_tables m) {
  SPT_SHARED(float, row);
  int64_t token = blockIdx.x;
  for (int64_t f = threadIdx.x; f < a.width; f += ROW_THREADS) {
    row[f] = m.residual[token * a.width + f] + m.merged_bias[f];
  }
  __syncthreads(); /* rows scattered to are others' */
  for (int64_t r = threadIdx.x; r < m.merged; r += ROW_THREADS) {
    float sum = 0.0f;
    for (int32_t h = 0; h < m.n_heads; h++) {
      sum += m.heads[(token * m.n_heads + h) * m.merged + r];
    }
    row[m.merged_row[r]] += sum;
  }
  __syncthreads();
  T *narrow = a.narrow == nullptr ? nullptr : (T *)a.narrow + token * a.width;
  norm_row(row, row + a.width, a.width, a.weight, a.bias, a.eps, a.x + token * a.width, narrow);
}

template <typename WORD>
__global__ void gather_kernel(WORD *to, const WORD *from, const int32_t *source, int64_t words) {
  int64_t row = blockIdx.x, at = source[row];
  for (int64_t i = threadIdx.x; i < words; i += blockDim.x) {
    to[row * words + i] = from[at * words + i];
  }
}

static norm_arguments arguments_of(const spt_gpu_pass *p, const spt_gpu_rows *to,
                                   const float *weight, const float *bias) {
  void *narrow = to->narrow == to->f32 ? NULL : to->narrow;
  return {to->f32, narrow, p->model->width, weight, bias, p->model->norm_eps};
}

static size_t row_bytes(const spt_gpu_pass *p) {
  return (size_t)(p->model->width + ROW_WARPS) * sizeof(float);
}

spt_status spt_gpu_embed(const spt_gpu_pass *p, spt_error *err) {
  const spt_gpu_encoder *e = p->encoder;
  int64_t tokens = spt_gpu_tokens(p, 0);
  if (tokens == 0) {
    return SPT_OK;
  }
  norm_arguments a = arguments_of(p, &p->x, e->norm_weight, e->norm_bias);
  embed_tables tables = {e->word, e->position, e->type, p->ids, p->positions, p->types};
  SPT_WITH_STORAGE(p->narrow, T,
                   SPT_LAUNCH("encoder", embed_kernel<T>, (unsigned)tokens, ROW_THREADS,
                              row_bytes(p), p->queue->stream, a, tables));
  return SPT_OK;
}

spt_status spt_gpu_norm(const spt_gpu_pass *p, const spt_gpu_rows *to, int64_t rows,
                        const float *weight, const float *bias, spt_error *err) {
  if (rows == 0) {
    return SPT_OK;
  }
  norm_arguments a = arguments_of(p, to, weight, bias);
  SPT_WITH_STORAGE(p->narrow, T,
                   SPT_LAUNCH("encoder", norm_kernel<T>, (unsigned)rows, ROW_THREADS, row_bytes(p),
                              p->queue->stream, a));
  return SPT_OK;
}

spt_status spt_gpu_merge_heads(const spt_gpu_pass *p, const spt_gpu_layer *l, const float *residual,
                               int64_t rows, spt_error *err) {
  if (rows == 0) {
    return SPT_OK;
  }
  norm_arguments a = arguments_of(p, &p->y, l->norm1_weight, l->norm1_bias);
  merge_tables tables = {residual,      (const float *)p->context, l->merged_bias,
                         l->merged_row, l->table->n_heads,         l->context_width};
  SPT_WITH_STORAGE(p->narrow, T,
                   SPT_LAUNCH("encoder", merge_kernel<T>, (unsigned)rows, ROW_THREADS, row_bytes(p),
                              p->queue->stream, a, tables));
  return SPT_OK;
}

spt_status spt_gpu_gather(const spt_gpu_pass *p, void *to, const void *from, const int32_t *source,
                          int64_t rows, int64_t bytes, spt_error *err) {
  if (rows == 0 || bytes == 0) {
    return SPT_OK;
  }
  if (bytes % 4 == 0) {
    SPT_LAUNCH("encoder", gather_kernel<uint32_t>, (unsigned)rows, ROW_THREADS, 0, p->queue->stream,
               (uint32_t *)to, (const uint32_t *)from, source, bytes / 4);
  } else { /* an odd number of 16-bit columns */
    SPT_LAUNCH("encoder", gather_kernel<uint16_t>, (unsigned)rows, ROW_THREADS, 0, p->queue->stream,
               (uint16_t *)to, (const uint16_t *)from, source, bytes / 2);
  }
  return SPT_OK;
}
