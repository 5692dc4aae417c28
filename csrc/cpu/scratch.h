/* Workspaces: 64-byte aligned, sizes checked for overflow. */
#ifndef SPATILE_CPU_SCRATCH_H
#define SPATILE_CPU_SCRATCH_H

#include <stdlib.h>

#include "../spatile.h"

/* `count` elements of `size` bytes; NULL and a message naming the bytes where memory lacks. At least
 * one cache line, so that an empty problem still gets a pointer. free() takes it back, and so does
 * spt_scratch_free. */
void *spt_scratch(const char *op, int64_t count, size_t size, spt_status *status, spt_error *err);

/* Keeps the memory for the next call of spt_scratch, up to a bound: memory that is given back to the
 * system comes anew as zeroed pages, and getting those took a third of a small product's time. */
void spt_scratch_free(void *);

#endif
