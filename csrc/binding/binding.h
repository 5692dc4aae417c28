/* What the files of the extension share. The only folder that includes Python.h. */
#ifndef SPATILE_BINDING_H
#define SPATILE_BINDING_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "../spatile.h"

#define SPT_PY_METHOD(name, doc) \
  {#name, (PyCFunction)(void (*)(void))spt_py_##name, METH_FASTCALL, doc}
#define SPT_PY_DECLARE(name) PyObject *spt_py_##name(PyObject *, PyObject *const *, Py_ssize_t)

/* Where an argument's memory has to be. */
typedef enum spt_py_place {
  SPT_PY_WITH_OTHERS = 0, /* all of these on one device, which is the op's */
  SPT_PY_HOST,            /* in host memory whatever the device: offsets, lengths */
  SPT_PY_FOLLOWS,         /* in host memory, and copied to the op's device for the call */
} spt_py_place;

/* A tensor view with the object that keeps its memory alive; zeroed means absent. */
typedef struct spt_py_view {
  spt_tensor tensor;
  PyObject *owner;
  const char *arg;
  spt_device *device;  /* the GPU, and the stream of it on which the data is ready; NULL: host */
  bool chooses_stream; /* its library has a current stream, which device names */
  spt_py_place place;
} spt_py_view;

/* A NumPy array, a DeviceArray, or anything with __dlpack__ or __cuda_array_interface__. Returns -1
 * with an exception set. */
int spt_py_view_of(spt_py_view *view, PyObject *object, const char *op, const char *arg);
/* The same, where None means absent: then the view stays zeroed. */
int spt_py_optional_view_of(spt_py_view *view, PyObject *object, const char *op, const char *arg);
/* None or an array in host memory, for place. */
int spt_py_host_view_of(spt_py_view *view, PyObject *object, spt_py_place place, const char *op,
                        const char *arg);
void spt_py_release(spt_py_view *views, int count);
static inline const spt_tensor *spt_py_optional(const spt_py_view *view) {
  return view->owner != NULL ? &view->tensor : NULL;
}

/* A Python number as a double. Returns -1 with an exception set. */
int spt_py_number_of(double *number, PyObject *object, const char *op, const char *arg);

/* NULL for success or failure alike: sets the exception that the status stands for. */
PyObject *spt_py_raise(spt_status status, const spt_error *err);

/* A call of an op, between its views and its result. */
typedef struct spt_py_call {
  const char *op;
  spt_device *device; /* what the op is to run on */
  spt_py_view *views;
  int count;
  struct spt_py_copies *copies; /* of host arrays on the device; NULL: none */
} spt_py_call;

/* Where SPATILE_DEVICE names a GPU (or nothing that exists): host arrays are computed there. */
extern bool spt_py_elsewhere;
void spt_py_read_environment(void);
/* That GPU, or NULL where host arrays stay. -1 with an exception set where it can't be had. */
int spt_py_default_device(const char *op, spt_device **device);

/* begin, once all views are there and before their tensors are used: finds the one device, and copies
 * there what has to be. end, whatever the op returned: copies back what is writable, releases the views,
 * and gives None, or NULL with the exception that the status stands for. */
int spt_py_place_views(spt_py_call *call);
static inline int spt_py_begin(spt_py_call *call, const char *op, spt_py_view *views, int count) {
  *call = (spt_py_call){op, spt_cpu_device(), views, count, NULL};
  bool elsewhere = spt_py_elsewhere;
  for (int i = 0; i < count; i++) {
    elsewhere |= views[i].device != NULL;
  }
  return elsewhere ? spt_py_place_views(call) : 0;
}
bool spt_py_runs_elsewhere(const spt_py_call *call); /* by SPATILE_DEVICE */
PyObject *spt_py_end(spt_py_call *call, spt_status status, const spt_error *err);
/* Where reading the arguments or begin failed: releases the views, and is NULL. */
static inline PyObject *spt_py_failed(spt_py_view *views, int count) {
  spt_py_release(views, count);
  return NULL;
}

/* The first three arguments of an op on groups: an array, group_rows, group_cols. */
int spt_py_grouped_view_of(spt_py_view *view, PyObject *const *args, const char *op,
                           const char *arg, int64_t *group_rows, int64_t *group_cols);

int spt_py_check_count(const char *op, Py_ssize_t found, Py_ssize_t expected);

/* Packed weights travel as capsules that own references to their arrays (weights.c). */
#define SPT_PY_STRIPS "spatile.strips"
#define SPT_PY_CSR "spatile.csr"

SPT_PY_DECLARE(linear);
SPT_PY_DECLARE(linear_backward);
SPT_PY_DECLARE(group_norms);
SPT_PY_DECLARE(group_beta);
SPT_PY_DECLARE(group_lasso);
SPT_PY_DECLARE(group_lasso_grad);
SPT_PY_DECLARE(group_shrink);
SPT_PY_DECLARE(apply_mask);
SPT_PY_DECLARE(expand_mask);
SPT_PY_DECLARE(prune_mask);
SPT_PY_DECLARE(second_order_removals);
SPT_PY_DECLARE(second_order_apply);
SPT_PY_DECLARE(layer_norm);
SPT_PY_DECLARE(gelu);
SPT_PY_DECLARE(dropout);
SPT_PY_DECLARE(softmax);
SPT_PY_DECLARE(embedding);
SPT_PY_DECLARE(topk);
SPT_PY_DECLARE(select_tokens);
SPT_PY_DECLARE(gather_tokens);
SPT_PY_DECLARE(attention);
SPT_PY_DECLARE(attention_backward);
SPT_PY_DECLARE(strips);
SPT_PY_DECLARE(csr);

/* The weights in a capsule as the device's products read them; NULL where that is made at each call.
 * index_only: of strips beside a dense array. What is set in `own` is the call's to free. */
SPT_WARN_UNUSED spt_status spt_py_prepared(PyObject *capsule, spt_device *, bool index_only,
                                           spt_dtype compute, const spt_prepared **,
                                           spt_prepared **own, spt_error *);
/* The GPU that the weights in a capsule were moved to; -1 for host memory. */
int spt_py_weights_ordinal(PyObject *capsule);

/* -1 and a ValueError where spt_py_drop_values was here. */
int spt_py_check_values(PyObject *capsule, const char *op);

/* The strips' values go, and their shape stays: for an encoder that keeps weights in another form. */
void spt_py_drop_values(PyObject *capsule);

/* Adds the type Encoder (encoder.c). */
int spt_py_add_encoder(PyObject *module);

/* device_array.c: the type DeviceArray, and views of it. */
int spt_py_add_device_array(PyObject *module);
bool spt_py_is_device_array(PyObject *object);
int spt_py_view_of_device_array(spt_py_view *view, PyObject *array, const char *op,
                                const char *arg);
SPT_PY_DECLARE(to_device);
SPT_PY_DECLARE(device_empty);
SPT_PY_DECLARE(from_device);
/* devices.c: what Python asks about GPUs. gpu_of: of this number, on its default stream; NULL with an
 * exception set. */
spt_device *spt_py_gpu_of(PyObject *number, const char *op);
SPT_PY_DECLARE(gpu_count);
SPT_PY_DECLARE(gpu_info);
SPT_PY_DECLARE(gpu_library);
SPT_PY_DECLARE(gpu_synchronize);
SPT_PY_DECLARE(default_gpu);
SPT_PY_DECLARE(addresses);

/* device_views.c: device arrays of other libraries. foreign_device: 1 and the GPU that an object says
 * it is on, 0 where it says none, -1 with an exception set. */
int spt_py_foreign_device(PyObject *object, int *ordinal);
int spt_py_view_of_foreign(spt_py_view *view, PyObject *object, int ordinal, const char *op,
                           const char *arg);
/* What a capsule's tensor says, whatever its device; takes the capsule over, also where it fails. */
struct dl_tensor;
int spt_py_view_of_dl_tensor(spt_py_view *view, const struct dl_tensor *from, bool writable,
                             PyObject *capsule, const char *op, const char *arg);
/* Sizes and strides within what the ops can count with; else -1 with an exception set. */
int spt_py_check_size(const spt_tensor *t, const char *op, const char *arg);

/* Runs an op without the GIL. */
#define SPT_PY_CALL(status, call) \
  do {                            \
    Py_BEGIN_ALLOW_THREADS;       \
    (status) = (call);            \
    Py_END_ALLOW_THREADS;         \
  } while (0)

#endif
