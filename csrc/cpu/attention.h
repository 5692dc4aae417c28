/* What attention and attention_backward share: sequences and heads as matrices, the scores' bias and
 * masks gathered for a panel, and scratch memory by task. */
#ifndef SPATILE_CPU_ATTENTION_H
#define SPATILE_CPU_ATTENTION_H

#include <math.h>
#include <stdatomic.h>

#include "half.h"
#include "scratch.h"
#include "tier.h"

typedef struct spt_sequence {
  int64_t number;
  int64_t q_start, k_start; /* first token in a packed array */
  int64_t queries, keys;    /* that count */
  int64_t query_rows;       /* with those that do not */
} spt_sequence;

static inline spt_sequence spt_sequence_of(const spt_attention_problem *p, int64_t n) {
  spt_sequence s = {.number = n, .queries = p->queries, .keys = p->keys};
  if (p->q_offsets != NULL) {
    s.q_start = p->q_offsets[n];
    s.k_start = p->kv_offsets[n];
    s.queries = p->q_offsets[n + 1] - s.q_start;
    s.keys = p->kv_offsets[n + 1] - s.k_start;
  }
  s.query_rows = s.queries;
  if (p->lengths != NULL) {
    s.queries = s.keys = p->lengths[n];
  }
  return s;
}

static inline int64_t spt_ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

static inline int64_t spt_most_keys(const spt_attention_problem *p) {
  int64_t most = 0;
  for (int64_t n = 0; n < p->sequences; n++) {
    int64_t keys = spt_sequence_of(p, n).keys;
    most = keys > most ? keys : most;
  }
  return most;
}

/* One head of one sequence: (rows, cols). */
static inline spt_matrix spt_head_matrix(const spt_heads *x, int64_t sequence, int64_t start,
                                         int64_t head, int64_t rows, int64_t cols) {
  int64_t at = sequence * x->sequence + start * x->token + head * x->head;
  return (spt_matrix){.data = (char *)x->data + at * (int64_t)spt_dtype_size(x->dtype),
                      .dtype = x->dtype,
                      .rows = rows,
                      .cols = cols,
                      .row = x->token,
                      .col = x->feature};
}

static inline void spt_clear_rows(const spt_matrix *m, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; row++) {
    for (int64_t c = 0; c < m->cols; c++) {
      spt_store(m->data, m->dtype, row * m->row + c * m->col, 0.0f);
    }
  }
}

static inline float *spt_head_float(const spt_heads *x, int64_t sequence, int64_t token,
                                    int64_t head) {
  return (float *)x->data + sequence * x->sequence + token * x->token + head * x->head;
}

/* The keys that the query `query` of a sequence sees, both ends included. */
static inline int64_t spt_first_key(const spt_attention_problem *p, const spt_sequence *s,
                                    int64_t query) {
  return query + s->keys - s->queries - p->left;
}
static inline int64_t spt_last_key(const spt_attention_problem *p, const spt_sequence *s,
                                   int64_t query) {
  return query + s->keys - s->queries + p->right;
}

static inline bool spt_has_added(const spt_attention_problem *p) {
  return p->mask.data != NULL || p->bias.data != NULL;
}

/* added (keys, 16): bias, or -inf where the mask hides, of queries [query, query + 16). */
static inline void spt_gather_added(float *added, const spt_attention_problem *p,
                                    const spt_sequence *s, int64_t head, int64_t query) {
  const spt_tensor *mask = &p->mask, *bias = &p->bias;
  int64_t lanes = s->queries - query < SPT_LANES ? s->queries - query : SPT_LANES;
  int64_t mask_at = s->number * mask->stride[0] + head * mask->stride[1] + query * mask->stride[2];
  int64_t bias_at = s->number * bias->stride[0] + head * bias->stride[1] + query * bias->stride[2];
  bool same = mask->stride[2] == 0 && bias->stride[2] == 0; /* for every query */
  for (int64_t j = 0; j < s->keys; j++) {
    float *to = added + j * SPT_LANES;
    for (int64_t l = 0; l < SPT_LANES; l++) {
      if (l >= lanes || (same && l > 0)) {
        to[l] = to[0];
        continue;
      }
      to[l] = bias->data == NULL ? 0.0f
                                 : spt_load(bias->data, bias->dtype,
                                            bias_at + l * bias->stride[2] + j * bias->stride[3]);
      if (mask->data != NULL &&
          !((const uint8_t *)mask->data)[mask_at + l * mask->stride[2] + j * mask->stride[3]]) {
        to[l] = -INFINITY;
      }
    }
  }
}

static inline spt_attention_dropout spt_dropout_of(const spt_attention_problem *p, int64_t sequence,
                                                   int64_t head) {
  return (spt_attention_dropout){.threshold = (uint32_t)(p->dropout * 0x1p32),
                                 .kept_scale = (float)(1.0 / (1.0 - p->dropout)),
                                 .seed = p->seed,
                                 .head = (uint32_t)head,
                                 .sequence = (uint32_t)sequence};
}

/* ---- scratch memory -----------------------------------------------------------------------------
 *
 * As many pieces as the pool is wide. Not by the pool's worker numbers: another thread may widen the
 * pool between the allocation and the tasks, and then a task waits until a piece is free. */
typedef struct spt_pieces {
  int n;
  atomic_flag taken[256];
  float *memory;
  int64_t floats; /* of one piece */
} spt_pieces;

static inline int spt_take_piece(spt_pieces *p, int worker) {
  for (int i = worker % p->n;; i = (i + 1) % p->n) {
    if (!atomic_flag_test_and_set_explicit(&p->taken[i], memory_order_acquire)) {
      return i;
    }
  }
}
static inline void spt_give_piece(spt_pieces *p, int piece) {
  atomic_flag_clear_explicit(&p->taken[piece], memory_order_release);
}

static inline spt_status spt_allocate_pieces(const char *op, spt_pieces *p, int n, int64_t floats,
                                             spt_error *err) {
  spt_status status = SPT_OK;
  p->n = n;
  p->floats = (floats + 15) / 16 * 16; /* a piece starts on a cache line */
  for (int i = 0; i < n; i++) {
    atomic_flag_clear(&p->taken[i]);
  }
  p->memory = spt_scratch(op, p->floats, (size_t)n * sizeof(float), &status, err);
  return status;
}

/* `rows` panels' worth of `width` floats each, or -1 where that exceeds int64. */
static inline int64_t spt_panel_floats(int64_t rows, int64_t width) {
  int64_t floats, panels = (rows + SPT_LANES - 1) / SPT_LANES * SPT_LANES;
  return __builtin_mul_overflow(panels, width, &floats) || floats > INT64_MAX / 64 ? -1 : floats;
}

#endif
