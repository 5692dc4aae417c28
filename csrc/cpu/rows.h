/* Rows of a tensor of any rank: its last axis, counted over the axes before it in row-major order. */
#ifndef SPATILE_CPU_ROWS_H
#define SPATILE_CPU_ROWS_H

#include "../backend.h"

static inline int64_t spt_row_count(const spt_tensor *t) {
  int64_t n = 1;
  for (int i = 0; i < t->ndim - 1; i++) {
    n *= t->shape[i];
  }
  return n;
}

/* Elements from t->data to the first element of a row. */
static inline int64_t spt_row_offset(const spt_tensor *t, int64_t row) {
  int64_t offset = 0;
  for (int i = t->ndim - 2; i >= 0; i--) {
    offset += row % t->shape[i] * t->stride[i];
    row /= t->shape[i];
  }
  return offset;
}

static inline void *spt_element(const spt_tensor *t, int64_t offset) {
  return (char *)t->data + offset * (int64_t)spt_dtype_size(t->dtype);
}

#endif
