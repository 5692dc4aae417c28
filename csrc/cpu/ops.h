/* The slots that the CPU backend fills; each lives in the file of its op. */
#ifndef SPATILE_CPU_OPS_H
#define SPATILE_CPU_OPS_H

#include "../backend.h"

spt_status spt_cpu_linear(void *state, const spt_linear_problem *, spt_error *);
spt_status spt_cpu_linear_backward(void *state, const spt_linear_backward_problem *, spt_error *);
spt_status spt_cpu_attention(void *state, const spt_attention_problem *, spt_error *);
spt_status spt_cpu_attention_backward(void *state, const spt_attention_backward_problem *,
                                      spt_error *);

spt_status spt_cpu_encoder_create(void *state, const spt_encoder_model *, void **encoder,
                                  spt_error *);
spt_status spt_cpu_encoder_forward(void *encoder, const spt_encoder_run *, spt_error *);
void spt_cpu_encoder_free(void *encoder);

#endif
