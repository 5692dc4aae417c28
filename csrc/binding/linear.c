#include "binding.h"

/* A weight is an array, a capsule of weights.c, or a pair of an array and a capsule of strips. */
static int weight_of(PyObject *object, const char *op, spt_py_view *dense,
                     const spt_strips **strips, const spt_csr **csr) {
  *strips = NULL;
  *csr = NULL;
  if (PyTuple_Check(object) && PyTuple_GET_SIZE(object) == 2 &&
      PyCapsule_IsValid(PyTuple_GET_ITEM(object, 1), SPT_PY_STRIPS)) {
    *strips = PyCapsule_GetPointer(PyTuple_GET_ITEM(object, 1), SPT_PY_STRIPS);
    return spt_py_view_of(dense, PyTuple_GET_ITEM(object, 0), op, "w");
  }
  if (PyCapsule_IsValid(object, SPT_PY_STRIPS)) {
    *strips = PyCapsule_GetPointer(object, SPT_PY_STRIPS);
    return spt_py_check_values(object, op);
  }
  if (PyCapsule_IsValid(object, SPT_PY_CSR)) {
    *csr = PyCapsule_GetPointer(object, SPT_PY_CSR);
    return 0;
  }
  return spt_py_view_of(dense, object, op, "w");
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
  PyObject *result = NULL;
  if (spt_py_check_count(op, nargs, 7) < 0) {
    return NULL;
  }
  a.compute = PyObject_IsTrue(args[6]) == 1 ? SPT_BF16 : SPT_F32;
  a.activation = (spt_activation)PyLong_AsLong(args[5]);
  if (PyErr_Occurred() || spt_py_view_of(&v[X], args[0], op, "x") < 0 ||
      weight_of(args[1], op, &v[W], &a.strips, &a.csr) < 0 ||
      spt_py_view_of(&v[OUT], args[2], op, "out") < 0 ||
      spt_py_optional_view_of(&v[BIAS], args[3], op, "bias") < 0 ||
      spt_py_optional_view_of(&v[RESIDUAL], args[4], op, "residual") < 0) {
    goto done;
  }
  a.x = v[X].tensor;
  a.y = v[OUT].tensor;
  a.dense = spt_py_optional(&v[W]);
  a.bias = spt_py_optional(&v[BIAS]);
  a.residual = spt_py_optional(&v[RESIDUAL]);
  if (a.compute == SPT_BF16 && PyCapsule_IsValid(args[1], SPT_PY_STRIPS) &&
      (status = spt_py_prepared(args[1], &a.prepared, &err)) != SPT_OK) {
    spt_py_raise(status, &err);
    goto done;
  }
  SPT_PY_CALL(status, spt_linear(spt_cpu_device(), &a, &err));
  result = status == SPT_OK ? Py_NewRef(Py_None) : spt_py_raise(status, &err);
done:
  spt_py_release(v, VIEWS);
  return result;
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
  PyObject *result = NULL;
  if (spt_py_check_count(op, nargs, 7) < 0) {
    return NULL;
  }
  a.compute = PyObject_IsTrue(args[6]) == 1 ? SPT_BF16 : SPT_F32;
  if (spt_py_view_of(&v[GRAD], args[0], op, "grad") < 0 ||
      spt_py_view_of(&v[X], args[1], op, "x") < 0 ||
      weight_of(args[2], op, &v[W], &a.strips, &a.csr) < 0 ||
      spt_py_optional_view_of(&v[DX], args[3], op, "dx") < 0 ||
      spt_py_optional_view_of(&v[DW], args[4], op, "dw") < 0 ||
      spt_py_optional_view_of(&v[DBIAS], args[5], op, "dbias") < 0) {
    goto done;
  }
  a.grad = v[GRAD].tensor;
  a.x = v[X].tensor;
  a.dense = spt_py_optional(&v[W]);
  a.dx = spt_py_optional(&v[DX]);
  a.dw = spt_py_optional(&v[DW]);
  a.dbias = spt_py_optional(&v[DBIAS]);
  SPT_PY_CALL(status, spt_linear_backward(spt_cpu_device(), &a, &err));
  result = status == SPT_OK ? Py_NewRef(Py_None) : spt_py_raise(status, &err);
done:
  spt_py_release(v, VIEWS);
  return result;
}
