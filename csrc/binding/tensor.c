/* NumPy arrays and DLPack capsules in host memory as tensor views, and errors as exceptions. */
#include <string.h>

#include "dlpack.h"
#include "numpy_api.h"

static spt_dtype dtype_of_numpy(PyArray_Descr *descr) {
  if (!PyArray_ISNBO(descr->byteorder)) {
    return SPT_OTHER_DTYPE;
  }
  switch (descr->type_num) {
    case NPY_FLOAT32:
      return SPT_F32;
    case NPY_FLOAT16:
      return SPT_F16;
    case NPY_FLOAT64:
      return SPT_F64;
    case NPY_BOOL:
      return SPT_BOOL;
    case NPY_UINT8:
      return SPT_U8;
    default:
      break;
  }
  if (PyTypeNum_ISSIGNED(descr->type_num)) { /* int64 is long or long long, by platform */
    Py_ssize_t size = PyDataType_ELSIZE(descr);
    return size == 4 ? SPT_I32 : size == 8 ? SPT_I64 : SPT_OTHER_DTYPE;
  }
  /* ml_dtypes registers its own scalar type; NumPy has no number for it. */
  if (strcmp(descr->typeobj->tp_name, "ml_dtypes.bfloat16") == 0) {
    return SPT_BF16;
  }
  return SPT_OTHER_DTYPE;
}

/* Views with stride 0 and crafted strides may claim what no memory holds. Within these bounds no
 * product of an array's own sizes and strides leaves 64 bits, in any op. */
#define MOST_ELEMENTS ((int64_t)1 << 48)
#define FARTHEST ((int64_t)1 << 58)

int spt_py_check_size(const spt_tensor *t, const char *op, const char *arg) {
  int64_t elements = 1, farthest = 0;
  for (int i = 0; i < t->ndim; i++) {
    int64_t reach, last = t->shape[i] > 1 ? t->shape[i] - 1 : 0;
    if (t->shape[i] < 0 ||
        __builtin_mul_overflow(elements, t->shape[i] > 0 ? t->shape[i] : 1, &elements) ||
        elements > MOST_ELEMENTS) {
      PyErr_Format(PyExc_ValueError, "%s: %s is too large, expected at most 2**48 elements", op,
                   arg);
      return -1;
    }
    if (__builtin_mul_overflow(last, t->stride[i], &reach) || reach > FARTHEST ||
        reach < -FARTHEST || (farthest += reach < 0 ? -reach : reach) > FARTHEST) {
      PyErr_Format(PyExc_ValueError,
                   "%s: %s.strides[%d] reaches too far, expected at most 2**58 elements", op, arg,
                   i);
      return -1;
    }
  }
  return 0;
}

static int view_of_numpy(spt_py_view *view, PyArrayObject *array, const char *op, const char *arg) {
  int ndim = PyArray_NDIM(array);
  if (ndim > SPT_MAX_NDIM) {
    PyErr_Format(PyExc_ValueError, "%s: %s has %d dimensions, expected at most %d", op, arg, ndim,
                 SPT_MAX_NDIM);
    return -1;
  }
  spt_tensor *t = &view->tensor;
  t->dtype = dtype_of_numpy(PyArray_DESCR(array));
  t->data = PyArray_DATA(array);
  t->ndim = ndim;
  t->writable = PyArray_ISWRITEABLE(array);
  Py_ssize_t size = PyArray_ITEMSIZE(array);
  for (int i = 0; i < ndim; i++) {
    t->shape[i] = PyArray_DIM(array, i);
    npy_intp stride = PyArray_STRIDE(array, i);
    if (size == 0 || (t->shape[i] > 1 && stride % size != 0)) {
      PyErr_Format(PyExc_ValueError,
                   "%s: %s.strides[%d] is %zd bytes, expected a multiple of the element's %zd", op,
                   arg, i, (Py_ssize_t)stride, size);
      return -1;
    }
    t->stride[i] = t->shape[i] > 1 ? stride / size : 0;
  }
  if (t->dtype != SPT_OTHER_DTYPE && (uintptr_t)t->data % spt_dtype_size(t->dtype) != 0) {
    PyErr_Format(PyExc_ValueError,
                 "%s: %s is not aligned to its elements, expected an aligned array", op, arg);
    return -1;
  }
  if (spt_py_check_size(t, op, arg) < 0) {
    return -1;
  }
  view->owner = Py_NewRef((PyObject *)array);
  return 0;
}

