/* gather_tokens: rows of packed tokens, in the order of an index. */
#include "check.h"

spt_status spt_gather_tokens(spt_device *device, const spt_gather_tokens_args *a, spt_error *err) {
  const char *op = "gather_tokens";
  if (a->index.dtype != SPT_I32 && a->index.dtype != SPT_I64) {
    return spt_fail(err, SPT_INVALID_DTYPE, "%s: index.dtype is %s, expected int32 or int64", op,
                    spt_dtype_name(a->index.dtype));
  }
  SPT_TRY(spt_check_storage(op, "x", &a->x, err));
  SPT_TRY(spt_check_ndim(op, "x", &a->x, 2, err));
  SPT_TRY(spt_check_ndim(op, "index", &a->index, 1, err));
  SPT_TRY(spt_check_dtype(op, "out", &a->out, a->x.dtype, err));
  SPT_TRY(spt_check_ndim(op, "out", &a->out, 2, err));
  SPT_TRY(spt_check_dim(op, "out", &a->out, 0, a->index.shape[0], err));
  SPT_TRY(spt_check_dim(op, "out", &a->out, 1, a->x.shape[1], err));
  SPT_TRY(spt_check_output(op, "out", &a->out, err));
  SPT_TRY(spt_check_slot(op, device, device->backend->embedding != NULL, err));
  spt_embedding_problem p = {
      .op = op, .arg = "index", .ids = a->index, .rows = a->out, .table = spt_matrix_of(&a->x)};
  return device->backend->embedding(device->state, &p, err);
}
