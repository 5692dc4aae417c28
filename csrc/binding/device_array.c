/* spatile.DeviceArray: memory of a GPU with a shape. It is handed to others without a copy, by DLPack and
 * __cuda_array_interface__; copying it to the host has a name of its own, numpy(). */
#include "device_array.h"

#include <string.h>

static PyTypeObject device_array_type;

bool spt_py_is_device_array(PyObject *object) { return Py_TYPE(object) == &device_array_type; }

device_array *spt_py_root_of(device_array *a) {
  return a->base != NULL && spt_py_is_device_array(a->base) ? (device_array *)a->base : a;
}

int spt_py_check_alive(device_array *a, const char *op, const char *arg) {
  if (spt_py_root_of(a)->freed) {
    PyErr_Format(PyExc_RuntimeError, "%s: %s is a device array whose memory was freed", op, arg);
    return -1;
  }
  return 0;
}

int spt_py_view_of_device_array(spt_py_view *view, PyObject *object, const char *op,
                                const char *arg) {
  device_array *a = (device_array *)object;
  if (spt_py_check_alive(a, op, arg) < 0) {
    return -1;
  }
  view->tensor = a->tensor;
  view->device = a->device;
  view->owner = Py_NewRef(object);
  return 0;
}

/* ---- making them ------------------------------------------------------------------------------- */

device_array *spt_py_new_device_array(const spt_tensor *t, spt_device *device) {
  device_array *a = PyObject_New(device_array, &device_array_type);
  if (a != NULL) {
    memset((char *)a + sizeof(PyObject), 0, sizeof *a - sizeof(PyObject));
    a->tensor = *t;
    a->device = device;
  }
  return a;
}

/* Compact, of t's shape and dtype, uninitialised. */
static device_array *allocate(const spt_tensor *t, spt_device *device, const char *op) {
  spt_error err;
  device_array *a = spt_py_new_device_array(t, device);
  if (a == NULL) {
    return NULL;
  }
  size_t bytes = (size_t)spt_py_elements(t) * spt_dtype_size(t->dtype);
  spt_status status = spt_device_alloc(device, op, bytes, &a->memory, &err);
  if (status != SPT_OK) {
    Py_DECREF(a);
    return (device_array *)spt_py_raise(status, &err);
  }
  a->tensor.data = a->memory;
  a->tensor.writable = true;
  spt_py_make_compact(&a->tensor);
  return a;
}

static spt_dtype dtype_named(const char *name) {
  spt_dtype dtype = SPT_F32;
  while (dtype != SPT_OTHER_DTYPE && strcmp(spt_dtype_name(dtype), name) != 0) {
    dtype++;
  }
  return dtype;
}

/* device_empty(shape, dtype, gpu) */
PyObject *spt_py_device_empty(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
  (void)self;
  const char *op = "empty", *name;
  spt_tensor t = {0};
  if (spt_py_check_count(op, nargs, 3) < 0 || (name = PyUnicode_AsUTF8(args[1])) == NULL) {
    return NULL;
  }
  t.dtype = dtype_named(name);
  if (!PyTuple_Check(args[0]) || PyTuple_GET_SIZE(args[0]) > SPT_MAX_NDIM ||
      t.dtype == SPT_OTHER_DTYPE) {
    PyErr_Format(PyExc_TypeError, "%s: expected a shape and the name of a dtype, not '%s'", op,
                 name);
    return NULL;
  }
  t.ndim = (int32_t)PyTuple_GET_SIZE(args[0]);
  for (int i = 0; i < t.ndim; i++) {
    t.shape[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(args[0], i));
  }
  if (PyErr_Occurred() || spt_py_check_size(&t, op, "shape") < 0) {
    return NULL;
  }
  spt_device *device = spt_py_gpu_of(args[2], op);
  return device == NULL ? NULL : (PyObject *)allocate(&t, device, op);
}

