/* spatile._core: the extension module. Multi-phase initialisation, no state but NumPy's table. */
#define SPT_IMPORT_NUMPY
#include "numpy_api.h"

static PyObject *cpu_tier(PyObject *self, PyObject *ignored) {
  (void)self;
  (void)ignored;
  int n = spt_cpu_tier_count();
  PyObject *names = PyTuple_New(n);
  for (int i = 0; names != NULL && i < n; i++) {
    PyObject *name = PyUnicode_FromString(spt_cpu_tier_at(i));
    if (name == NULL) {
      Py_CLEAR(names);
    } else {
      PyTuple_SET_ITEM(names, i, name);
    }
  }
  if (names == NULL) {
    return NULL;
  }
  return Py_BuildValue("ssN", spt_cpu_tier_name(), spt_cpu_tier_reason(), names);
}

static PyObject *bf16_is_native(PyObject *self, PyObject *ignored) {
  (void)self;
  (void)ignored;
  return PyBool_FromLong(spt_py_elsewhere || spt_cpu_bf16_is_native());
}

static PyObject *select_cpu_tier(PyObject *self, PyObject *name) {
  (void)self;
  spt_error err;
  const char *text = PyUnicode_AsUTF8(name);
  if (text == NULL) {
    return NULL;
  }
  spt_status status = spt_cpu_select_tier(text, &err);
  return status == SPT_OK ? Py_NewRef(Py_None) : spt_py_raise(status, &err);
}

static PyObject *num_threads(PyObject *self, PyObject *ignored) {
  (void)self;
  (void)ignored;
  return PyLong_FromLong(spt_num_threads());
}

static PyObject *set_num_threads(PyObject *self, PyObject *n) {
  (void)self;
  spt_error err;
  long long wanted = PyLong_AsLongLong(n);
  if (wanted == -1 && PyErr_Occurred()) {
    return NULL;
  }
  spt_status status;
  SPT_PY_CALL(status, spt_set_num_threads(wanted, &err));
  return status == SPT_OK ? Py_NewRef(Py_None) : spt_py_raise(status, &err);
}

static PyMethodDef methods[] = {
    SPT_PY_METHOD(linear, "linear(x, w, out, bias, residual, activation, bf16)"),
    SPT_PY_METHOD(linear_backward, "linear_backward(grad, x, w, dx, dw, dbias, bf16)"),
    SPT_PY_METHOD(group_norms, "group_norms(w, group_rows, group_cols, norms)"),
    SPT_PY_METHOD(group_beta, "group_beta(w, group_rows, group_cols, eps, beta)"),
    SPT_PY_METHOD(group_lasso, "group_lasso(w, group_rows, group_cols, beta)"),
    SPT_PY_METHOD(group_lasso_grad,
                  "group_lasso_grad(w, group_rows, group_cols, beta, strength, grad, add)"),
    SPT_PY_METHOD(group_shrink, "group_shrink(w, group_rows, group_cols, beta, strength)"),
    SPT_PY_METHOD(apply_mask, "apply_mask(w, group_rows, group_cols, mask)"),
    SPT_PY_METHOD(expand_mask, "expand_mask(mask, group_rows, group_cols, expanded)"),
    SPT_PY_METHOD(prune_mask, "prune_mask(matrices, sparsity, scope)"),
    SPT_PY_METHOD(second_order_removals,
                  "second_order_removals(op, index, w, group_rows, group_cols, gram, damping, "
                  "order, cost)"),
    SPT_PY_METHOD(second_order_apply,
                  "second_order_apply(op, index, w, group_rows, group_cols, gram, damping, mask, "
                  "pruned)"),
    SPT_PY_METHOD(layer_norm, "layer_norm(x, weight, bias, residual, eps, out)"),
    SPT_PY_METHOD(gelu, "gelu(x, tanh, out)"),
    SPT_PY_METHOD(dropout, "dropout(x, p, seed, out)"),
    SPT_PY_METHOD(softmax, "softmax(x, out)"),
    SPT_PY_METHOD(embedding, "embedding(ids, table, out)"),
    SPT_PY_METHOD(topk, "topk(scores, k, offsets, values, indices)"),
    SPT_PY_METHOD(select_tokens, "select_tokens(importance, counts, offsets, protect, indices)"),
    SPT_PY_METHOD(gather_tokens, "gather_tokens(x, index, out)"),
    SPT_PY_METHOD(attention,
                  "attention(q, k, v, out, mask, bias, lengths, offsets, kv_offsets, lse, "
                  "token_importance, head_importance, causal, window_left, "
                  "window_right, scale, dropout, seed)"),
    SPT_PY_METHOD(attention_backward,
                  "attention_backward(q, k, v, out, mask, bias, lengths, offsets, kv_offsets, lse, "
                  "grad, dq, dk, dv, dbias, causal, window_left, window_right, scale, dropout, "
                  "seed)"),
    SPT_PY_METHOD(strips,
                  "strips(out, in, run_ptr, value_ptr, run_start, run_len, values, rows, "
                  "dtype[, gpu])"),
    SPT_PY_METHOD(csr, "csr(out, in, row_ptr, col, values[, gpu])"),
    SPT_PY_METHOD(to_device, "to_device(x, gpu): a copy there"),
    SPT_PY_METHOD(from_device, "from_device(x): a view of an array that is on a GPU"),
    SPT_PY_METHOD(device_empty, "device_empty(shape, dtype, gpu)"),
    SPT_PY_METHOD(addresses,
                  "addresses(x, op): (address, shape, strides, itemsize, writable, gpu)"),
    SPT_PY_METHOD(gpu_count, "gpu_count(): how many GPUs there are; RuntimeError says why none"),
    SPT_PY_METHOD(gpu_info,
                  "gpu_info(gpu): (name, major, minor, memory, free, driver, runtime, "
                  "multiprocessors)"),
    SPT_PY_METHOD(gpu_library, "gpu_library(): (the file looked for, the backend in it or '')"),
    SPT_PY_METHOD(gpu_synchronize, "gpu_synchronize(gpu)"),
    SPT_PY_METHOD(default_gpu, "default_gpu(): the GPU that SPATILE_DEVICE names, or None"),
    {"cpu_tier", cpu_tier, METH_NOARGS, "(tier in use, why, tiers that run here)"},
    {"bf16_is_native", bf16_is_native, METH_NOARGS, "whether the tier multiplies bfloat16 itself"},
    {"select_cpu_tier", select_cpu_tier, METH_O, "select_cpu_tier(name)"},
    {"num_threads", num_threads, METH_NOARGS, "threads of the CPU backend"},
    {"set_num_threads", set_num_threads, METH_O, "set_num_threads(n)"},
    {NULL, NULL, 0, NULL},
};

static int execute(PyObject *module) {
  spt_cpu_load();
  spt_py_read_environment();
  import_array1(-1);
  return spt_py_add_device_array(module) < 0 ? -1 : spt_py_add_encoder(module);
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, execute},
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_core",
    .m_doc = "The C core of spatile. Private: spatile.ops is its face.",
    .m_size = 0,
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__core(void) { return PyModuleDef_Init(&definition); }
