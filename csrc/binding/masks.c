#include <stdlib.h>
#include <string.h>

#include "binding.h"

enum { GROUPED, OTHER, VIEWS };

/* What is grouped, group_rows, group_cols, and another array. */
static int read_arguments(spt_py_call *call, spt_py_view *v, int64_t *group_rows,
                          int64_t *group_cols, PyObject *const *args, Py_ssize_t nargs,
                          const char *op, const char *grouped, const char *other) {
  memset(v, 0, VIEWS * sizeof *v);
  if (spt_py_check_count(op, nargs, 4) < 0 ||
      spt_py_grouped_view_of(&v[GROUPED], args, op, grouped, group_rows, group_cols) < 0 ||
      spt_py_view_of(&v[OTHER], args[3], op, other) < 0 || spt_py_begin(call, op, v, VIEWS) < 0) {
    spt_py_release(v, VIEWS);
    return -1;
  }
  return 0;
}

/* apply_mask(w, group_rows, group_cols, mask) */
PyObject *spt_py_apply_mask(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
  (void)self;
  spt_py_view v[VIEWS];
  spt_py_call call;
  spt_apply_mask_args a = {0};
  spt_error err;
  spt_status status = SPT_OK;
  if (read_arguments(&call, v, &a.group_rows, &a.group_cols, args, nargs, "apply_mask_", "w",
                     "mask") < 0) {
    return NULL;
  }
  a.w = v[GROUPED].tensor;
  a.mask = v[OTHER].tensor;
  SPT_PY_CALL(status, spt_apply_mask(call.device, &a, &err));
  return spt_py_end(&call, status, &err);
}

/* expand_mask(mask, group_rows, group_cols, expanded) */
PyObject *spt_py_expand_mask(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
  (void)self;
  spt_py_view v[VIEWS];
  spt_py_call call;
  spt_expand_mask_args a = {0};
  spt_error err;
  spt_status status = SPT_OK;
  if (read_arguments(&call, v, &a.group_rows, &a.group_cols, args, nargs, "expand_mask", "mask",
                     "expanded") < 0) {
    return NULL;
  }
  a.mask = v[GROUPED].tensor;
  a.expanded = v[OTHER].tensor;
  SPT_PY_CALL(status, spt_expand_mask(call.device, &a, &err));
  return spt_py_end(&call, status, &err);
}

/* matrices: a tuple of (w, group_rows, group_cols, mask); views: two for each. */
static int views_of(PyObject *matrices, const char *op, spt_prune_matrix *m, spt_py_view *views) {
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(matrices); i++) {
    PyObject *w, *mask;
    long long group_rows, group_cols;
    if (!PyArg_ParseTuple(PyTuple_GET_ITEM(matrices, i), "OLLO", &w, &group_rows, &group_cols,
                          &mask) ||
        spt_py_view_of(&views[2 * i], w, op, "w") < 0 ||
        spt_py_view_of(&views[2 * i + 1], mask, op, "mask") < 0) {
      return -1;
    }
    m[i].group_rows = group_rows;
    m[i].group_cols = group_cols;
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
  spt_py_call call;
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
      views_of(args[0], op, matrices, views) < 0 ||
      spt_py_begin(&call, op, views, 2 * (int)n) < 0) {
    spt_py_release(views, 2 * (int)n);
    goto done;
  }
  for (Py_ssize_t i = 0; i < n; i++) {
    matrices[i].w = views[2 * i].tensor;
    matrices[i].mask = views[2 * i + 1].tensor;
  }
  SPT_PY_CALL(status, spt_prune_mask(call.device, &a, &err));
  result = spt_py_end(&call, status, &err);
done:
  free(views);
  free(matrices);
  return result;
}
