/* device_array.h: what the files of DeviceArray share. */
#ifndef SPATILE_BINDING_DEVICE_ARRAY_H
#define SPATILE_BINDING_DEVICE_ARRAY_H

#include "numpy_api.h"

typedef struct device_array {
  PyObject_HEAD spt_tensor tensor;
  spt_device *device; /* the stream on which its data is ready */
  void *memory;       /* its own; NULL for a view, and once it was freed */
  PyObject *base;     /* keeps a view's memory alive: a DeviceArray that is no view, or another's */
  bool freed;         /* by free() */
  bool shared;        /* others have had its address, and may use it on streams of theirs */
  Py_ssize_t exports; /* capsules of it that are alive */
} device_array;

/* The array whose memory it is: itself, or what it is a view of. */
device_array *spt_py_root_of(device_array *);
/* -1 and an exception where its memory was freed. */
int spt_py_check_alive(device_array *, const char *op, const char *arg);
device_array *spt_py_new_device_array(const spt_tensor *, spt_device *);

/* device_array_shapes.c: sizes and strides. Compact: row after row without gaps. */
int64_t spt_py_elements(const spt_tensor *);
void spt_py_make_compact(spt_tensor *);
bool spt_py_is_compact(const spt_tensor *);
PyObject *spt_py_array_shape(PyObject *, void *closure);
PyObject *spt_py_array_transposed(PyObject *, void *closure);
PyObject *spt_py_array_reshape(PyObject *, PyObject *args);

/* device_array_host.c: copies in host memory. */
PyArray_Descr *spt_py_descr_of(spt_dtype);
PyObject *spt_py_array_numpy(PyObject *, PyObject *ignored);
PyObject *spt_py_array_refuse_array(PyObject *, PyObject *args, PyObject *keywords);

/* device_array_exports.c: the same memory for other libraries. */
PyObject *spt_py_array_dlpack(PyObject *, PyObject *args, PyObject *keywords);
PyObject *spt_py_array_dlpack_device(PyObject *, PyObject *ignored);
PyObject *spt_py_array_interface(PyObject *, void *closure);

#endif
