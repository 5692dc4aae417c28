#include "binding.h"

/* layer_norm(x, weight, bias, residual or None, eps, out) */
PyObject *spt_py_layer_norm(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
  (void)self;
  const char *op = "layer_norm";
  enum { X, WEIGHT, BIAS, RESIDUAL, OUT, VIEWS };
  spt_py_view v[VIEWS] = {0};
  spt_layer_norm_args a = {0};
  spt_error err;
  spt_status status = SPT_OK;
  spt_py_call call;
  if (spt_py_check_count(op, nargs, 6) < 0) {
    return NULL;
  }
  if (spt_py_number_of(&a.eps, args[4], op, "eps") < 0 ||
      spt_py_view_of(&v[X], args[0], op, "x") < 0 ||
      spt_py_view_of(&v[WEIGHT], args[1], op, "weight") < 0 ||
      spt_py_view_of(&v[BIAS], args[2], op, "bias") < 0 ||
      spt_py_optional_view_of(&v[RESIDUAL], args[3], op, "residual") < 0 ||
      spt_py_view_of(&v[OUT], args[5], op, "out") < 0 || spt_py_begin(&call, op, v, VIEWS) < 0) {
    return spt_py_failed(v, VIEWS);
  }
  a.x = v[X].tensor;
  a.weight = v[WEIGHT].tensor;
  a.bias = v[BIAS].tensor;
  a.residual = spt_py_optional(&v[RESIDUAL]);
  a.y = v[OUT].tensor;
  SPT_PY_CALL(status, spt_layer_norm(call.device, &a, &err));
  return spt_py_end(&call, status, &err);
}

/* gelu(x, tanh, out) */
PyObject *spt_py_gelu(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
  (void)self;
  const char *op = "gelu";
  enum { X, OUT, VIEWS };
  spt_py_view v[VIEWS] = {0};
  spt_gelu_args a = {0};
  spt_error err;
  spt_status status = SPT_OK;
  spt_py_call call;
  if (spt_py_check_count(op, nargs, 3) < 0) {
    return NULL;
  }
  int tanh = PyObject_IsTrue(args[1]);
  if (tanh < 0 || spt_py_view_of(&v[X], args[0], op, "x") < 0 ||
      spt_py_view_of(&v[OUT], args[2], op, "out") < 0 || spt_py_begin(&call, op, v, VIEWS) < 0) {
    return spt_py_failed(v, VIEWS);
  }
  a.x = v[X].tensor;
  a.y = v[OUT].tensor;
  a.tanh = tanh;
  SPT_PY_CALL(status, spt_gelu(call.device, &a, &err));
  return spt_py_end(&call, status, &err);
}

/* dropout(x, p, seed, out) */
PyObject *spt_py_dropout(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
  (void)self;
  const char *op = "dropout";
  enum { X, OUT, VIEWS };
  spt_py_view v[VIEWS] = {0};
  spt_dropout_args a = {0};
  spt_error err;
  spt_status status = SPT_OK;
  spt_py_call call;
  if (spt_py_check_count(op, nargs, 4) < 0 || spt_py_number_of(&a.p, args[1], op, "p") < 0) {
    return NULL;
  }
  a.seed = PyLong_AsUnsignedLongLong(args[2]);
  if (PyErr_Occurred() || spt_py_view_of(&v[X], args[0], op, "x") < 0 ||
      spt_py_view_of(&v[OUT], args[3], op, "out") < 0 || spt_py_begin(&call, op, v, VIEWS) < 0) {
    return spt_py_failed(v, VIEWS);
  }
  a.x = v[X].tensor;
  a.y = v[OUT].tensor;
  SPT_PY_CALL(status, spt_dropout(call.device, &a, &err));
  return spt_py_end(&call, status, &err);
}

/* softmax(x, out) */
PyObject *spt_py_softmax(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
  (void)self;
  const char *op = "softmax";
  enum { X, OUT, VIEWS };
  spt_py_view v[VIEWS] = {0};
  spt_softmax_args a = {0};
  spt_error err;
  spt_status status = SPT_OK;
  spt_py_call call;
  if (spt_py_check_count(op, nargs, 2) < 0) {
    return NULL;
  }
  if (spt_py_view_of(&v[X], args[0], op, "x") < 0 ||
      spt_py_view_of(&v[OUT], args[1], op, "out") < 0 || spt_py_begin(&call, op, v, VIEWS) < 0) {
    return spt_py_failed(v, VIEWS);
  }
  a.x = v[X].tensor;
  a.y = v[OUT].tensor;
  SPT_PY_CALL(status, spt_softmax(call.device, &a, &err));
  return spt_py_end(&call, status, &err);
}

/* embedding(ids, table, out) */
PyObject *spt_py_embedding(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
  (void)self;
  const char *op = "embedding";
  enum { IDS, TABLE, OUT, VIEWS };
  spt_py_view v[VIEWS] = {0};
  spt_embedding_args a = {0};
  spt_error err;
  spt_status status = SPT_OK;
  spt_py_call call;
  if (spt_py_check_count(op, nargs, 3) < 0) {
    return NULL;
  }
  if (spt_py_view_of(&v[IDS], args[0], op, "ids") < 0 ||
      spt_py_view_of(&v[TABLE], args[1], op, "table") < 0 ||
      spt_py_view_of(&v[OUT], args[2], op, "out") < 0 || spt_py_begin(&call, op, v, VIEWS) < 0) {
    return spt_py_failed(v, VIEWS);
  }
  a.ids = v[IDS].tensor;
  a.table = v[TABLE].tensor;
  a.rows = v[OUT].tensor;
  SPT_PY_CALL(status, spt_embedding(call.device, &a, &err));
  return spt_py_end(&call, status, &err);
}
