#include "scratch.h"

#include <pthread.h>
#if defined(__APPLE__)
#include <malloc/malloc.h>
#define malloc_usable_size malloc_size
#else
#include <malloc.h>
#endif

/* Smaller ones malloc keeps itself; larger ones take longer to use than to get. */
#define LEAST_BYTES ((size_t)64 << 10)
#define MOST_BYTES ((size_t)32 << 20)
#define TOTAL_BYTES ((size_t)64 << 20)
#define BLOCKS 16

static struct {
  pthread_mutex_t lock; /* never waited for: a fork may leave it locked for good */
  void *block[BLOCKS];  /* the oldest first */
  size_t bytes[BLOCKS];
  int count;
  size_t total;
} kept = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void *remove_block(int i) {
  void *block = kept.block[i];
  kept.total -= kept.bytes[i];
  kept.count--;
  for (; i < kept.count; i++) {
    kept.block[i] = kept.block[i + 1];
    kept.bytes[i] = kept.bytes[i + 1];
  }
  return block;
}

/* The smallest block that is large enough, and no more than four times that. */
static void *take(size_t bytes) {
  void *block = NULL;
  if (bytes < LEAST_BYTES || bytes > MOST_BYTES || pthread_mutex_trylock(&kept.lock) != 0) {
    return NULL;
  }
  int best = -1;
  for (int i = 0; i < kept.count; i++) {
    if (kept.bytes[i] >= bytes && kept.bytes[i] / 4 <= bytes &&
        (best < 0 || kept.bytes[i] < kept.bytes[best])) {
      best = i;
    }
  }
  if (best >= 0) {
    block = remove_block(best);
  }
  pthread_mutex_unlock(&kept.lock);
  return block;
}

static void give_all_back(void) {
  void *blocks[BLOCKS];
  int n = 0;
  if (pthread_mutex_trylock(&kept.lock) != 0) {
    return;
  }
  while (kept.count > 0) {
    blocks[n++] = remove_block(0);
  }
  pthread_mutex_unlock(&kept.lock);
  while (n > 0) {
    free(blocks[--n]);
  }
}

static void *allocate(size_t bytes) {
  void *p = NULL;
  if (posix_memalign(&p, 64, bytes) != 0) {
    give_all_back();
    return posix_memalign(&p, 64, bytes) != 0 ? NULL : p;
  }
  return p;
}

void *spt_scratch(const char *op, int64_t count, size_t size, spt_status *status, spt_error *err) {
  size_t bytes;
  void *p = NULL;
  bool counted =
      count >= 0 && !__builtin_mul_overflow((size_t)count, size, &bytes) && bytes <= SIZE_MAX / 2;
  if (counted) {
    bytes = (bytes + 127) & ~(size_t)63;
    p = take(bytes);
  }
  if (p == NULL && (!counted || (p = allocate(bytes)) == NULL)) {
    *status = spt_fail(err, SPT_OUT_OF_MEMORY,
                       "%s: no memory for a workspace of %lld elements of %d bytes", op,
                       (long long)count, (int)size);
    return NULL;
  }
  return p;
}

void spt_scratch_free(void *p) {
#if !defined(__SANITIZE_ADDRESS__) /* which would no longer see a use after this */
  size_t bytes = p != NULL ? malloc_usable_size(p) : 0;
  if (bytes >= LEAST_BYTES && bytes <= MOST_BYTES && pthread_mutex_trylock(&kept.lock) == 0) {
    void *evicted[BLOCKS];
    int n = 0;
    while (kept.count == BLOCKS || kept.total + bytes > TOTAL_BYTES) {
      evicted[n++] = remove_block(0);
    }
    kept.block[kept.count] = p;
    kept.bytes[kept.count++] = bytes;
    kept.total += bytes;
    pthread_mutex_unlock(&kept.lock);
    while (n > 0) {
      free(evicted[--n]);
    }
    return;
  }
#endif
  free(p);
}
