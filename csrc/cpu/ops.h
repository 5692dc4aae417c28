/* The slots that the CPU backend fills; each lives in the file of its op. */
#ifndef SPATILE_CPU_OPS_H
#define SPATILE_CPU_OPS_H

#include "../backend.h"

spt_status spt_cpu_linear(void *state, const spt_linear_problem *, spt_error *);
spt_status spt_cpu_prepare(void *state, const spt_weight *, spt_dtype compute, void **prepared,
                           spt_error *);
void spt_cpu_prepared_free(void *state, void *prepared);
spt_status spt_cpu_linear_backward(void *state, const spt_linear_backward_problem *, spt_error *);

spt_status spt_cpu_group_norms(void *state, const spt_group_norms_problem *, spt_error *);
spt_status spt_cpu_group_beta(void *state, const spt_group_beta_problem *, spt_error *);
spt_status spt_cpu_group_lasso(void *state, const spt_group_lasso_problem *, spt_error *);
spt_status spt_cpu_group_lasso_grad(void *state, const spt_group_lasso_grad_problem *, spt_error *);
spt_status spt_cpu_group_shrink(void *state, const spt_group_shrink_problem *, spt_error *);
spt_status spt_cpu_apply_mask(void *state, const spt_apply_mask_problem *, spt_error *);
spt_status spt_cpu_expand_mask(void *state, const spt_expand_mask_problem *, spt_error *);
spt_status spt_cpu_prune_mask(void *state, const spt_prune_mask_problem *, spt_error *);

spt_status spt_cpu_second_order_removals(void *state, const spt_second_order_removals_problem *,
                                         spt_error *);
spt_status spt_cpu_second_order_apply(void *state, const spt_second_order_apply_problem *,
                                      spt_error *);

spt_status spt_cpu_layer_norm(void *state, const spt_layer_norm_problem *, spt_error *);
spt_status spt_cpu_gelu(void *state, const spt_gelu_problem *, spt_error *);
spt_status spt_cpu_dropout(void *state, const spt_dropout_problem *, spt_error *);
spt_status spt_cpu_softmax(void *state, const spt_softmax_problem *, spt_error *);
spt_status spt_cpu_embedding(void *state, const spt_embedding_problem *, spt_error *);
spt_status spt_cpu_topk(void *state, const spt_topk_problem *, spt_error *);
spt_status spt_cpu_attention(void *state, const spt_attention_problem *, spt_error *);
spt_status spt_cpu_attention_backward(void *state, const spt_attention_backward_problem *,
                                      spt_error *);

spt_status spt_cpu_encoder_create(void *state, const spt_encoder_model *, void **encoder,
                                  spt_error *);
spt_status spt_cpu_encoder_forward(void *encoder, const spt_encoder_run *, spt_error *);
void spt_cpu_encoder_free(void *encoder);

#endif
