/* spatile._core.Encoder: a compiled model held together with the Python objects that own its tables. */
#include "../encoder.h"

#include <stdlib.h>

#include "numpy_api.h"

#define LAYER_FIELDS 24

typedef struct encoder_object {
  PyObject_HEAD spt_encoder *encoder;
  spt_encoder_layer *layers;
  PyObject *owner; /* (embeddings, layers): keeps every array and capsule alive */
  int64_t width, n_layers, n_heads;
} encoder_object;

/* A contiguous 1-D or 2-D array of `type` with `count` elements; -1 takes any count. */
static void *data_of(PyObject *object, int type, int64_t count, const char *arg) {
  PyArrayObject *array = (PyArrayObject *)object;
  if (!PyArray_Check(object) || PyArray_TYPE(array) != type || !PyArray_IS_C_CONTIGUOUS(array)) {
    PyErr_Format(PyExc_TypeError, "encoder: %s is not a contiguous array of the expected dtype",
                 arg);
    return NULL;
  }
  if (count >= 0 && PyArray_SIZE(array) != count) {
    PyErr_Format(PyExc_ValueError, "encoder: %s has %zd elements, expected %lld", arg,
                 (Py_ssize_t)PyArray_SIZE(array), (long long)count);
    return NULL;
  }
  return PyArray_DATA(array);
}

static int matrix_of(PyObject *capsule, PyObject *bias, const char *arg, spt_encoder_matrix *m) {
  int64_t out;
  if (PyCapsule_IsValid(capsule, SPT_PY_STRIPS)) {
    if (spt_py_check_values(capsule, "encoder") < 0) {
      return -1;
    }
    m->strips = PyCapsule_GetPointer(capsule, SPT_PY_STRIPS);
    out = m->strips->out;
  } else if (PyCapsule_IsValid(capsule, SPT_PY_CSR)) {
    m->csr = PyCapsule_GetPointer(capsule, SPT_PY_CSR);
    out = m->csr->out;
  } else {
    PyErr_Format(PyExc_TypeError, "encoder: %s is a %s, expected packed weights", arg,
                 Py_TYPE(capsule)->tp_name);
    return -1;
  }
  if (bias != Py_None && (m->bias = data_of(bias, NPY_FLOAT32, out, arg)) == NULL) {
    return -1;
  }
  return 0;
}

static int whole_numbers(PyObject *const *objects, int count, int64_t *values) {
  for (int i = 0; i < count; i++) {
    values[i] = PyLong_AsLongLong(objects[i]);
  }
  return PyErr_Occurred() ? -1 : 0;
}

/* (qkv, qkv_bias, o, o_bias, up, up_bias, down, down_bias, n_heads, head_dim, q_rows, activation,
 *  scale, q_row, k_row, v_row, v_width, merged_row, merged_bias, norm1 w, b, norm2 w, b, head) */
static int layer_of(PyObject *fields, int64_t width, spt_encoder_layer *l) {
  if (!PyTuple_Check(fields) || PyTuple_GET_SIZE(fields) != LAYER_FIELDS) {
    PyErr_SetString(PyExc_TypeError, "encoder: a layer is not a tuple of the expected length");
    return -1;
  }
  PyObject **f = &PyTuple_GET_ITEM(fields, 0);
  int64_t n[4];
  if (matrix_of(f[0], f[1], "qkv", &l->qkv) < 0 ||
      (f[2] != Py_None && matrix_of(f[2], f[3], "o", &l->o) < 0) ||
      matrix_of(f[4], f[5], "up", &l->up) < 0 || matrix_of(f[6], f[7], "down", &l->down) < 0 ||
      whole_numbers(f + 8, 4, n) < 0) {
    return -1;
  }
  l->n_heads = (int32_t)n[0];
  l->head_dim = (int32_t)n[1];
  l->q_rows = (int32_t)n[2];
  l->activation = (spt_activation)n[3];
  l->scale = (float)PyFloat_AsDouble(f[12]);
  if (PyErr_Occurred() || (l->q_row = data_of(f[13], NPY_INT32, n[0], "q_row")) == NULL ||
      (l->k_row = data_of(f[14], NPY_INT32, n[0], "k_row")) == NULL ||
      (l->v_row = data_of(f[15], NPY_INT32, n[0], "v_row")) == NULL ||
      (l->v_width = data_of(f[16], NPY_INT32, n[0], "v_width")) == NULL) {
    return -1;
  }
  if (f[17] != Py_None) {
    int64_t rows = n[0] > 0 ? l->v_width[0] : 0;
    if ((l->merged_row = data_of(f[17], NPY_INT32, rows, "merged_row")) == NULL ||
        (l->merged_bias = data_of(f[18], NPY_FLOAT32, width, "merged_bias")) == NULL) {
      return -1;
    }
  }
  if ((l->head = data_of(f[23], NPY_INT32, n[0], "head")) == NULL) {
    return -1;
  }
  const float **norms[] = {&l->norm1_weight, &l->norm1_bias, &l->norm2_weight, &l->norm2_bias};
  for (int i = 0; i < 4; i++) {
    if ((*norms[i] = data_of(f[19 + i], NPY_FLOAT32, width, "a LayerNorm's parameter")) == NULL) {
      return -1;
    }
  }
  return 0;
}

