/* device.c: the built-in CPU device, and the GPUs of the CUDA backend, whose library is loaded when
 * somebody first asks for one. Each way in which that fails has a message of its own, and the loader's
 * or the driver's words in it. After a failure the next call tries again. */
#define _GNU_SOURCE /* dladdr */
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backend.h"

#define LIBRARY_VARIABLE "SPATILE_CUDA_LIBRARY"
#define LIBRARY_NAME "libspatile_cuda.so"

typedef struct device_entry {
  spt_device device;
  struct device_entry *next;
} device_entry;

static struct {
  pthread_mutex_t lock;
  bool loaded;
  char path[PATH_MAX];
  const spt_backend *backend;
  int count;
  device_entry *devices; /* one for each (ordinal, stream) */
  atomic_bool inherited; /* loaded by the process that this one was forked from */
} cuda = {.lock = PTHREAD_MUTEX_INITIALIZER};

spt_device *spt_cpu_device(void) {
  static spt_device device = {.backend = &spt_cpu_backend, .ordinal = -1};
  return &device;
}

/* ---- loading ------------------------------------------------------------------------------- */

static bool is_named(void) {
  const char *named = getenv(LIBRARY_VARIABLE);
  return named != NULL && *named != '\0';
}

static void find_library(void) {
  Dl_info self;
  if (is_named()) {
    snprintf(cuda.path, sizeof cuda.path, "%s", getenv(LIBRARY_VARIABLE));
  } else if (dladdr((const void *)&cuda, &self) != 0 && self.dli_fname != NULL) {
    const char *slash = strrchr(self.dli_fname, '/');
    int folder = slash != NULL ? (int)(slash - self.dli_fname) + 1 : 0;
    snprintf(cuda.path, sizeof cuda.path, "%.*s" LIBRARY_NAME, folder, self.dli_fname);
  }
}

static spt_status load_backend(const char *path, const spt_backend **backend, spt_error *err) {
  if (access(path, F_OK) != 0) {
    return spt_fail(err, SPT_DEVICE_ERROR,
                    is_named()
                        ? "cuda: no library at %s, which " LIBRARY_VARIABLE " names (%s)"
                        : "cuda: this installation has no CUDA backend: no library at %s (%s)",
                    path, strerror(errno));
  }
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == NULL) {
    return spt_fail(err, SPT_DEVICE_ERROR, "cuda: the library does not load: %s", dlerror());
  }
  /* POSIX lets a data pointer be read as a function's; ISO C has no cast for it. */
  spt_backend_entry_function entry;
  *(void **)&entry = dlsym(library, SPT_BACKEND_ENTRY);
  spt_status status = SPT_OK;
  const spt_backend *table = entry != NULL ? entry() : NULL;
  if (table == NULL) {
    const char *words = dlerror();
    status = spt_fail(err, SPT_DEVICE_ERROR, "cuda: %s is not a backend of spatile: %s", path,
                      words != NULL ? words : "it gives no table");
  } else if (table->abi_version != SPT_BACKEND_ABI || table->size != sizeof *table) {
    status = spt_fail(err, SPT_DEVICE_ERROR,
                      "cuda: %s has ABI version %u with a table of %u bytes, expected version %u "
                      "with %zu: it was built from another version of spatile",
                      path, (unsigned)table->abi_version, (unsigned)table->size,
                      (unsigned)SPT_BACKEND_ABI, sizeof *table);
  }
  if (status != SPT_OK) {
    dlclose(library);
    return status;
  }
  *backend = table;
  return SPT_OK;
}

static void forked(void) { atomic_store(&cuda.inherited, true); }

/* With the lock held. */
static spt_status load(spt_error *err) {
  if (atomic_load(&cuda.inherited)) {
    return spt_fail(err, SPT_DEVICE_ERROR,
                    "cuda: this process was forked from one that had loaded the driver, which does "
                    "not work in the child: start it by spawn (multiprocessing.set_start_method)");
  }
  if (cuda.loaded) {
    return SPT_OK;
  }
  find_library();
  const spt_backend *backend = NULL;
  SPT_TRY(load_backend(cuda.path, &backend, err));
  SPT_TRY(backend->device_count(&cuda.count, err));
  if (cuda.count < 1) {
    return spt_fail(err, SPT_DEVICE_ERROR, "cuda: the driver finds no device");
  }
  cuda.backend = backend;
  cuda.loaded = true;
  pthread_atfork(NULL, NULL, forked);
  return SPT_OK;
}

spt_status spt_gpu_count(int *count, spt_error *err) {
  pthread_mutex_lock(&cuda.lock);
  spt_status status = load(err);
  *count = cuda.count;
  pthread_mutex_unlock(&cuda.lock);
  return status;
}

spt_status spt_gpu_of(const void *data, int *ordinal, spt_error *err) {
  pthread_mutex_lock(&cuda.lock);
  spt_status status = load(err);
  pthread_mutex_unlock(&cuda.lock);
  return status == SPT_OK ? cuda.backend->device_of(data, ordinal, err) : status;
}

const char *spt_gpu_library(void) {
  pthread_mutex_lock(&cuda.lock);
  if (!cuda.loaded) {
    find_library();
  }
  pthread_mutex_unlock(&cuda.lock);
  return cuda.path;
}

