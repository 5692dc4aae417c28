#include "binding.h"

/* Arguments that attention and attention_backward share, from args[0] on: causal, window_left,
 * window_right, scale, dropout, seed. */
#define OPTIONS 6

static int options_of(spt_attention_args *a, PyObject *const *args) {
  int causal = PyObject_IsTrue(args[0]);
  if (causal < 0) {
    return -1;
  }
  a->causal = causal == 1;
  a->window_left = PyLong_AsLongLong(args[1]);
  a->window_right = PyLong_AsLongLong(args[2]);
  a->scale = PyFloat_AsDouble(args[3]);
  a->dropout = PyFloat_AsDouble(args[4]);
  a->seed = PyLong_AsUnsignedLongLong(args[5]);
  return PyErr_Occurred() ? -1 : 0;
}

enum { Q, K, V, OUT, MASK, BIAS, LENGTHS, OFFSETS, KV_OFFSETS, LSE, SHARED_VIEWS };
static const char *const names[SHARED_VIEWS] = {
    [Q] = "q",
    [K] = "k",
    [V] = "v",
    [OUT] = "out",
    [MASK] = "mask",
    [BIAS] = "bias",
    [LENGTHS] = "lengths",
    [OFFSETS] = "offsets",
    [KV_OFFSETS] = "kv_offsets",
    [LSE] = "lse",
};

/* The views in the order of the enumeration; q, k, v and out are not optional. */
static int shared_views(spt_py_view *v, PyObject *const *args, const char *op) {
  for (int i = 0; i < SHARED_VIEWS; i++) {
    bool host = i == LENGTHS || i == OFFSETS || i == KV_OFFSETS;
    int status = host       ? spt_py_host_view_of(&v[i], args[i], SPT_PY_HOST, op, names[i])
                 : i <= OUT ? spt_py_view_of(&v[i], args[i], op, names[i])
                            : spt_py_optional_view_of(&v[i], args[i], op, names[i]);
    if (status < 0) {
      return -1;
    }
  }
  return 0;
}

static void shared_tensors(spt_attention_args *a, const spt_py_view *v) {
  a->q = v[Q].tensor;
  a->k = v[K].tensor;
  a->v = v[V].tensor;
  a->out = v[OUT].tensor;
  a->mask = spt_py_optional(&v[MASK]);
  a->bias = spt_py_optional(&v[BIAS]);
  a->lengths = spt_py_optional(&v[LENGTHS]);
  a->offsets = spt_py_optional(&v[OFFSETS]);
  a->kv_offsets = spt_py_optional(&v[KV_OFFSETS]);
  a->lse = spt_py_optional(&v[LSE]);
}

/* attention(q, k, v, out, mask, bias, lengths, offsets, kv_offsets, lse, token_importance,
 *           head_importance, causal, window_left, window_right, scale, dropout, seed) */
PyObject *spt_py_attention(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
  (void)self;
  const char *op = "attention";
  enum { TOKENS = SHARED_VIEWS, HEADS, VIEWS };
  spt_py_view v[VIEWS] = {0};
  spt_attention_args a = {0};
  spt_error err;
  spt_status status = SPT_OK;
  spt_py_call call;
  if (spt_py_check_count(op, nargs, VIEWS + OPTIONS) < 0) {
    return NULL;
  }
  if (shared_views(v, args, op) < 0 ||
      spt_py_optional_view_of(&v[TOKENS], args[TOKENS], op, "token_importance") < 0 ||
      spt_py_optional_view_of(&v[HEADS], args[HEADS], op, "head_importance") < 0 ||
      options_of(&a, args + VIEWS) < 0 || spt_py_begin(&call, op, v, VIEWS) < 0) {
    return spt_py_failed(v, VIEWS);
  }
  shared_tensors(&a, v);
  a.token_importance = spt_py_optional(&v[TOKENS]);
  a.head_importance = spt_py_optional(&v[HEADS]);
  SPT_PY_CALL(status, spt_attention(call.device, &a, &err));
  return spt_py_end(&call, status, &err);
}

/* attention_backward(q, k, v, out, mask, bias, lengths, offsets, kv_offsets, lse, grad, dq, dk, dv,
 *                    dbias, causal, window_left, window_right, scale, dropout, seed) */
PyObject *spt_py_attention_backward(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
  (void)self;
  const char *op = "attention_backward";
  enum { GRAD = SHARED_VIEWS, DQ, DK, DV, DBIAS, VIEWS };
  spt_py_view v[VIEWS] = {0};
  spt_attention_backward_args a = {0};
  spt_error err;
  spt_status status = SPT_OK;
  spt_py_call call;
  if (spt_py_check_count(op, nargs, VIEWS + OPTIONS) < 0) {
    return NULL;
  }
  if (shared_views(v, args, op) < 0 || spt_py_view_of(&v[GRAD], args[GRAD], op, "grad") < 0 ||
      spt_py_optional_view_of(&v[DQ], args[DQ], op, "dq") < 0 ||
      spt_py_optional_view_of(&v[DK], args[DK], op, "dk") < 0 ||
      spt_py_optional_view_of(&v[DV], args[DV], op, "dv") < 0 ||
      spt_py_optional_view_of(&v[DBIAS], args[DBIAS], op, "dbias") < 0 ||
      options_of(&a.forward, args + VIEWS) < 0 || spt_py_begin(&call, op, v, VIEWS) < 0) {
    return spt_py_failed(v, VIEWS);
  }
  shared_tensors(&a.forward, v);
  a.grad = v[GRAD].tensor;
  a.dq = spt_py_optional(&v[DQ]);
  a.dk = spt_py_optional(&v[DK]);
  a.dv = spt_py_optional(&v[DV]);
  a.dbias = spt_py_optional(&v[DBIAS]);
  SPT_PY_CALL(status, spt_attention_backward(call.device, &a, &err));
  return spt_py_end(&call, status, &err);
}
