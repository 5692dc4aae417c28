/* attention_backward: dq, dk, dv and dbias from grad, out and lse. Three or four kernels: rowsum(grad o
 * out) (bound by memory), the keys' side, the queries' side (attention_backward_halves.cu with tensor
 * cores, _floats.cu with FMAs, _simple.cu any width), and the bias's (_bias.cu). Scores are never
 * stored; beside the results, memory is taken for two floats a query and head. */
#include "attention_backward.cuh"
#include "slots.h"
#include "warp.cuh"

static const char *const op = "attention_backward";

/* The sequence that a packed query belongs to. */
static __device__ int64_t sequence_of_token(const spt_attention_view &v, int64_t token) {
  int64_t low = 0, high = v.sequences; /* starts of low <= token < starts of high */
  while (high - low > 1) {
    int64_t middle = (low + high) / 2;
    if (v.q_offsets[middle] <= token) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

/* A warp per query and head: lse and delta in one place each, and of each kv head the greatest |grad|
 * where `peaks` is wanted. Atomic maxima are the same in any order. */
template <typename T>
__global__ void stats_kernel(spt_attention_view v, spt_heads out, spt_heads grad, spt_heads lse,
                             float *lse_rows, float *delta_rows, uint32_t *peaks) {
  int64_t row = (int64_t)blockIdx.x * (blockDim.x / SPT_WARP) + threadIdx.x / SPT_WARP;
  int lane = threadIdx.x % SPT_WARP;
  if (row >= spt_stats_rows(v)) {
    return;
  }
  int64_t token = row % v.queries, head = row / v.queries % v.heads;
  int64_t n = row / v.queries / v.heads; /* 0 where packed, whose arrays have no sequence stride */
  if (v.lengths != NULL && token >= v.lengths[n]) {
    return; /* padding: nothing of it is read */
  }
  const T *x = spt_token_row<T>(out, n, token, head);
  const T *y = spt_token_row<T>(grad, n, token, head);
  float sum = 0.0f, peak = 0.0f;
  for (int64_t c = lane; c < v.dv; c += SPT_WARP) {
    float g = spt_load(y + c * grad.feature);
    sum = fmaf(spt_load(x + c * out.feature), g, sum);
    peak = fmaxf(peak, fabsf(g));
  }
  sum = spt_warp_sum(sum);
  peak = spt_warp_max(peak);
  if (lane == 0) {
    lse_rows[row] = *spt_token_row<float>(lse, n, token, head);
    delta_rows[row] = sum;
    if (peaks != NULL) {
      n = v.packed ? sequence_of_token(v, token) : n;
      atomicMax(peaks + n * v.kv_heads + head / (v.heads / v.kv_heads), __float_as_uint(peak));
    }
  }
}

static spt_status find_stats(spt_cuda_queue *queue, spt_scratch *scratch, spt_backward *b,
                             const spt_attention_backward_problem *p, spt_error *err) {
  const spt_attention_problem *f = &p->forward;
  const spt_attention_view &v = b->view;
  int64_t rows = spt_stats_rows(v), peaks_n = v.sequences * v.kv_heads;
  float *lse, *delta;
  uint32_t *peaks = NULL;
  SPT_TRY(scratch->take(&lse, rows, err));
  SPT_TRY(scratch->take(&delta, rows, err));
  if (f->q.dtype == SPT_F16 && peaks_n > 0) {
    SPT_TRY(scratch->take(&peaks, peaks_n, err));
    SPT_CUDA_TRY(op, "clearing memory",
                 cudaMemsetAsync(peaks, 0, (size_t)peaks_n * sizeof *peaks, queue->stream));
  }
  b->lse = lse;
  b->delta = delta;
  b->peaks = peaks;
  if (rows == 0) {
    return SPT_OK;
  }
  const int warps = 4;
  SPT_WITH_STORAGE(f->q.dtype, T, {
    SPT_LAUNCH(op, stats_kernel<T>, (unsigned)spt_blocks(rows, warps), warps * SPT_WARP, 0,
               queue->stream, v, f->out, p->grad, f->lse, lse, delta, peaks);
  });
  return SPT_OK;
}

static spt_status run_side(spt_cuda_queue *queue, const spt_backward *b, bool keys, spt_dtype dtype,
                           spt_error *err) {
  if (dtype == SPT_F32 && spt_backward_floats_fits(queue, b)) {
    return spt_backward_floats(queue, b, keys, err);
  }
  if (dtype != SPT_F32 && spt_backward_halves_fits(queue, b)) {
    return spt_backward_halves(queue, b, keys, dtype, err);
  }
  return spt_backward_simple(queue, b, keys, dtype, err);
}

spt_status spt_cuda_attention_backward(void *state, const spt_attention_backward_problem *p,
                                       spt_error *err) {
  spt_cuda_queue *queue = spt_queue_of(state);
  const spt_attention_problem *f = &p->forward;
  spt_scratch scratch(queue, op);
  spt_backward b;
  memset(&b, 0, sizeof b);
  SPT_TRY(spt_attention_view_of(queue, &scratch, op, f, NULL, NULL, &b.view, err));
  b.q = f->q;
  b.k = f->k;
  b.v = f->v;
  b.grad = p->grad;
  b.dq = p->dq;
  b.dk = p->dk;
  b.dv = p->dv;
  b.wide = spt_rows_are_wide(b.q, f->d) && spt_rows_are_wide(b.k, f->d) &&
           spt_rows_are_wide(b.v, f->dv) && spt_rows_are_wide(b.grad, f->dv);
  SPT_TRY(find_stats(queue, &scratch, &b, p, err));
  if (b.dk.data != NULL || b.dv.data != NULL) {
    SPT_TRY(run_side(queue, &b, true, f->q.dtype, err));
  }
  if (b.dq.data != NULL) {
    SPT_TRY(run_side(queue, &b, false, f->q.dtype, err));
  }
  return p->dbias.data != NULL ? spt_backward_bias(queue, &b, &p->dbias, f->q.dtype, err) : SPT_OK;
}
