/* What the files of the encoder share: one run of it. */
#ifndef SPATILE_CPU_ENCODER_PASS_H
#define SPATILE_CPU_ENCODER_PASS_H

#include "../encoder.h"
#include "../encoder_cost.h"
#include "../integer.h"

#include "bf16.h"
#include "pool.h"
#include "product.h"
#include "tier.h"

/* A layer's products in bfloat16. */
typedef struct spt_layer_bf16 {
  spt_strips_bf16 *qkv, *o, *up, *down;
} spt_layer_bf16;

/* Activations: panels of `features`, in float32, as bfloat16 pairs, or both. */
typedef struct spt_activations {
  float *f32;
  uint16_t *bf16;
  int64_t features;
} spt_activations;

/* Elements from panel to panel. */
static inline int64_t spt_f32_stride(const spt_activations *a) { return a->features * SPT_LANES; }
static inline int64_t spt_bf16_stride(const spt_activations *a) {
  return spt_pair_panel_features(a->features) * SPT_LANES;
}

/* Where tokens are that are not simply back to back. A slot is a lane of a panel. */
typedef struct spt_placement {
  int64_t *begin, *end; /* (n_sequences) slots of each */
  int32_t *token;       /* (slots) the token of the run, -1 where none is */
  int32_t *source;      /* (slots) the slot that one was compacted from, or -1 */
} spt_placement;

/* What a run with pruning keeps, slot by slot. */
typedef struct spt_kept {
  double *importance;         /* (slots) in SPT_SHARE_UNIT, so whole numbers */
  double *shares;             /* (workers, slots) of the current layer */
  float *magnitudes;          /* (heads of the layer, slots) */
  double *head_importance;    /* (n_sequences, n_heads) */
  uint8_t *heads;             /* (n_sequences, n_heads) whether it has not been dropped */
  uint8_t *loses_heads;       /* (n_sequences) behind the current layer or a later one */
  uint8_t *units;             /* (units of qkv) whether some kept head needs it; NULL: all do */
  uint8_t *rows;              /* (rows of qkv) the same */
  uint8_t *nan;               /* (workers) */
  int64_t noted;              /* tokens in pruning->kept_tokens so far */
  spt_activations x, context; /* compacted behind an attention */
} spt_kept;

/* Multiply-adds that a worker did in a layer's attention. */
typedef struct spt_attention_work {
  int64_t scores, values;
  int64_t padding[6]; /* a cache line of its own */
} spt_attention_work;

typedef struct spt_encoder_pass {
  const spt_cpu_tier *tier;
  const spt_encoder_model *model;
  const spt_layer_bf16 *layers_bf16; /* NULL: float32 */
  const spt_layer_size *sizes;       /* (n_layers) */
  const spt_encoder_run *run;
  const spt_encoder_layer *layer;
  int64_t layer_index;
  const spt_layer_bf16 *layer_bf16;
  int64_t slots, n_panels;    /* of all sequences */
  int64_t longest;            /* sequence */
  const int64_t *begin, *end; /* (n_sequences) each one's slots */
  int64_t most_slots;         /* before anything is dropped */
  /* Every sequence begins at an even slot: attention in bfloat16 adds keys up in pairs, which so are
   * the same in any batch. */
  bool even;
  spt_placement place; /* with run->pruning, or where sequences begin at even slots */
  spt_kept kept;       /* with run->pruning */
  /* In the last layer of a first_only run the queries are the first tokens alone: `queries` panels
   * whose lane i is sequence i. Elsewhere they are the tokens themselves. */
  bool first_only;
  int64_t query_panels;
  /* x and y hold float32, for residuals and LayerNorm, and what the next product reads. What lies
   * between two products, qkv, context and inner, is in the products' own type; the features of
   * those three are the current layer's. */
  spt_activations x, y, qkv, context, inner;
  spt_activations first_x, first_q; /* the queries' x and Q in that last layer */
  float *scratch;                   /* attention's, one piece a worker */
  int workers;
  int64_t scratch_stride;
  int64_t *panel_sequence;  /* (n_panels): the sequence of the panel's first token */
  spt_attention_work *work; /* (workers) */
} spt_encoder_pass;

static inline int64_t spt_rows_of(const spt_encoder_matrix *m) {
  return m->strips != NULL ? m->strips->out : m->csr->out;
}

/* Slots of a sequence of so many tokens. */
static inline int64_t spt_slots_for(const spt_encoder_pass *p, int64_t tokens) {
  return p->even ? (tokens + 1) / 2 * 2 : tokens;
}

/* Whether p->place says where tokens are; else they are where they are in the run. */
static inline bool spt_is_placed(const spt_encoder_pass *p) {
  return p->even || p->run->pruning != NULL;
}

/* Whether sequence s loses tokens behind the current layer or a later one. */
static inline bool spt_loses_tokens(const spt_encoder_pass *p, int64_t s) {
  const int64_t *counts = p->run->pruning->tokens;
  int64_t n = p->run->n_sequences, last = p->model->n_layers - 1;
  return counts[last * n + s] < counts[p->layer_index * n + s];
}

static inline bool spt_head_is_kept(const spt_encoder_pass *p, int32_t head, int64_t s) {
  return p->run->pruning == NULL || p->run->pruning->heads == NULL ||
         p->kept.heads[s * p->model->n_heads + p->layer->head[head]] != 0;
}

/* Before the first layer: everything is kept so far. */
void spt_pruning_start(spt_encoder_pass *);
/* Before a layer: notes what it works on. */
void spt_pruning_begin_layer(spt_encoder_pass *);
/* Behind its attention: selects for the next layer. Where tokens go, *compacted becomes true, x and
 * context of those that stay are in kept.x and kept.context, and slots and panels are fewer. */
SPT_WARN_UNUSED spt_status spt_pruning_end_attention(spt_encoder_pass *, bool *compacted,
                                                     spt_error *);
/* Adds a layer's costs to run->cost: projections, scores and values behind its attention, with the
 * tokens that it worked on; then what follows. */
void spt_count_attention(const spt_encoder_pass *);
void spt_count_rest(const spt_encoder_pass *);

/* Features of the heads' results, side by side or added up. */
int64_t spt_context_width(const spt_encoder_layer *);

/* The sequence of each panel, from begin and end. */
void spt_find_sequences(spt_encoder_pass *);

/* context = the heads' attention over qkv. */
void spt_encoder_attention(spt_encoder_pass *);

/* From the ids to x of the last layer, and to run->hidden. */
SPT_WARN_UNUSED spt_status spt_encoder_run_layers(spt_encoder_pass *, spt_error *);

#endif
