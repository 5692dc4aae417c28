/* DeviceArray for other libraries, without a copy: DLPack and __cuda_array_interface__. */
#include "device_array.h"
#include "dlpack.h"

typedef struct exported {
  device_array *array;
  int64_t shape[SPT_MAX_NDIM], strides[SPT_MAX_NDIM];
  union {
    dl_managed_tensor plain;
    dl_managed_tensor_versioned versioned;
  } managed;
} exported;

/* Consumers may call it on any thread, and when the interpreter is gone. */
static void forget(exported *e) {
  if (!Py_IsInitialized()) {
    return;
  }
  PyGILState_STATE state = PyGILState_Ensure();
  spt_py_root_of(e->array)->exports--;
  Py_DECREF(e->array);
  PyMem_Free(e);
  PyGILState_Release(state);
}

static void delete_plain(dl_managed_tensor *managed) { forget(managed->manager); }
static void delete_versioned(dl_managed_tensor_versioned *managed) { forget(managed->manager); }

static void drop_capsule(PyObject *capsule) {
  if (PyCapsule_IsValid(capsule, DL_NAME)) {
    dl_managed_tensor *managed = PyCapsule_GetPointer(capsule, DL_NAME);
    managed->deleter(managed);
  } else if (PyCapsule_IsValid(capsule, DL_NAME_VERSIONED)) {
    dl_managed_tensor_versioned *managed = PyCapsule_GetPointer(capsule, DL_NAME_VERSIONED);
    managed->deleter(managed);
  }
}

static dl_tensor describe(exported *e) {
  static const struct {
    uint8_t code, bits;
  } codes[] = {[SPT_F32] = {DL_FLOAT, 32}, [SPT_F16] = {DL_FLOAT, 16}, [SPT_BF16] = {DL_BFLOAT, 16},
               [SPT_F64] = {DL_FLOAT, 64}, [SPT_BOOL] = {DL_BOOL, 8},  [SPT_U8] = {DL_UINT, 8},
               [SPT_I32] = {DL_INT, 32},   [SPT_I64] = {DL_INT, 64}};
  const spt_tensor *t = &e->array->tensor;
  for (int i = 0; i < t->ndim; i++) {
    e->shape[i] = t->shape[i];
    e->strides[i] = t->shape[i] > 1 ? t->stride[i] : 1;
  }
  dl_tensor d = {.data = spt_py_elements(t) > 0 ? t->data : NULL,
                 .ndim = t->ndim,
                 .shape = e->shape,
                 .strides = e->strides};
  d.device.type = DL_CUDA;
  d.device.id = spt_device_ordinal(e->array->device);
  d.dtype.code = codes[t->dtype].code;
  d.dtype.bits = codes[t->dtype].bits;
  d.dtype.lanes = 1;
  return d;
}

/* What is ready on the array's stream becomes so on the consumer's. */
static int make_ready(device_array *a, PyObject *stream) {
  long long number = 1; /* None: the legacy default stream */
  if (stream != NULL && stream != Py_None) {
    number = PyLong_AsLongLong(stream);
    if (PyErr_Occurred()) {
      return -1;
    }
  }
  if (number == -1) { /* the consumer sees to it */
    return 0;
  }
  if (number <= 0) {
    PyErr_Format(PyExc_ValueError,
                 "__dlpack__: stream is %lld, expected None, -1, 1, 2 or a handle", number);
    return -1;
  }
  spt_device *consumer;
  spt_error err;
  spt_status status = spt_gpu_device(spt_device_ordinal(a->device),
                                     number == 1 ? 0 : (uintptr_t)number, &consumer, &err);
  if (status == SPT_OK) {
    status = spt_device_order(a->device, consumer, "__dlpack__", &err);
  }
  if (status != SPT_OK) {
    spt_py_raise(status, &err);
    return -1;
  }
  return 0;
}

/* Whether the caller takes a versioned capsule; -1 where it asks for what is not done here. */
static int version_asked(PyObject *max_version, PyObject *dl_device, PyObject *copy, int ordinal) {
  int major = 0, minor = 0, type = DL_CUDA, id = ordinal;
  if ((max_version != Py_None && !PyArg_ParseTuple(max_version, "ii", &major, &minor)) ||
      (dl_device != Py_None && !PyArg_ParseTuple(dl_device, "ii", &type, &id))) {
    return -1;
  }
  if (type != DL_CUDA || id != ordinal || (copy != Py_None && PyObject_IsTrue(copy) != 0)) {
    PyErr_SetString(PyExc_BufferError,
                    "__dlpack__: a device array is given as it is, without a copy: use its "
                    "numpy() for one on the host");
    return -1;
  }
  return major >= DL_MAJOR;
}

