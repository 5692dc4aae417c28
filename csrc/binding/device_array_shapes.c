/* DeviceArray's shapes: views with other axes, without a copy. */
#include "device_array.h"

int64_t spt_py_elements(const spt_tensor *t) {
  int64_t n = 1;
  for (int i = 0; i < t->ndim; i++) {
    n *= t->shape[i];
  }
  return n;
}

void spt_py_make_compact(spt_tensor *t) {
  int64_t step = 1;
  for (int i = t->ndim - 1; i >= 0; i--) {
    t->stride[i] = t->shape[i] > 1 ? step : 0;
    step *= t->shape[i];
  }
}

bool spt_py_is_compact(const spt_tensor *t) {
  int64_t step = 1;
  for (int i = t->ndim - 1; i >= 0; i--) {
    if (t->shape[i] > 1 && t->stride[i] != step) {
      return spt_py_elements(t) == 0;
    }
    step *= t->shape[i];
  }
  return true;
}

PyObject *spt_py_array_shape(PyObject *object, void *closure) {
  (void)closure;
  const spt_tensor *t = &((device_array *)object)->tensor;
  PyObject *shape = PyTuple_New(t->ndim);
  for (int i = 0; shape != NULL && i < t->ndim; i++) {
    PyTuple_SET_ITEM(shape, i, PyLong_FromLongLong(t->shape[i]));
  }
  return shape;
}

static PyObject *view_with(device_array *a, const spt_tensor *t) {
  if (spt_py_check_alive(a, "DeviceArray", "it") < 0) {
    return NULL;
  }
  device_array *view = spt_py_new_device_array(t, a->device);
  if (view != NULL) {
    view->base = Py_NewRef(a->base != NULL ? a->base : (PyObject *)a);
  }
  return (PyObject *)view;
}

PyObject *spt_py_array_transposed(PyObject *object, void *closure) {
  (void)closure;
  device_array *a = (device_array *)object;
  spt_tensor t = a->tensor;
  for (int i = 0; i < t.ndim; i++) {
    t.shape[i] = a->tensor.shape[t.ndim - 1 - i];
    t.stride[i] = a->tensor.stride[t.ndim - 1 - i];
  }
  return view_with(a, &t);
}

/* The sizes asked for, one of which may be -1. */
static int new_shape(spt_tensor *t, PyObject *shape, int64_t n) {
  int64_t product = 1;
  int open = -1;
  t->ndim = (int32_t)PyTuple_GET_SIZE(shape);
  for (int i = 0; i < t->ndim; i++) {
    t->shape[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(shape, i));
    if (t->shape[i] == -1 && !PyErr_Occurred() && open < 0) {
      open = i;
    } else if (t->shape[i] < 0 || __builtin_mul_overflow(product, t->shape[i], &product)) {
      return -1;
    }
  }
  if (open >= 0) {
    t->shape[open] = product > 0 ? n / product : 0;
    product *= t->shape[open];
  }
  return product == n ? 0 : -1;
}

/* Without a copy: the axes of an array that is not compact may be joined only where their strides allow. */
PyObject *spt_py_array_reshape(PyObject *object, PyObject *args) {
  device_array *a = (device_array *)object;
  PyObject *shape = args;
  if (PyTuple_GET_SIZE(args) == 1 && PyTuple_Check(PyTuple_GET_ITEM(args, 0))) {
    shape = PyTuple_GET_ITEM(args, 0);
  }
  spt_tensor t = a->tensor;
  if (PyTuple_GET_SIZE(shape) > SPT_MAX_NDIM ||
      new_shape(&t, shape, spt_py_elements(&a->tensor)) < 0) {
    if (!PyErr_Occurred()) {
      PyErr_Format(PyExc_ValueError, "reshape: %R does not have the array's %lld elements", shape,
                   (long long)spt_py_elements(&a->tensor));
    }
    return NULL;
  }
  if (spt_py_is_compact(&a->tensor)) {
    spt_py_make_compact(&t);
    return view_with(a, &t);
  }
  /* Each new axis takes whole old ones, or a part of one; both are walked from the last. */
  int old = a->tensor.ndim - 1;
  int64_t left = 0,
          step = 0; /* of the joined old axes: elements not yet given out, and their stride */
  for (int i = t.ndim - 1; i >= 0; i--) {
    if (t.shape[i] == 1) {
      t.stride[i] = 0;
      continue;
    }
    while (left <= 1 && old >= 0) {
      left = a->tensor.shape[old];
      step = a->tensor.stride[old--];
      while (old >= 0 && (a->tensor.shape[old] == 1 || a->tensor.stride[old] == step * left)) {
        left *= a->tensor.shape[old--];
      }
    }
    if (left % t.shape[i] != 0) {
      PyErr_Format(PyExc_ValueError,
                   "reshape: the strides of this device array don't allow %R without a copy",
                   shape);
      return NULL;
    }
    t.stride[i] = step;
    step *= t.shape[i];
    left /= t.shape[i];
  }
  return view_with(a, &t);
}
