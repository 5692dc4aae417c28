/* memory.h: opened devices, and device memory that is kept for reuse in the order of a stream. */
#ifndef SPATILE_CUDA_MEMORY_H
#define SPATILE_CUDA_MEMORY_H

#include "context.h"

/* What open gives. */
typedef struct spt_cuda_opened {
  spt_cuda_device device; /* queues point here */
  pthread_mutex_t lock;   /* of the list */
  struct spt_cuda_pool *pools;
} spt_cuda_opened;

SPT_WARN_UNUSED spt_status spt_cuda_open(int ordinal, void **device, spt_error *);
void spt_cuda_close(void *device);
SPT_WARN_UNUSED spt_status spt_cuda_on_stream(void *device, uintptr_t stream, void **state,
                                              spt_error *);

/* A piece of at least `bytes`, aligned to 256. Where memory lacks, what all of the device's pools keep
 * is given back first. */
SPT_WARN_UNUSED spt_status spt_cuda_pool_take(struct spt_cuda_pool *, const char *op, size_t bytes,
                                              void **piece, spt_error *);
/* `shared`: other streams may use it still. */
void spt_cuda_pool_give(struct spt_cuda_pool *, void *piece, bool shared);

#endif
