/* What the files of the encoder share: one run of it. */
#ifndef SPATILE_CPU_ENCODER_PASS_H
#define SPATILE_CPU_ENCODER_PASS_H

#include "../encoder.h"
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

typedef struct spt_encoder_pass {
  const spt_cpu_tier *tier;
  const spt_encoder_model *model;
  const spt_layer_bf16 *layers_bf16; /* NULL: float32 */
  const spt_encoder_run *run;
  const spt_encoder_layer *layer;
  const spt_layer_bf16 *layer_bf16;
  int64_t tokens, n_panels; /* of all sequences */
  int64_t longest;          /* sequence */
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
  int64_t *panel_sequence; /* (n_panels): the sequence of the panel's first token */
} spt_encoder_pass;

static inline int64_t spt_rows_of(const spt_encoder_matrix *m) {
  return m->strips != NULL ? m->strips->out : m->csr->out;
}

/* Features of the heads' results, side by side or added up. */
int64_t spt_context_width(const spt_encoder_layer *);

/* context = the heads' attention over qkv. */
void spt_encoder_attention(spt_encoder_pass *);

/* From the ids to x of the last layer, and to run->hidden. */
void spt_encoder_run_layers(spt_encoder_pass *);

#endif
