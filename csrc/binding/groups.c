#include "binding.h"

/* w, group_rows, group_cols begin the arguments of every op on groups. */
static int weights_of(PyObject *const *args, const char *op, spt_py_view *w, int64_t *group_rows,
                      int64_t *group_cols) {
  *group_rows = PyLong_AsLongLong(args[1]);
  *group_cols = PyErr_Occurred() ? 0 : PyLong_AsLongLong(args[2]);
  return PyErr_Occurred() ? -1 : spt_py_view_of(w, args[0], op, "w");
}

/* group_norms(w, group_rows, group_cols, norms) */
PyObject *spt_py_group_norms(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
  (void)self;
  const char *op = "group_norms";
  enum { W, NORMS, VIEWS };
  spt_py_view v[VIEWS] = {0};
  spt_group_norms_args a = {0};
  spt_error err;
  spt_status status = SPT_OK;
  PyObject *result = NULL;
  if (spt_py_check_count(op, nargs, 4) < 0) {
    return NULL;
  }
  if (weights_of(args, op, &v[W], &a.group_rows, &a.group_cols) < 0 ||
      spt_py_view_of(&v[NORMS], args[3], op, "norms") < 0) {
    goto done;
  }
  a.w = v[W].tensor;
  a.norms = v[NORMS].tensor;
  SPT_PY_CALL(status, spt_group_norms(spt_cpu_device(), &a, &err));
  result = status == SPT_OK ? Py_NewRef(Py_None) : spt_py_raise(status, &err);
done:
  spt_py_release(v, VIEWS);
  return result;
}

/* group_beta(w, group_rows, group_cols, eps, beta) */
PyObject *spt_py_group_beta(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
  (void)self;
  const char *op = "group_beta";
  enum { W, BETA, VIEWS };
  spt_py_view v[VIEWS] = {0};
  spt_group_beta_args a = {0};
  spt_error err;
  spt_status status = SPT_OK;
  PyObject *result = NULL;
  if (spt_py_check_count(op, nargs, 5) < 0) {
    return NULL;
  }
  if (weights_of(args, op, &v[W], &a.group_rows, &a.group_cols) < 0 ||
      spt_py_number_of(&a.eps, args[3], op, "eps") < 0 ||
      spt_py_view_of(&v[BETA], args[4], op, "beta") < 0) {
    goto done;
  }
  a.w = v[W].tensor;
  a.beta = v[BETA].tensor;
  SPT_PY_CALL(status, spt_group_beta(spt_cpu_device(), &a, &err));
  result = status == SPT_OK ? Py_NewRef(Py_None) : spt_py_raise(status, &err);
done:
  spt_py_release(v, VIEWS);
  return result;
}

/* group_lasso(w, group_rows, group_cols, beta or None) → float */
PyObject *spt_py_group_lasso(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
  (void)self;
  const char *op = "group_lasso";
  enum { W, BETA, VIEWS };
  spt_py_view v[VIEWS] = {0};
  double penalty = 0.0;
  spt_group_lasso_args a = {.penalty = &penalty};
  spt_error err;
  spt_status status = SPT_OK;
  PyObject *result = NULL;
  if (spt_py_check_count(op, nargs, 4) < 0) {
    return NULL;
  }
  if (weights_of(args, op, &v[W], &a.group_rows, &a.group_cols) < 0 ||
      spt_py_optional_view_of(&v[BETA], args[3], op, "beta") < 0) {
    goto done;
  }
  a.w = v[W].tensor;
  a.beta = spt_py_optional(&v[BETA]);
  SPT_PY_CALL(status, spt_group_lasso(spt_cpu_device(), &a, &err));
  result = status == SPT_OK ? PyFloat_FromDouble(penalty) : spt_py_raise(status, &err);
done:
  spt_py_release(v, VIEWS);
  return result;
}

/* group_lasso_grad(w, group_rows, group_cols, beta or None, strength, grad, add) */
PyObject *spt_py_group_lasso_grad(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
  (void)self;
  enum { W, BETA, GRAD, VIEWS };
  spt_py_view v[VIEWS] = {0};
  spt_group_lasso_grad_args a = {0};
  spt_error err;
  spt_status status = SPT_OK;
  PyObject *result = NULL;
  if (spt_py_check_count("group_lasso_grad", nargs, 7) < 0) {
    return NULL;
  }
  int add = PyObject_IsTrue(args[6]);
  const char *op = add ? "add_group_lasso_grad_" : "group_lasso_grad";
  if (add < 0 || weights_of(args, op, &v[W], &a.group_rows, &a.group_cols) < 0 ||
      spt_py_optional_view_of(&v[BETA], args[3], op, "beta") < 0 ||
      spt_py_number_of(&a.strength, args[4], op, "strength") < 0 ||
      spt_py_view_of(&v[GRAD], args[5], op, "grad") < 0) {
    goto done;
  }
  a.w = v[W].tensor;
  a.grad = v[GRAD].tensor;
  a.beta = spt_py_optional(&v[BETA]);
  a.add = add;
  SPT_PY_CALL(status, spt_group_lasso_grad(spt_cpu_device(), &a, &err));
  result = status == SPT_OK ? Py_NewRef(Py_None) : spt_py_raise(status, &err);
done:
  spt_py_release(v, VIEWS);
  return result;
}

/* group_shrink(w, group_rows, group_cols, beta or None, strength) */
PyObject *spt_py_group_shrink(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
  (void)self;
  const char *op = "group_shrink_";
  enum { W, BETA, VIEWS };
  spt_py_view v[VIEWS] = {0};
  spt_group_shrink_args a = {0};
  spt_error err;
  spt_status status = SPT_OK;
  PyObject *result = NULL;
  if (spt_py_check_count(op, nargs, 5) < 0) {
    return NULL;
  }
  if (weights_of(args, op, &v[W], &a.group_rows, &a.group_cols) < 0 ||
      spt_py_optional_view_of(&v[BETA], args[3], op, "beta") < 0 ||
      spt_py_number_of(&a.strength, args[4], op, "strength") < 0) {
    goto done;
  }
  a.w = v[W].tensor;
  a.beta = spt_py_optional(&v[BETA]);
  SPT_PY_CALL(status, spt_group_shrink(spt_cpu_device(), &a, &err));
  result = status == SPT_OK ? Py_NewRef(Py_None) : spt_py_raise(status, &err);
done:
  spt_py_release(v, VIEWS);
  return result;
}
