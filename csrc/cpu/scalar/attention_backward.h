/* attention_backward_block: one pair of query and key after the other. */
#include <math.h>

#include "../philox.h"
#include "../tier.h"

static float dot_features(const float *a, const float *b, int64_t n) {
  double sum = 0.0; /* one chain of float32 would be less exact than the SIMD tiers' products */
  for (int64_t f = 0; f < n; f++) {
    sum += (double)a[f * SPT_LANES] * b[f * SPT_LANES];
  }
  return (float)sum;
}

static void add_features(float *to, const float *x, int64_t n, float factor) {
  for (int64_t f = 0; f < n; f++) {
    to[f * SPT_LANES] += factor * x[f * SPT_LANES];
  }
}

static bool pair_is_hidden(const spt_attention_backward_block *b, int lane, int64_t j) {
  return j < b->first_key + lane || j > b->last_key + lane ||
         (b->added != NULL && b->added[j * SPT_LANES + lane] == -INFINITY) ||
         b->lse[lane] == -INFINITY;
}

static void add_pair_gradient(const spt_attention_backward_block *b, int lane, int64_t j,
                              float delta) {
  int64_t k_at = j / SPT_LANES * b->k_stride + j % SPT_LANES;
  int64_t v_at = j / SPT_LANES * b->v_stride + j % SPT_LANES;
  float score = b->scale * dot_features(b->q + lane, b->k + k_at, b->d);
  if (b->added != NULL) {
    score += b->added[j * SPT_LANES + lane];
  }
  float p = expf(score - b->lse[lane]), survival = 1.0f;
  if (b->dropout != NULL) {
    bool kept = philox_keeps(b->dropout, (uint32_t)(b->query + lane), (uint32_t)j);
    survival = kept ? b->dropout->kept_scale : 0.0f;
  }
  float g = dot_features(b->grad + lane, b->v + v_at, b->dv) * survival;
  float ds = p * (g - delta);
  add_features(b->q_grad + lane, b->k + k_at, b->d, b->scale * ds);
  add_features(b->k_grad + k_at, b->q + lane, b->d, b->scale * ds);
  add_features(b->v_grad + v_at, b->grad + lane, b->dv, p * survival);
  if (b->scores_grad != NULL) {
    b->scores_grad[j * SPT_LANES + lane] = ds;
  }
}

static void attention_backward_block(const spt_attention_backward_block *b) {
  for (int64_t i = 0; i < b->d * SPT_LANES; i++) {
    b->q_grad[i] = 0.0f;
  }
  for (int64_t i = 0; b->scores_grad != NULL && i < b->keys * SPT_LANES; i++) {
    b->scores_grad[i] = 0.0f;
  }
  for (int lane = 0; lane < b->lanes; lane++) {
    float delta = dot_features(b->grad + lane, b->out + lane, b->dv);
    for (int64_t j = 0; j < b->keys; j++) {
      if (!pair_is_hidden(b, lane, j)) {
        add_pair_gradient(b, lane, j, delta);
      }
    }
  }
}
