#include "check.h"

#include <math.h>
#include <stdlib.h>

spt_status spt_check_ndim(const char *op, const char *arg, const spt_tensor *t, int ndim,
                          spt_error *err) {
  if (t->ndim != ndim) {
    return spt_fail(err, SPT_INVALID_VALUE, "%s: %s has %d dimensions, expected %d", op, arg,
                    (int)t->ndim, ndim);
  }
  return SPT_OK;
}

spt_status spt_check_dim(const char *op, const char *arg, const spt_tensor *t, int dim,
                         int64_t expected, spt_error *err) {
  if (t->shape[dim] != expected) {
    return spt_fail(err, SPT_INVALID_VALUE, "%s: %s.shape[%d] is %lld, expected %lld", op, arg, dim,
                    (long long)t->shape[dim], (long long)expected);
  }
  return SPT_OK;
}

spt_status spt_check_storage(const char *op, const char *arg, const spt_tensor *t, spt_error *err) {
  if (!spt_dtype_is_storage(t->dtype)) {
    return spt_fail(err, SPT_INVALID_DTYPE,
                    "%s: %s.dtype is %s, expected float32, float16 or bfloat16", op, arg,
                    spt_dtype_name(t->dtype));
  }
  return SPT_OK;
}

spt_status spt_check_dtype(const char *op, const char *arg, const spt_tensor *t, spt_dtype expected,
                           spt_error *err) {
  if (t->dtype != expected) {
    return spt_fail(err, SPT_INVALID_DTYPE, "%s: %s.dtype is %s, expected %s", op, arg,
                    spt_dtype_name(t->dtype), spt_dtype_name(expected));
  }
  return SPT_OK;
}

spt_status spt_check_writable(const char *op, const char *arg, const spt_tensor *t,
                              spt_error *err) {
  if (!t->writable) {
    return spt_fail(err, SPT_INVALID_VALUE, "%s: %s is read-only, expected a writable array", op,
                    arg);
  }
  return SPT_OK;
}

spt_status spt_check_output(const char *op, const char *arg, const spt_tensor *t, spt_error *err) {
  SPT_TRY(spt_check_writable(op, arg, t, err));
  /* Sorted by stride, each dimension must step over all of the smaller ones. */
  int order[SPT_MAX_NDIM], n = 0;
  for (int i = 0; i < t->ndim; i++) {
    if (t->shape[i] == 0) {
      return SPT_OK;
    }
    if (t->shape[i] == 1) {
      continue;
    }
    int at = n++;
    while (at > 0 && llabs(t->stride[order[at - 1]]) > llabs(t->stride[i])) {
      order[at] = order[at - 1];
      at--;
    }
    order[at] = i;
  }
  int64_t extent = 0; /* largest offset reached by the dimensions so far */
  for (int i = 0; i < n; i++) {
    int64_t step = llabs(t->stride[order[i]]);
    if (step <= extent) {
      return spt_fail(err, SPT_INVALID_VALUE,
                      "%s: %s has overlapping elements (stride %lld in dimension %d), expected an "
                      "array whose elements are distinct",
                      op, arg, (long long)t->stride[order[i]], order[i]);
    }
    extent += step * (t->shape[order[i]] - 1);
  }
  return SPT_OK;
}

spt_status spt_check_slot(const char *op, const spt_device *device, bool present, spt_error *err) {
  if (!present) {
    return spt_fail(err, SPT_UNSUPPORTED, "%s: the %s backend does not support this op", op,
                    device->backend->name);
  }
  if (device->backend->usable != NULL) {
    return device->backend->usable(device->state, op, err);
  }
  return spt_device_check_alive(device, op, err);
}

spt_matrix spt_matrix_of(const spt_tensor *t) {
  if (t == NULL) {
    return (spt_matrix){0};
  }
  return (spt_matrix){.data = t->data,
                      .dtype = t->dtype,
                      .rows = t->shape[0],
                      .cols = t->shape[1],
                      .row = t->stride[0],
                      .col = t->stride[1]};
}

spt_matrix spt_row_of(const spt_tensor *t) {
  if (t == NULL) {
    return (spt_matrix){0};
  }
  return (spt_matrix){.data = t->data,
                      .dtype = t->dtype,
                      .rows = 1,
                      .cols = t->shape[0],
                      .row = 0,
                      .col = t->stride[0]};
}

int64_t spt_element_count(const spt_tensor *t) {
  int64_t n = 1;
  for (int i = 0; i < t->ndim; i++) {
    n *= t->shape[i];
  }
  return n;
}

spt_status spt_check_shape(const char *op, const char *arg, const spt_tensor *t,
                           const spt_tensor *other, spt_error *err) {
  SPT_TRY(spt_check_ndim(op, arg, t, other->ndim, err));
  for (int i = 0; i < t->ndim; i++) {
    SPT_TRY(spt_check_dim(op, arg, t, i, other->shape[i], err));
  }
  return SPT_OK;
}

spt_status spt_check_amount(const char *op, const char *arg, double value, spt_error *err) {
  if (!isfinite(value) || value < 0.0) {
    return spt_fail(err, SPT_INVALID_VALUE, "%s: %s is %g, expected a finite number of at least 0",
                    op, arg, value);
  }
  return SPT_OK;
}

void spt_merge_axes(spt_tensor *const *tensors, int count, int kept) {
  int ndim = tensors[0]->ndim, n = 0;
  for (int i = 0; i < ndim; i++) {
    bool free_axis = i < ndim - kept;
    if (free_axis && tensors[0]->shape[i] == 1) {
      continue;
    }
    bool joins = free_axis && n > 0;
    for (int t = 0; joins && t < count; t++) {
      joins = tensors[t]->stride[n - 1] == tensors[t]->stride[i] * tensors[t]->shape[i];
    }
    for (int t = 0; t < count; t++) {
      spt_tensor *to = tensors[t];
      int64_t before = joins ? to->shape[n - 1] : 1;
      int at = joins ? n - 1 : n;
      to->shape[at] = before * to->shape[i];
      to->stride[at] = to->stride[i];
    }
    n += joins ? 0 : 1;
  }
  for (int t = 0; t < count; t++) {
    tensors[t]->ndim = n;
  }
}
