/* Workspaces: 64-byte aligned, sizes checked for overflow, freed with free(). */
#ifndef SPATILE_CPU_SCRATCH_H
#define SPATILE_CPU_SCRATCH_H

#include <stdlib.h>

#include "../spatile.h"

/* `count` elements of `size` bytes; NULL and a message naming the bytes where memory lacks. At least
 * one cache line, so that an empty problem still gets a pointer. */
static inline void *spt_scratch(const char *op, int64_t count, size_t size, spt_status *status,
                                spt_error *err) {
  size_t bytes;
  void *p = NULL;
  if (count < 0 || __builtin_mul_overflow((size_t)count, size, &bytes) || bytes > SIZE_MAX / 2 ||
      posix_memalign(&p, 64, (bytes + 127) & ~(size_t)63) != 0) {
    *status = spt_fail(err, SPT_OUT_OF_MEMORY,
                       "%s: no memory for a workspace of %lld elements of %d bytes", op,
                       (long long)count, (int)size);
    return NULL;
  }
  return p;
}

#endif
