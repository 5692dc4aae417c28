/* What Python asks about GPUs. */
#include "binding.h"

spt_device *spt_py_gpu_of(PyObject *number, const char *op) {
  spt_device *device = NULL;
  spt_error err;
  long ordinal = PyLong_AsLong(number);
  if (PyErr_Occurred()) {
    return NULL;
  }
  spt_status status =
      spt_gpu_device(ordinal < 0 || ordinal > INT16_MAX ? -1 : (int)ordinal, 0, &device, &err);
  if (status != SPT_OK) {
    spt_error told;
    spt_py_raise(spt_fail(&told, status, "%s: %.400s", op, err.message), &told);
    return NULL;
  }
  return device;
}

static int ordinal_of(PyObject *const *args, Py_ssize_t nargs, const char *op) {
  if (spt_py_check_count(op, nargs, 1) < 0) {
    return -1;
  }
  long ordinal = PyLong_AsLong(args[0]);
  if (ordinal < 0 || ordinal > INT16_MAX) {
    if (!PyErr_Occurred()) {
      PyErr_Format(PyExc_ValueError, "%s: there is no cuda:%ld", op, ordinal);
    }
    return -1;
  }
  return (int)ordinal;
}

PyObject *spt_py_gpu_count(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
  (void)self;
  (void)args;
  int count = 0;
  spt_error err;
  spt_status status = SPT_OK;
  if (spt_py_check_count("gpu_count", nargs, 0) < 0) {
    return NULL;
  }
  SPT_PY_CALL(status, spt_gpu_count(&count, &err));
  return status == SPT_OK ? PyLong_FromLong(count) : spt_py_raise(status, &err);
}

PyObject *spt_py_gpu_info(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
  (void)self;
  int ordinal = ordinal_of(args, nargs, "gpu_info");
  spt_device *device;
  spt_device_properties p;
  spt_error err;
  if (ordinal < 0) {
    return NULL;
  }
  spt_status status = spt_gpu_device(ordinal, 0, &device, &err);
  if (status == SPT_OK) {
    status = spt_device_properties_of(device, &p, &err);
  }
  if (status != SPT_OK) {
    return spt_py_raise(status, &err);
  }
  return Py_BuildValue("siiLLiiis", p.name, (int)p.major, (int)p.minor, (long long)p.memory,
                       (long long)p.free, (int)p.driver, (int)p.runtime, (int)p.multiprocessors,
                       p.cublas);
}

PyObject *spt_py_gpu_library(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
  (void)self;
  (void)args;
  if (spt_py_check_count("gpu_library", nargs, 0) < 0) {
    return NULL;
  }
  return Py_BuildValue("ss", spt_gpu_library(), spt_gpu_backend_name());
}

PyObject *spt_py_gpu_synchronize(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
  (void)self;
  int ordinal = ordinal_of(args, nargs, "synchronize");
  spt_error err;
  spt_status status = SPT_OK;
  if (ordinal < 0) {
    return NULL;
  }
  SPT_PY_CALL(status, spt_gpu_synchronise(ordinal, "synchronize", &err));
  return status == SPT_OK ? Py_NewRef(Py_None) : spt_py_raise(status, &err);
}

PyObject *spt_py_default_gpu(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
  (void)self;
  (void)args;
  spt_device *device;
  if (spt_py_check_count("default_gpu", nargs, 0) < 0 ||
      spt_py_default_device("spatile", &device) < 0) {
    return NULL;
  }
  return device == NULL ? Py_NewRef(Py_None) : PyLong_FromLong(spt_device_ordinal(device));
}

/* addresses(x, op) → (address, shape, strides in bytes, itemsize, writable, gpu or -1) */
PyObject *spt_py_addresses(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
  (void)self;
  spt_py_view view = {0};
  const char *op;
  if (spt_py_check_count("addresses", nargs, 2) < 0 || (op = PyUnicode_AsUTF8(args[1])) == NULL ||
      spt_py_view_of(&view, args[0], op, "x") < 0) {
    return NULL;
  }
  const spt_tensor *t = &view.tensor;
  PyObject *shape = PyTuple_New(t->ndim), *strides = PyTuple_New(t->ndim);
  Py_ssize_t size = (Py_ssize_t)spt_dtype_size(t->dtype);
  for (int i = 0; shape != NULL && strides != NULL && i < t->ndim; i++) {
    PyTuple_SET_ITEM(shape, i, PyLong_FromLongLong(t->shape[i]));
    PyTuple_SET_ITEM(strides, i, PyLong_FromLongLong(t->stride[i] * size));
  }
  PyObject *found = NULL;
  if (shape != NULL && strides != NULL && !PyErr_Occurred()) {
    found = Py_BuildValue("KOOnNi", (unsigned long long)(uintptr_t)t->data, shape, strides, size,
                          PyBool_FromLong(t->writable),
                          view.device != NULL ? spt_device_ordinal(view.device) : -1);
  }
  Py_XDECREF(shape);
  Py_XDECREF(strides);
  spt_py_release(&view, 1);
  return found;
}
