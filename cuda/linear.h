/* linear.h: what the files of linear and linear_backward share. */
#ifndef SPATILE_CUDA_LINEAR_H
#define SPATILE_CUDA_LINEAR_H

#include "linear_output.cuh"
#include "linear_strips.h"

/* Tiles as one product reads them. */
typedef struct spt_tiles {
  spt_dtype dtype; /* of both factors */
  const void *data;
} spt_tiles;

/* w's tiles for a product with `other`'s dtype: as they are, or from the dense array, or widened. */
SPT_WARN_UNUSED spt_status spt_tiles_for(spt_cuda_queue *, spt_scratch *, const char *op,
                                         const spt_gpu_weights *, const spt_weight *,
                                         spt_dtype other, spt_dtype compute, spt_tiles *,
                                         spt_error *);

/* y = act(x · wᵀ + bias) + residual, as `output` says; float32. */
SPT_WARN_UNUSED spt_status spt_csr_product(spt_cuda_queue *, const char *op, const spt_gpu_csr *,
                                           const spt_matrix *x, const spt_linear_output *,
                                           spt_error *);
/* dw (nnz): of each stored weight, grad · x over tokens. */
SPT_WARN_UNUSED spt_status spt_csr_gradient(spt_cuda_queue *, const char *op, const spt_gpu_csr *,
                                            const spt_matrix *grad, const spt_matrix *x,
                                            const spt_matrix *dw, spt_error *);

/* dw of strips: (kept columns, 16), or with `dense` (out, in), of which nothing but kept columns is
 * written. */
SPT_WARN_UNUSED spt_status spt_strips_gradient(spt_cuda_queue *, const char *op,
                                               const spt_gpu_weights *, const spt_matrix *grad,
                                               const spt_matrix *x, const spt_matrix *dw,
                                               bool dense, spt_error *);

#endif
