/* Packed weights: index arrays are checked here, once, so that no product can read out of bounds. */
#include <stdlib.h>
#include <string.h>

#include "numpy_api.h"

#define MAX_ARRAYS 6
#define VALUES 4 /* of strips, among the arrays */

/* One form that a device's products read: made when first wanted, under the GIL. */
typedef struct form {
  spt_prepared *prepared;
  int ordinal;
  bool index_only;
  spt_dtype compute;
  struct form *next;
} form;

typedef struct packed {
  union {
    spt_strips strips;
    spt_csr csr;
  } weight;
  PyObject *arrays[MAX_ARRAYS];
  bool frozen; /* the values can't change: they are in 16 bits, or were moved to a GPU */
  int ordinal; /* of that GPU, or -1 */
  form *forms;
} packed;

static void free_packed(PyObject *capsule) {
  packed *p = PyCapsule_GetPointer(capsule, PyCapsule_GetName(capsule));
  for (int i = 0; i < MAX_ARRAYS; i++) {
    Py_XDECREF(p->arrays[i]);
  }
  while (p->forms != NULL) {
    form *next = p->forms->next;
    spt_prepared_free(p->forms->prepared);
    free(p->forms);
    p->forms = next;
  }
  free(p);
}

static PyArrayObject *array_of(PyObject *object, int type, int ndim, const char *arg) {
  if (!PyArray_Check(object) || PyArray_TYPE((PyArrayObject *)object) != type ||
      PyArray_NDIM((PyArrayObject *)object) != ndim ||
      !PyArray_IS_C_CONTIGUOUS((PyArrayObject *)object)) {
    PyErr_Format(PyExc_TypeError,
                 "SparseMatrix: %s is not a contiguous array of the expected dtype", arg);
    return NULL;
  }
  return (PyArrayObject *)object;
}

static int shape_of(PyObject *const *args, int64_t *out, int64_t *in) {
  *out = PyLong_AsLongLong(args[0]);
  *in = PyLong_AsLongLong(args[1]);
  if (PyErr_Occurred()) {
    return -1;
  }
  if (*out < 0 || *in < 0 || *out > INT32_MAX - SPT_STRIP || *in > INT32_MAX - SPT_STRIP) {
    PyErr_Format(PyExc_ValueError,
                 "SparseMatrix: shape is (%lld, %lld), expected sides from 0 to 2**31 - 17",
                 (long long)*out, (long long)*in);
    return -1;
  }
  return 0;
}

/* Non-decreasing from 0 to `last`. */
static bool is_pointer_array(const int64_t *p, int64_t n, int64_t last) {
  for (int64_t i = 0; i < n; i++) {
    if (p[i] > p[i + 1]) {
      return false;
    }
  }
  return p[0] == 0 && p[n] == last;
}

/* Results are written by row of a strip: one that no strip has would be left as it was. */
static const char *fault_in_rows(const spt_strips *w) {
  bool *seen = calloc((size_t)w->out + 1, sizeof *seen);
  if (seen == NULL) {
    return "no memory to look at its rows";
  }
  const char *fault = NULL;
  int64_t count = 0;
  for (int64_t i = 0; fault == NULL && i < w->n_strips * SPT_STRIP; i++) {
    int32_t row = w->rows[i];
    if (row < -1 || row >= w->out) {
      fault = "a row lies outside the matrix";
    } else if (row >= 0) {
      fault = seen[row] ? "a row is in two places" : NULL;
      seen[row] = true;
      count++;
    }
  }
  free(seen);
  return fault == NULL && count != w->out ? "a row is in no strip" : fault;
}

static const char *fault_in_strips(const spt_strips *w, int64_t n_runs) {
  if (!is_pointer_array(w->run_ptr, w->n_strips, n_runs)) {
    return "run_ptr does not rise from 0 to the number of runs";
  }
  if (!is_pointer_array(w->value_ptr, w->n_strips, w->n_columns)) {
    return "value_ptr does not rise from 0 to the number of kept columns";
  }
  for (int64_t s = 0; s < w->n_strips; s++) {
    int64_t columns = 0;
    for (int64_t r = w->run_ptr[s]; r < w->run_ptr[s + 1]; r++) {
      int64_t start = w->run_start[r], len = w->run_len[r];
      if (start < 0 || len < 1 || start + len > w->in) {
        return "a run lies outside the matrix";
      }
      if (r > w->run_ptr[s] && start < (int64_t)w->run_start[r - 1] + w->run_len[r - 1]) {
        return "the runs of a strip overlap or are out of order";
      }
      columns += len;
    }
    if (columns != w->value_ptr[s + 1] - w->value_ptr[s]) {
      return "runs and value_ptr disagree";
    }
  }
  if (w->rows != NULL) {
    return fault_in_rows(w);
  }
  if (w->n_strips != (w->out + SPT_STRIP - 1) / SPT_STRIP) {
    return "the number of strips is not the number of rows / 16";
  }
  return NULL;
}