/* to_device(x, gpu): x is a host array */
PyObject *spt_py_to_device(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
  (void)self;
  const char *op = "to_device";
  spt_py_view view = {0};
  spt_error err;
  if (spt_py_check_count(op, nargs, 2) < 0) {
    return NULL;
  }
  spt_device *device = spt_py_gpu_of(args[1], op);
  if (device == NULL || spt_py_host_view_of(&view, args[0], SPT_PY_HOST, op, "x") < 0) {
    return spt_py_failed(&view, 1);
  }
  const spt_tensor *t = &view.tensor;
  device_array *a = NULL;
  if (t->dtype == SPT_OTHER_DTYPE || !spt_py_is_compact(t)) {
    PyErr_Format(PyExc_TypeError, "%s: x is not a contiguous array of a dtype that ops know", op);
  } else if ((a = allocate(t, device, op)) != NULL) {
    size_t bytes = (size_t)spt_py_elements(t) * spt_dtype_size(t->dtype);
    spt_status status = SPT_OK;
    SPT_PY_CALL(status, spt_device_upload(device, op, a->memory, t->data, bytes, &err));
    if (status != SPT_OK) {
      Py_CLEAR(a);
      spt_py_raise(status, &err);
    }
  }
  spt_py_release(&view, 1);
  return (PyObject *)a;
}

/* The default stream of the same GPU, once what is enqueued on this one is done for it. */
static int default_stream_of(spt_device *device, spt_device **ours, const char *op) {
  spt_error err;
  spt_status status = spt_gpu_device(spt_device_ordinal(device), 0, ours, &err);
  if (status == SPT_OK) {
    status = spt_device_order(device, *ours, op, &err);
  }
  if (status != SPT_OK) {
    spt_py_raise(status, &err);
    return -1;
  }
  return 0;
}

/* from_device(x): a view of whatever is on a GPU */
PyObject *spt_py_from_device(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
  (void)self;
  const char *op = "from_dlpack";
  spt_py_view view = {0};
  if (spt_py_check_count(op, nargs, 1) < 0 || spt_py_view_of(&view, args[0], op, "x") < 0) {
    return spt_py_failed(&view, 1);
  }
  device_array *a = NULL;
  spt_device *ours = NULL; /* its stream may be gone one day, the default one stays */
  if (view.device == NULL || view.tensor.dtype == SPT_OTHER_DTYPE) {
    PyErr_Format(PyExc_TypeError, "%s: x is not an array on a GPU of a dtype that ops know", op);
  } else if (default_stream_of(view.device, &ours, op) == 0 &&
             (a = spt_py_new_device_array(&view.tensor, ours)) != NULL) {
    device_array *given = spt_py_is_device_array(args[0]) ? (device_array *)args[0] : NULL;
    a->base = Py_NewRef(given != NULL ? (PyObject *)spt_py_root_of(given) : view.owner);
  }
  spt_py_release(&view, 1);
  return (PyObject *)a;
}

static void release_memory(device_array *a) {
  spt_device_free(a->device, a->memory, a->shared);
  a->memory = NULL;
}

static void dealloc(PyObject *object) {
  device_array *a = (device_array *)object;
  spt_error ignored;
  release_memory(a);
  /* Whose memory it is may use it again at once, and does not know what was enqueued here. */
  if (a->base != NULL && !spt_py_is_device_array(a->base) &&
      spt_device_synchronise(a->device, "free", &ignored) != SPT_OK) {
    ; /* it is told where it can be: at the next call */
  }
  Py_XDECREF(a->base);
  PyObject_Free(a);
}

static PyObject *free_now(PyObject *object, PyObject *ignored) {
  (void)ignored;
  device_array *a = spt_py_root_of((device_array *)object);
  if (a->base != NULL || a->exports > 0) {
    PyErr_SetString(PyExc_BufferError, "free: the device array's memory is shared with others");
    return NULL;
  }
  release_memory(a);
  a->freed = true;
  Py_RETURN_NONE;
}

/* ---- what they say of themselves ----------------------------------------------------------------- */

static PyObject *get_dtype(PyObject *object, void *closure) {
  (void)closure;
  return (PyObject *)spt_py_descr_of(((device_array *)object)->tensor.dtype);
}

static PyObject *get_ndim(PyObject *object, void *closure) {
  (void)closure;
  return PyLong_FromLong(((device_array *)object)->tensor.ndim);
}

