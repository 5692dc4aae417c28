/* slots.h: the functions that entry.cu puts into the backend's table, one file each. What the problems
 * hold is backend.h's; all pointers in them are the device's, unless backend.h says host. */
#ifndef SPATILE_CUDA_SLOTS_H
#define SPATILE_CUDA_SLOTS_H

#include "../csrc/backend.h"

/* Weak: a slot without a file is NULL in the table, and so "not supported". */
#define SPT_CUDA_OPTIONAL __attribute__((weak))
#define SPT_CUDA_SLOT(name)                                                               \
  SPT_CUDA_OPTIONAL spt_status spt_cuda_##name(void *state, const spt_##name##_problem *, \
                                               spt_error *)

SPT_CUDA_SLOT(linear);
SPT_CUDA_SLOT(linear_backward);
SPT_CUDA_SLOT(attention);
SPT_CUDA_SLOT(attention_backward);
SPT_CUDA_SLOT(group_norms);
SPT_CUDA_SLOT(group_beta);
SPT_CUDA_SLOT(group_lasso);
SPT_CUDA_SLOT(group_lasso_grad);
SPT_CUDA_SLOT(group_shrink);
SPT_CUDA_SLOT(apply_mask);
SPT_CUDA_SLOT(expand_mask);
SPT_CUDA_SLOT(prune_mask);
SPT_CUDA_SLOT(layer_norm);
SPT_CUDA_SLOT(gelu);
SPT_CUDA_SLOT(dropout);
SPT_CUDA_SLOT(softmax);
SPT_CUDA_SLOT(embedding);
SPT_CUDA_SLOT(topk);
SPT_CUDA_SLOT(second_order_removals);
SPT_CUDA_SLOT(second_order_apply);

/* linear's; see backend.h. */
SPT_CUDA_OPTIONAL spt_status spt_cuda_prepare(void *state, const spt_weight *, spt_dtype compute,
                                              void **prepared, spt_error *);
SPT_CUDA_OPTIONAL void spt_cuda_prepared_free(void *state, void *prepared);

SPT_CUDA_OPTIONAL spt_status spt_cuda_encoder_create(void *state, const spt_encoder_model *,
                                                     void **encoder, spt_error *);
SPT_CUDA_OPTIONAL spt_status spt_cuda_encoder_forward(void *encoder, const spt_encoder_run *,
                                                      spt_error *);
SPT_CUDA_OPTIONAL void spt_cuda_encoder_free(void *encoder);

#endif
