/* linear and linear_backward: y = act(x · wᵀ + bias) + residual, and its gradients. */
#include <stdlib.h>

#include "check.h"

static spt_status weight_of(const char *op, const spt_tensor *dense, const spt_strips *strips,
                            const spt_csr *csr, spt_weight *w, spt_error *err) {
  *w = (spt_weight){0};
  if (dense != NULL) {
    SPT_TRY(spt_check_ndim(op, "w", dense, 2, err));
    SPT_TRY(spt_check_storage(op, "w", dense, err));
    for (int i = 0; i < 2; i++) {
      if (dense->shape[i] > INT32_MAX - SPT_STRIP) { /* columns and rows are numbered in 32 bits */
        return spt_fail(err, SPT_INVALID_VALUE,
                        "%s: w.shape[%d] is %lld, expected at most 2**31 - 17", op, i,
                        (long long)dense->shape[i]);
      }
    }
    w->dense = spt_matrix_of(dense);
    w->out = dense->shape[0];
    w->in = dense->shape[1];
    if (strips != NULL) {
      SPT_TRY(spt_check_dim(op, "w", dense, 0, strips->out, err));
      SPT_TRY(spt_check_dim(op, "w", dense, 1, strips->in, err));
      w->strips = strips;
    }
  } else if (strips != NULL) {
    w->strips = strips;
    w->out = strips->out;
    w->in = strips->in;
  } else {
    w->csr = csr;
    w->out = csr->out;
    w->in = csr->in;
  }
  return SPT_OK;
}

static spt_status check_rows(const char *op, const char *arg, const spt_tensor *t, int64_t n,
                             int64_t width, spt_error *err) {
  SPT_TRY(spt_check_ndim(op, arg, t, 2, err));
  SPT_TRY(spt_check_storage(op, arg, t, err));
  SPT_TRY(spt_check_dim(op, arg, t, 1, width, err));
  return spt_check_dim(op, arg, t, 0, n, err);
}

struct spt_prepared {
  spt_device *device;
  void *weights; /* the backend's, or NULL */
};

spt_status spt_prepare(spt_device *device, const spt_strips *strips, const spt_csr *csr,
                       bool index_only, spt_dtype compute, spt_prepared **out, spt_error *err) {
  const char *op = "linear";
  static char elsewhere; /* stands for the dense array, which prepare does not read */
  SPT_TRY(spt_check_slot(op, device, device->backend->prepare != NULL, err));
  spt_prepared *prepared = calloc(1, sizeof *prepared);
  if (prepared == NULL) {
    return spt_fail(err, SPT_OUT_OF_MEMORY, "%s: no memory", op);
  }
  prepared->device = device;
  spt_weight w = {.strips = strips,
                  .csr = csr,
                  .out = strips != NULL ? strips->out : csr->out,
                  .in = strips != NULL ? strips->in : csr->in};
  w.dense.data = index_only ? &elsewhere : NULL;
  spt_status status = device->backend->prepare(device->state, &w, compute, &prepared->weights, err);
  if (status != SPT_OK) {
    free(prepared);
    return status;
  }
  *out = prepared;
  return SPT_OK;
}

void spt_prepared_free(spt_prepared *prepared) {
  if (prepared == NULL) {
    return;
  }
  if (prepared->weights != NULL && spt_device_is_alive(prepared->device)) {
    prepared->device->backend->prepared_free(prepared->device->state, prepared->weights);
  }
  free(prepared);
}

/* A device's streams share what was prepared. */
static const void *prepared_for(const spt_device *device, const spt_prepared *prepared) {
  bool here = prepared != NULL && prepared->device->backend == device->backend &&
              prepared->device->ordinal == device->ordinal;
  return here ? prepared->weights : NULL;
}

static spt_status check_compute(const char *op, spt_dtype compute, spt_error *err) {
  if (compute != SPT_F32 && compute != SPT_BF16) {
    return spt_fail(err, SPT_INVALID_VALUE, "%s: compute is %s, expected float32 or bfloat16", op,
                    spt_dtype_name(compute));
  }
  return SPT_OK;
}