static PyObject *wrap(packed *p, const char *name, const char *fault) {
  PyObject *capsule = NULL;
  if (fault != NULL) {
    PyErr_Format(PyExc_ValueError, "SparseMatrix: %s", fault);
  } else {
    capsule = PyCapsule_New(p, name, free_packed);
  }
  if (capsule == NULL) {
    free(p);
    return NULL;
  }
  for (int i = 0; i < MAX_ARRAYS; i++) {
    Py_XINCREF(p->arrays[i]);
  }
  return capsule;
}

int spt_py_check_values(PyObject *capsule, const char *op) {
  const spt_strips *strips = PyCapsule_GetPointer(capsule, SPT_PY_STRIPS);
  if (strips->values == NULL && strips->half == NULL) {
    PyErr_Format(PyExc_ValueError, "%s: the packed weights were given to an encoder in bfloat16",
                 op);
    return -1;
  }
  return 0;
}

void spt_py_drop_values(PyObject *capsule) {
  packed *p = PyCapsule_GetPointer(capsule, SPT_PY_STRIPS);
  p->weight.strips.values = NULL;
  Py_CLEAR(p->arrays[VALUES]);
}

static packed *packed_of(PyObject *capsule) {
  return PyCapsule_GetPointer(capsule, PyCapsule_GetName(capsule));
}

int spt_py_weights_ordinal(PyObject *capsule) { return packed_of(capsule)->ordinal; }

/* Kept is what can't change: the index, and values that are frozen. The CPU reads all but bfloat16 as it
 * is stored. */
spt_status spt_py_prepared(PyObject *capsule, spt_device *device, bool index_only,
                           spt_dtype compute, const spt_prepared **prepared, spt_prepared **own,
                           spt_error *err) {
  packed *p = packed_of(capsule);
  bool strips = PyCapsule_IsValid(capsule, SPT_PY_STRIPS);
  int ordinal = spt_device_ordinal(device);
  if (ordinal < 0 && (compute != SPT_BF16 || index_only || !strips || !p->frozen)) {
    return SPT_OK;
  }
  for (form *f = p->forms; f != NULL; f = f->next) {
    if (f->ordinal == ordinal && f->index_only == index_only && f->compute == compute) {
      *prepared = f->prepared;
      return SPT_OK;
    }
  }
  spt_prepared *made;
  SPT_TRY(spt_prepare(device, strips ? &p->weight.strips : NULL, strips ? NULL : &p->weight.csr,
                      index_only, compute, &made, err));
  *prepared = made;
  form *kept = index_only || p->frozen ? malloc(sizeof *kept) : NULL;
  if (kept == NULL) {
    *own = made;
    return SPT_OK;
  }
  *kept = (form){made, ordinal, index_only, compute, p->forms};
  p->forms = kept;
  return SPT_OK;
}

/* strips(out, in, run_ptr, value_ptr, run_start, run_len, values, rows or None,
 *        the values' dtype[, the GPU that they are moved to or -1]); values in 16 bits come as uint16 */
