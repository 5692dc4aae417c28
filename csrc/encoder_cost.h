/* What an encoder's products cost, for whichever backend runs them. */
#ifndef SPATILE_ENCODER_COST_H
#define SPATILE_ENCODER_COST_H

#include "encoder.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What the units of a matrix hold, or some of them: weights, their bytes, output rows. A unit is a strip,
 * or 16 rows of CSR. */
typedef struct spt_matrix_size {
  int64_t weights, bytes, rows;
} spt_matrix_size;

/* A layer's, with q and kv for the units of qkv that hold Q's rows, and the others. */
typedef struct spt_layer_size {
  spt_matrix_size q, kv, o, up, down;
} spt_layer_size;

int64_t spt_units_of(const spt_encoder_matrix *);
/* Of units [begin, end), or those of them that are `needed`; an element takes so many bytes. */
spt_matrix_size spt_size_of_units(const spt_encoder_matrix *, const uint8_t *needed, int64_t begin,
                                  int64_t end, int64_t element);
/* The sizes of a layer's matrices, all units of them. */
spt_layer_size spt_size_of_layer(const spt_encoder_layer *, spt_dtype compute);
/* A product of some tokens: x of `in` features is read, the rows are written. */
void spt_add_product_cost(spt_part_cost *to, const spt_matrix_size *size, int64_t in,
                          int64_t tokens, int64_t element);

#ifdef __cplusplus
}
#endif

#endif
