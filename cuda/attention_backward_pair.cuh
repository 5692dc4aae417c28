/* attention_backward_pair.cuh: the gradient of one pair, computed by one thread from rows of any width and
 * any strides. */
#ifndef SPATILE_CUDA_ATTENTION_BACKWARD_PAIR_CUH
#define SPATILE_CUDA_ATTENTION_BACKWARD_PAIR_CUH

#include "attention_backward.cuh"

/* The sum of factor a[i] b[i], in order. */
template <typename T>
static __device__ __forceinline__ float spt_dot_rows(const T *a, int64_t a_step, const T *b,
                                                     int64_t b_step, int64_t n, float factor) {
  float sum = 0.0f;
  for (int64_t i = 0; i < n; i++) {
    sum = fmaf(spt_load(a + i * a_step) * factor, spt_load(b + i * b_step), sum);
  }
  return sum;
}

/* P o K and dS of one pair, by one lane alone. */
template <typename T>
static __device__ spt_pair_gradient spt_lone_pair(const spt_backward &p, const spt_span &s,
                                                  int64_t head, int64_t query, int64_t key,
                                                  float lse, float delta) {
  const spt_attention_view &v = p.view;
  int64_t kv_head = head / (v.heads / v.kv_heads);
  float score = spt_dot_rows(spt_token_row<T>(p.q, s.number, s.q_start + query, head), p.q.feature,
                             spt_token_row<T>(p.k, s.number, s.k_start + key, kv_head), p.k.feature,
                             v.d, v.scale);
  float dp = spt_dot_rows(spt_token_row<T>(p.grad, s.number, s.q_start + query, head),
                          p.grad.feature, spt_token_row<T>(p.v, s.number, s.k_start + key, kv_head),
                          p.v.feature, v.dv, 1.0f);
  float kept = 1.0f;
  if (v.dropout.on) {
    kept = spt_keeps_pair(v.dropout, s.number, head, query, key) ? v.dropout.kept_scale : 0.0f;
  }
  return spt_gradient_of_pair(v, s, head, query, key, score, dp, lse, delta, kept);
}

#endif