/* An encoder in bfloat16 has made its own copies of a layer's matrices. */
static void drop_float32(PyObject *layer) {
  static const int matrices[] = {0, 2, 4, 6};
  for (int i = 0; i < 4; i++) {
    PyObject *capsule = PyTuple_GET_ITEM(layer, matrices[i]);
    if (capsule != Py_None) {
      spt_py_drop_values(capsule);
    }
  }
}

static int64_t rows_of(PyObject *table, int64_t width) {
  return width > 0 ? PyArray_SIZE((PyArrayObject *)table) / width : 0;
}

static int device_of(PyObject *gpu, spt_device **device) {
  if (gpu != Py_None) {
    *device = spt_py_gpu_of(gpu, "encoder");
    return *device == NULL ? -1 : 0;
  }
  if (spt_py_default_device("encoder", device) < 0) {
    return -1;
  }
  *device = *device == NULL ? spt_cpu_device() : *device;
  return 0;
}

/* Encoder(width, n_heads, norm_eps, (word, position, type or None, norm weight, norm bias), [layer, ...],
 *         bf16[, gpu]); without a number of a GPU it is SPATILE_DEVICE's, or the CPU's */
static PyObject *encoder_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
  (void)keywords;
  long long width, n_heads;
  double eps;
  PyObject *tables, *layers, *gpu = Py_None;
  int bf16;
  spt_device *device;
  if (!PyArg_ParseTuple(args, "LLdO!O!p|O", &width, &n_heads, &eps, &PyTuple_Type, &tables,
                        &PyList_Type, &layers, &bf16, &gpu) ||
      device_of(gpu, &device) < 0) {
    return NULL;
  }
  if (PyTuple_GET_SIZE(tables) != 5) {
    PyErr_SetString(PyExc_TypeError, "encoder: expected five embedding tables");
    return NULL;
  }
  encoder_object *self = (encoder_object *)type->tp_alloc(type, 0);
  if (self == NULL) {
    return NULL;
  }
  PyObject **t = &PyTuple_GET_ITEM(tables, 0);
  Py_ssize_t n = PyList_GET_SIZE(layers);
  spt_encoder_model model = {.width = width,
                             .n_layers = n,
                             .n_heads = n_heads,
                             .norm_eps = (float)eps,
                             .compute = bf16 ? SPT_BF16 : SPT_F32};
  spt_error err;
  self->width = width;
  self->n_layers = n;
  self->n_heads = n_heads;
  self->owner = Py_BuildValue("(ON)", tables, PyList_AsTuple(layers));
  self->layers = calloc((size_t)n + 1, sizeof *self->layers);
  if (self->owner == NULL || self->layers == NULL) {
    Py_DECREF(self);
    return PyErr_Occurred() ? NULL : PyErr_NoMemory();
  }
  model.layers = self->layers;
  if ((model.word = data_of(t[0], NPY_FLOAT32, -1, "word")) == NULL ||
      (model.position = data_of(t[1], NPY_FLOAT32, -1, "position")) == NULL ||
      (t[2] != Py_None && (model.type = data_of(t[2], NPY_FLOAT32, -1, "type")) == NULL) ||
      (model.norm_weight = data_of(t[3], NPY_FLOAT32, width, "norm_weight")) == NULL ||
      (model.norm_bias = data_of(t[4], NPY_FLOAT32, width, "norm_bias")) == NULL) {
    Py_DECREF(self);
    return NULL;
  }
  model.vocabulary = rows_of(t[0], width);
  model.positions = rows_of(t[1], width);
  model.types = t[2] != Py_None ? rows_of(t[2], width) : 0;
  for (Py_ssize_t i = 0; i < n; i++) {
    if (layer_of(PyTuple_GET_ITEM(PyTuple_GET_ITEM(self->owner, 1), i), width, &self->layers[i]) <
        0) {
      Py_DECREF(self);
      return NULL;
    }
  }
  spt_status status = spt_encoder_create(device, &model, &self->encoder, &err);
  if (status != SPT_OK) {
    Py_DECREF(self);
    return spt_py_raise(status, &err);
  }
  for (Py_ssize_t i = 0; bf16 && i < n; i++) {
    drop_float32(PyTuple_GET_ITEM(PyTuple_GET_ITEM(self->owner, 1), i));
  }
  return (PyObject *)self;
}

static void encoder_dealloc(encoder_object *self) {
  PyTypeObject *type = Py_TYPE(self);
  spt_encoder_free(self->encoder);
  free(self->layers);
  Py_XDECREF(self->owner);
  type->tp_free((PyObject *)self);
  Py_DECREF(type); /* a heap type's instances own a reference to it */
}

