#include "binding.h"

int spt_py_grouped_view_of(spt_py_view *view, PyObject *const *args, const char *op,
                           const char *arg, int64_t *group_rows, int64_t *group_cols) {
  *group_rows = PyLong_AsLongLong(args[1]);
  *group_cols = PyErr_Occurred() ? 0 : PyLong_AsLongLong(args[2]);
  return PyErr_Occurred() ? -1 : spt_py_view_of(view, args[0], op, arg);
}

/* What the ops on groups take: w, group_rows, group_cols first, the others at places of their own, 0
 * where an op has none. */
struct places {
  const char *op;
  int count, beta, amount, result;
  const char *amount_name, *result_name;
};

enum { W, BETA, RESULT, VIEWS };

struct arguments {
  spt_py_view v[VIEWS];
  int64_t group_rows, group_cols;
  double amount;
  spt_py_call call;
};

static int read_arguments(struct arguments *a, const struct places *at, PyObject *const *args,
                          Py_ssize_t nargs) {
  *a = (struct arguments){0};
  if (spt_py_check_count(at->op, nargs, at->count) < 0 ||
      spt_py_grouped_view_of(&a->v[W], args, at->op, "w", &a->group_rows, &a->group_cols) < 0 ||
      (at->beta > 0 && spt_py_optional_view_of(&a->v[BETA], args[at->beta], at->op, "beta") < 0) ||
      (at->amount > 0 &&
       spt_py_number_of(&a->amount, args[at->amount], at->op, at->amount_name) < 0) ||
      (at->result > 0 &&
       spt_py_view_of(&a->v[RESULT], args[at->result], at->op, at->result_name) < 0) ||
      spt_py_begin(&a->call, at->op, a->v, VIEWS) < 0) {
    spt_py_release(a->v, VIEWS);
    return -1;
  }
  return 0;
}

/* group_norms(w, group_rows, group_cols, norms) */
PyObject *spt_py_group_norms(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
  (void)self;
  struct arguments a;
  spt_error err;
  spt_status status = SPT_OK;
  const struct places at = {"group_norms", 4, .result = 3, .result_name = "norms"};
  if (read_arguments(&a, &at, args, nargs) < 0) {
    return NULL;
  }
  spt_group_norms_args op = {.w = a.v[W].tensor,
                             .group_rows = a.group_rows,
                             .group_cols = a.group_cols,
                             .norms = a.v[RESULT].tensor};
  SPT_PY_CALL(status, spt_group_norms(a.call.device, &op, &err));
  return spt_py_end(&a.call, status, &err);
}

/* group_beta(w, group_rows, group_cols, eps, beta) */
PyObject *spt_py_group_beta(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
  (void)self;
  struct arguments a;
  spt_error err;
  spt_status status = SPT_OK;
  const struct places at = {"group_beta",         5,           .amount = 3,
                            .amount_name = "eps", .result = 4, .result_name = "beta"};
  if (read_arguments(&a, &at, args, nargs) < 0) {
    return NULL;
  }
  spt_group_beta_args op = {.w = a.v[W].tensor,
                            .group_rows = a.group_rows,
                            .group_cols = a.group_cols,
                            .eps = a.amount,
                            .beta = a.v[RESULT].tensor};
  SPT_PY_CALL(status, spt_group_beta(a.call.device, &op, &err));
  return spt_py_end(&a.call, status, &err);
}

/* group_lasso(w, group_rows, group_cols, beta or None) → float */
PyObject *spt_py_group_lasso(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
  (void)self;
  struct arguments a;
  double penalty = 0.0;
  spt_error err;
  spt_status status = SPT_OK;
  const struct places at = {"group_lasso", 4, .beta = 3};
  if (read_arguments(&a, &at, args, nargs) < 0) {
    return NULL;
  }
  spt_group_lasso_args op = {.w = a.v[W].tensor,
                             .group_rows = a.group_rows,
                             .group_cols = a.group_cols,
                             .beta = spt_py_optional(&a.v[BETA]),
                             .penalty = &penalty};
  SPT_PY_CALL(status, spt_group_lasso(a.call.device, &op, &err));
  PyObject *none = spt_py_end(&a.call, status, &err);
  if (none == NULL) {
    return NULL;
  }
  Py_DECREF(none);
  return PyFloat_FromDouble(penalty);
}

/* group_lasso_grad(w, group_rows, group_cols, beta or None, strength, grad, add) */
PyObject *spt_py_group_lasso_grad(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
  (void)self;
  struct arguments a;
  spt_error err;
  spt_status status = SPT_OK;
  int add = nargs == 7 ? PyObject_IsTrue(args[6]) : 0;
  const struct places at = {add ? "add_group_lasso_grad_" : "group_lasso_grad",
                            7,
                            .beta = 3,
                            .amount = 4,
                            .amount_name = "strength",
                            .result = 5,
                            .result_name = "grad"};
  if (add < 0 || read_arguments(&a, &at, args, nargs) < 0) {
    return NULL;
  }
  spt_group_lasso_grad_args op = {.w = a.v[W].tensor,
                                  .group_rows = a.group_rows,
                                  .group_cols = a.group_cols,
                                  .beta = spt_py_optional(&a.v[BETA]),
                                  .strength = a.amount,
                                  .grad = a.v[RESULT].tensor,
                                  .add = add};
  SPT_PY_CALL(status, spt_group_lasso_grad(a.call.device, &op, &err));
  return spt_py_end(&a.call, status, &err);
}

/* group_shrink(w, group_rows, group_cols, beta or None, strength) */
PyObject *spt_py_group_shrink(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
  (void)self;
  struct arguments a;
  spt_error err;
  spt_status status = SPT_OK;
  const struct places at = {"group_shrink_", 5, .beta = 3, .amount = 4, .amount_name = "strength"};
  if (read_arguments(&a, &at, args, nargs) < 0) {
    return NULL;
  }
  spt_group_shrink_args op = {.w = a.v[W].tensor,
                              .group_rows = a.group_rows,
                              .group_cols = a.group_cols,
                              .beta = spt_py_optional(&a.v[BETA]),
                              .strength = a.amount};
  SPT_PY_CALL(status, spt_group_shrink(a.call.device, &op, &err));
  return spt_py_end(&a.call, status, &err);
}
