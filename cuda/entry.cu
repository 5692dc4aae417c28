/* entry: the backend's table, and around each slot what all of them need: the state's device is the
 * calling thread's while the slot runs. The one symbol that the library exports is here. */
#include "cublas.h"
#include "encoder.h"
#include "memory.h"
#include "slots.h"

#include <stdio.h>
#include <string.h>

/* ---- devices ----------------------------------------------------------------------------------- */

static spt_status count_devices(int *count, spt_error *err) {
  SPT_CUDA_TRY("cuda", "looking for devices", cudaGetDeviceCount(count));
  return SPT_OK;
}

static spt_status read_properties(void *device, spt_device_properties *p, spt_error *err) {
  const spt_cuda_device *d = &static_cast<spt_cuda_opened *>(device)->device;
  spt_on_device here(d->ordinal);
  SPT_TRY(here.entered("cuda", err));
  cudaDeviceProp all;
  size_t free_bytes, total;
  int driver, runtime;
  SPT_CUDA_TRY("cuda", "reading properties", cudaGetDeviceProperties(&all, d->ordinal));
  SPT_CUDA_TRY("cuda", "reading free memory", cudaMemGetInfo(&free_bytes, &total));
  SPT_CUDA_TRY("cuda", "reading the driver's version", cudaDriverGetVersion(&driver));
  SPT_CUDA_TRY("cuda", "reading the runtime's version", cudaRuntimeGetVersion(&runtime));
  memcpy(p->name, all.name, sizeof p->name - 1);
  p->major = all.major;
  p->minor = all.minor;
  p->memory = (int64_t)total;
  p->free = (int64_t)free_bytes;
  p->driver = driver;
  p->runtime = runtime;
  p->multiprocessors = d->sm_count;
  snprintf(p->cublas, sizeof p->cublas, "%s", spt_cublas_found());
  return SPT_OK;
}

static spt_status find_device(const void *data, int *ordinal, spt_error *err) {
  cudaPointerAttributes where;
  SPT_CUDA_TRY("cuda", "asking where memory is", cudaPointerGetAttributes(&where, data));
  bool here = where.type == cudaMemoryTypeDevice || where.type == cudaMemoryTypeManaged;
  *ordinal = here ? where.device : -1;
  return SPT_OK;
}

/* ---- memory ------------------------------------------------------------------------------------ */

static spt_status allocate(void *state, const char *op, size_t bytes, void **data, spt_error *err) {
  spt_cuda_queue *queue = spt_queue_of(state);
  spt_on_device here(queue->device->ordinal);
  SPT_TRY(here.entered(op, err));
  return spt_cuda_pool_take(queue->pool, op, bytes, data, err);
}

static void release(void *state, void *data, bool shared) {
  spt_cuda_queue *queue = spt_queue_of(state);
  if (data != NULL) {
    spt_on_device here(queue->device->ordinal);
    spt_cuda_pool_give(queue->pool, data, shared);
  }
}

static spt_status upload(void *state, const char *op, void *to, const void *from, size_t bytes,
                         spt_error *err) {
  spt_cuda_queue *queue = spt_queue_of(state);
  spt_on_device here(queue->device->ordinal);
  SPT_TRY(here.entered(op, err));
  return spt_cuda_to_device(queue, op, to, from, bytes, err);
}

static spt_status download(void *state, const char *op, void *to, const void *from, size_t bytes,
                           spt_error *err) {
  spt_cuda_queue *queue = spt_queue_of(state);
  spt_on_device here(queue->device->ordinal);
  SPT_TRY(here.entered(op, err));
  return spt_cuda_to_host(queue, op, to, from, bytes, err);
}

static spt_status synchronise(void *state, const char *op, spt_error *err) {
  spt_cuda_queue *queue = spt_queue_of(state);
  spt_on_device here(queue->device->ordinal);
  SPT_TRY(here.entered(op, err));
  SPT_CUDA_TRY(op, "waiting for the device", cudaStreamSynchronize(queue->stream));
  return SPT_OK;
}

