/* slots.h: the functions that entry.cu puts into the backend's table, one file each. What the problems
 * hold is backend.h's; all pointers in them are the device's, unless backend.h says host. */
#ifndef SPATILE_CUDA_SLOTS_H
#define SPATILE_CUDA_SLOTS_H

#include "../csrc/backend.h"

#define SPT_CUDA_SLOT(name) \
  spt_status spt_cuda_##name(void *state, const spt_##name##_problem *, spt_error *)

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

#endif
