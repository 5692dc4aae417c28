/* Arrays of other libraries on a GPU as tensor views, without a copy: DLPack capsules, versioned or not,
 * and __cuda_array_interface__. A view's device names the stream on which its data is ready. */
#include <string.h>

#include "dlpack.h"
#include "numpy_api.h"

/* Both protocols' number for the default stream, whose handle is 0; the per-thread one's is its handle. */
enum { LEGACY_DEFAULT = 1 };

/* 1 and the ordinal if __dlpack_device__ names a CUDA device. */
static int dlpack_device(PyObject *object, int *ordinal) {
  PyObject *device = PyObject_CallMethod(object, "__dlpack_device__", NULL);
  int type;
  if (device == NULL) {
    return -1;
  }
  int read = PyArg_ParseTuple(device, "ii", &type, ordinal);
  Py_DECREF(device);
  return !read ? -1 : type == DL_CUDA || type == DL_CUDA_MANAGED;
}

/* An attribute or NULL without an exception. */
static PyObject *attribute(PyObject *object, const char *name) {
  PyObject *value = PyObject_GetAttrString(object, name);
  if (value == NULL) {
    PyErr_Clear();
  }
  return value;
}

int spt_py_foreign_device(PyObject *object, int *ordinal) {
  /* torch tells at once; its __dlpack_device__ takes a microsecond. */
  PyObject *is_cuda = attribute(object, "is_cuda");
  if (is_cuda != NULL) {
    bool on_cpu = is_cuda == Py_False;
    Py_DECREF(is_cuda);
    if (on_cpu) {
      return 0;
    }
  }
  if (PyObject_HasAttrString(object, "__dlpack_device__")) {
    return dlpack_device(object, ordinal);
  }
  *ordinal = -1; /* the interface does not say which */
  return PyObject_HasAttrString(object, "__cuda_array_interface__");
}

/* Whether `object` is an instance of module.type, where that module is loaded. */
static bool is_instance(PyObject *object, const char *module_name, const char *type_name,
                        PyObject **module) {
  PyObject *name = PyUnicode_FromString(module_name);
  *module = name != NULL ? PyImport_GetModule(name) : NULL;
  Py_XDECREF(name);
  PyObject *type = *module != NULL ? attribute(*module, type_name) : NULL;
  bool is = type != NULL && PyObject_IsInstance(object, type) == 1;
  Py_XDECREF(type);
  PyErr_Clear();
  if (!is) {
    Py_CLEAR(*module);
  }
  return is;
}

/* The stream on which the object's library works now: 1, or 0 where it has none, or -1. */
static int current_stream(PyObject *object, int ordinal, uintptr_t *stream) {
  PyObject *module, *current = NULL, *handle = NULL;
  const char *handle_name;
  if (is_instance(object, "torch", "Tensor", &module)) {
    PyObject *cuda = PyObject_GetAttrString(module, "cuda");
    current = cuda != NULL ? PyObject_CallMethod(cuda, "current_stream", "i", ordinal) : NULL;
    Py_XDECREF(cuda);
    handle_name = "cuda_stream";
  } else if (is_instance(object, "cupy", "ndarray", &module)) {
    PyObject *cuda = PyObject_GetAttrString(module, "cuda");
    current = cuda != NULL ? PyObject_CallMethod(cuda, "get_current_stream", NULL) : NULL;
    Py_XDECREF(cuda);
    handle_name = "ptr";
  } else {
    return 0;
  }
  Py_DECREF(module);
  handle = current != NULL ? PyObject_GetAttrString(current, handle_name) : NULL;
  Py_XDECREF(current);
  *stream = handle != NULL ? (uintptr_t)PyLong_AsUnsignedLongLong(handle) : 0;
  Py_XDECREF(handle);
  return PyErr_Occurred() ? -1 : 1;
}

/* The array's device, so that an op knows it; says which argument it was that needs the GPU. */
static int set_device(spt_py_view *view, int ordinal, uintptr_t stream, const char *op,
                      const char *arg) {
  spt_error err;
  spt_status status = spt_gpu_device(ordinal, stream, &view->device, &err);
  if (status != SPT_OK) {
    spt_error told;
    spt_py_raise(
        spt_fail(&told, status, "%s: %s is on cuda:%d: %.400s", op, arg, ordinal, err.message),
        &told);
    return -1;
  }
  return 0;
}

