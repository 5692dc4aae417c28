/* What attention and attention_backward share: sequences and heads as matrices, the scores' bias and
 * masks gathered for a panel, and scratch memory by task. */
#ifndef SPATILE_CPU_ATTENTION_H
#define SPATILE_CPU_ATTENTION_H

#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "../integer.h"
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

static inline bool spt_added_varies(const spt_attention_problem *p, int dim) {
  return p->mask.stride[dim] != 0 || p->bias.stride[dim] != 0;
}

/* One head of a (sequences, heads, queries, keys) array. */
static inline spt_matrix spt_pair_matrix(const spt_tensor *t, const spt_sequence *s, int64_t head) {
  int64_t at = s->number * t->stride[0] + head * t->stride[1];
  return (spt_matrix){.data = (char *)t->data + at * (int64_t)spt_dtype_size(t->dtype),
                      .dtype = t->dtype,
                      .rows = s->queries,
                      .cols = s->keys,
                      .row = t->stride[2],
                      .col = t->stride[3]};
}

#define SPT_MASK_KEYS 64 /* at a time */

/* added (keys, 16) becomes -inf where the mask is false for queries [query, query + 16): the mask's
 * rows as floats, then turned like any rows that become a panel. */
static inline void spt_hide_by_mask(float *added, const spt_cpu_tier *tier, const spt_matrix *mask,
                                    int64_t query) {
  float rows[SPT_LANES * SPT_MASK_KEYS], panel[SPT_MASK_KEYS * SPT_LANES];
  int64_t lanes = mask->rows - query < SPT_LANES ? mask->rows - query : SPT_LANES;
  for (int64_t begin = 0; begin < mask->cols; begin += SPT_MASK_KEYS) {
    int64_t n = mask->cols - begin < SPT_MASK_KEYS ? mask->cols - begin : SPT_MASK_KEYS;
    for (int64_t l = 0; l < lanes; l++) {
      const uint8_t *at = (const uint8_t *)mask->data + (query + l) * mask->row + begin * mask->col;
      for (int64_t j = 0; j < n; j++) {
        rows[l * SPT_MASK_KEYS + j] = at[j * mask->col] != 0 ? 0.0f : -INFINITY;
      }
    }
    spt_matrix hidden = {
        .data = rows, .dtype = SPT_F32, .rows = lanes, .cols = n, .row = SPT_MASK_KEYS, .col = 1};
    tier->panel_pack(panel, &hidden, 0);
    for (int64_t i = 0; i < n * SPT_LANES; i++) {
      float *to = added + begin * SPT_LANES + i;
      *to = panel[i] < 0.0f ? -INFINITY : *to;
    }
  }
}

/* added (keys, 16): bias, or -inf where the mask hides, of queries [query, query + 16). */
static inline void spt_gather_added(float *added, const spt_cpu_tier *tier,
                                    const spt_attention_problem *p, const spt_sequence *s,
                                    int64_t head, int64_t query) {
  if (p->bias.data != NULL) {
    spt_matrix bias = spt_pair_matrix(&p->bias, s, head);
    tier->panel_pack(added, &bias, query);
  } else {
    memset(added, 0, (size_t)(s->keys * SPT_LANES) * sizeof *added);
  }
  if (p->mask.data != NULL) {
    spt_matrix mask = spt_pair_matrix(&p->mask, s, head);
    spt_hide_by_mask(added, tier, &mask, query);
  }
  if (!spt_added_varies(p, 2)) { /* the first lane, for every query of the sequence */
    for (int64_t j = 0; j < s->keys; j++) {
      for (int l = 1; l < SPT_LANES; l++) {
        added[j * SPT_LANES + l] = added[j * SPT_LANES];
      }
    }
  }
}

/* Whether a task that goes through heads, and through the blocks of each, has to gather again. */
static inline bool spt_added_is_stale(const spt_attention_problem *p, bool first_head,
                                      bool first_block) {
  return spt_added_varies(p, 2) || (first_block && (first_head || spt_added_varies(p, 1)));
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

/* floats is -1 where spt_panel_floats gave up. */
static inline spt_status spt_allocate_pieces(const char *op, spt_pieces *p, int n, int64_t floats,
                                             spt_error *err) {
  spt_status status = SPT_OK;
  if (floats < 0) {
    return spt_fail(err, SPT_OUT_OF_MEMORY,
                    "%s: no memory for a workspace of 2^57 elements or more", op);
  }
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
