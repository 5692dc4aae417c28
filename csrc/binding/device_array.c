/* spatile.DeviceArray: memory of a GPU with a shape. It is handed to others without a copy, by DLPack and
 * __cuda_array_interface__; copying it to the host has a name of its own, numpy(). */
#include <stdio.h>
#include <string.h>

#include "dlpack.h"
#include "numpy_api.h"

typedef struct device_array {
  PyObject_HEAD spt_tensor tensor;
  spt_device *device; /* the stream on which its data is ready */
  void *memory;       /* its own; NULL for a view, and once it was freed */
  PyObject
      *base;   /* what keeps a view's memory alive: a DeviceArray that is no view, or another's */
  bool freed;  /* by free() */
  bool shared; /* others have had its address, and may use it on streams of theirs */
  Py_ssize_t exports; /* capsules of it that are alive */
} device_array;

static PyTypeObject device_array_type;

bool spt_py_is_device_array(PyObject *object) { return Py_TYPE(object) == &device_array_type; }

static device_array *root_of(device_array *a) {
  return a->base != NULL && spt_py_is_device_array(a->base) ? (device_array *)a->base : a;
}

static int check_alive(device_array *a, const char *op, const char *arg) {
  if (root_of(a)->freed) {
    PyErr_Format(PyExc_RuntimeError, "%s: %s is a device array whose memory was freed", op, arg);
    return -1;
  }
  return 0;
}

int spt_py_view_of_device_array(spt_py_view *view, PyObject *object, const char *op,
                                const char *arg) {
  device_array *a = (device_array *)object;
  if (check_alive(a, op, arg) < 0) {
    return -1;
  }
  view->tensor = a->tensor;
  view->device = a->device;
  view->owner = Py_NewRef(object);
  return 0;
}

static int64_t elements(const spt_tensor *t) {
  int64_t n = 1;
  for (int i = 0; i < t->ndim; i++) {
    n *= t->shape[i];
  }
  return n;
}

static void make_compact(spt_tensor *t) {
  int64_t step = 1;
  for (int i = t->ndim - 1; i >= 0; i--) {
    t->stride[i] = t->shape[i] > 1 ? step : 0;
    step *= t->shape[i];
  }
}

static bool is_compact(const spt_tensor *t) {
  int64_t step = 1;
  for (int i = t->ndim - 1; i >= 0; i--) {
    if (t->shape[i] > 1 && t->stride[i] != step) {
      return elements(t) == 0;
    }
    step *= t->shape[i];
  }
  return true;
}

/* ---- making them ------------------------------------------------------------------------------- */

