/* Small arithmetic on sizes. */
#ifndef SPATILE_INTEGER_H
#define SPATILE_INTEGER_H

#include <stdint.h>

/* a / b rounded up, for a >= 0 and b > 0; a may be INT64_MAX. */
static inline int64_t spt_ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }
static inline int64_t spt_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t spt_max(int64_t a, int64_t b) { return a > b ? a : b; }

#endif