const char *spt_gpu_backend_name(void) {
  pthread_mutex_lock(&cuda.lock);
  const char *name = cuda.loaded ? cuda.backend->name : "";
  pthread_mutex_unlock(&cuda.lock);
  return name;
}

/* ---- devices and streams ------------------------------------------------------------------- */

static spt_status open_device(int ordinal, uintptr_t stream, spt_device **out, spt_error *err) {
  SPT_TRY(load(err));
  void *opened = NULL;
  for (device_entry *e = cuda.devices; e != NULL; e = e->next) {
    if (e->device.ordinal == ordinal) {
      if (e->device.stream == stream) {
        *out = &e->device;
        return SPT_OK;
      }
      opened = e->device.opened;
    }
  }
  if (ordinal < 0 || ordinal >= cuda.count) {
    return spt_fail(err, SPT_INVALID_VALUE, "cuda: there is no cuda:%d, expected 0 to %d", ordinal,
                    cuda.count - 1);
  }
  void *state;
  bool fresh = opened == NULL;
  if (fresh) {
    SPT_TRY(cuda.backend->open(ordinal, &opened, err));
  }
  device_entry *entry = malloc(sizeof *entry);
  spt_status status = entry == NULL ? spt_fail(err, SPT_OUT_OF_MEMORY, "cuda: no memory")
                                    : cuda.backend->on_stream(opened, stream, &state, err);
  if (status != SPT_OK) {
    free(entry);
    if (fresh) {
      cuda.backend->close(opened);
    }
    return status;
  }
  entry->device = (spt_device){.backend = cuda.backend,
                               .state = state,
                               .opened = opened,
                               .ordinal = ordinal,
                               .stream = stream};
  entry->next = cuda.devices;
  cuda.devices = entry;
  *out = &entry->device;
  return SPT_OK;
}

spt_status spt_gpu_device(int ordinal, uintptr_t stream, spt_device **out, spt_error *err) {
  pthread_mutex_lock(&cuda.lock);
  spt_status status = open_device(ordinal, stream, out, err);
  pthread_mutex_unlock(&cuda.lock);
  return status;
}

/* Entries are never removed, so the list can be walked without the lock from where it began. */
spt_status spt_gpu_synchronise(int ordinal, const char *op, spt_error *err) {
  spt_device *any;
  SPT_TRY(spt_gpu_device(ordinal, 0, &any, err));
  pthread_mutex_lock(&cuda.lock);
  device_entry *e = cuda.devices;
  pthread_mutex_unlock(&cuda.lock);
  for (; e != NULL; e = e->next) {
    if (e->device.ordinal == ordinal) {
      SPT_TRY(spt_device_synchronise(&e->device, op, err));
    }
  }
  return SPT_OK;
}

int spt_device_ordinal(const spt_device *device) { return device->ordinal; }
uintptr_t spt_device_stream(const spt_device *device) { return device->stream; }

bool spt_device_is_alive(const spt_device *device) {
  return device->ordinal < 0 || !atomic_load(&cuda.inherited);
}

spt_status spt_device_check_alive(const spt_device *device, const char *op, spt_error *err) {
  if (!spt_device_is_alive(device)) {
    return spt_fail(err, SPT_DEVICE_ERROR,
                    "%s: cuda:%d is of the process that this one was forked from", op,
                    device->ordinal);
  }
  return SPT_OK;
}

spt_status spt_device_properties_of(spt_device *device, spt_device_properties *p, spt_error *err) {
  SPT_TRY(spt_device_check_alive(device, "cuda", err));
  *p = (spt_device_properties){0};
  return device->backend->properties(device->opened, p, err);
}

/* ---- memory -------------------------------------------------------------------------------- */

spt_status spt_device_alloc(spt_device *device, const char *op, size_t bytes, void **data,
                            spt_error *err) {
  SPT_TRY(spt_device_check_alive(device, op, err));
  return device->backend->alloc(device->state, op, bytes, data, err);
}

void spt_device_free(spt_device *device, void *data, bool shared) {
  if (data != NULL && spt_device_is_alive(device)) {
    device->backend->free(device->state, data, shared);
  }
}

spt_status spt_device_upload(spt_device *device, const char *op, void *to, const void *from,
                             size_t bytes, spt_error *err) {
  SPT_TRY(spt_device_check_alive(device, op, err));
  return bytes > 0 ? device->backend->upload(device->state, op, to, from, bytes, err) : SPT_OK;
}

spt_status spt_device_download(spt_device *device, const char *op, void *to, const void *from,
                               size_t bytes, spt_error *err) {
  SPT_TRY(spt_device_check_alive(device, op, err));
  return bytes > 0 ? device->backend->download(device->state, op, to, from, bytes, err) : SPT_OK;
}

spt_status spt_device_synchronise(spt_device *device, const char *op, spt_error *err) {
  SPT_TRY(spt_device_check_alive(device, op, err));
  return device->backend->synchronise(device->state, op, err);
}

spt_status spt_device_order(spt_device *earlier, spt_device *later, const char *op,
                            spt_error *err) {
  SPT_TRY(spt_device_check_alive(later, op, err));
  return earlier == later ? SPT_OK : later->backend->order(earlier->state, later->state, op, err);
}
