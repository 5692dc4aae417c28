#include <stdlib.h>

#include "binding.h"

/* apply_mask(w, group_rows, group_cols, mask) */
PyObject *spt_py_apply_mask(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
  (void)self;
  const char *op = "apply_mask_";
  enum { W, MASK, VIEWS };
  spt_py_view v[VIEWS] = {0};
  spt_apply_mask_args a = {0};
  spt_error err;
  spt_status status = SPT_OK;
  PyObject *result = NULL;
  if (spt_py_check_count(op, nargs, 4) < 0) {
    return NULL;
  }
  a.group_rows = PyLong_AsLongLong(args[1]);
  a.group_cols = PyErr_Occurred() ? 0 : PyLong_AsLongLong(args[2]);
  if (PyErr_Occurred() || spt_py_view_of(&v[W], args[0], op, "w") < 0 ||
      spt_py_view_of(&v[MASK], args[3], op, "mask") < 0) {
    goto done;
  }
  a.w = v[W].tensor;
  a.mask = v[MASK].tensor;
  SPT_PY_CALL(status, spt_apply_mask(spt_cpu_device(), &a, &err));
  result = status == SPT_OK ? Py_NewRef(Py_None) : spt_py_raise(status, &err);
done:
  spt_py_release(v, VIEWS);
  return result;
}

/* expand_mask(mask, group_rows, group_cols, expanded) */
PyObject *spt_py_expand_mask(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
  (void)self;
  const char *op = "expand_mask";
  enum { MASK, EXPANDED, VIEWS };
  spt_py_view v[VIEWS] = {0};
  spt_expand_mask_args a = {0};
  spt_error err;
  spt_status status = SPT_OK;
  PyObject *result = NULL;
  if (spt_py_check_count(op, nargs, 4) < 0) {
    return NULL;
  }
  a.group_rows = PyLong_AsLongLong(args[1]);
  a.group_cols = PyErr_Occurred() ? 0 : PyLong_AsLongLong(args[2]);
  if (PyErr_Occurred() || spt_py_view_of(&v[MASK], args[0], op, "mask") < 0 ||
      spt_py_view_of(&v[EXPANDED], args[3], op, "expanded") < 0) {
    goto done;
  }
  a.mask = v[MASK].tensor;
  a.expanded = v[EXPANDED].tensor;
  SPT_PY_CALL(status, spt_expand_mask(spt_cpu_device(), &a, &err));
  result = status == SPT_OK ? Py_NewRef(Py_None) : spt_py_raise(status, &err);
done:
  spt_py_release(v, VIEWS);
  return result;
}

/* matrices: a tuple of (w, group_rows, group_cols, mask); views: two for each. */
static int matrices_of(PyObject *matrices, const char *op, spt_prune_matrix *m,
                       spt_py_view *views) {
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(matrices); i++) {
    PyObject *w, *mask;
    long long group_rows, group_cols;
    if (!PyArg_ParseTuple(PyTuple_GET_ITEM(matrices, i), "OLLO", &w, &group_rows, &group_cols,
                          &mask) ||
        spt_py_view_of(&views[2 * i], w, op, "w") < 0 ||
        spt_py_view_of(&views[2 * i + 1], mask, op, "mask") < 0) {
      return -1;
    }
    m[i] = (spt_prune_matrix){.w = views[2 * i].tensor,
                              .mask = views[2 * i + 1].tensor,
                              .group_rows = group_rows,
                              .group_cols = group_cols};
  }
  return 0;
}

/* prune_mask(matrices, sparsity, scope) */
PyObject *spt_py_prune_mask(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
  (void)self;
  const char *op = "prune_mask";
  spt_error err;
  spt_status status = SPT_OK;
  PyObject *result = NULL;
  if (spt_py_check_count(op, nargs, 3) < 0) {
    return NULL;
  }
  if (!PyTuple_Check(args[0])) {
    PyErr_SetString(PyExc_TypeError, "prune_mask: matrices is no tuple");
    return NULL;
  }
  Py_ssize_t n = PyTuple_GET_SIZE(args[0]);
  spt_prune_mask_args a = {.n_matrices = n};
  spt_prune_matrix *matrices = calloc((size_t)n + 1, sizeof *matrices);
  spt_py_view *views = calloc((size_t)n + 1, 2 * sizeof *views);
  if (matrices == NULL || views == NULL) {
    PyErr_NoMemory();
    goto done;
  }
  a.matrices = matrices;
  a.scope = (spt_prune_scope)PyLong_AsLong(args[2]);
  if (PyErr_Occurred() || spt_py_number_of(&a.sparsity, args[1], op, "sparsity") < 0 ||
      matrices_of(args[0], op, matrices, views) < 0) {
    goto done;
  }
  SPT_PY_CALL(status, spt_prune_mask(spt_cpu_device(), &a, &err));
  result = status == SPT_OK ? Py_NewRef(Py_None) : spt_py_raise(status, &err);
done:
  if (views != NULL) {
    spt_py_release(views, 2 * (int)n);
  }
  free(views);
  free(matrices);
  return result;
}