static spt_dtype dtype_of_dlpack(uint8_t code, uint8_t bits, uint16_t lanes) {
  if (lanes != 1) {
    return SPT_OTHER_DTYPE;
  }
  switch (code) {
    case DL_FLOAT:
      return bits == 32 ? SPT_F32 : bits == 16 ? SPT_F16 : bits == 64 ? SPT_F64 : SPT_OTHER_DTYPE;
    case DL_BFLOAT:
      return bits == 16 ? SPT_BF16 : SPT_OTHER_DTYPE;
    case DL_BOOL:
      return bits == 8 ? SPT_BOOL : SPT_OTHER_DTYPE;
    case DL_INT:
      return bits == 32 ? SPT_I32 : bits == 64 ? SPT_I64 : SPT_OTHER_DTYPE;
    case DL_UINT:
      return bits == 8 ? SPT_U8 : SPT_OTHER_DTYPE;
    default:
      return SPT_OTHER_DTYPE;
  }
}

int spt_py_view_of_dl_tensor(spt_py_view *view, const dl_tensor *from, bool writable,
                             PyObject *capsule, const char *op, const char *arg) {
  spt_tensor *t = &view->tensor;
  if (from->ndim < 0 || from->ndim > SPT_MAX_NDIM) {
    PyErr_Format(PyExc_ValueError, "%s: %s has %d dimensions, expected at most %d", op, arg,
                 (int)from->ndim, SPT_MAX_NDIM);
    goto failed;
  }
  t->dtype = dtype_of_dlpack(from->dtype.code, from->dtype.bits, from->dtype.lanes);
  t->data = (char *)from->data + from->byte_offset;
  t->ndim = from->ndim;
  t->writable = writable;
  int64_t compact = 1;
  for (int i = from->ndim - 1; i >= 0; i--) {
    t->shape[i] = from->shape[i];
    t->stride[i] = from->shape[i] > 1 ? (from->strides != NULL ? from->strides[i] : compact) : 0;
    if (__builtin_mul_overflow(compact, from->shape[i], &compact)) {
      compact = INT64_MAX; /* refused below */
    }
  }
  if (spt_py_check_size(t, op, arg) < 0) {
    goto failed;
  }
  size_t size = spt_dtype_size(t->dtype);
  if ((compact > 0 && from->data == NULL) || (size > 0 && (uintptr_t)t->data % size != 0)) {
    PyErr_Format(PyExc_ValueError,
                 "%s: %s is not aligned to its elements, expected an aligned array", op, arg);
    goto failed;
  }
  view->owner = capsule;
  return 0;
failed:
  Py_DECREF(capsule);
  return -1;
}

/* On the CPU. A capsule that nobody renames frees its tensor by itself when the last reference goes. */
static int view_of_dlpack(spt_py_view *view, PyObject *object, const char *op, const char *arg) {
  PyObject *capsule = PyObject_CallMethod(object, "__dlpack__", NULL);
  if (capsule == NULL) {
    return -1;
  }
  if (!PyCapsule_IsValid(capsule, DL_NAME)) {
    PyErr_Format(PyExc_ValueError,
                 "%s: %s gives no DLPack capsule that is still to be consumed, expected a new one "
                 "at each call of __dlpack__",
                 op, arg);
    Py_DECREF(capsule);
    return -1;
  }
  dl_managed_tensor *managed = PyCapsule_GetPointer(capsule, DL_NAME);
  const dl_tensor *from = &managed->tensor;
  if (from->device.type != DL_CPU && from->device.type != DL_CUDA_HOST) {
    PyErr_Format(PyExc_NotImplementedError,
                 "%s: %s is on a device of DLPack type %d, expected the CPU or a CUDA device", op,
                 arg, (int)from->device.type);
    Py_DECREF(capsule);
    return -1;
  }
  /* Version 0 of the protocol can't say that an array is read-only. */
  return spt_py_view_of_dl_tensor(view, from, true, capsule, op, arg);
}

