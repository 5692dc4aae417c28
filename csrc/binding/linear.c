#include <stdio.h>

#include "binding.h"

/* A weight is an array, a capsule of weights.c, or a pair of an array and a capsule of strips. */
typedef struct weight {
  PyObject *capsule; /* borrowed; NULL for an array alone */
  bool paired;
  const spt_strips *strips;
  const spt_csr *csr;
  spt_prepared *own; /* for this call alone */
} weight;

static int weight_of(PyObject *object, const char *op, spt_py_view *dense, weight *w) {
  *w = (weight){0};
  if (PyTuple_Check(object) && PyTuple_GET_SIZE(object) == 2 &&
      PyCapsule_IsValid(PyTuple_GET_ITEM(object, 1), SPT_PY_STRIPS)) {
    w->capsule = PyTuple_GET_ITEM(object, 1);
    w->paired = true;
    w->strips = PyCapsule_GetPointer(w->capsule, SPT_PY_STRIPS);
    return spt_py_view_of(dense, PyTuple_GET_ITEM(object, 0), op, "w");
  }
  if (PyCapsule_IsValid(object, SPT_PY_STRIPS)) {
    w->capsule = object;
    w->strips = PyCapsule_GetPointer(object, SPT_PY_STRIPS);
    return spt_py_check_values(object, op);
  }
  if (PyCapsule_IsValid(object, SPT_PY_CSR)) {
    w->capsule = object;
    w->csr = PyCapsule_GetPointer(object, SPT_PY_CSR);
    return 0;
  }
  return spt_py_view_of(dense, object, op, "w");
}

static void name_place(char *name, size_t size, int ordinal) {
  if (ordinal < 0) {
    snprintf(name, size, "the CPU");
  } else {
    snprintf(name, size, "cuda:%d", ordinal);
  }
}

/* Packed weights are where the arrays are: they were moved to the GPU, or go there as host arrays do.
 * The index of strips beside an array goes where the array is. */
static spt_status prepare(const spt_py_call *call, weight *w, spt_dtype compute,
                          const spt_prepared **prepared, spt_error *err) {
  int here = spt_device_ordinal(call->device);
  if (w->capsule == NULL) {
    return SPT_OK;
  }
  int there = spt_py_weights_ordinal(w->capsule);
  if (!w->paired && here != there && !spt_py_runs_elsewhere(call)) {
    char names[2][32];
    name_place(names[0], sizeof names[0], there);
    name_place(names[1], sizeof names[1], here);
    return spt_fail(err, SPT_INVALID_VALUE, "%s: w is on %s and %s on %s, expected one device",
                    call->op, names[0], call->views[0].arg, names[1]);
  }
  return spt_py_prepared(w->capsule, call->device, w->paired, compute, prepared, &w->own, err);
}

/* linear(x, w, out, bias or None, residual or None, activation, whether in bfloat16) */
PyObject *spt_py_linear(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
  (void)self;
  const char *op = "linear";
  enum { X, W, OUT, BIAS, RESIDUAL, VIEWS };
  spt_py_view v[VIEWS] = {0};
  spt_linear_args a = {0};
  spt_error err;
  spt_status status = SPT_OK;
  spt_py_call call;
  weight w;
  if (spt_py_check_count(op, nargs, 7) < 0) {
    return NULL;
  }
  a.compute = PyObject_IsTrue(args[6]) == 1 ? SPT_BF16 : SPT_F32;
  a.activation = (spt_activation)PyLong_AsLong(args[5]);
  if (PyErr_Occurred() || spt_py_view_of(&v[X], args[0], op, "x") < 0 ||
      weight_of(args[1], op, &v[W], &w) < 0 || spt_py_view_of(&v[OUT], args[2], op, "out") < 0 ||
      spt_py_optional_view_of(&v[BIAS], args[3], op, "bias") < 0 ||
      spt_py_optional_view_of(&v[RESIDUAL], args[4], op, "residual") < 0 ||
      spt_py_begin(&call, op, v, VIEWS) < 0) {
    return spt_py_failed(v, VIEWS);
  }
  a.x = v[X].tensor;
  a.y = v[OUT].tensor;
  a.dense = spt_py_optional(&v[W]);
  a.strips = w.strips;
  a.csr = w.csr;
  a.bias = spt_py_optional(&v[BIAS]);
  a.residual = spt_py_optional(&v[RESIDUAL]);
  status = prepare(&call, &w, a.compute, &a.prepared, &err);
  if (status == SPT_OK) {
    SPT_PY_CALL(status, spt_linear(call.device, &a, &err));
  }
  spt_prepared_free(w.own);
  return spt_py_end(&call, status, &err);
}

/* linear_backward(grad, x, w, dx or None, dw or None, dbias or None, whether in bfloat16) */
PyObject *spt_py_linear_backward(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
  (void)self;
  const char *op = "linear_backward";
  enum { GRAD, X, W, DX, DW, DBIAS, VIEWS };
  spt_py_view v[VIEWS] = {0};
  spt_linear_backward_args a = {0};
  spt_error err;
  spt_status status = SPT_OK;
  spt_py_call call;
  weight w;
  if (spt_py_check_count(op, nargs, 7) < 0) {
    return NULL;
  }
  a.compute = PyObject_IsTrue(args[6]) == 1 ? SPT_BF16 : SPT_F32;
  if (spt_py_view_of(&v[GRAD], args[0], op, "grad") < 0 ||
      spt_py_view_of(&v[X], args[1], op, "x") < 0 || weight_of(args[2], op, &v[W], &w) < 0 ||
      spt_py_optional_view_of(&v[DX], args[3], op, "dx") < 0 ||
      spt_py_optional_view_of(&v[DW], args[4], op, "dw") < 0 ||
      spt_py_optional_view_of(&v[DBIAS], args[5], op, "dbias") < 0 ||
      spt_py_begin(&call, op, v, VIEWS) < 0) {
    return spt_py_failed(v, VIEWS);
  }
  a.grad = v[GRAD].tensor;
  a.x = v[X].tensor;
  a.dense = spt_py_optional(&v[W]);
  a.strips = w.strips;
  a.csr = w.csr;
  a.dx = spt_py_optional(&v[DX]);
  a.dw = spt_py_optional(&v[DW]);
  a.dbias = spt_py_optional(&v[DBIAS]);
  if (spt_device_ordinal(call.device) >= 0) { /* the CPU's reads weights as they are */
    status = prepare(&call, &w, a.compute, &a.prepared, &err);
  }
  if (status == SPT_OK) {
    SPT_PY_CALL(status, spt_linear_backward(call.device, &a, &err));
  }
  spt_prepared_free(w.own);
  return spt_py_end(&call, status, &err);
}