PyObject *spt_py_array_dlpack(PyObject *object, PyObject *args, PyObject *keywords) {
  static char *names[] = {"stream", "max_version", "dl_device", "copy", NULL};
  device_array *a = (device_array *)object;
  PyObject *stream = Py_None, *max_version = Py_None, *dl_device = Py_None, *copy = Py_None;
  if (!PyArg_ParseTupleAndKeywords(args, keywords, "|$OOOO", names, &stream, &max_version,
                                   &dl_device, &copy)) {
    return NULL;
  }
  int versioned = version_asked(max_version, dl_device, copy, spt_device_ordinal(a->device));
  if (versioned < 0 || spt_py_check_alive(a, "__dlpack__", "it") < 0 || make_ready(a, stream) < 0) {
    return NULL;
  }
  if (!versioned && !a->tensor.writable) {
    PyErr_SetString(PyExc_BufferError,
                    "__dlpack__: the device array is read-only, which version 0 "
                    "of DLPack can't say");
    return NULL;
  }
  exported *e = PyMem_Calloc(1, sizeof *e);
  if (e == NULL) {
    return PyErr_NoMemory();
  }
  e->array = a;
  PyObject *capsule;
  if (versioned) {
    dl_managed_tensor_versioned *m = &e->managed.versioned;
    m->version.major = DL_MAJOR;
    m->version.minor = DL_MINOR;
    m->manager = e;
    m->deleter = delete_versioned;
    m->flags = a->tensor.writable ? 0 : DL_READ_ONLY;
    m->tensor = describe(e);
    capsule = PyCapsule_New(m, DL_NAME_VERSIONED, drop_capsule);
  } else {
    e->managed.plain = (dl_managed_tensor){describe(e), e, delete_plain};
    capsule = PyCapsule_New(&e->managed.plain, DL_NAME, drop_capsule);
  }
  if (capsule == NULL) {
    PyMem_Free(e);
    return NULL;
  }
  Py_INCREF(a);
  spt_py_root_of(a)->exports++;
  spt_py_root_of(a)->shared = true;
  return capsule;
}

PyObject *spt_py_array_dlpack_device(PyObject *object, PyObject *ignored) {
  (void)ignored;
  return Py_BuildValue("ii", DL_CUDA, spt_device_ordinal(((device_array *)object)->device));
}

PyObject *spt_py_array_interface(PyObject *object, void *closure) {
  (void)closure;
  static const char *const typestrs[] = {[SPT_F32] = "<f4", [SPT_F16] = "<f2",  [SPT_BF16] = NULL,
                                         [SPT_F64] = "<f8", [SPT_BOOL] = "|b1", [SPT_U8] = "|u1",
                                         [SPT_I32] = "<i4", [SPT_I64] = "<i8"};
  device_array *a = (device_array *)object;
  const spt_tensor *t = &a->tensor;
  if (typestrs[t->dtype] == NULL) {
    PyErr_SetString(PyExc_AttributeError,
                    "__cuda_array_interface__ has no bfloat16, DLPack has: use __dlpack__");
    return NULL;
  }
  if (spt_py_check_alive(a, "__cuda_array_interface__", "it") < 0) {
    return NULL;
  }
  PyObject *shape = spt_py_array_shape(object, NULL), *strides = PyTuple_New(t->ndim);
  int64_t size = (int64_t)spt_dtype_size(t->dtype);
  for (int i = 0; strides != NULL && i < t->ndim; i++) {
    PyTuple_SET_ITEM(strides, i, PyLong_FromLongLong((t->shape[i] > 1 ? t->stride[i] : 1) * size));
  }
  if (shape == NULL || strides == NULL || PyErr_Occurred()) {
    Py_XDECREF(shape);
    Py_XDECREF(strides);
    return NULL;
  }
  if (spt_py_is_compact(t)) {
    Py_SETREF(strides, Py_NewRef(Py_None));
  }
  spt_py_root_of(a)->shared = true;
  uintptr_t stream = spt_device_stream(a->device),
            address = spt_py_elements(t) > 0 ? (uintptr_t)t->data : 0;
  return Py_BuildValue("{s:N,s:s,s:(NN),s:N,s:K,s:i}", "shape", shape, "typestr",
                       typestrs[t->dtype], "data", PyLong_FromUnsignedLongLong(address),
                       PyBool_FromLong(!t->writable), "strides", strides, "stream",
                       (unsigned long long)(stream == 0 ? 1 : stream), "version", 3);
}
