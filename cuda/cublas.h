/* cublas.h: dense products by cuBLASLt, which is loaded when first wanted. */
#ifndef SPATILE_CUDA_CUBLAS_H
#define SPATILE_CUDA_CUBLAS_H

#include "context.h"

/* A matrix (rows, k) of float32, float16 or bfloat16: rows `stride` apart, or turned: k's steps are. */
typedef struct spt_cublas_operand {
  const void *data;
  int64_t stride;
  bool turned;
} spt_cublas_operand;

/* y (m, n) = a (m, k) · b (n, k)ᵀ + bias (n) + residual (m, n), or GELU in its tanh form of the first two. Sums
 * and all that follows are float32. y is float32 or of the operands' dtype, bias and residual are of y's;
 * bias, residual or both may be NULL. m, n, k at least 1. */
typedef struct spt_cublas_product {
  int64_t m, n, k;
  spt_dtype operands, y_dtype;
  spt_cublas_operand a, b;
  void *y;
  const void *bias, *residual;
  int64_t y_stride, residual_stride;
  bool gelu_tanh;
} spt_cublas_product;

/* `done` is false where there is no cuBLAS, or it cannot do this: then nothing was enqueued. */
SPT_WARN_UNUSED spt_status spt_cublas_multiply(spt_cuda_queue *, const char *op,
                                               const spt_cublas_product *, bool *done, spt_error *);

/* Whether there is one; looks for it at the first call. */
bool spt_cublas_is_there(void);
/* The library's file, or why there is none. The environment variable
 * SPATILE_CUBLAS names its file, or is "none"; else the loader finds it, or it lies in the Python package
 * nvidia-cublas beside spatile. */
const char *spt_cublas_found(void);

/* What a queue's `cublas` points to. NULL too. */
void spt_cublas_free(struct spt_cublas *);

#endif
