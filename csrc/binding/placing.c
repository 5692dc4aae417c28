/* Where an op runs: on the one device of its arrays, and on the stream that their library works on.
 *
 * SPATILE_DEVICE, for tests and tries, names a GPU that host arrays are computed on: at every call the
 * memory that its arguments span goes there, strides kept, and what is writable comes back. Arguments
 * that overlap share a copy as they share memory. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "binding.h"

bool spt_py_elsewhere = false;

static struct {
  bool valid, emulated;
  int ordinal;
  char value[64];
} chosen;

/* "cuda", "cuda:N" and "cuda-on-cpu"; empty and "cpu" change nothing. */
void spt_py_read_environment(void) {
  const char *value = getenv("SPATILE_DEVICE");
  if (value == NULL || *value == '\0' || strcmp(value, "cpu") == 0) {
    return;
  }
  spt_py_elsewhere = true;
  snprintf(chosen.value, sizeof chosen.value, "%s", value);
  chosen.emulated = strcmp(value, "cuda-on-cpu") == 0;
  chosen.valid = chosen.emulated || strcmp(value, "cuda") == 0;
  if (strncmp(value, "cuda:", 5) == 0 && value[5] >= '0' && value[5] <= '9') {
    char *end;
    long ordinal = strtol(value + 5, &end, 10);
    chosen.valid = *end == '\0' && ordinal <= INT16_MAX;
    chosen.ordinal = (int)ordinal;
  }
}

int spt_py_default_device(const char *op, spt_device **device) {
  spt_error err;
  *device = NULL;
  if (!spt_py_elsewhere) {
    return 0;
  }
  if (!chosen.valid) {
    PyErr_Format(PyExc_RuntimeError,
                 "%s: SPATILE_DEVICE is '%s', expected 'cpu', 'cuda', 'cuda:N' or 'cuda-on-cpu'",
                 op, chosen.value);
    return -1;
  }
  spt_status status = spt_gpu_device(chosen.ordinal, 0, device, &err);
  if (status != SPT_OK) {
    spt_error told;
    spt_py_raise(spt_fail(&told, SPT_DEVICE_ERROR, "%s: SPATILE_DEVICE is '%s': %.400s", op,
                          chosen.value, err.message),
                 &told);
    return -1;
  }
  if (chosen.emulated && strcmp(spt_gpu_backend_name(), "cuda-on-cpu") != 0) {
    PyErr_Format(PyExc_RuntimeError,
                 "%s: SPATILE_DEVICE is 'cuda-on-cpu', but %s is not the emulated library", op,
                 spt_gpu_library());
    return -1;
  }
  return 0;
}

/* ---- copies for a call --------------------------------------------------------------------- */

/* Host memory that one or several views span, and its copy. */
typedef struct span {
  uintptr_t begin, end;
  bool writable;
  char *copy; /* of begin, once it is there */
  void *allocated;
} span;

typedef struct spt_py_copies {
  bool elsewhere; /* by SPATILE_DEVICE: the caller's arrays, and not just what follows them */
  int count;
  span spans[];
} spt_py_copies;

static span span_of(const spt_tensor *t) {
  int64_t low = 0, high = 0, size = (int64_t)spt_dtype_size(t->dtype);
  for (int i = 0; i < t->ndim; i++) {
    if (t->shape[i] == 0) {
      return (span){0};
    }
    int64_t reach = (t->shape[i] - 1) * t->stride[i];
    *(reach < 0 ? &low : &high) += reach;
  }
  return (span){.begin = (uintptr_t)t->data + (uintptr_t)(low * size),
                .end = (uintptr_t)t->data + (uintptr_t)((high + 1) * size),
                .writable = t->writable};
}

static int by_begin(const void *a, const void *b) {
  uintptr_t x = ((const span *)a)->begin, y = ((const span *)b)->begin;
  return x < y ? -1 : x > y;
}

static bool is_copied(const spt_py_view *view) {
  return view->owner != NULL && view->device == NULL && view->place != SPT_PY_HOST;
}

/* The copy of a span keeps its place within 16 bytes: what is not aligned is not so there. */
static spt_status upload(const spt_py_call *call, span *s, spt_error *err) {
  size_t bytes = s->end - s->begin, within = s->begin % 16;
  SPT_TRY(spt_device_alloc(call->device, call->op, bytes + within, &s->allocated, err));
  s->copy = (char *)s->allocated + within;
  return spt_device_upload(call->device, call->op, s->copy, (const void *)s->begin, bytes, err);
}

static void free_copies(const spt_py_call *call) {
  for (int i = 0; i < call->copies->count; i++) {
    spt_device_free(call->device, call->copies->spans[i].allocated, false);
  }
  free(call->copies);
}

static void move_view(spt_py_view *view, const spt_py_copies *copies) {
  span wanted = span_of(&view->tensor);
  for (int i = 0; i < copies->count && wanted.begin != wanted.end; i++) {
    const span *s = &copies->spans[i];
    if (wanted.begin >= s->begin && wanted.end <= s->end) {
      view->tensor.data = s->copy + ((uintptr_t)view->tensor.data - s->begin);
      return;
    }
  }
}

