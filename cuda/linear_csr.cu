/* linear_csr: products with single weights kept, in float32.
 *
 * x is turned over first, (in, n): then a weight meets 128 tokens that are neighbours, four a lane, and a
 * warp has one row of w at a time. Bound by the loads of x from L1 and L2: 16 bytes for 8 operations.
 * The gradient of each weight is a dot product over tokens, a warp each. Sums run in the order of the
 * entries, and of tokens by lane: the same whatever the grid. */
#include "linear.h"

#include "warp.cuh"

#define WARPS 8
#define ROWS 32    /* of w, a block */
#define TOKENS 128 /* a block: four a lane */
#define PITCH (ROWS + 1)

/* x (in, n) by rows of `stride`; y as in `o`. Grid: blocks of rows, then of tokens. */
__global__ __launch_bounds__(WARPS *SPT_WARP) void csr_kernel(spt_gpu_csr w, const float *x,
                                                              int64_t stride, int64_t n,
                                                              spt_linear_output o) {
  SPT_SHARED(float, sums); /* (TOKENS, PITCH) */
  int warp = (int)(threadIdx.x / SPT_WARP), lane = (int)(threadIdx.x % SPT_WARP);
  int64_t across = (w.out + ROWS - 1) / ROWS;
  int64_t row = blockIdx.x % across * ROWS, token = blockIdx.x / across * TOKENS;
  bool there = token + 4 * lane < n; /* rows of x are padded to whole fours */
  const float *from = x + token + 4 * lane;
  for (int r = warp; r < ROWS && row + r < w.out; r += WARPS) {
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    int64_t end = w.row_ptr[row + r + 1];
#pragma unroll 4
    for (int64_t i = w.row_ptr[row + r]; i < end; i++) {
      float value = __ldg(w.values + i);
      const float4 *at = reinterpret_cast<const float4 *>(from + __ldg(w.col + i) * stride);
      if (there) {
        float4 v = __ldg(at);
        sum.x = fmaf(value, v.x, sum.x);
        sum.y = fmaf(value, v.y, sum.y);
        sum.z = fmaf(value, v.z, sum.z);
        sum.w = fmaf(value, v.w, sum.w);
      }
    }
    float *to = sums + 4 * lane * PITCH + r;
    to[0] = sum.x;
    to[PITCH] = sum.y;
    to[2 * PITCH] = sum.z;
    to[3 * PITCH] = sum.w;
  }
  __syncthreads();
  float bias = spt_bias_at(o, row + lane);
  for (int t = warp; t < TOKENS && token + t < n; t += WARPS) {
    if (row + lane < w.out) {
      spt_put(o, token + t, row + lane, spt_activate(sums[t * PITCH + lane] + bias, o.activation));
    }
  }
}

/* grad (out, n), x (in, n), dw (nnz) by `step`. A block for each row of w. */
__global__ __launch_bounds__(WARPS *SPT_WARP) void csr_gradient_kernel(spt_gpu_csr w,
                                                                       const float *grad,
                                                                       const float *x,
                                                                       int64_t stride, int64_t n,
                                                                       float *dw, int64_t step) {
  int warp = (int)(threadIdx.x / SPT_WARP), lane = (int)(threadIdx.x % SPT_WARP);
  const float *g = grad + (int64_t)blockIdx.x * stride;
  for (int64_t i = w.row_ptr[blockIdx.x] + warp; i < w.row_ptr[blockIdx.x + 1]; i += WARPS) {
    const float *v = x + w.col[i] * stride;
    float sum = 0.0f;
#pragma unroll 4
    for (int64_t t = lane; t < n; t += SPT_WARP) {
      sum = fmaf(g[t], v[t], sum);
    }
    sum = spt_warp_sum(sum);
    if (lane == 0) {
      dw[i * step] = sum;
    }
  }
}

/* ---- launchers --------------------------------------------------------------------------------- */

/* m (n, width) as float32 (width, n), rows padded to whole fours. */
static spt_status turn_over(spt_cuda_queue *queue, spt_scratch *scratch, const char *op,
                            const spt_matrix *m, int64_t stride, float **to, spt_error *err) {
  SPT_TRY(scratch->take(to, m->cols * stride, err));
  spt_tensor from = {}, turned = {};
  from.data = m->data;
  from.dtype = m->dtype;
  from.ndim = 2;
  from.shape[0] = m->rows;
  from.shape[1] = m->cols;
  from.stride[0] = m->row;
  from.stride[1] = m->col;
  turned = from;
  turned.data = *to;
  turned.dtype = SPT_F32;
  turned.stride[0] = 1;
  turned.stride[1] = stride;
  return spt_cuda_copy(queue, op, &from, &turned, err);
}

static int64_t padded(int64_t n) { return spt_blocks(n, 4) * 4; }

spt_status spt_csr_product(spt_cuda_queue *queue, const char *op, const spt_gpu_csr *w,
                           const spt_matrix *x, const spt_linear_output *o, spt_error *err) {
  spt_scratch scratch(queue, op);
  float *turned;
  int64_t stride = padded(x->rows);
  int64_t blocks = spt_blocks(w->out, ROWS) * spt_blocks(x->rows, TOKENS);
  if (blocks == 0) {
    return SPT_OK;
  }
  if (blocks > INT32_MAX) {
    return spt_fail(err, SPT_UNSUPPORTED, "%s: x has %lld rows and w %lld: too many at once", op,
                    (long long)x->rows, (long long)w->out);
  }
  SPT_TRY(turn_over(queue, &scratch, op, x, stride, &turned, err));
  SPT_LAUNCH(op, csr_kernel, (unsigned)blocks, WARPS * SPT_WARP, TOKENS * PITCH * sizeof(float),
             queue->stream, *w, turned, stride, x->rows, *o);
  return SPT_OK;
}

spt_status spt_csr_gradient(spt_cuda_queue *queue, const char *op, const spt_gpu_csr *w,
                            const spt_matrix *grad, const spt_matrix *x, const spt_matrix *dw,
                            spt_error *err) {
  spt_scratch scratch(queue, op);
  float *g, *v;
  int64_t stride = padded(x->rows);
  if (w->nnz == 0) {
    return SPT_OK;
  }
  SPT_TRY(turn_over(queue, &scratch, op, grad, stride, &g, err));
  SPT_TRY(turn_over(queue, &scratch, op, x, stride, &v, err));
  SPT_LAUNCH(op, csr_gradient_kernel, (unsigned)w->out, WARPS * SPT_WARP, 0, queue->stream, *w, g,
             v, stride, x->rows, static_cast<float *>(dw->data), dw->col);
  return SPT_OK;
}
