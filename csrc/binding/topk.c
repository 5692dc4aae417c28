#include "numpy_api.h"

/* offsets and counts are small host arrays that Python has made int64, contiguous and 1-D. */
static int sequences_of(PyObject *offsets, PyObject *counts, spt_topk_args *a) {
  PyObject *arrays[] = {offsets, counts};
  for (int i = 0; i < 2; i++) {
    if (!PyArray_Check(arrays[i]) || PyArray_TYPE((PyArrayObject *)arrays[i]) != NPY_INT64 ||
        PyArray_NDIM((PyArrayObject *)arrays[i]) != 1 ||
        !PyArray_IS_C_CONTIGUOUS((PyArrayObject *)arrays[i])) {
      PyErr_SetString(PyExc_TypeError, "topk: offsets and k are not contiguous int64 arrays");
      return -1;
    }
  }
  a->offsets = PyArray_DATA((PyArrayObject *)offsets);
  a->counts = PyArray_DATA((PyArrayObject *)counts);
  a->n_sequences = PyArray_DIM((PyArrayObject *)counts, 0);
  if (PyArray_DIM((PyArrayObject *)offsets, 0) != a->n_sequences + 1) {
    PyErr_SetString(PyExc_ValueError, "topk: the lengths of offsets and k disagree");
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
  PyObject *result = NULL;
  if (spt_py_check_count(op, nargs, 5) < 0) {
    return NULL;
  }
  if (args[2] == Py_None) {
    a.k = PyLong_AsLongLong(args[1]);
    if (PyErr_Occurred()) {
      return NULL;
    }
  } else if (sequences_of(args[2], args[1], &a) < 0) {
    return NULL;
  }
  if (spt_py_view_of(&v[SCORES], args[0], op, "scores") < 0 ||
      spt_py_view_of(&v[VALUES], args[3], op, "values") < 0 ||
      spt_py_view_of(&v[INDICES], args[4], op, "indices") < 0) {
    goto done;
  }
  a.scores = v[SCORES].tensor;
  a.values = v[VALUES].tensor;
  a.indices = v[INDICES].tensor;
  SPT_PY_CALL(status, spt_topk(spt_cpu_device(), &a, &err));
  result = status == SPT_OK ? Py_NewRef(Py_None) : spt_py_raise(status, &err);
done:
  spt_py_release(v, VIEWS);
  return result;
}