static PyObject *get_size(PyObject *object, void *closure) {
  (void)closure;
  return PyLong_FromLongLong(spt_py_elements(&((device_array *)object)->tensor));
}

static PyObject *get_nbytes(PyObject *object, void *closure) {
  (void)closure;
  const spt_tensor *t = &((device_array *)object)->tensor;
  return PyLong_FromLongLong(spt_py_elements(t) * (int64_t)spt_dtype_size(t->dtype));
}

static PyObject *get_device(PyObject *object, void *closure) {
  (void)closure;
  return PyUnicode_FromFormat("cuda:%d", spt_device_ordinal(((device_array *)object)->device));
}

static PyObject *represent(PyObject *object) {
  device_array *a = (device_array *)object;
  PyObject *shape = spt_py_array_shape(object, NULL);
  PyObject *text =
      shape == NULL
          ? NULL
          : PyUnicode_FromFormat("DeviceArray(shape=%R, dtype=%s, device='cuda:%d'%s)", shape,
                                 spt_dtype_name(a->tensor.dtype), spt_device_ordinal(a->device),
                                 spt_py_root_of(a)->freed ? ", freed" : "");
  Py_XDECREF(shape);
  return text;
}

static Py_ssize_t length(PyObject *object) {
  const spt_tensor *t = &((device_array *)object)->tensor;
  if (t->ndim == 0) {
    PyErr_SetString(PyExc_TypeError, "len() of an array with 0 dimensions");
    return -1;
  }
  return (Py_ssize_t)t->shape[0];
}

/* ---- the type ------------------------------------------------------------------------------------ */

static PyGetSetDef attributes[] = {
    {"shape", spt_py_array_shape, NULL, "its sizes, a tuple", NULL},
    {"dtype", get_dtype, NULL, "as NumPy names it; bfloat16 is ml_dtypes'", NULL},
    {"ndim", get_ndim, NULL, "how many axes it has", NULL},
    {"size", get_size, NULL, "how many elements it has", NULL},
    {"nbytes", get_nbytes, NULL, "the bytes of its elements", NULL},
    {"device", get_device, NULL, "where it is: 'cuda:0'", NULL},
    {"T", spt_py_array_transposed, NULL, "a view with the axes reversed", NULL},
    {"__cuda_array_interface__", spt_py_array_interface, NULL, "version 3 of the protocol", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef methods[] = {
    {"numpy", spt_py_array_numpy, METH_NOARGS,
     "numpy()\n--\n\nA copy in host memory, once its work is done."},
    {"reshape", spt_py_array_reshape, METH_VARARGS,
     "reshape(shape)\n--\n\nA view; ValueError where it takes a copy."},
    {"free", free_now, METH_NOARGS,
     "free()\n--\n\nGive its memory back now. Any later use of it or of its views is a "
     "RuntimeError."},
    {"__dlpack__", (PyCFunction)(void (*)(void))spt_py_array_dlpack, METH_VARARGS | METH_KEYWORDS,
     "__dlpack__(*, stream=None, max_version=None, dl_device=None, copy=None)\n--\n\n"
     "A DLPack capsule of the same memory."},
    {"__dlpack_device__", spt_py_array_dlpack_device, METH_NOARGS, "(2, the GPU's number)"},
    {"__array__", (PyCFunction)(void (*)(void))spt_py_array_refuse_array,
     METH_VARARGS | METH_KEYWORDS, "TypeError: nothing is copied to the host unasked."},
    {NULL, NULL, 0, NULL},
};

static PySequenceMethods sequence = {.sq_length = length};

static PyTypeObject device_array_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "spatile.DeviceArray",
    .tp_basicsize = sizeof(device_array),
    .tp_dealloc = dealloc,
    .tp_repr = represent,
    .tp_as_sequence = &sequence,
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_doc =
        "An array in a GPU's memory. spatile.to_device copies one there, ops on such arrays give "
        "such arrays,\nnumpy() copies back; DLPack and __cuda_array_interface__ hand it to other "
        "libraries without a copy.",
    .tp_methods = methods,
    .tp_getset = attributes,
};

int spt_py_add_device_array(PyObject *module) {
  return PyModule_AddType(module, &device_array_type);
}