/* Newer libraries give a versioned capsule if asked; older ones don't know the question. */
static PyObject *ask_for_capsule(PyObject *object, long stream) {
  PyObject *method = PyObject_GetAttrString(object, "__dlpack__");
  PyObject *none = PyTuple_New(0);
  PyObject *keywords =
      Py_BuildValue("{s:l,s:(ii)}", "stream", stream, "max_version", DL_MAJOR, DL_MINOR);
  PyObject *capsule = NULL;
  if (method != NULL && none != NULL && keywords != NULL) {
    capsule = PyObject_Call(method, none, keywords);
    if (capsule == NULL && PyErr_ExceptionMatches(PyExc_TypeError)) {
      PyErr_Clear();
      if (PyDict_DelItemString(keywords, "max_version") == 0) {
        capsule = PyObject_Call(method, none, keywords);
      }
    }
  }
  Py_XDECREF(keywords);
  Py_XDECREF(none);
  Py_XDECREF(method);
  return capsule;
}

/* A capsule that nobody renames frees its tensor by itself when the last reference goes. */
static int view_of_capsule(spt_py_view *view, PyObject *capsule, int ordinal, const char *op,
                           const char *arg) {
  const dl_tensor *from;
  bool writable = true;
  if (PyCapsule_IsValid(capsule, DL_NAME_VERSIONED)) {
    const dl_managed_tensor_versioned *managed = PyCapsule_GetPointer(capsule, DL_NAME_VERSIONED);
    if (managed->version.major != DL_MAJOR) {
      PyErr_Format(PyExc_BufferError, "%s: %s speaks DLPack %u, expected version %d", op, arg,
                   (unsigned)managed->version.major, DL_MAJOR);
      Py_DECREF(capsule);
      return -1;
    }
    from = &managed->tensor;
    writable = (managed->flags & DL_READ_ONLY) == 0;
  } else if (PyCapsule_IsValid(capsule, DL_NAME)) {
    from = &((dl_managed_tensor *)PyCapsule_GetPointer(capsule, DL_NAME))->tensor;
  } else {
    PyErr_Format(PyExc_ValueError,
                 "%s: %s gives no DLPack capsule that is still to be consumed, expected a new one "
                 "at each call of __dlpack__",
                 op, arg);
    Py_DECREF(capsule);
    return -1;
  }
  if (from->device.id != ordinal ||
      (from->device.type != DL_CUDA && from->device.type != DL_CUDA_MANAGED)) {
    PyErr_Format(PyExc_ValueError, "%s: %s says it is on cuda:%d, its capsule another device", op,
                 arg, ordinal);
    Py_DECREF(capsule);
    return -1;
  }
  return spt_py_view_of_dl_tensor(view, from, writable, capsule, op, arg);
}

static int view_of_dlpack(spt_py_view *view, PyObject *object, int ordinal, const char *op,
                          const char *arg) {
  uintptr_t stream = 0;
  int current = current_stream(object, ordinal, &stream);
  if (current < 0 || set_device(view, ordinal, stream, op, arg) < 0) {
    return -1;
  }
  view->chooses_stream = current == 1;
  /* On its own stream an array is ready. Others are to be so on the default one. */
  PyObject *capsule = ask_for_capsule(object, current == 1 ? -1 : LEGACY_DEFAULT);
  return capsule == NULL ? -1 : view_of_capsule(view, capsule, ordinal, op, arg);
}

/* ---- __cuda_array_interface__ -------------------------------------------------------------- */

static spt_dtype dtype_of_typestr(const char *text) {
  static const struct {
    const char *text;
    spt_dtype dtype;
  } known[] = {{"f4", SPT_F32}, {"f2", SPT_F16}, {"f8", SPT_F64}, {"b1", SPT_BOOL},
               {"u1", SPT_U8},  {"i4", SPT_I32}, {"i8", SPT_I64}};
  for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
    if ((text[0] == '<' || text[0] == '|') && strcmp(text + 1, known[i].text) == 0) {
      return known[i].dtype;
    }
  }
  return SPT_OTHER_DTYPE;
}