static int64_t sum_of(const int64_t *values, int64_t n) {
  int64_t sum = 0;
  for (int64_t i = 0; i < n; i++) {
    sum += values[i];
  }
  return sum;
}

/* (tokens, heads or None, protect or None, kept_tokens, kept_heads) */
static int pruning_of(PyObject *fields, const encoder_object *self, const spt_encoder_run *run,
                      spt_encoder_pruning *p) {
  if (!PyTuple_Check(fields) || PyTuple_GET_SIZE(fields) != 5) {
    PyErr_SetString(PyExc_TypeError, "encoder: pruning is not a tuple of five");
    return -1;
  }
  PyObject **f = &PyTuple_GET_ITEM(fields, 0);
  int64_t counts = self->n_layers * run->n_sequences, tokens = run->offsets[run->n_sequences];
  if ((p->tokens = data_of(f[0], NPY_INT64, counts, "the counts of tokens")) == NULL ||
      (f[1] != Py_None &&
       (p->heads = data_of(f[1], NPY_INT64, counts, "the counts of heads")) == NULL) ||
      (f[2] != Py_None && (p->protect = data_of(f[2], NPY_BOOL, tokens, "protect")) == NULL) ||
      (p->kept_tokens = data_of(f[3], NPY_INT32, -1, "kept_tokens")) == NULL ||
      (p->kept_heads = data_of(f[4], NPY_BOOL, counts * self->n_heads, "kept_heads")) == NULL) {
    return -1;
  }
  /* The core checks what these sum up to. */
  if (PyArray_SIZE((PyArrayObject *)f[3]) != sum_of(p->tokens, counts)) {
    PyErr_SetString(PyExc_ValueError, "encoder: kept_tokens has another size than all counts");
    return -1;
  }
  return 0;
}

/* forward(offsets, ids, positions, types or None, first_only, hidden, pruning or None, cost) */
static PyObject *encoder_forward(PyObject *object, PyObject *const *args, Py_ssize_t nargs) {
  encoder_object *self = (encoder_object *)object;
  if (spt_py_check_count("encoder", nargs, 8) < 0) {
    return NULL;
  }
  spt_encoder_run run = {0};
  spt_encoder_pruning pruning = {0};
  if ((run.offsets = data_of(args[0], NPY_INT64, -1, "offsets")) == NULL) {
    return NULL;
  }
  run.n_sequences = PyArray_SIZE((PyArrayObject *)args[0]) - 1;
  if (run.n_sequences < 0) {
    PyErr_SetString(PyExc_ValueError, "encoder: offsets is empty, expected at least one element");
    return NULL;
  }
  int64_t tokens = run.offsets[run.n_sequences];
  run.first_only = PyObject_IsTrue(args[4]) == 1;
  if (tokens < 0) {
    PyErr_SetString(PyExc_ValueError, "encoder: offsets end below zero");
    return NULL;
  }
  if (args[6] != Py_None) {
    run.pruning = &pruning;
    if (pruning_of(args[6], self, &run, &pruning) < 0) {
      return NULL;
    }
    if (self->n_layers > 0) {
      tokens = sum_of(pruning.tokens + (self->n_layers - 1) * run.n_sequences, run.n_sequences);
    }
  }
  int64_t rows = run.first_only ? run.n_sequences : tokens;
  int64_t given = run.offsets[run.n_sequences];
  if ((run.ids = data_of(args[1], NPY_INT32, given, "ids")) == NULL ||
      (run.positions = data_of(args[2], NPY_INT32, given, "positions")) == NULL ||
      (args[3] != Py_None && (run.types = data_of(args[3], NPY_INT32, given, "types")) == NULL) ||
      (run.hidden = data_of(args[5], NPY_FLOAT32, rows * self->width, "hidden")) == NULL ||
      (run.cost = data_of(args[7], NPY_INT64, self->n_layers * SPT_COST_PARTS * 2, "cost")) ==
          NULL) {
    return NULL;
  }
  spt_error err;
  spt_status status;
  SPT_PY_CALL(status, spt_encoder_forward(self->encoder, &run, &err));
  return status == SPT_OK ? Py_NewRef(Py_None) : spt_py_raise(status, &err);
}

static PyMethodDef encoder_methods[] = {
    {"forward", (PyCFunction)(void (*)(void))encoder_forward, METH_FASTCALL,
     "forward(offsets, ids, positions, types, first_only, hidden, pruning, cost)"},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot encoder_slots[] = {
    {Py_tp_new, encoder_new},
    {Py_tp_dealloc, encoder_dealloc},
    {Py_tp_methods, encoder_methods},
    {0, NULL},
};

static PyType_Spec encoder_spec = {
    .name = "spatile._core.Encoder",
    .basicsize = sizeof(encoder_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = encoder_slots,
};

int spt_py_add_encoder(PyObject *module) {
  PyObject *type = PyType_FromSpec(&encoder_spec);
  if (type == NULL || PyModule_AddObjectRef(module, "Encoder", type) < 0) {
    Py_XDECREF(type);
    return -1;
  }
  Py_DECREF(type);
  return 0;
}