int spt_py_view_of(spt_py_view *view, PyObject *object, const char *op, const char *arg) {
  memset(view, 0, sizeof *view);
  view->arg = arg;
  if (PyArray_Check(object)) {
    return view_of_numpy(view, (PyArrayObject *)object, op, arg);
  }
  if (spt_py_is_device_array(object)) {
    return spt_py_view_of_device_array(view, object, op, arg);
  }
  int ordinal, elsewhere = spt_py_foreign_device(object, &ordinal);
  if (elsewhere != 0) {
    return elsewhere < 0 ? -1 : spt_py_view_of_foreign(view, object, ordinal, op, arg);
  }
  if (PyObject_HasAttrString(object, "__dlpack__")) {
    return view_of_dlpack(view, object, op, arg);
  }
  PyErr_Format(PyExc_TypeError, "%s: %s is a %s, expected an array (NumPy or DLPack)", op, arg,
               Py_TYPE(object)->tp_name);
  return -1;
}

int spt_py_optional_view_of(spt_py_view *view, PyObject *object, const char *op, const char *arg) {
  if (object == Py_None) {
    memset(view, 0, sizeof *view);
    return 0;
  }
  return spt_py_view_of(view, object, op, arg);
}

int spt_py_host_view_of(spt_py_view *view, PyObject *object, spt_py_place place, const char *op,
                        const char *arg) {
  if (spt_py_optional_view_of(view, object, op, arg) < 0) {
    return -1;
  }
  view->place = place;
  view->tensor.writable = false; /* no op writes to these */
  if (view->device != NULL) {
    PyErr_Format(PyExc_ValueError, "%s: %s is on cuda:%d, expected an array in host memory", op,
                 arg, spt_device_ordinal(view->device));
    return -1;
  }
  return 0;
}

void spt_py_release(spt_py_view *views, int count) {
  for (int i = 0; i < count; i++) {
    Py_CLEAR(views[i].owner);
  }
}

int spt_py_number_of(double *number, PyObject *object, const char *op, const char *arg) {
  *number = PyFloat_AsDouble(object);
  if (!PyErr_Occurred()) {
    return 0;
  }
  if (PyErr_ExceptionMatches(PyExc_TypeError)) {
    PyErr_Format(PyExc_TypeError, "%s: %s is a %s, expected a number", op, arg,
                 Py_TYPE(object)->tp_name);
  }
  return -1;
}

PyObject *spt_py_raise(spt_status status, const spt_error *err) {
  PyObject *types[] = {
      [SPT_INVALID_VALUE] = PyExc_ValueError,        [SPT_INVALID_DTYPE] = PyExc_TypeError,
      [SPT_UNSUPPORTED] = PyExc_NotImplementedError, [SPT_OUT_OF_MEMORY] = PyExc_MemoryError,
      [SPT_DEVICE_ERROR] = PyExc_RuntimeError,
  };
  PyErr_SetString(types[status], err->message);
  return NULL;
}

int spt_py_check_count(const char *op, Py_ssize_t found, Py_ssize_t expected) {
  if (found != expected) {
    PyErr_Format(PyExc_TypeError, "%s: %zd arguments, expected %zd", op, found, expected);
    return -1;
  }
  return 0;
}