/* Shape and strides; -1 with an exception set. */
static int extents_of(spt_tensor *t, PyObject *shape, PyObject *strides, const char *op,
                      const char *arg) {
  Py_ssize_t ndim = PyTuple_Check(shape) ? PyTuple_GET_SIZE(shape) : -1;
  bool strided = strides != NULL && strides != Py_None;
  if (ndim < 0 || ndim > SPT_MAX_NDIM ||
      (strided && (!PyTuple_Check(strides) || PyTuple_GET_SIZE(strides) != ndim))) {
    PyErr_Format(PyExc_ValueError, "%s: %s has a shape or strides that can't be used", op, arg);
    return -1;
  }
  t->ndim = (int32_t)ndim;
  int64_t size = (int64_t)spt_dtype_size(t->dtype), compact = 1;
  for (Py_ssize_t i = ndim - 1; i >= 0; i--) {
    t->shape[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(shape, i));
    long long bytes = strided ? PyLong_AsLongLong(PyTuple_GET_ITEM(strides, i)) : 0;
    if (PyErr_Occurred()) {
      return -1;
    }
    if (strided && t->shape[i] > 1 && (size == 0 || bytes % size != 0)) {
      PyErr_Format(PyExc_ValueError,
                   "%s: %s.strides[%zd] is %lld bytes, expected a multiple of the element's %lld",
                   op, arg, i, bytes, (long long)size);
      return -1;
    }
    t->stride[i] = t->shape[i] <= 1 ? 0 : strided ? bytes / size : compact;
    if (__builtin_mul_overflow(compact, t->shape[i], &compact)) {
      compact = INT64_MAX; /* refused by the size */
    }
  }
  return spt_py_check_size(t, op, arg);
}

/* The entry that says where the data is ready; none: it is everywhere. */
static int interface_stream(PyObject *interface, uintptr_t *stream, const char *op,
                            const char *arg) {
  PyObject *entry = PyDict_GetItemString(interface, "stream");
  if (entry == NULL || entry == Py_None) {
    *stream = 0;
    return 0;
  }
  unsigned long long number = PyLong_AsUnsignedLongLong(entry);
  if (PyErr_Occurred()) {
    return -1;
  }
  if (number == 0) {
    PyErr_Format(PyExc_ValueError, "%s: %s is ready on stream 0, which means nothing here", op,
                 arg);
    return -1;
  }
  *stream = number == LEGACY_DEFAULT ? 0 : (uintptr_t)number;
  return 0;
}

static int view_of_interface(spt_py_view *view, PyObject *object, const char *op, const char *arg) {
  PyObject *interface = PyObject_GetAttrString(object, "__cuda_array_interface__");
  if (interface == NULL) {
    return -1;
  }
  spt_tensor *t = &view->tensor;
  PyObject *shape = NULL, *typestr = NULL, *data = NULL;
  if (PyDict_Check(interface)) {
    shape = PyDict_GetItemString(interface, "shape");
    typestr = PyDict_GetItemString(interface, "typestr");
    data = PyDict_GetItemString(interface, "data");
  }
  unsigned long long address = 0;
  int read_only = 0, ordinal = -1;
  uintptr_t stream;
  spt_error err;
  if (shape == NULL || typestr == NULL || !PyUnicode_Check(typestr) || data == NULL ||
      !PyTuple_Check(data) || !PyArg_ParseTuple(data, "Kp", &address, &read_only)) {
    PyErr_Format(PyExc_ValueError, "%s: %s has no usable __cuda_array_interface__", op, arg);
    goto failed;
  }
  t->data = (void *)(uintptr_t)address;
  t->dtype = dtype_of_typestr(PyUnicode_AsUTF8(typestr));
  t->writable = read_only == 0;
  if (extents_of(t, shape, PyDict_GetItemString(interface, "strides"), op, arg) < 0 ||
      interface_stream(interface, &stream, op, arg) < 0) {
    goto failed;
  }
  size_t size = spt_dtype_size(t->dtype);
  if (size > 0 && address % size != 0) {
    PyErr_Format(PyExc_ValueError,
                 "%s: %s is not aligned to its elements, expected an aligned array", op, arg);
    goto failed;
  }
  /* An array without elements has no memory to ask about. */
  spt_status status = address != 0 ? spt_gpu_of(t->data, &ordinal, &err) : SPT_OK;
  if (status != SPT_OK) {
    spt_py_raise(status, &err);
    goto failed;
  }
  if (set_device(view, ordinal < 0 ? 0 : ordinal, stream, op, arg) < 0) {
    goto failed;
  }
  Py_DECREF(interface);
  view->owner = Py_NewRef(object);
  return 0;
failed:
  Py_DECREF(interface);
  return -1;
}

int spt_py_view_of_foreign(spt_py_view *view, PyObject *object, int ordinal, const char *op,
                           const char *arg) {
  return ordinal >= 0 ? view_of_dlpack(view, object, ordinal, op, arg)
                      : view_of_interface(view, object, op, arg);
}
