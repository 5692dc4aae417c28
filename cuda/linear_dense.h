/* linear_dense.h: products of matrices without structure. */
#ifndef SPATILE_CUDA_LINEAR_DENSE_H
#define SPATILE_CUDA_LINEAR_DENSE_H

#include "context.h"

/* y (m, n) = act(a (m, k) · b (n, k)ᵀ + bias (n)) + residual (m, n); bias and residual may be absent. Any
 * strides and storage types. */
typedef struct spt_dense_product {
  spt_matrix a, b, y, bias, residual;
  spt_activation activation;
  spt_dtype operands; /* what a and b are rounded to: spt_operands_of */
} spt_dense_product;
SPT_WARN_UNUSED spt_status spt_dense_multiply(spt_cuda_queue *, const char *op,
                                              const spt_dense_product *, spt_error *);

/* The type in which a product loses nothing, or bfloat16 where that is asked for. Of two 16-bit factors of
 * one kind the product is exact in float32. */
static inline spt_dtype spt_operands_of(spt_dtype a, spt_dtype b, spt_dtype compute) {
  return compute == SPT_BF16 ? SPT_BF16 : a == b ? a : SPT_F32;
}

/* m with rows and columns exchanged, in place. */
static inline spt_matrix spt_turned(const spt_matrix *m) {
  spt_matrix t = *m;
  t.rows = m->cols;
  t.cols = m->rows;
  t.row = m->col;
  t.col = m->row;
  return t;
}

#endif
