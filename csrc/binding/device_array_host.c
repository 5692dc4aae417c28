/* DeviceArray to the host: numpy(), and nothing unasked. */
#include "device_array.h"

/* A new reference. bfloat16 is ml_dtypes' and needs that package. */
PyArray_Descr *spt_py_descr_of(spt_dtype dtype) {
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

/* The memory that a tensor spans, from its lowest address. */
static int64_t span_of(const spt_tensor *t, int64_t *before) {
  int64_t low = 0, high = 0;
  for (int i = 0; i < t->ndim; i++) {
    int64_t reach = (t->shape[i] - 1) * t->stride[i];
    *(reach < 0 ? &low : &high) += reach;
  }
  *before = -low;
  return spt_py_elements(t) == 0 ? 0 : high - low + 1;
}

PyObject *spt_py_array_numpy(PyObject *object, PyObject *ignored) {
  (void)ignored;
  device_array *a = (device_array *)object;
  const spt_tensor *t = &a->tensor;
  int64_t before, span = span_of(t, &before), size = (int64_t)spt_dtype_size(t->dtype);
  npy_intp shape[SPT_MAX_NDIM], strides[SPT_MAX_NDIM], whole = (npy_intp)span;
  PyArray_Descr *descr =
      spt_py_check_alive(a, "numpy", "it") < 0 ? NULL : spt_py_descr_of(t->dtype);
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
  bool compact = spt_py_is_compact(t);
  PyObject *view =
      PyArray_NewFromDescr(&PyArray_Type, descr, t->ndim, shape, compact ? NULL : strides,
                           host + before * size, NPY_ARRAY_WRITEABLE, NULL);
  if (view == NULL) {
    Py_DECREF(memory);
    return NULL;
  }
  if (PyArray_SetBaseObject((PyArrayObject *)view, memory) < 0) {
    Py_DECREF(view);
    return NULL; /* SetBaseObject takes the reference even so */
  }
  if (compact) {
    return view;
  }
  PyObject *copy = PyArray_NewCopy((PyArrayObject *)view, NPY_CORDER);
  Py_DECREF(view);
  return copy;
}

PyObject *spt_py_array_refuse_array(PyObject *object, PyObject *args, PyObject *keywords) {
  (void)object;
  (void)args;
  (void)keywords;
  PyErr_SetString(PyExc_TypeError,
                  "a device array is copied to the host only where asked: use its numpy()");
  return NULL;
}
