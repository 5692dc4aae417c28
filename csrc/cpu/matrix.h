/* Views of a matrix, and where its elements are. */
#ifndef SPATILE_CPU_MATRIX_H
#define SPATILE_CPU_MATRIX_H

#include <stdlib.h>

#include "../backend.h"

static inline spt_matrix spt_transposed(spt_matrix m) {
  return (spt_matrix){
      .data = m.data, .dtype = m.dtype, .rows = m.cols, .cols = m.rows, .row = m.col, .col = m.row};
}

/* Whether the rows of m are its far dimension, as in a plain transpose. */
static inline bool spt_is_column_major(const spt_matrix *m) {
  return m->rows > 1 && (m->cols == 1 || llabs(m->row) < llabs(m->col));
}

static inline void *spt_address(const spt_matrix *m, int64_t row, int64_t col) {
  return (char *)m->data + (row * m->row + col * m->col) * (int64_t)spt_dtype_size(m->dtype);
}

#endif