PyObject *spt_py_strips(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
  (void)self;
  if (nargs != 9 && spt_py_check_count("strips", nargs, 10) < 0) {
    return NULL;
  }
  int64_t out, in;
  if (shape_of(args, &out, &in) < 0) {
    return NULL;
  }
  const char *dtype = PyUnicode_AsUTF8(args[8]);
  if (dtype == NULL) {
    return NULL;
  }
  int ordinal = nargs == 10 ? (int)PyLong_AsLong(args[9]) : -1;
  if (PyErr_Occurred()) {
    return NULL;
  }
  bool f16 = strcmp(dtype, "float16") == 0, bf16 = strcmp(dtype, "bfloat16") == 0;
  PyArrayObject *run_ptr = array_of(args[2], NPY_INT64, 1, "run_ptr");
  PyArrayObject *value_ptr = run_ptr ? array_of(args[3], NPY_INT64, 1, "value_ptr") : NULL;
  PyArrayObject *start = value_ptr ? array_of(args[4], NPY_INT32, 1, "run_start") : NULL;
  PyArrayObject *len = start ? array_of(args[5], NPY_INT32, 1, "run_len") : NULL;
  PyArrayObject *values =
      len ? array_of(args[6], f16 || bf16 ? NPY_UINT16 : NPY_FLOAT32, 2, "values") : NULL;
  PyArrayObject *rows = NULL;
  if (values == NULL ||
      (args[7] != Py_None && (rows = array_of(args[7], NPY_INT32, 1, "rows")) == NULL)) {
    return NULL;
  }
  int64_t n_strips = PyArray_DIM(run_ptr, 0) - 1, n_runs = PyArray_DIM(start, 0);
  if (n_strips < 0 || PyArray_DIM(value_ptr, 0) != n_strips + 1 || PyArray_DIM(len, 0) != n_runs ||
      PyArray_DIM(values, 1) != SPT_STRIP ||
      (rows != NULL && PyArray_DIM(rows, 0) != n_strips * SPT_STRIP)) {
    PyErr_SetString(PyExc_ValueError, "SparseMatrix: the index arrays' lengths disagree");
    return NULL;
  }
  packed *p = calloc(1, sizeof *p);
  if (p == NULL) {
    return PyErr_NoMemory();
  }
  p->weight.strips = (spt_strips){.out = out,
                                  .in = in,
                                  .n_strips = n_strips,
                                  .n_columns = PyArray_DIM(values, 0),
                                  .run_ptr = PyArray_DATA(run_ptr),
                                  .value_ptr = PyArray_DATA(value_ptr),
                                  .run_start = PyArray_DATA(start),
                                  .run_len = PyArray_DATA(len),
                                  .values = f16 || bf16 ? NULL : PyArray_DATA(values),
                                  .half = f16 || bf16 ? PyArray_DATA(values) : NULL,
                                  .half_dtype = f16 ? SPT_F16 : SPT_BF16,
                                  .rows = rows != NULL ? PyArray_DATA(rows) : NULL};
  p->ordinal = ordinal;
  p->frozen = f16 || bf16 || ordinal >= 0;
  for (int i = 0; i < 6; i++) {
    p->arrays[i] = args[2 + i];
  }
  return wrap(p, SPT_PY_STRIPS, fault_in_strips(&p->weight.strips, n_runs));
}

/* csr(out, in, row_ptr, col, values[, the GPU that they are moved to or -1]) */
PyObject *spt_py_csr(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
  (void)self;
  if (nargs != 5 && spt_py_check_count("csr", nargs, 6) < 0) {
    return NULL;
  }
  int64_t out, in;
  if (shape_of(args, &out, &in) < 0) {
    return NULL;
  }
  int ordinal = nargs == 6 ? (int)PyLong_AsLong(args[5]) : -1;
  if (PyErr_Occurred()) {
    return NULL;
  }
  PyArrayObject *row_ptr = array_of(args[2], NPY_INT64, 1, "row_ptr");
  PyArrayObject *col = row_ptr ? array_of(args[3], NPY_INT32, 1, "col") : NULL;
  PyArrayObject *values = col ? array_of(args[4], NPY_FLOAT32, 1, "values") : NULL;
  if (values == NULL) {
    return NULL;
  }
  if (PyArray_DIM(row_ptr, 0) != out + 1 || PyArray_DIM(col, 0) != PyArray_DIM(values, 0)) {
    PyErr_SetString(PyExc_ValueError, "SparseMatrix: the index arrays' lengths disagree");
    return NULL;
  }
  packed *p = calloc(1, sizeof *p);
  if (p == NULL) {
    return PyErr_NoMemory();
  }
  spt_csr *w = &p->weight.csr;
  *w = (spt_csr){out, in, PyArray_DATA(row_ptr), PyArray_DATA(col), PyArray_DATA(values)};
  const char *fault = NULL;
  int64_t nnz = PyArray_DIM(col, 0);
  if (!is_pointer_array(w->row_ptr, out, nnz)) {
    fault = "row_ptr does not rise from 0 to the number of weights";
  }
  for (int64_t i = 0; fault == NULL && i < nnz; i++) {
    if (w->col[i] < 0 || w->col[i] >= in) {
      fault = "a column lies outside the matrix";
    }
  }
  p->ordinal = ordinal;
  p->frozen = ordinal >= 0;
  for (int i = 0; i < 3; i++) {
    p->arrays[i] = args[2 + i];
  }
  return wrap(p, SPT_PY_CSR, fault);
}
