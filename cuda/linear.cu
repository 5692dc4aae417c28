/* linear: y = act(x · wᵀ + bias) + residual. Which path:
 *
 *   dense                linear_dense.cu: cuBLASLt, or our own tiles
 *   strips               linear_strips.cu: tiles of 16 x 16 on tensor cores or in float32
 *   strips, half empty rows or columns: the same, x gathered first where that leaves fewer tiles
 *   CSR                  linear_csr.cu, in float32
 *
 * Factors that are both float16, or both bfloat16, meet on tensor cores: their products are exact in
 * float32. With compute = bfloat16 both are rounded to it. Others are widened to float32. */
#include "linear.h"

#include "linear_dense.h"
#include "slots.h"

spt_status spt_tiles_for(spt_cuda_queue *queue, spt_scratch *scratch, const char *op,
                         const spt_gpu_weights *w, const spt_weight *weight, spt_dtype other,
                         spt_dtype compute, spt_tiles *to, spt_error *err) {
  int64_t values = (int64_t)w->forward.n_tiles * SPT_TILE_VALUES;
  if (weight->dense.data != NULL) {
    char *made;
    to->dtype = spt_operands_of(other, weight->dense.dtype, compute);
    SPT_TRY(scratch->take(&made, values * spt_storage_bytes(to->dtype), err));
    to->data = made;
    return spt_tiles_of_dense(queue, op, w, &weight->dense, to->dtype, made, err);
  }
  to->dtype = spt_operands_of(other, w->dtype, compute);
  to->data = w->tiles;
  if (to->dtype == w->dtype) {
    return SPT_OK;
  }
  if (w->tiles == NULL || to->dtype != SPT_F32) {
    return spt_fail(err, SPT_INVALID_VALUE, "%s: w was prepared otherwise than it is used", op);
  }
  float *wide;
  SPT_TRY(scratch->take(&wide, values, err));
  to->data = wide;
  return spt_widen_tiles(queue, op, w->forward.n_tiles, w->dtype, w->tiles, wide, err);
}

static spt_status multiply_strips(spt_cuda_queue *queue, const char *op,
                                  const spt_linear_problem *p, const spt_gpu_weights *w,
                                  const spt_linear_output *o, spt_error *err) {
  spt_scratch scratch(queue, op);
  spt_tiles tiles;
  spt_matrix x;
  SPT_TRY(spt_tiles_for(queue, &scratch, op, w, &p->w, p->x.dtype, p->compute, &tiles, err));
  SPT_TRY(spt_rows_for_strips(queue, &scratch, op, &w->forward, &p->x, tiles.dtype, &x, err));
  return spt_strips_product(queue, op, &w->forward, tiles.data, &x, o, err);
}

static spt_status multiply_packed(spt_cuda_queue *queue, const char *op,
                                  const spt_linear_problem *p, const spt_gpu_weights *w,
                                  spt_error *err) {
  spt_linear_output o = spt_linear_output_of(&p->y, &p->bias, &p->residual, p->activation);
  return w->is_csr ? spt_csr_product(queue, op, &w->csr, &p->x, &o, err)
                   : multiply_strips(queue, op, p, w, &o, err);
}

static spt_status multiply_dense(spt_cuda_queue *queue, const char *op, const spt_linear_problem *p,
                                 spt_error *err) {
  spt_dense_product d = {};
  d.a = p->x;
  d.b = p->w.dense;
  d.y = p->y;
  d.bias = p->bias;
  d.residual = p->residual;
  d.activation = p->activation;
  d.operands = spt_operands_of(p->x.dtype, p->w.dense.dtype, p->compute);
  return spt_dense_multiply(queue, op, &d, err);
}

spt_status spt_cuda_linear(void *state, const spt_linear_problem *p, spt_error *err) {
  const char *op = "linear";
  spt_cuda_queue *queue = spt_queue_of(state);
  if (p->x.rows == 0 || p->w.out == 0) {
    return SPT_OK;
  }
  if (p->w.csr == NULL && p->w.strips == NULL) {
    return multiply_dense(queue, op, p, err);
  }
  if (p->prepared != NULL) {
    return multiply_packed(queue, op, p, static_cast<const spt_gpu_weights *>(p->prepared), err);
  }
  /* Made for this call alone: freeing it waits for the product. */
  void *prepared = NULL;
  SPT_TRY(spt_cuda_prepare(state, &p->w, p->compute, &prepared, err));
  spt_status status =
      multiply_packed(queue, op, p, static_cast<const spt_gpu_weights *>(prepared), err);
  spt_cuda_prepared_free(state, prepared);
  return status;
}
