/* attention_block: one query after the other, its whole row of scores in a chunk at a time. */
#include <math.h>

#include "../half.h"
#include "../philox.h"
#include "../tier.h"

struct lane_softmax {
  float top, sum; /* running maximum and sum of exp(score - top) */
};

/* Feature f of the query in a lane, of key j, and of its value. */
static float query_feature(const spt_attention_block *b, int lane, int64_t f) {
  return b->q_pairs != NULL ? spt_float_of_bf16(b->q_pairs[pair_index(f, lane)])
                            : b->q[f * SPT_LANES + lane];
}
static float key_feature(const spt_attention_block *b, int64_t j, int64_t f) {
  int64_t key = b->key_begin + j, panel = key / SPT_LANES * b->k_stride;
  return b->k_pairs != NULL
             ? spt_float_of_bf16(b->k_pairs[panel + pair_index(f, (int)(key % SPT_LANES))])
             : b->k[panel + f * SPT_LANES + key % SPT_LANES];
}
static float value_feature(const spt_attention_block *b, int64_t j, int64_t f) {
  int64_t key = b->key_begin + j;
  int64_t at = key / SPT_LANES * b->v_stride + f * SPT_LANES + key % SPT_LANES;
  return b->v_rows != NULL ? spt_float_of_bf16(b->v_rows[at]) : b->v[at];
}

static float lane_score(const spt_attention_block *b, int lane, int64_t j) {
  int64_t shift = lane - b->lane_begin;
  if (j < b->first_key + shift || j > b->last_key + shift) {
    return -INFINITY;
  }
  float score = 0.0f;
  for (int64_t f = 0; f < b->d; f++) {
    score += b->scale * query_feature(b, lane, f) * key_feature(b, j, f);
  }
  if (b->added != NULL) {
    float added = b->added[j * SPT_LANES + lane];
    score = added == -INFINITY ? -INFINITY : score + added;
  }
  return score;
}

/* Where every score so far is -inf, exp(-inf - 0) is 0 and exp(-inf - (-inf)) would be NaN. */
static float finite_top(float top) { return top == -INFINITY ? 0.0f : top; }

/* Scores of keys [begin, end) become exp(score - top); what was summed before is rescaled. */
static void lane_probabilities(const spt_attention_block *b, int lane, int64_t begin, int64_t end,
                               float *p, float *sum_v, struct lane_softmax *s) {
  float top = s->top;
  for (int64_t j = begin; j < end; j++) {
    p[j - begin] = lane_score(b, lane, j);
    top = p[j - begin] > top ? p[j - begin] : top;
  }
  float rescale = expf(s->top - finite_top(top));
  s->top = top;
  s->sum *= rescale;
  for (int64_t f = 0; f < b->dv; f++) {
    sum_v[f] *= rescale;
  }
  for (int64_t j = 0; j < end - begin; j++) {
    p[j] = expf(p[j] - finite_top(top));
    s->sum += p[j];
  }
}

static void lane_drop(const spt_attention_block *b, int lane, int64_t begin, int64_t end,
                      float *p) {
  for (int64_t j = begin; j < end; j++) {
    bool kept = philox_keeps(b->dropout, (uint32_t)(b->query + lane - b->lane_begin), (uint32_t)j);
    p[j - begin] *= kept ? b->dropout->kept_scale : 0.0f;
  }
}

static void lane_finish(const spt_attention_block *b, int lane, const float *sum_v, float inverse,
                        const struct lane_softmax *s) {
  float magnitude = 0.0f;
  for (int64_t f = 0; f < b->dv; f++) {
    float value = s->sum == 0.0f ? 0.0f : sum_v[f] * inverse;
    if (b->out_pairs != NULL) {
      b->out_pairs[pair_index(b->out_feature + f, lane)] = spt_bf16_of_float(value);
    } else {
      float *out = b->out + f * SPT_LANES + lane;
      *out = b->accumulate ? *out + value : value;
    }
    magnitude += fabsf(value);
  }
  if (b->lse != NULL) {
    b->lse[lane] = s->sum == 0.0f ? -INFINITY : finite_top(s->top) + logf(s->sum);
  }
  if (b->head_importance != NULL) {
    *b->head_importance += magnitude;
  }
  if (b->magnitudes != NULL) {
    b->magnitudes[lane] = magnitude;
  }
}

static void lane_shares(const spt_attention_block *b, const float *p, int64_t keys, float sum) {
  if (sum != sum) {
    *b->nan = 1;
  }
  float units = 1.0f / SPT_SHARE_UNIT / (sum == 0.0f ? 1.0f : sum);
  for (int64_t j = 0; j < keys; j++) {
    b->token_shares[j] += rintf(p[j] * units);
  }
}

static void attention_block(const spt_attention_block *b) {
  int64_t keys = b->key_end - b->key_begin;
  int64_t chunk = spt_keeps_rows(b) ? keys : SPT_ATTENTION_CHUNK;
  float *p = b->scratch, *sum_v = b->scratch + (chunk < keys ? chunk : keys);
  for (int lane = b->lane_begin; lane < b->lane_end; lane++) {
    struct lane_softmax s = {-INFINITY, 0.0f};
    for (int64_t f = 0; f < b->dv; f++) {
      sum_v[f] = 0.0f;
    }
    for (int64_t begin = 0; begin < keys; begin += chunk) {
      int64_t end = keys - begin < chunk ? keys : begin + chunk;
      lane_probabilities(b, lane, begin, end, p, sum_v, &s);
      for (int64_t j = begin; b->token_importance != NULL && j < end; j++) {
        b->token_importance[j * SPT_LANES + lane] += s.sum == 0.0f ? 0.0f : p[j - begin] / s.sum;
      }
      if (b->token_shares != NULL) {
        lane_shares(b, p, end - begin, s.sum);
      }
      if (b->dropout != NULL) {
        lane_drop(b, lane, begin, end, p);
      }
      for (int64_t j = begin; j < end; j++) {
        for (int64_t f = 0; f < b->dv; f++) {
          sum_v[f] += p[j - begin] * value_feature(b, j, f);
        }
      }
    }
    lane_finish(b, lane, sum_v, 1.0f / s.sum, &s);
  }
}