spt_status spt_linear(spt_device *device, const spt_linear_args *a, spt_error *err) {
  const char *op = "linear";
  spt_linear_problem p = {.activation = a->activation, .compute = a->compute};
  SPT_TRY(check_compute(op, a->compute, err));
  p.prepared = prepared_for(device, a->prepared);
  SPT_TRY(weight_of(op, a->dense, a->strips, a->csr, &p.w, err));
  SPT_TRY(spt_check_ndim(op, "x", &a->x, 2, err));
  int64_t n = a->x.shape[0];
  SPT_TRY(check_rows(op, "x", &a->x, n, p.w.in, err));
  if (a->bias != NULL) {
    SPT_TRY(spt_check_ndim(op, "bias", a->bias, 1, err));
    SPT_TRY(spt_check_storage(op, "bias", a->bias, err));
    SPT_TRY(spt_check_dim(op, "bias", a->bias, 0, p.w.out, err));
  }
  if (a->residual != NULL) {
    SPT_TRY(check_rows(op, "residual", a->residual, n, p.w.out, err));
  }
  SPT_TRY(check_rows(op, "out", &a->y, n, p.w.out, err));
  SPT_TRY(spt_check_output(op, "out", &a->y, err));
  SPT_TRY(spt_check_slot(op, device, device->backend->linear != NULL, err));
  p.x = spt_matrix_of(&a->x);
  p.y = spt_matrix_of(&a->y);
  p.bias = spt_row_of(a->bias);
  p.residual = spt_matrix_of(a->residual);
  return device->backend->linear(device->state, &p, err);
}

static spt_status check_weight_gradient(const char *op, const spt_tensor *dw, const spt_weight *w,
                                        bool dense, spt_error *err) {
  if (dense) {
    SPT_TRY(check_rows(op, "dw", dw, w->out, w->in, err));
  } else if (w->strips != NULL) {
    SPT_TRY(spt_check_dtype(op, "dw", dw, SPT_F32, err));
    SPT_TRY(spt_check_ndim(op, "dw", dw, 2, err));
    SPT_TRY(spt_check_dim(op, "dw", dw, 0, w->strips->n_columns, err));
    SPT_TRY(spt_check_dim(op, "dw", dw, 1, SPT_STRIP, err));
  } else {
    SPT_TRY(spt_check_dtype(op, "dw", dw, SPT_F32, err));
    SPT_TRY(spt_check_ndim(op, "dw", dw, 1, err));
    SPT_TRY(spt_check_dim(op, "dw", dw, 0, w->csr->row_ptr[w->out], err));
  }
  return spt_check_output(op, "dw", dw, err);
}

spt_status spt_linear_backward(spt_device *device, const spt_linear_backward_args *a,
                               spt_error *err) {
  const char *op = "linear_backward";
  spt_linear_backward_problem p = {.compute = a->compute};
  SPT_TRY(check_compute(op, a->compute, err));
  p.prepared = prepared_for(device, a->prepared);
  SPT_TRY(weight_of(op, a->dense, a->strips, a->csr, &p.w, err));
  SPT_TRY(spt_check_ndim(op, "grad", &a->grad, 2, err));
  int64_t n = a->grad.shape[0];
  SPT_TRY(check_rows(op, "grad", &a->grad, n, p.w.out, err));
  SPT_TRY(check_rows(op, "x", &a->x, n, p.w.in, err));
  if (a->dx != NULL) {
    SPT_TRY(check_rows(op, "dx", a->dx, n, p.w.in, err));
    SPT_TRY(spt_check_output(op, "dx", a->dx, err));
  }
  if (a->dw != NULL) {
    SPT_TRY(check_weight_gradient(op, a->dw, &p.w, a->dense != NULL, err));
  }
  if (a->dbias != NULL) {
    SPT_TRY(spt_check_ndim(op, "dbias", a->dbias, 1, err));
    SPT_TRY(spt_check_storage(op, "dbias", a->dbias, err));
    SPT_TRY(spt_check_dim(op, "dbias", a->dbias, 0, p.w.out, err));
    SPT_TRY(spt_check_output(op, "dbias", a->dbias, err));
  }
  SPT_TRY(spt_check_slot(op, device, device->backend->linear_backward != NULL, err));
  p.grad = spt_matrix_of(&a->grad);
  p.x = spt_matrix_of(&a->x);
  p.dx = spt_matrix_of(a->dx);
  if (a->dw != NULL) {
    p.dw = a->dw->ndim == 1 ? spt_row_of(a->dw) : spt_matrix_of(a->dw);
  }
  p.dbias = spt_row_of(a->dbias);
  return device->backend->linear_backward(device->state, &p, err);
}
