/* memory: devices and queues, and a pool of device memory for each queue.
 *
 * A pool hands a piece out again as soon as it is given back: on one stream whatever the next owner
 * enqueues runs after what the last one did. Sizes are rounded to eight steps a doubling, so that calls of
 * similar shapes share pieces and at most an eighth is wasted; cudaMalloc and cudaFree, which wait for the
 * device, then hardly ever run. Emulated, every piece is an allocation of its own and of the exact size,
 * so that its guards stand where it ends. */
#include "memory.h"

#include "cublas.h"

#include <pthread.h>
#include <stdlib.h>

/* ---- pools ------------------------------------------------------------------------------------- */

typedef struct spt_cuda_piece {
  void *data;
  size_t bytes;
  int size_class;
  struct spt_cuda_piece *next; /* in its bucket, or among the free ones of its class */
} spt_cuda_piece;

enum { CLASSES = 512, BUCKETS = 1024 };

typedef struct spt_cuda_pool {
  spt_cuda_opened *owner;
  spt_cuda_queue queue; /* the state that slots get */
  bool lasting;         /* nothing goes before the pool does */
  pthread_mutex_t lock;
  size_t kept; /* bytes in free pieces */
  spt_cuda_piece *free_pieces[CLASSES];
  spt_cuda_piece *taken[BUCKETS]; /* by address */
  struct spt_cuda_pool *next;
} spt_cuda_pool;

/* More than this fraction of the device's memory is not kept: other libraries want some too. */
static const size_t KEPT_FRACTION = 8;

#if defined(SPT_CUDA_ON_CPU)
static bool reuses_pieces() { return getenv("SPATILE_EMULATED_POOL") != NULL; }
#else
static bool reuses_pieces() { return true; }
#endif

/* Eight steps a doubling, 512 bytes at least. */
static size_t rounded_size(size_t bytes, int *size_class) {
  if (!reuses_pieces()) {
    *size_class = 0;
    return bytes > 0 ? bytes : 1;
  }
  if (bytes <= 512) {
    bytes = 512;
  }
  int shift = 63 - __builtin_clzll((unsigned long long)(bytes - 1)) - 3;
  size_t step = (size_t)1 << shift;
  size_t rounded = (bytes + step - 1) & ~(step - 1);
  *size_class = shift * 8 + (int)(rounded >> shift) - 9;
  return rounded;
}

static spt_cuda_piece **bucket_of(spt_cuda_pool *pool, const void *data) {
  return &pool->taken[((uintptr_t)data >> 8) % BUCKETS];
}

static void free_piece(spt_cuda_piece *piece) {
  if (cudaFree(piece->data) != cudaSuccess) {
    (void)cudaGetLastError(); /* at exit the runtime may be gone; a lost context frees by itself */
  }
  free(piece);
}

/* Gives everything that is free back to the driver, which waits for the device. */
static void trim(spt_cuda_pool *pool) {
  pthread_mutex_lock(&pool->lock);
  for (int i = 0; i < CLASSES && pool->kept > 0; i++) {
    while (pool->free_pieces[i] != NULL) {
      spt_cuda_piece *piece = pool->free_pieces[i];
      pool->free_pieces[i] = piece->next;
      pool->kept -= piece->bytes;
      free_piece(piece);
    }
  }
  pthread_mutex_unlock(&pool->lock);
}

static void trim_all(spt_cuda_opened *opened) {
  pthread_mutex_lock(&opened->lock);
  for (spt_cuda_pool *pool = opened->pools; pool != NULL; pool = pool->next) {
    trim(pool);
  }
  pthread_mutex_unlock(&opened->lock);
}

static spt_status new_piece(spt_cuda_pool *pool, const char *op, size_t wanted, size_t rounded,
                            spt_cuda_piece *piece, spt_error *err) {
  size_t sizes[] = {rounded, rounded, wanted > 0 ? wanted : 1};
  int tries = pool->lasting ? 1 : 3;
  cudaError_t code = cudaErrorMemoryAllocation;
  for (int i = 0; i < tries && code == cudaErrorMemoryAllocation; i++) {
    if (i > 0) {
      (void)cudaGetLastError();
      trim_all(pool->owner);
    }
    piece->bytes = sizes[i];
    code = cudaMalloc(&piece->data, sizes[i]);
  }
  if (code != cudaSuccess) {
    return spt_cuda_fail(err, op, "allocating", code, wanted);
  }
  if (piece->bytes != rounded) {
    piece->size_class = -1; /* smaller than its class promises: never kept */
  }
  return SPT_OK;
}

