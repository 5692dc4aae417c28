#include "binding.h"

/* The arguments that both ops begin with: op, index, w, group_rows, group_cols, gram, damping. */
struct common {
  const char *op;
  int64_t index;
  int64_t group_rows, group_cols;
  double damping;
};

enum { W, GRAM, FIRST, SECOND, VIEWS };

static int common_of(PyObject *const *args, struct common *c, spt_py_view *v) {
  c->op = PyUnicode_AsUTF8(args[0]);
  if (c->op == NULL) {
    return -1;
  }
  c->index = PyLong_AsLongLong(args[1]);
  c->group_rows = PyErr_Occurred() ? 0 : PyLong_AsLongLong(args[3]);
  c->group_cols = PyErr_Occurred() ? 0 : PyLong_AsLongLong(args[4]);
  if (PyErr_Occurred() || spt_py_view_of(&v[W], args[2], c->op, "w") < 0 ||
      spt_py_view_of(&v[GRAM], args[5], c->op, "gram") < 0) {
    return -1;
  }
  return spt_py_number_of(&c->damping, args[6], c->op, "damping");
}

/* second_order_removals(op, index, w, group_rows, group_cols, gram, damping, order, cost) */
PyObject *spt_py_second_order_removals(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
  (void)self;
  spt_py_view v[VIEWS] = {0};
  struct common c = {0};
  spt_error err;
  spt_status status = SPT_OK;
  spt_py_call call;
  if (spt_py_check_count("second_order_removals", nargs, 9) < 0) {
    return NULL;
  }
  if (common_of(args, &c, v) < 0 || spt_py_view_of(&v[FIRST], args[7], c.op, "order") < 0 ||
      spt_py_view_of(&v[SECOND], args[8], c.op, "cost") < 0 ||
      spt_py_begin(&call, c.op, v, VIEWS) < 0) {
    return spt_py_failed(v, VIEWS);
  }
  spt_second_order_removals_args a = {.op = c.op,
                                      .index = c.index,
                                      .w = v[W].tensor,
                                      .gram = v[GRAM].tensor,
                                      .order = v[FIRST].tensor,
                                      .cost = v[SECOND].tensor,
                                      .group_rows = c.group_rows,
                                      .group_cols = c.group_cols,
                                      .damping = c.damping};
  SPT_PY_CALL(status, spt_second_order_removals(call.device, &a, &err));
  return spt_py_end(&call, status, &err);
}

/* second_order_apply(op, index, w, group_rows, group_cols, gram, damping, mask, pruned) → float */
PyObject *spt_py_second_order_apply(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
  (void)self;
  spt_py_view v[VIEWS] = {0};
  struct common c = {0};
  spt_error err;
  spt_status status = SPT_OK;
  double cost = 0.0;
  spt_py_call call;
  if (spt_py_check_count("second_order_apply", nargs, 9) < 0) {
    return NULL;
  }
  if (common_of(args, &c, v) < 0 || spt_py_view_of(&v[FIRST], args[7], c.op, "mask") < 0 ||
      spt_py_view_of(&v[SECOND], args[8], c.op, "pruned") < 0 ||
      spt_py_begin(&call, c.op, v, VIEWS) < 0) {
    return spt_py_failed(v, VIEWS);
  }
  spt_second_order_apply_args a = {.op = c.op,
                                   .index = c.index,
                                   .w = v[W].tensor,
                                   .gram = v[GRAM].tensor,
                                   .mask = v[FIRST].tensor,
                                   .pruned = v[SECOND].tensor,
                                   .group_rows = c.group_rows,
                                   .group_cols = c.group_cols,
                                   .damping = c.damping,
                                   .cost = &cost};
  SPT_PY_CALL(status, spt_second_order_apply(call.device, &a, &err));
  PyObject *none = spt_py_end(&call, status, &err);
  Py_XDECREF(none);
  return none != NULL ? PyFloat_FromDouble(cost) : NULL;
}
