/* What the files of the extension share. The only folder that includes Python.h. */
#ifndef SPATILE_BINDING_H
#define SPATILE_BINDING_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "../spatile.h"

/* A tensor view with the object that keeps its memory alive; zeroed means absent. */
typedef struct spt_py_view {
  spt_tensor tensor;
  PyObject *owner;
} spt_py_view;

/* A NumPy array, or anything with __dlpack__ on the CPU. Returns -1 with an exception set. */
int spt_py_view_of(spt_py_view *view, PyObject *object, const char *op, const char *arg);
/* The same, where None means absent: then the view stays zeroed. */
int spt_py_optional_view_of(spt_py_view *view, PyObject *object, const char *op, const char *arg);
void spt_py_release(spt_py_view *views, int count);
static inline const spt_tensor *spt_py_optional(const spt_py_view *view) {
  return view->owner != NULL ? &view->tensor : NULL;
}

/* A Python number as a double. Returns -1 with an exception set. */
int spt_py_number_of(double *number, PyObject *object, const char *op, const char *arg);

/* NULL for success or failure alike: sets the exception that the status stands for. */
PyObject *spt_py_raise(spt_status status, const spt_error *err);

/* What an op without a result returns: releases the views, then None or NULL as above. */
PyObject *spt_py_finish(spt_status status, const spt_error *err, spt_py_view *views, int count);

/* The first three arguments of an op on groups: an array, group_rows, group_cols. */
int spt_py_grouped_view_of(spt_py_view *view, PyObject *const *args, const char *op,
                           const char *arg, int64_t *group_rows, int64_t *group_cols);

int spt_py_check_count(const char *op, Py_ssize_t found, Py_ssize_t expected);

/* Packed weights travel as capsules that own references to their arrays (weights.c). */
#define SPT_PY_STRIPS "spatile.strips"
#define SPT_PY_CSR "spatile.csr"

#define SPT_PY_METHOD(name, doc) \
  {#name, (PyCFunction)(void (*)(void))spt_py_##name, METH_FASTCALL, doc}
#define SPT_PY_DECLARE(name) PyObject *spt_py_##name(PyObject *, PyObject *const *, Py_ssize_t)

SPT_PY_DECLARE(linear);
SPT_PY_DECLARE(linear_backward);
SPT_PY_DECLARE(group_norms);
SPT_PY_DECLARE(group_beta);
SPT_PY_DECLARE(group_lasso);
SPT_PY_DECLARE(group_lasso_grad);
SPT_PY_DECLARE(group_shrink);
SPT_PY_DECLARE(apply_mask);
SPT_PY_DECLARE(expand_mask);
SPT_PY_DECLARE(prune_mask);
SPT_PY_DECLARE(second_order_removals);
SPT_PY_DECLARE(second_order_apply);
SPT_PY_DECLARE(layer_norm);
SPT_PY_DECLARE(gelu);
SPT_PY_DECLARE(dropout);
SPT_PY_DECLARE(softmax);
SPT_PY_DECLARE(embedding);
SPT_PY_DECLARE(topk);
SPT_PY_DECLARE(select_tokens);
SPT_PY_DECLARE(gather_tokens);
SPT_PY_DECLARE(attention);
SPT_PY_DECLARE(attention_backward);
SPT_PY_DECLARE(strips);
SPT_PY_DECLARE(csr);

/* The strips in a capsule as products in bfloat16 read them; NULL where that is made at each call. */
SPT_WARN_UNUSED spt_status spt_py_prepared(PyObject *capsule, const spt_prepared **, spt_error *);

/* -1 and a ValueError where spt_py_drop_values was here. */
int spt_py_check_values(PyObject *capsule, const char *op);

/* The strips' values go, and their shape stays: for an encoder that keeps weights in another form. */
void spt_py_drop_values(PyObject *capsule);

/* Adds the type Encoder (encoder.c). */
int spt_py_add_encoder(PyObject *module);

/* Runs an op without the GIL. */
#define SPT_PY_CALL(status, call) \
  do {                            \
    Py_BEGIN_ALLOW_THREADS;       \
    (status) = (call);            \
    Py_END_ALLOW_THREADS;         \
  } while (0)

#endif
