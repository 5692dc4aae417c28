/* memory.h: opened devices, and device memory that is kept for reuse in the order of a stream. */
#ifndef SPATILE_CUDA_MEMORY_H
#define SPATILE_CUDA_MEMORY_H

#include <pthread.h>

#include "context.h"

/* What open gives. */
typedef struct spt_cuda_opened {
  spt_cuda_device device; /* queues point here */
  pthread_mutex_t lock;   /* of the list */
  struct spt_cuda_pool *pools;
  pthread_mutex_t capturing; /* held while a stream is captured, and to wait for the device */
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

/* A pool for one captured run, whose addresses the graph has: what is given back is handed out again to
 * that run alone, and stays allocated until the pool is freed, which waits for the device. Where memory lacks,
 * no other pool gives way to it. */
SPT_WARN_UNUSED spt_status spt_cuda_pool_create_lasting(const spt_cuda_queue *, const char *op,
                                                        struct spt_cuda_pool **, spt_error *);
size_t spt_cuda_pool_kept(const struct spt_cuda_pool *); /* bytes in pieces that were given back */
void spt_cuda_pool_free(struct spt_cuda_pool *);

/* Of the queue's device: nothing may wait for a device while one of its streams is captured. */
pthread_mutex_t *spt_cuda_capturing(const spt_cuda_queue *);

#endif