static int copy_views(spt_py_call *call, bool elsewhere) {
  spt_py_copies *copies = calloc(1, sizeof *copies + (size_t)call->count * sizeof(span));
  if (copies == NULL) {
    PyErr_NoMemory();
    return -1;
  }
  span *spans = copies->spans;
  int n = 0;
  copies->elsewhere = elsewhere;
  for (int i = 0; i < call->count; i++) {
    if (is_copied(&call->views[i])) {
      span s = span_of(&call->views[i].tensor);
      if (s.begin != s.end) {
        spans[n++] = s;
      }
    }
  }
  qsort(spans, (size_t)n, sizeof *spans, by_begin);
  for (int i = 0; i < n; i++) {
    span *last = copies->count > 0 ? &spans[copies->count - 1] : NULL;
    if (last != NULL && spans[i].begin < last->end) {
      last->end = last->end > spans[i].end ? last->end : spans[i].end;
      last->writable |= spans[i].writable;
    } else {
      spans[copies->count++] = spans[i];
    }
  }
  call->copies = copies;
  spt_error err;
  spt_status status = SPT_OK;
  for (int i = 0; i < copies->count && status == SPT_OK; i++) {
    status = upload(call, &spans[i], &err);
  }
  if (status != SPT_OK) {
    free_copies(call);
    spt_py_raise(status, &err);
    return -1;
  }
  for (int i = 0; i < call->count; i++) {
    if (is_copied(&call->views[i])) {
      move_view(&call->views[i], copies);
    }
  }
  return 0;
}

/* Only what changed is written: other threads may be reading an input. */
static spt_status bring_back(const spt_py_call *call, const span *s, spt_error *err) {
  size_t bytes = s->end - s->begin;
  void *now = malloc(bytes);
  if (now == NULL) {
    return spt_fail(err, SPT_OUT_OF_MEMORY, "%s: no memory", call->op);
  }
  spt_status status = spt_device_download(call->device, call->op, now, s->copy, bytes, err);
  if (status == SPT_OK && memcmp((const void *)s->begin, now, bytes) != 0) {
    memcpy((void *)s->begin, now, bytes);
  }
  free(now);
  return status;
}

static spt_status bring_all_back(const spt_py_call *call, spt_error *err) {
  for (int i = 0; i < call->copies->count; i++) {
    if (call->copies->spans[i].writable) {
      SPT_TRY(bring_back(call, &call->copies->spans[i], err));
    }
  }
  /* What failed on the device shows now, and not at the next call. */
  return call->copies->elsewhere ? spt_device_synchronise(call->device, call->op, err) : SPT_OK;
}

/* ---- before and after a call --------------------------------------------------------------- */

static const char *name_of(char *name, size_t size, const spt_device *device) {
  if (device == NULL) {
    return "the CPU";
  }
  snprintf(name, size, "cuda:%d", spt_device_ordinal(device));
  return name;
}

/* All views that count are on one device; it, and the stream of the first whose library chooses one. */
static int one_device(spt_py_call *call, spt_device **device) {
  const spt_py_view *first = NULL, *chooser = NULL;
  for (int i = 0; i < call->count; i++) {
    const spt_py_view *view = &call->views[i];
    if (view->owner == NULL || view->place != SPT_PY_WITH_OTHERS) {
      continue;
    }
    if (first == NULL) {
      first = view;
    }
    int one = first->device != NULL ? spt_device_ordinal(first->device) : -1;
    int other = view->device != NULL ? spt_device_ordinal(view->device) : -1;
    if (one != other) {
      char names[2][32];
      PyErr_Format(PyExc_ValueError, "%s: %s is on %s and %s on %s, expected one device", call->op,
                   first->arg, name_of(names[0], sizeof names[0], first->device), view->arg,
                   name_of(names[1], sizeof names[1], view->device));
      return -1;
    }
    if (chooser == NULL && view->chooses_stream) {
      chooser = view;
    }
  }
  *device = chooser != NULL ? chooser->device : first != NULL ? first->device : NULL;
  return 0;
}

/* Between the op's stream and those of its arrays, before and after. */
static spt_status order_streams(const spt_py_call *call, bool after, spt_error *err) {
  for (int i = 0; i < call->count; i++) {
    spt_device *other = call->views[i].device;
    if (other != NULL && other != call->device) {
      SPT_TRY(spt_device_order(after ? call->device : other, after ? other : call->device, call->op,
                               err));
    }
  }
  return SPT_OK;
}

int spt_py_place_views(spt_py_call *call) {
  spt_device *device;
  if (one_device(call, &device) < 0) {
    return -1;
  }
  bool elsewhere = device == NULL;
  if (elsewhere && spt_py_default_device(call->op, &device) < 0) {
    return -1;
  }
  if (device == NULL) {
    return 0;
  }
  call->device = device;
  spt_error err;
  spt_status status = order_streams(call, false, &err);
  if (status != SPT_OK) {
    spt_py_raise(status, &err);
    return -1;
  }
  for (int i = 0; i < call->count; i++) {
    if (is_copied(&call->views[i])) {
      return copy_views(call, elsewhere);
    }
  }
  return 0;
}

bool spt_py_runs_elsewhere(const spt_py_call *call) {
  return call->copies != NULL && call->copies->elsewhere;
}

PyObject *spt_py_end(spt_py_call *call, spt_status status, const spt_error *err) {
  spt_error later;
  if (call->device != spt_cpu_device()) {
    spt_status after = order_streams(call, true, &later);
    if (after == SPT_OK && call->copies != NULL) {
      after = bring_all_back(call, &later);
    }
    if (call->copies != NULL) {
      free_copies(call);
    }
    if (status == SPT_OK && after != SPT_OK) {
      status = after;
      err = &later;
    }
  }
  spt_py_release(call->views, call->count);
  return status == SPT_OK ? Py_NewRef(Py_None) : spt_py_raise(status, err);
}
