/* layer_norm, gelu, dropout, softmax and embedding: along the last axis of a tensor of any rank. */
#include "check.h"

static spt_status check_pair(const char *op, const spt_tensor *x, const spt_tensor *y,
                             spt_error *err) {
  SPT_TRY(spt_check_storage(op, "x", x, err));
  SPT_TRY(spt_check_storage(op, "out", y, err));
  SPT_TRY(spt_check_shape(op, "out", y, x, err));
  return spt_check_output(op, "out", y, err);
}

static spt_status check_has_rows(const char *op, const spt_tensor *x, spt_error *err) {
  if (x->ndim == 0) {
    return spt_fail(err, SPT_INVALID_VALUE, "%s: x has 0 dimensions, expected at least 1", op);
  }
  return SPT_OK;
}

static spt_status check_parameter(const char *op, const char *arg, const spt_tensor *t, int64_t n,
                                  spt_error *err) {
  SPT_TRY(spt_check_storage(op, arg, t, err));
  SPT_TRY(spt_check_ndim(op, arg, t, 1, err));
  return spt_check_dim(op, arg, t, 0, n, err);
}

spt_status spt_layer_norm(spt_device *device, const spt_layer_norm_args *a, spt_error *err) {
  const char *op = "layer_norm";
  SPT_TRY(check_pair(op, &a->x, &a->y, err));
  SPT_TRY(check_has_rows(op, &a->x, err));
  int64_t n = a->x.shape[a->x.ndim - 1];
  SPT_TRY(check_parameter(op, "weight", &a->weight, n, err));
  SPT_TRY(check_parameter(op, "bias", &a->bias, n, err));
  SPT_TRY(spt_check_amount(op, "eps", a->eps, err));
  if (a->residual != NULL) {
    SPT_TRY(spt_check_storage(op, "residual", a->residual, err));
    SPT_TRY(spt_check_shape(op, "residual", a->residual, &a->x, err));
  }
  SPT_TRY(spt_check_slot(op, device, device->backend->layer_norm != NULL, err));
  spt_layer_norm_problem p = {.x = a->x, .y = a->y, .eps = (float)a->eps};
  p.weight = spt_row_of(&a->weight);
  p.bias = spt_row_of(&a->bias);
  if (a->residual != NULL) {
    p.residual = *a->residual;
  }
  spt_tensor *tensors[] = {&p.x, &p.y, &p.residual};
  spt_merge_axes(tensors, a->residual != NULL ? 3 : 2, 1);
  return device->backend->layer_norm(device->state, &p, err);
}

/* Merges all axes where possible; one is left where there were none. */
static void merge_all(spt_tensor *const *tensors, int count) {
  spt_merge_axes(tensors, count, 0);
  for (int t = 0; t < count; t++) {
    if (tensors[t]->ndim == 0) {
      tensors[t]->ndim = 1;
      tensors[t]->shape[0] = 1;
      tensors[t]->stride[0] = 1;
    }
  }
}

spt_status spt_gelu(spt_device *device, const spt_gelu_args *a, spt_error *err) {
  const char *op = "gelu";
  SPT_TRY(check_pair(op, &a->x, &a->y, err));
  SPT_TRY(spt_check_slot(op, device, device->backend->gelu != NULL, err));
  spt_gelu_problem p = {.x = a->x, .y = a->y};
  p.activation = a->tanh ? SPT_ACT_GELU_TANH : SPT_ACT_GELU;
  merge_all((spt_tensor *[]){&p.x, &p.y}, 2);
  return device->backend->gelu(device->state, &p, err);
}

spt_status spt_dropout(spt_device *device, const spt_dropout_args *a, spt_error *err) {
  const char *op = "dropout";
  SPT_TRY(check_pair(op, &a->x, &a->y, err));
  if (!(a->p >= 0.0 && a->p < 1.0)) {
    return spt_fail(err, SPT_INVALID_VALUE, "%s: p is %g, expected 0 or more and below 1", op,
                    a->p);
  }
  SPT_TRY(spt_check_slot(op, device, device->backend->dropout != NULL, err));
  spt_dropout_problem p = {.x = a->x, .y = a->y, .p = a->p, .seed = a->seed};
  merge_all((spt_tensor *[]){&p.x, &p.y}, 2);
  return device->backend->dropout(device->state, &p, err);
}

spt_status spt_softmax(spt_device *device, const spt_softmax_args *a, spt_error *err) {
  const char *op = "softmax";
  SPT_TRY(check_pair(op, &a->x, &a->y, err));
  SPT_TRY(check_has_rows(op, &a->x, err));
  SPT_TRY(spt_check_slot(op, device, device->backend->softmax != NULL, err));
  spt_softmax_problem p = {.x = a->x, .y = a->y};
  spt_merge_axes((spt_tensor *[]){&p.x, &p.y}, 2, 1);
  return device->backend->softmax(device->state, &p, err);
}

spt_status spt_embedding(spt_device *device, const spt_embedding_args *a, spt_error *err) {
  const char *op = "embedding";
  if (a->ids.dtype != SPT_I32 && a->ids.dtype != SPT_I64) {
    return spt_fail(err, SPT_INVALID_DTYPE, "%s: ids.dtype is %s, expected int32 or int64", op,
                    spt_dtype_name(a->ids.dtype));
  }
  SPT_TRY(spt_check_storage(op, "table", &a->table, err));
  SPT_TRY(spt_check_ndim(op, "table", &a->table, 2, err));
  SPT_TRY(spt_check_dtype(op, "out", &a->rows, a->table.dtype, err));
  SPT_TRY(spt_check_ndim(op, "out", &a->rows, a->ids.ndim + 1, err));
  for (int i = 0; i < a->ids.ndim; i++) {
    SPT_TRY(spt_check_dim(op, "out", &a->rows, i, a->ids.shape[i], err));
  }
  SPT_TRY(spt_check_dim(op, "out", &a->rows, a->ids.ndim, a->table.shape[1], err));
  SPT_TRY(spt_check_output(op, "out", &a->rows, err));
  SPT_TRY(spt_check_slot(op, device, device->backend->embedding != NULL, err));
  spt_embedding_problem p = {
      .op = op, .arg = "ids", .ids = a->ids, .rows = a->rows, .table = spt_matrix_of(&a->table)};
  return device->backend->embedding(device->state, &p, err);
}
