/* attention_run.h: the fused attention as the encoder calls it: sequences are where device memory says, a
 * head that was dropped costs nothing, importance adds up over calls. */
#ifndef SPATILE_CUDA_ATTENTION_RUN_H
#define SPATILE_CUDA_ATTENTION_RUN_H

#include "context.h"

/* Beside a packed problem, whose offsets in host memory say how large it is at most. Pointers are the
 * device's. */
typedef struct spt_attention_run {
  const int64_t *q_offsets, *kv_offsets; /* (sequences + 1) copies of the problem's */
  /* Head h of sequence n takes part where kept[n * kept_stride + head[h]] is not 0; elsewhere its
   * results are zeros and it counts nowhere. NULL: all do. */
  const uint8_t *kept;
  int64_t kept_stride;
  const int32_t *head;
  /* token_importance and head_importance are added to. head_importance of head h of sequence n is at
   * [n * sequence stride + head[h] * head stride] where `head` is given. */
  bool accumulate;
} spt_attention_run;

/* spt_cuda_attention is this with run NULL. */
SPT_WARN_UNUSED spt_status spt_cuda_attention_run(spt_cuda_queue *, const spt_attention_problem *,
                                                  const spt_attention_run *, spt_error *);

#endif
