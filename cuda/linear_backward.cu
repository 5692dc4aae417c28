/* linear_backward: gradients of y = x · wᵀ + b.
 *
 * dx = grad · w is linear's own product with w transposed: cuBLASLt, strips whose tiles are turned over
 * for the call (a pass over the kept weights), or CSR by columns. dw = gradᵀ · x: cuBLASLt; of strips the
 * kept columns alone (linear_backward_strips.cu); of CSR the kept weights. dbias: sums over tokens, bound
 * by reading grad once. All sums are in an order that the shapes decide. */
#include "linear.h"
#include "linear_dense.h"
#include "slots.h"

#define BIAS_COLUMNS 32
#define BIAS_ROWS 8
#define BIAS_TOKENS 512 /* a block: 64 of them a thread in float32, then in double */

/* grad (n, cols), strides in bytes; to (blocks of tokens, cols). Grid: blocks of columns, then of tokens. */
__global__ void bias_sums_kernel(const char *grad, int dtype, int64_t row, int64_t col, int64_t n,
                                 int64_t cols, double *to) {
  SPT_SHARED(double, sums); /* (BIAS_ROWS, BIAS_COLUMNS) */
  int64_t across = (cols + BIAS_COLUMNS - 1) / BIAS_COLUMNS;
  int x = (int)threadIdx.x % BIAS_COLUMNS, y = (int)threadIdx.x / BIAS_COLUMNS;
  int64_t column = blockIdx.x % across * BIAS_COLUMNS + x, block = blockIdx.x / across;
  int64_t end = spt_least(n, (block + 1) * BIAS_TOKENS);
  float sum = 0.0f;
  if (column < cols) {
#pragma unroll 4
    for (int64_t t = block * BIAS_TOKENS + y; t < end; t += BIAS_ROWS) {
      sum += spt_load_any(grad + t * row + column * col, dtype);
    }
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (y == 0 && column < cols) {
    double all = 0.0;
    for (int i = 0; i < BIAS_ROWS; i++) {
      all += sums[i * BIAS_COLUMNS + x];
    }
    to[block * cols + column] = all;
  }
}

/* dbias (cols) by `step` bytes: the blocks' sums, in order. */
__global__ void bias_kernel(const double *sums, int64_t blocks, int64_t cols, char *dbias,
                            int dtype, int64_t step) {
  int64_t column = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (column < cols) {
    double all = 0.0;
    for (int64_t b = 0; b < blocks; b++) {
      all += sums[b * cols + column];
    }
    spt_store_any(dbias + column * step, dtype, (float)all);
  }
}

/* ---- launchers --------------------------------------------------------------------------------- */

static spt_status bias_gradient(spt_cuda_queue *queue, const char *op,
                                const spt_linear_backward_problem *p, spt_error *err) {
  spt_scratch scratch(queue, op);
  const spt_matrix *g = &p->grad, *to = &p->dbias;
  int64_t cols = p->w.out, size = spt_storage_bytes(g->dtype);
  int64_t blocks = spt_blocks(g->rows, BIAS_TOKENS);
  double *sums;
  if (cols == 0) {
    return SPT_OK;
  }
  SPT_TRY(scratch.take(&sums, blocks * cols, err));
  if (blocks > 0) {
    SPT_LAUNCH(op, bias_sums_kernel, (unsigned)(spt_blocks(cols, BIAS_COLUMNS) * blocks),
               BIAS_COLUMNS * BIAS_ROWS, BIAS_COLUMNS * BIAS_ROWS * sizeof(double), queue->stream,
               static_cast<const char *>(g->data), (int)g->dtype, g->row * size, g->col * size,
               g->rows, cols, sums);
  }
  SPT_LAUNCH(op, bias_kernel, (unsigned)spt_blocks(cols, 128), 128, 0, queue->stream, sums, blocks,
             cols, static_cast<char *>(to->data), (int)to->dtype,
             to->col * spt_storage_bytes(to->dtype));
  return SPT_OK;
}

static spt_status input_gradient_of_strips(spt_cuda_queue *queue, const char *op,
                                           const spt_linear_backward_problem *p,
                                           const spt_gpu_weights *w, const spt_linear_output *o,
                                           spt_error *err) {
  spt_scratch scratch(queue, op);
  spt_tiles tiles;
  spt_matrix grad;
  char *turned;
  SPT_TRY(spt_tiles_for(queue, &scratch, op, w, &p->w, p->grad.dtype, p->compute, &tiles, err));
  int64_t values = (int64_t)w->transposed.n_tiles * SPT_TILE_VALUES;
  SPT_TRY(scratch.take(&turned, values * spt_storage_bytes(tiles.dtype), err));
  SPT_TRY(spt_turn_tiles(queue, op, w, tiles.dtype, tiles.data, turned, err));
  SPT_TRY(
      spt_rows_for_strips(queue, &scratch, op, &w->transposed, &p->grad, tiles.dtype, &grad, err));
  return spt_strips_product(queue, op, &w->transposed, turned, &grad, o, err);
}

static spt_status input_gradient(spt_cuda_queue *queue, const char *op,
                                 const spt_linear_backward_problem *p, const spt_gpu_weights *w,
                                 spt_error *err) {
  spt_linear_output o = spt_linear_output_of(&p->dx, NULL, NULL, SPT_ACT_NONE);
  if (w == NULL) {
    spt_dense_product d = {};
    d.a = p->grad;
    d.b = spt_turned(&p->w.dense);
    d.y = p->dx;
    d.operands = spt_operands_of(p->grad.dtype, p->w.dense.dtype, p->compute);
    return spt_dense_multiply(queue, op, &d, err);
  }
  return w->is_csr ? spt_csr_product(queue, op, &w->csr_transposed, &p->grad, &o, err)
                   : input_gradient_of_strips(queue, op, p, w, &o, err);
}

/* Zeros, by copies of one. */
static spt_status clear(spt_cuda_queue *queue, const char *op, const spt_matrix *m,
                        spt_error *err) {
  spt_scratch scratch(queue, op);
  spt_tensor to = {}, zero = {};
  char *memory;
  SPT_TRY(scratch.take(&memory, (int64_t)sizeof(float), err));
  SPT_CUDA_TRY(op, "clearing a gradient", cudaMemsetAsync(memory, 0, sizeof(float), queue->stream));
  to.data = m->data;
  to.dtype = m->dtype;
  to.ndim = 2;
  to.shape[0] = m->rows;
  to.shape[1] = m->cols;
  to.stride[0] = m->row;
  to.stride[1] = m->col;
  zero = to;
  zero.data = memory;
  zero.stride[0] = zero.stride[1] = 0;
  return spt_cuda_copy(queue, op, &zero, &to, err);
}

static spt_status weight_gradient(spt_cuda_queue *queue, const char *op,
                                  const spt_linear_backward_problem *p, const spt_gpu_weights *w,
                                  spt_error *err) {
  if (w == NULL) {
    spt_dense_product d = {};
    d.a = spt_turned(&p->grad);
    d.b = spt_turned(&p->x);
    d.y = p->dw;
    d.operands = spt_operands_of(p->grad.dtype, p->x.dtype, SPT_F32);
    return spt_dense_multiply(queue, op, &d, err);
  }
  if (w->is_csr) {
    return spt_csr_gradient(queue, op, &w->csr, &p->grad, &p->x, &p->dw, err);
  }
  bool dense = p->w.dense.data != NULL;
  if (dense) {
    SPT_TRY(clear(queue, op, &p->dw, err));
  }
  return spt_strips_gradient(queue, op, w, &p->grad, &p->x, &p->dw, dense, err);
}

static spt_status all_gradients(spt_cuda_queue *queue, const char *op,
                                const spt_linear_backward_problem *p, const spt_gpu_weights *w,
                                spt_error *err) {
  if (p->dx.data != NULL) {
    SPT_TRY(input_gradient(queue, op, p, w, err));
  }
  if (p->dw.data != NULL) {
    SPT_TRY(weight_gradient(queue, op, p, w, err));
  }
  return p->dbias.data != NULL ? bias_gradient(queue, op, p, err) : SPT_OK;
}

spt_status spt_cuda_linear_backward(void *state, const spt_linear_backward_problem *p,
                                    spt_error *err) {
  const char *op = "linear_backward";
  spt_cuda_queue *queue = spt_queue_of(state);
  const spt_gpu_weights *w = static_cast<const spt_gpu_weights *>(p->prepared);
  if (w != NULL || (p->w.csr == NULL && p->w.strips == NULL)) {
    return all_gradients(queue, op, p, w, err);
  }
  /* Made for this call alone: freeing it waits for the products. */
  void *prepared = NULL;
  SPT_TRY(spt_cuda_prepare(state, &p->w, p->compute, &prepared, err));
  spt_status status =
      all_gradients(queue, op, p, static_cast<const spt_gpu_weights *>(prepared), err);
  spt_cuda_prepared_free(state, prepared);
  return status;
}
