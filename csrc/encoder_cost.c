#include "encoder_cost.h"

#include "integer.h"

static void add_strip(spt_matrix_size *to, const spt_strips *w, int64_t strip, int64_t element) {
  int64_t columns = w->value_ptr[strip + 1] - w->value_ptr[strip], rows = 0;
  for (int r = 0; r < SPT_STRIP; r++) {
    rows += spt_strip_row(w, strip, r) >= 0;
  }
  to->weights += columns * rows;
  to->rows += rows;
  to->bytes += columns * SPT_STRIP * element;
  to->bytes += (w->run_ptr[strip + 1] - w->run_ptr[strip]) * 2 * (int64_t)sizeof(int32_t);
}

spt_matrix_size spt_size_of_units(const spt_encoder_matrix *m, const uint8_t *needed, int64_t begin,
                                  int64_t end, int64_t element) {
  spt_matrix_size size = {0};
  for (int64_t unit = begin; unit < end; unit++) {
    if (needed != NULL && !needed[unit]) {
      continue;
    }
    if (m->strips != NULL) {
      add_strip(&size, m->strips, unit, element);
      continue;
    }
    int64_t row = unit * SPT_STRIP, row_end = spt_min(row + SPT_STRIP, m->csr->out);
    int64_t weights = m->csr->row_ptr[row_end] - m->csr->row_ptr[row];
    size.weights += weights;
    size.rows += row_end - row;
    size.bytes += weights * (int64_t)(sizeof(float) + sizeof(int32_t));
  }
  return size;
}

int64_t spt_units_of(const spt_encoder_matrix *m) {
  return m->strips != NULL ? m->strips->n_strips : spt_ceil_div(m->csr->out, SPT_STRIP);
}

spt_layer_size spt_size_of_layer(const spt_encoder_layer *l, spt_dtype compute) {
  int64_t q_units = l->q_rows / SPT_STRIP, bytes = (int64_t)spt_dtype_size(compute);
  spt_layer_size size = {
      .q = spt_size_of_units(&l->qkv, NULL, 0, q_units, bytes),
      .kv = spt_size_of_units(&l->qkv, NULL, q_units, spt_units_of(&l->qkv), bytes),
      .up = spt_size_of_units(&l->up, NULL, 0, spt_units_of(&l->up), bytes),
      .down = spt_size_of_units(&l->down, NULL, 0, spt_units_of(&l->down), bytes),
  };
  if (l->merged_row == NULL) {
    size.o = spt_size_of_units(&l->o, NULL, 0, spt_units_of(&l->o), bytes);
  }
  return size;
}

void spt_add_product_cost(spt_part_cost *to, const spt_matrix_size *size, int64_t in,
                          int64_t tokens, int64_t element) {
  if (tokens == 0) {
    return;
  }
  to->multiply_adds += size->weights * tokens;
  to->bytes += size->bytes + tokens * (in + size->rows) * element;
}