static spt_status order(void *earlier, void *later, const char *op, spt_error *err) {
  spt_cuda_queue *first = spt_queue_of(earlier), *then = spt_queue_of(later);
  cudaEvent_t event;
  spt_on_device here(first->device->ordinal);
  SPT_TRY(here.entered(op, err));
  SPT_CUDA_TRY(op, "ordering streams", cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  cudaError_t code = cudaEventRecord(event, first->stream);
  if (code == cudaSuccess) {
    code = cudaStreamWaitEvent(then->stream, event, 0);
  }
  (void)cudaEventDestroy(event); /* once it has happened */
  SPT_CUDA_TRY(op, "ordering streams", code);
  return SPT_OK;
}

/* ---- slots ------------------------------------------------------------------------------------- */

/* An op's slot, on its state's device. */
template <typename Problem, spt_status (*slot)(void *, const Problem *, spt_error *)>
static spt_status on_its_device(void *state, const Problem *problem, spt_error *err) {
  spt_on_device here(spt_queue_of(state)->device->ordinal);
  SPT_TRY(here.entered("cuda", err));
  return slot(state, problem, err);
}

static spt_status prepare(void *state, const spt_weight *w, spt_dtype compute, void **prepared,
                          spt_error *err) {
  spt_on_device here(spt_queue_of(state)->device->ordinal);
  SPT_TRY(here.entered("linear", err));
  SPT_TRY(spt_cuda_prepare(state, w, compute, prepared, err));
  /* Other streams may use it next. */
  SPT_CUDA_TRY("linear", "preparing weights", cudaStreamSynchronize(spt_queue_of(state)->stream));
  return SPT_OK;
}

/* Other streams may have used it. */
static void free_prepared(void *state, void *prepared) {
  spt_on_device here(spt_queue_of(state)->device->ordinal);
  pthread_mutex_t *capturing = spt_cuda_capturing(spt_queue_of(state));
  pthread_mutex_lock(capturing);
  if (cudaDeviceSynchronize() != cudaSuccess) {
    (void)cudaGetLastError();
  }
  pthread_mutex_unlock(capturing);
  spt_cuda_prepared_free(state, prepared);
}

static spt_status encoder_create(void *state, const spt_encoder_model *model, void **encoder,
                                 spt_error *err) {
  spt_on_device here(spt_queue_of(state)->device->ordinal);
  SPT_TRY(here.entered("encoder", err));
  return spt_cuda_encoder_create(state, model, encoder, err);
}

static int ordinal_of(const void *encoder) {
  return static_cast<const spt_gpu_encoder *>(encoder)->queue->device->ordinal;
}

static spt_status encoder_forward(void *encoder, const spt_encoder_run *run, spt_error *err) {
  spt_on_device here(ordinal_of(encoder));
  SPT_TRY(here.entered("encoder", err));
  return spt_cuda_encoder_forward(encoder, run, err);
}

static void encoder_free(void *encoder) {
  spt_on_device here(ordinal_of(encoder));
  spt_cuda_encoder_free(encoder);
}

#define SET(name)                                                        \
  do {                                                                   \
    if (spt_cuda_##name != NULL) {                                       \
      table.name = on_its_device<spt_##name##_problem, spt_cuda_##name>; \
    }                                                                    \
  } while (0)

static spt_backend table_of_slots() {
  spt_backend table = {};
  table.abi_version = SPT_BACKEND_ABI;
  table.size = sizeof(spt_backend);
#if defined(SPT_CUDA_ON_CPU)
  table.name = "cuda-on-cpu";
#else
  table.name = "cuda";
#endif
  table.device_count = count_devices;
  table.open = spt_cuda_open;
  table.close = spt_cuda_close;
  table.properties = read_properties;
  table.on_stream = spt_cuda_on_stream;
  table.device_of = find_device;
  table.alloc = allocate;
  table.free = release;
  table.upload = upload;
  table.download = download;
  table.synchronise = synchronise;
  table.order = order;
  if (spt_cuda_prepare != NULL) {
    table.prepare = prepare;
    table.prepared_free = free_prepared;
  }
  SET(linear);
  SET(linear_backward);
  SET(attention);
  SET(attention_backward);
  SET(group_norms);
  SET(group_beta);
  SET(group_lasso);
  SET(group_lasso_grad);
  SET(group_shrink);
  SET(apply_mask);
  SET(expand_mask);
  SET(prune_mask);
  SET(second_order_removals);
  SET(second_order_apply);
  SET(layer_norm);
  SET(gelu);
  SET(dropout);
  SET(softmax);
  SET(embedding);
  SET(topk);
  if (spt_cuda_encoder_create != NULL) {
    table.encoder_create = encoder_create;
    table.encoder_forward = encoder_forward;
    table.encoder_free = encoder_free;
  }
  return table;
}

extern "C" __attribute__((visibility("default"))) const spt_backend *spt_backend_entry(void) {
  static const spt_backend table = table_of_slots();
  return &table;
}