spt_status spt_cuda_pool_take(spt_cuda_pool *pool, const char *op, size_t bytes, void **data,
                              spt_error *err) {
  int size_class;
  if (bytes > SIZE_MAX / 4) {
    return spt_fail(err, SPT_OUT_OF_MEMORY, "%s: %zu bytes wanted of the device", op, bytes);
  }
  size_t rounded = rounded_size(bytes, &size_class);
  pthread_mutex_lock(&pool->lock);
  spt_cuda_piece *piece = reuses_pieces() ? pool->free_pieces[size_class] : NULL;
  if (piece != NULL) {
    pool->free_pieces[size_class] = piece->next;
    pool->kept -= piece->bytes;
  }
  pthread_mutex_unlock(&pool->lock);
  if (piece == NULL) {
    piece = static_cast<spt_cuda_piece *>(calloc(1, sizeof *piece));
    if (piece == NULL) {
      return spt_fail(err, SPT_OUT_OF_MEMORY, "%s: no memory", op);
    }
    piece->size_class = size_class;
    spt_status status = new_piece(pool, op, bytes, rounded, piece, err);
    if (status != SPT_OK) {
      free(piece);
      return status;
    }
  }
  pthread_mutex_lock(&pool->lock);
  spt_cuda_piece **bucket = bucket_of(pool, piece->data);
  piece->next = *bucket;
  *bucket = piece;
  pthread_mutex_unlock(&pool->lock);
  *data = piece->data;
  return SPT_OK;
}

void spt_cuda_pool_give(spt_cuda_pool *pool, void *data, bool shared) {
  pthread_mutex_lock(&pool->lock);
  spt_cuda_piece **at = bucket_of(pool, data);
  while (*at != NULL && (*at)->data != data) {
    at = &(*at)->next;
  }
  spt_cuda_piece *piece = *at;
  if (piece != NULL) {
    *at = piece->next;
    size_t most = (size_t)(pool->owner->device.memory / (int64_t)KEPT_FRACTION);
    if (pool->lasting || (reuses_pieces() && !shared && piece->size_class >= 0 &&
                          pool->kept + piece->bytes <= most)) {
      piece->next = pool->free_pieces[piece->size_class];
      pool->free_pieces[piece->size_class] = piece;
      pool->kept += piece->bytes;
      piece = NULL;
    }
  }
  pthread_mutex_unlock(&pool->lock);
  if (piece != NULL) {
    free_piece(piece); /* waits for the device: so do streams that nobody knows here */
  }
}

static spt_status new_pool(spt_cuda_opened *owner, const char *op, spt_cuda_pool **pool,
                           spt_error *err) {
  *pool = static_cast<spt_cuda_pool *>(calloc(1, sizeof **pool));
  if (*pool == NULL) {
    return spt_fail(err, SPT_OUT_OF_MEMORY, "%s: no memory", op);
  }
  pthread_mutex_init(&(*pool)->lock, NULL);
  (*pool)->owner = owner;
  return SPT_OK;
}

spt_status spt_cuda_pool_create_lasting(const spt_cuda_queue *queue, const char *op,
                                        spt_cuda_pool **pool, spt_error *err) {
  SPT_TRY(new_pool(queue->pool->owner, op, pool, err));
  (*pool)->lasting = true;
  return SPT_OK;
}

size_t spt_cuda_pool_kept(const spt_cuda_pool *pool) { return pool->kept; }

void spt_cuda_pool_free(spt_cuda_pool *pool) {
  trim(pool);
  for (int i = 0; i < BUCKETS; i++) {
    while (pool->taken[i] != NULL) {
      spt_cuda_piece *piece = pool->taken[i];
      pool->taken[i] = piece->next;
      free_piece(piece);
    }
  }
  pthread_mutex_destroy(&pool->lock);
  free(pool);
}

pthread_mutex_t *spt_cuda_capturing(const spt_cuda_queue *queue) {
  return &queue->pool->owner->capturing;
}

/* ---- scratch ----------------------------------------------------------------------------------- */

spt_status spt_scratch::take_bytes(void **piece, size_t bytes, spt_error *err) {
  if (count_ == MOST) {
    return spt_fail(err, SPT_DEVICE_ERROR, "%s: more than %d pieces of scratch memory", op_, MOST);
  }
  SPT_TRY(spt_cuda_pool_take(queue_->pool, op_, bytes, piece, err));
  pieces_[count_++] = *piece;
  return SPT_OK;
}

spt_scratch::~spt_scratch() {
  while (count_ > 0) {
    spt_cuda_pool_give(queue_->pool, pieces_[--count_], false);
  }
}

