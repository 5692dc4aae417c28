/* status.c: how a failure is written down, and what is known of the dtypes. Compiled into every library
 * that the contract crosses, as C or as C++, so it depends on nothing else. */
#include <stdarg.h>
#include <stdio.h>

#include "spatile.h"

spt_status spt_fail(spt_error *err, spt_status status, const char *format, ...) {
  va_list args;
  va_start(args, format);
  vsnprintf(err->message, sizeof err->message, format, args);
  va_end(args);
  return status;
}

/* In the order of spt_dtype. */
static const struct {
  const char *name;
  size_t size;
} dtypes[] = {{"float32", 4}, {"float16", 2}, {"bfloat16", 2}, {"float64", 8},      {"bool", 1},
              {"uint8", 1},   {"int32", 4},   {"int64", 8},    {"another dtype", 0}};

const char *spt_dtype_name(spt_dtype dtype) { return dtypes[dtype].name; }
size_t spt_dtype_size(spt_dtype dtype) { return dtypes[dtype].size; }
