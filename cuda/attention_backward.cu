/* attention_backward: dq, dk, dv and dbias from grad, out and lse. Three or four kernels: what is known of
 * each query (_stats.cu), the keys' side, the queries' side (_halves.cu on tensor cores, _floats.cu with
 * FMAs, _simple.cu any width), and the bias (_bias.cu). Scores are never stored: beside the results,
 * memory is taken for two floats a query and head. */
#include "attention_backward_stats.cuh"
#include "slots.h"

static const char *const op = "attention_backward";

static spt_status find_stats(spt_cuda_queue *queue, spt_scratch *scratch, spt_backward *b,
                             const spt_attention_backward_problem *p, spt_error *err) {
  const spt_attention_problem *f = &p->forward;
  int64_t rows = spt_stats_rows(b->view), peaks_n = f->sequences * f->kv_heads;
  spt_backward_stats to = {f->out, f->lse, spt_rows_are_wide(f->out, f->dv), NULL, NULL, NULL};
  SPT_TRY(scratch->take(&to.lse, rows, err));
  SPT_TRY(scratch->take(&to.delta, rows, err));
  if (f->q.dtype == SPT_F16 && peaks_n > 0) {
    SPT_TRY(scratch->take(&to.peaks, peaks_n, err));
    SPT_CUDA_TRY(op, "clearing memory",
                 cudaMemsetAsync(to.peaks, 0, (size_t)peaks_n * sizeof(uint32_t), queue->stream));
  }
  b->lse = to.lse;
  b->delta = to.delta;
  b->peaks = to.peaks;
  return spt_backward_find_stats(queue, b, &to, f->q.dtype, err);
}

static spt_status run_side(spt_cuda_queue *queue, const spt_backward *b, bool keys, spt_dtype dtype,
                           spt_error *err) {
  if (dtype == SPT_F32 && spt_backward_floats_fits(queue, b)) {
    return spt_backward_floats(queue, b, keys, err);
  }
  if (dtype != SPT_F32 && spt_backward_halves_fits(queue, b, dtype)) {
    return spt_backward_halves(queue, b, keys, dtype, err);
  }
  return spt_backward_simple(queue, b, keys, dtype, err);
}

spt_status spt_cuda_attention_backward(void *state, const spt_attention_backward_problem *p,
                                       spt_error *err) {
  spt_cuda_queue *queue = spt_queue_of(state);
  const spt_attention_problem *f = &p->forward;
  spt_scratch scratch(queue, op);
  spt_backward b = {};
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