/* The runtime stages pageable memory before it returns. What the device can read itself (pinned memory, and
 * all memory where it shares the host's page tables) it reads when the stream gets there, and that must
 * be waited for. */
spt_status spt_cuda_to_device(spt_cuda_queue *queue, const char *op, void *device, const void *host,
                              size_t bytes, spt_error *err) {
  if (bytes == 0) {
    return SPT_OK;
  }
  SPT_CUDA_TRY(op, "copying to the device",
               cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, queue->stream));
  cudaPointerAttributes where;
  if (cudaPointerGetAttributes(&where, host) != cudaSuccess) {
    (void)cudaGetLastError();
  } else if (where.type == cudaMemoryTypeUnregistered && !queue->device->shares_page_tables) {
    return SPT_OK;
  }
  SPT_CUDA_TRY(op, "copying to the device", cudaStreamSynchronize(queue->stream));
  return SPT_OK;
}

spt_status spt_cuda_to_host(spt_cuda_queue *queue, const char *op, void *host, const void *device,
                            size_t bytes, spt_error *err) {
  if (bytes == 0) {
    return SPT_OK;
  }
  SPT_CUDA_TRY(op, "copying from the device",
               cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, queue->stream));
  SPT_CUDA_TRY(op, "waiting for the device", cudaStreamSynchronize(queue->stream));
  return SPT_OK;
}

/* ---- devices and queues ------------------------------------------------------------------------ */

static spt_status read_attributes(int ordinal, spt_cuda_device *d, spt_error *err) {
  int major, minor;
  const struct {
    int *value;
    cudaDeviceAttr attribute;
  } wanted[] = {
      {&d->sm_count, cudaDevAttrMultiProcessorCount},
      {&major, cudaDevAttrComputeCapabilityMajor},
      {&minor, cudaDevAttrComputeCapabilityMinor},
      {&d->shared_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin},
      {&d->l2_bytes, cudaDevAttrL2CacheSize},
      {&d->shares_page_tables, cudaDevAttrPageableMemoryAccessUsesHostPageTables},
  };
  for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
    SPT_CUDA_TRY("cuda", "reading the device's attributes",
                 cudaDeviceGetAttribute(wanted[i].value, wanted[i].attribute, ordinal));
  }
  size_t free_bytes, total;
  SPT_CUDA_TRY("cuda", "opening the device", cudaMemGetInfo(&free_bytes, &total));
  d->ordinal = ordinal;
  d->capability = 10 * major + minor;
  d->memory = (int64_t)total;
  return SPT_OK;
}

spt_status spt_cuda_open(int ordinal, void **device, spt_error *err) {
  spt_cuda_opened *opened = static_cast<spt_cuda_opened *>(calloc(1, sizeof *opened));
  if (opened == NULL) {
    return spt_fail(err, SPT_OUT_OF_MEMORY, "cuda: no memory");
  }
  pthread_mutex_init(&opened->lock, NULL);
  pthread_mutex_init(&opened->capturing, NULL);
  spt_on_device here(ordinal);
  spt_status status = here.entered("cuda", err);
  if (status == SPT_OK) {
    status = read_attributes(ordinal, &opened->device, err);
  }
  if (status != SPT_OK) {
    free(opened);
    return status;
  }
  *device = opened;
  return SPT_OK;
}

spt_status spt_cuda_on_stream(void *device, uintptr_t stream, void **state, spt_error *err) {
  spt_cuda_opened *opened = static_cast<spt_cuda_opened *>(device);
  spt_cuda_pool *pool;
  SPT_TRY(new_pool(opened, "cuda", &pool, err));
  pool->queue.device = &opened->device;
  pool->queue.stream = reinterpret_cast<cudaStream_t>(stream);
  pool->queue.pool = pool;
  pthread_mutex_lock(&opened->lock);
  pool->next = opened->pools;
  opened->pools = pool;
  pthread_mutex_unlock(&opened->lock);
  *state = &pool->queue;
  return SPT_OK;
}

void spt_cuda_close(void *device) {
  spt_cuda_opened *opened = static_cast<spt_cuda_opened *>(device);
  spt_on_device here(opened->device.ordinal);
  while (opened->pools != NULL) {
    spt_cuda_pool *pool = opened->pools;
    opened->pools = pool->next;
    spt_cublas_free(pool->queue.cublas);
    spt_cuda_pool_free(pool);
  }
  pthread_mutex_destroy(&opened->lock);
  pthread_mutex_destroy(&opened->capturing);
  free(opened);
}
