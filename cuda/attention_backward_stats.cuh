/* attention_backward_stats.cuh: what attention_backward's first pass reads and fills. */
#ifndef SPATILE_CUDA_ATTENTION_BACKWARD_STATS_CUH
#define SPATILE_CUDA_ATTENTION_BACKWARD_STATS_CUH

#include "attention_backward.cuh"

struct spt_backward_stats {
  spt_heads out, lse_from;
  bool wide_out;
  float *lse, *delta; /* by spt_stats_row */
  uint32_t *peaks;    /* (sequences, kv_heads), zeros before; or NULL */
};

SPT_WARN_UNUSED spt_status spt_backward_find_stats(spt_cuda_queue *, const spt_backward *,
                                                   const spt_backward_stats *, spt_dtype,
                                                   spt_error *);

#endif
