#include "numpy_api.h"

/* offsets and counts are small host arrays that Python has made int64, contiguous and 1-D. */
static int sequences_of(PyObject *offset_array, PyObject *count_array, const char *op,
                        const int64_t **offsets, const int64_t **counts, int64_t *n_sequences) {
  PyObject *arrays[] = {offset_array, count_array};
  for (int i = 0; i < 2; i++) {
    if (!PyArray_Check(arrays[i]) || PyArray_TYPE((PyArrayObject *)arrays[i]) != NPY_INT64 ||
        PyArray_NDIM((PyArrayObject *)arrays[i]) != 1 ||
        !PyArray_IS_C_CONTIGUOUS((PyArrayObject *)arrays[i])) {
      PyErr_Format(PyExc_TypeError, "%s: offsets and counts are not contiguous int64 arrays", op);
      return -1;
    }
  }
  *offsets = PyArray_DATA((PyArrayObject *)offset_array);
  *counts = PyArray_DATA((PyArrayObject *)count_array);
  *n_sequences = PyArray_DIM((PyArrayObject *)count_array, 0);
  if (PyArray_DIM((PyArrayObject *)offset_array, 0) != *n_sequences + 1) {
    PyErr_Format(PyExc_ValueError, "%s: the lengths of offsets and counts disagree", op);
    return -1;
  }
  return 0;
}

/* topk(scores, k, offsets or None, values, indices); k is an int, or an array beside offsets */
PyObject *spt_py_topk(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
  (void)self;
  const char *op = "topk";
  enum { SCORES, VALUES, INDICES, VIEWS };
  spt_py_view v[VIEWS] = {0};
  spt_topk_args a = {0};
  spt_error err;
  spt_status status = SPT_OK;
  spt_py_call call;
  if (spt_py_check_count(op, nargs, 5) < 0) {
    return NULL;
  }
  if (args[2] == Py_None) {
    a.k = PyLong_AsLongLong(args[1]);
    if (PyErr_Occurred()) {
      return NULL;
    }
  } else if (sequences_of(args[2], args[1], op, &a.offsets, &a.counts, &a.n_sequences) < 0) {
    return NULL;
  }
  if (spt_py_view_of(&v[SCORES], args[0], op, "scores") < 0 ||
      spt_py_view_of(&v[VALUES], args[3], op, "values") < 0 ||
      spt_py_view_of(&v[INDICES], args[4], op, "indices") < 0 ||
      spt_py_begin(&call, op, v, VIEWS) < 0) {
    return spt_py_failed(v, VIEWS);
  }
  a.scores = v[SCORES].tensor;
  a.values = v[VALUES].tensor;
  a.indices = v[INDICES].tensor;
  SPT_PY_CALL(status, spt_topk(call.device, &a, &err));
  return spt_py_end(&call, status, &err);
}

/* select_tokens(importance, counts, offsets, protect or None, indices) */
PyObject *spt_py_select_tokens(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
  (void)self;
  const char *op = "select_tokens";
  enum { IMPORTANCE, PROTECT, INDICES, VIEWS };
  spt_py_view v[VIEWS] = {0};
  spt_select_tokens_args a = {0};
  spt_error err;
  spt_status status = SPT_OK;
  spt_py_call call;
  if (spt_py_check_count(op, nargs, 5) < 0 ||
      sequences_of(args[2], args[1], op, &a.offsets, &a.counts, &a.n_sequences) < 0) {
    return NULL;
  }
  if (spt_py_view_of(&v[IMPORTANCE], args[0], op, "importance") < 0 ||
      spt_py_host_view_of(&v[PROTECT], args[3], SPT_PY_FOLLOWS, op, "protect") < 0 ||
      spt_py_view_of(&v[INDICES], args[4], op, "indices") < 0 ||
      spt_py_begin(&call, op, v, VIEWS) < 0) {
    return spt_py_failed(v, VIEWS);
  }
  a.importance = v[IMPORTANCE].tensor;
  a.protect = spt_py_optional(&v[PROTECT]);
  a.indices = v[INDICES].tensor;
  SPT_PY_CALL(status, spt_select_tokens(call.device, &a, &err));
  return spt_py_end(&call, status, &err);
}

/* gather_tokens(x, index, out) */
PyObject *spt_py_gather_tokens(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
  (void)self;
  const char *op = "gather_tokens";
  enum { X, INDEX, OUT, VIEWS };
  spt_py_view v[VIEWS] = {0};
  spt_gather_tokens_args a = {0};
  spt_error err;
  spt_status status = SPT_OK;
  spt_py_call call;
  if (spt_py_check_count(op, nargs, 3) < 0) {
    return NULL;
  }
  if (spt_py_view_of(&v[X], args[0], op, "x") < 0 ||
      spt_py_view_of(&v[INDEX], args[1], op, "index") < 0 ||
      spt_py_view_of(&v[OUT], args[2], op, "out") < 0 || spt_py_begin(&call, op, v, VIEWS) < 0) {
    return spt_py_failed(v, VIEWS);
  }
  a.x = v[X].tensor;
  a.index = v[INDEX].tensor;
  a.out = v[OUT].tensor;
  SPT_PY_CALL(status, spt_gather_tokens(call.device, &a, &err));
  return spt_py_end(&call, status, &err);
}