static device_array *new_array(const spt_tensor *t, spt_device *device) {
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
  device_array *a = new_array(t, device);
  if (a == NULL) {
    return NULL;
  }
  size_t bytes = (size_t)elements(t) * spt_dtype_size(t->dtype);
  spt_status status = spt_device_alloc(device, op, bytes, &a->memory, &err);
  if (status != SPT_OK) {
    Py_DECREF(a);
    return (device_array *)spt_py_raise(status, &err);
  }
  a->tensor.data = a->memory;
  a->tensor.writable = true;
  make_compact(&a->tensor);
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
  if (t->dtype == SPT_OTHER_DTYPE || !is_compact(t)) {
    PyErr_Format(PyExc_TypeError, "%s: x is not a contiguous array of a dtype that ops know", op);
  } else if ((a = allocate(t, device, op)) != NULL) {
    size_t bytes = (size_t)elements(t) * spt_dtype_size(t->dtype);
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
             (a = new_array(&view.tensor, ours)) != NULL) {
    device_array *given = spt_py_is_device_array(args[0]) ? (device_array *)args[0] : NULL;
    a->base = Py_NewRef(given != NULL ? (PyObject *)root_of(given) : view.owner);
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
  device_array *a = root_of((device_array *)object);
  if (a->base != NULL || a->exports > 0) {
    PyErr_SetString(PyExc_BufferError, "free: the device array's memory is shared with others");
    return NULL;
  }
  release_memory(a);
  a->freed = true;
  Py_RETURN_NONE;
}

/* ---- what they say of themselves ----------------------------------------------------------------- */

static PyObject *get_shape(PyObject *object, void *closure) {
  (void)closure;
  const spt_tensor *t = &((device_array *)object)->tensor;
  PyObject *shape = PyTuple_New(t->ndim);
  for (int i = 0; shape != NULL && i < t->ndim; i++) {
    PyTuple_SET_ITEM(shape, i, PyLong_FromLongLong(t->shape[i]));
  }
  return shape;
}

/* A new reference. bfloat16 is ml_dtypes' and needs that package. */
static PyArray_Descr *descr_of(spt_dtype dtype) {
  static const int numbers[] = {[SPT_F32] = NPY_FLOAT32, [SPT_F16] = NPY_FLOAT16,
                                [SPT_BF16] = NPY_UINT16, [SPT_F64] = NPY_FLOAT64,
                                [SPT_BOOL] = NPY_BOOL,   [SPT_U8] = NPY_UINT8,
                                [SPT_I32] = NPY_INT32,   [SPT_I64] = NPY_INT64};
  if (dtype != SPT_BF16) {
    return PyArray_DescrFromType(numbers[dtype]);
  }
  PyObject *module = PyImport_ImportModule("ml_dtypes");
  PyObject *type = module != NULL ? PyObject_GetAttrString(module, "bfloat16") : NULL;
  PyArray_Descr *descr = NULL;
  Py_XDECREF(module);
  if (type != NULL && !PyArray_DescrConverter(type, &descr)) {
    descr = NULL;
  }
  Py_XDECREF(type);
  return descr;
}

static PyObject *get_dtype(PyObject *object, void *closure) {
  (void)closure;
  return (PyObject *)descr_of(((device_array *)object)->tensor.dtype);
}

static PyObject *get_ndim(PyObject *object, void *closure) {
  (void)closure;
  return PyLong_FromLong(((device_array *)object)->tensor.ndim);
}

static PyObject *get_size(PyObject *object, void *closure) {
  (void)closure;
  return PyLong_FromLongLong(elements(&((device_array *)object)->tensor));
}

static PyObject *get_nbytes(PyObject *object, void *closure) {
  (void)closure;
  const spt_tensor *t = &((device_array *)object)->tensor;
  return PyLong_FromLongLong(elements(t) * (int64_t)spt_dtype_size(t->dtype));
}

static PyObject *get_device(PyObject *object, void *closure) {
  (void)closure;
  return PyUnicode_FromFormat("cuda:%d", spt_device_ordinal(((device_array *)object)->device));
}

static PyObject *represent(PyObject *object) {
  device_array *a = (device_array *)object;
  PyObject *shape = get_shape(object, NULL);
  PyObject *text =
      shape == NULL
          ? NULL
          : PyUnicode_FromFormat("DeviceArray(shape=%R, dtype=%s, device='cuda:%d'%s)", shape,
                                 spt_dtype_name(a->tensor.dtype), spt_device_ordinal(a->device),
                                 root_of(a)->freed ? ", freed" : "");
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

/* ---- views --------------------------------------------------------------------------------------- */

static PyObject *view_with(device_array *a, const spt_tensor *t) {
  if (check_alive(a, "DeviceArray", "it") < 0) {
    return NULL;
  }
  device_array *view = new_array(t, a->device);
  if (view != NULL) {
    view->base = Py_NewRef(a->base != NULL ? a->base : (PyObject *)a);
  }
  return (PyObject *)view;
}

static PyObject *get_transposed(PyObject *object, void *closure) {
  (void)closure;
  device_array *a = (device_array *)object;
  spt_tensor t = a->tensor;
  for (int i = 0; i < t.ndim; i++) {
    t.shape[i] = a->tensor.shape[t.ndim - 1 - i];
    t.stride[i] = a->tensor.stride[t.ndim - 1 - i];
  }
  return view_with(a, &t);
}

/* The sizes asked for, one of which may be -1. */
static int new_shape(spt_tensor *t, PyObject *shape, int64_t n) {
  int64_t product = 1;
  int open = -1;
  t->ndim = (int32_t)PyTuple_GET_SIZE(shape);
  for (int i = 0; i < t->ndim; i++) {
    t->shape[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(shape, i));
    if (t->shape[i] == -1 && !PyErr_Occurred() && open < 0) {
      open = i;
    } else if (t->shape[i] < 0 || __builtin_mul_overflow(product, t->shape[i], &product)) {
      return -1;
    }
  }
  if (open >= 0) {
    t->shape[open] = product > 0 ? n / product : 0;
    product *= t->shape[open];
  }
  return product == n ? 0 : -1;
}

/* Without a copy: the axes of an array that is not compact may be joined only where their strides allow. */
static PyObject *reshape(PyObject *object, PyObject *args) {
  device_array *a = (device_array *)object;
  PyObject *shape = args;
  if (PyTuple_GET_SIZE(args) == 1 && PyTuple_Check(PyTuple_GET_ITEM(args, 0))) {
    shape = PyTuple_GET_ITEM(args, 0);
  }
  spt_tensor t = a->tensor;
  if (PyTuple_GET_SIZE(shape) > SPT_MAX_NDIM || new_shape(&t, shape, elements(&a->tensor)) < 0) {
    if (!PyErr_Occurred()) {
      PyErr_Format(PyExc_ValueError, "reshape: %R does not have the array's %lld elements", shape,
                   (long long)elements(&a->tensor));
    }
    return NULL;
  }
  if (is_compact(&a->tensor)) {
    make_compact(&t);
    return view_with(a, &t);
  }
  /* Each new axis takes whole old ones, or a part of one; both are walked from the last. */
  int old = a->tensor.ndim - 1;
  int64_t left = 0,
          step = 0; /* of the joined old axes: elements not yet given out, and their stride */
  for (int i = t.ndim - 1; i >= 0; i--) {
    if (t.shape[i] == 1) {
      t.stride[i] = 0;
      continue;
    }
    while (left <= 1 && old >= 0) {
      left = a->tensor.shape[old];
      step = a->tensor.stride[old--];
      while (old >= 0 && (a->tensor.shape[old] == 1 || a->tensor.stride[old] == step * left)) {
        left *= a->tensor.shape[old--];
      }
    }
    if (left % t.shape[i] != 0) {
      PyErr_Format(PyExc_ValueError,
                   "reshape: the strides of this device array don't allow %R without a copy",
                   shape);
      return NULL;
    }
    t.stride[i] = step;
    step *= t.shape[i];
    left /= t.shape[i];
  }
  return view_with(a, &t);
}

/* ---- to the host --------------------------------------------------------------------------------- */

/* The memory that a tensor spans, from its lowest address. */
static int64_t span_of(const spt_tensor *t, int64_t *before) {
  int64_t low = 0, high = 0;
  for (int i = 0; i < t->ndim; i++) {
    int64_t reach = (t->shape[i] - 1) * t->stride[i];
    *(reach < 0 ? &low : &high) += reach;
  }
  *before = -low;
  return elements(t) == 0 ? 0 : high - low + 1;
}

static PyObject *numpy(PyObject *object, PyObject *ignored) {
  (void)ignored;
  device_array *a = (device_array *)object;
  const spt_tensor *t = &a->tensor;
  int64_t before, span = span_of(t, &before), size = (int64_t)spt_dtype_size(t->dtype);
  npy_intp shape[SPT_MAX_NDIM], strides[SPT_MAX_NDIM], whole = (npy_intp)span;
  PyArray_Descr *descr = check_alive(a, "numpy", "it") < 0 ? NULL : descr_of(t->dtype);
  if (descr == NULL) {
    return NULL;
  }
  Py_INCREF(descr);
  PyObject *memory = PyArray_NewFromDescr(&PyArray_Type, descr, 1, &whole, NULL, NULL, 0, NULL);
  if (memory == NULL) {
    Py_DECREF(descr);
    return NULL;
  }
  char *host = PyArray_DATA((PyArrayObject *)memory);
  spt_error err;
  spt_status status = SPT_OK;
  SPT_PY_CALL(status, spt_device_download(a->device, "numpy", host, (char *)t->data - before * size,
                                          (size_t)(span * size), &err));
  if (status != SPT_OK) {
    Py_DECREF(descr);
    Py_DECREF(memory);
    return spt_py_raise(status, &err);
  }
  for (int i = 0; i < t->ndim; i++) {
    shape[i] = (npy_intp)t->shape[i];
    strides[i] = (npy_intp)((t->shape[i] > 1 ? t->stride[i] : 1) * size);
  }
  bool compact = is_compact(t);
  PyObject *view =
      PyArray_NewFromDescr(&PyArray_Type, descr, t->ndim, shape, compact ? NULL : strides,
                           host + before * size, NPY_ARRAY_WRITEABLE, NULL);
  if (view == NULL || PyArray_SetBaseObject((PyArrayObject *)view, memory) < 0) {
    Py_XDECREF(view);
    return NULL; /* SetBaseObject takes the reference even so */
  }
  if (compact) {
    return view;
  }
  PyObject *copy = PyArray_NewCopy((PyArrayObject *)view, NPY_CORDER);
  Py_DECREF(view);
  return copy;
}

static PyObject *refuse_array(PyObject *object, PyObject *args, PyObject *keywords) {
  (void)object;
  (void)args;
  (void)keywords;
  PyErr_SetString(PyExc_TypeError,
                  "a device array is copied to the host only where asked: use its numpy()");
  return NULL;
}

/* ---- to others, without a copy ------------------------------------------------------------------- */

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
  root_of(e->array)->exports--;
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
  dl_tensor d = {.data = elements(t) > 0 ? t->data : NULL,
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

static PyObject *dlpack(PyObject *object, PyObject *args, PyObject *keywords) {
  static char *names[] = {"stream", "max_version", "dl_device", "copy", NULL};
  device_array *a = (device_array *)object;
  PyObject *stream = Py_None, *max_version = Py_None, *dl_device = Py_None, *copy = Py_None;
  if (!PyArg_ParseTupleAndKeywords(args, keywords, "|$OOOO", names, &stream, &max_version,
                                   &dl_device, &copy)) {
    return NULL;
  }
  int versioned = version_asked(max_version, dl_device, copy, spt_device_ordinal(a->device));
  if (versioned < 0 || check_alive(a, "__dlpack__", "it") < 0 || make_ready(a, stream) < 0) {
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
  root_of(a)->exports++;
  root_of(a)->shared = true;
  return capsule;
}

static PyObject *dlpack_device(PyObject *object, PyObject *ignored) {
  (void)ignored;
  return Py_BuildValue("ii", DL_CUDA, spt_device_ordinal(((device_array *)object)->device));
}

static PyObject *get_interface(PyObject *object, void *closure) {
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
  if (check_alive(a, "__cuda_array_interface__", "it") < 0) {
    return NULL;
  }
  PyObject *shape = get_shape(object, NULL), *strides = PyTuple_New(t->ndim);
  int64_t size = (int64_t)spt_dtype_size(t->dtype);
  for (int i = 0; strides != NULL && i < t->ndim; i++) {
    PyTuple_SET_ITEM(strides, i, PyLong_FromLongLong((t->shape[i] > 1 ? t->stride[i] : 1) * size));
  }
  if (shape == NULL || strides == NULL || PyErr_Occurred()) {
    Py_XDECREF(shape);
    Py_XDECREF(strides);
    return NULL;
  }
  if (is_compact(t)) {
    Py_SETREF(strides, Py_NewRef(Py_None));
  }
  root_of(a)->shared = true;
  uintptr_t stream = spt_device_stream(a->device),
            address = elements(t) > 0 ? (uintptr_t)t->data : 0;
  return Py_BuildValue("{s:N,s:s,s:(NN),s:N,s:K,s:i}", "shape", shape, "typestr",
                       typestrs[t->dtype], "data", PyLong_FromUnsignedLongLong(address),
                       PyBool_FromLong(!t->writable), "strides", strides, "stream",
                       (unsigned long long)(stream == 0 ? 1 : stream), "version", 3);
}

/* ---- the type ------------------------------------------------------------------------------------ */

static PyGetSetDef attributes[] = {
    {"shape", get_shape, NULL, "its sizes, a tuple", NULL},
    {"dtype", get_dtype, NULL, "as NumPy names it; bfloat16 is ml_dtypes'", NULL},
    {"ndim", get_ndim, NULL, "how many axes it has", NULL},
    {"size", get_size, NULL, "how many elements it has", NULL},
    {"nbytes", get_nbytes, NULL, "the bytes of its elements", NULL},
    {"device", get_device, NULL, "where it is: 'cuda:0'", NULL},
    {"T", get_transposed, NULL, "a view with the axes reversed", NULL},
    {"__cuda_array_interface__", get_interface, NULL, "version 3 of the protocol", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef methods[] = {
    {"numpy", numpy, METH_NOARGS, "numpy()\n--\n\nA copy in host memory, once its work is done."},
    {"reshape", reshape, METH_VARARGS,
     "reshape(shape)\n--\n\nA view; ValueError where it takes a copy."},
    {"free", free_now, METH_NOARGS,
     "free()\n--\n\nGive its memory back now. Any later use of it or of its views is a "
     "RuntimeError."},
    {"__dlpack__", (PyCFunction)(void (*)(void))dlpack, METH_VARARGS | METH_KEYWORDS,
     "__dlpack__(*, stream=None, max_version=None, dl_device=None, copy=None)\n--\n\n"
     "A DLPack capsule of the same memory."},
    {"__dlpack_device__", dlpack_device, METH_NOARGS, "(2, the GPU's number)"},
    {"__array__", (PyCFunction)(void (*)(void))refuse_array, METH_VARARGS | METH_KEYWORDS,
     "TypeError: nothing is copied to the host unasked."},
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
