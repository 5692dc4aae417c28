/* encoder.h: a whole post-LayerNorm encoder (BERT, DistilBERT, RoBERTa) as one call.
 *
 * The caller compiles a checkpoint and a pruning plan into the tables below (pruned heads, rows and
 * columns already gone, tiles packed as strips) and keeps them alive and unchanged. A run takes
 * packed tokens: the sequences of a batch back to back, no padding anywhere. */
#ifndef SPATILE_ENCODER_H
#define SPATILE_ENCODER_H

#include "spatile.h"

/* One product: strips or CSR, and a bias by output row (NULL: none). */
typedef struct spt_encoder_matrix {
  const spt_strips *strips;
  const spt_csr *csr;
  const float *bias;
} spt_encoder_matrix;

/* q_row, k_row, v_row: (n_heads) first output row of each head in qkv; Q's rows come before all
 * others, and in a strip form Q's strips do too. v_width: (n_heads) value rows of each head.
 *
 * Usual layers: the context is the heads' value rows side by side, in the order of the heads, and `o`
 * projects it. Layers with W_V and W_O merged ahead of time: o is absent, every head has the same
 * v_width, the heads' results add up, and value row r goes to output feature merged_row[r]. */
typedef struct spt_encoder_layer {
  spt_encoder_matrix qkv, o, up, down;
  int32_t n_heads;
  int32_t head_dim; /* width of Q and K */
  int32_t q_rows;   /* qkv's rows before the first of K or V, a multiple of 16 */
  float scale;      /* of Q, before the scores */
  const int32_t *q_row, *k_row, *v_row, *v_width;
  const int32_t *head;       /* (n_heads) each one's number in the model, ascending */
  const int32_t *merged_row; /* (v_width), or NULL for a usual layer */
  const float *merged_bias;  /* (width) */
  const float *norm1_weight, *norm1_bias, *norm2_weight, *norm2_bias; /* (width) */
  spt_activation activation;
} spt_encoder_layer;

typedef struct spt_encoder_model {
  int64_t width, n_layers, n_heads;
  int64_t vocabulary, positions, types;
  const float *word, *position, *type;  /* (rows, width); type may be NULL */
  const float *norm_weight, *norm_bias; /* (width), after the embeddings */
  float norm_eps;
  const spt_encoder_layer *layers;
  /* What products are done in. With SPT_BF16 weights and what meets them are rounded to bfloat16,
   * sums and all else stay float32; there is no CSR then, head_dim, q_row, k_row and the lowest
   * v_row are even, and that comes after every K. The kernels are those of the tier in use when the
   * encoder is created. */
  spt_dtype compute;
} spt_encoder_model;

/* Cascade pruning of tokens and heads (SpAtten, HPCA 2021). A token's importance is the sum of the
 * probabilities it got, over heads, queries and layers; a head's that of the magnitudes of its results
 * before W_O (of a merged layer: of what it adds to the layer's output). Layer i works on tokens[i, s]
 * of sequence s's tokens: those of the greatest importance so far among those of layer i - 1, of
 * equals the first. Layer 0 works on all. NaN is an error.
 *
 * A head that was dropped is gone from all later layers. Before layer i those of its heads go that are
 * left, the least important first and of equals the last, until it has heads[i, s]; but a head stays
 * while it is the last one that a later layer has left. So a layer works on fewer where it has fewer,
 * and on more where it must; heads that it does not have are left for those that do. The importance
 * of a head that no layer had so far is 0.
 *
 * What is dropped after a layer is already left out where that layer no longer needs it, behind its
 * attention. The results are those of leaving it out later, whatever else is in the batch: to the bit,
 * but for products with CSR weights. */
typedef struct spt_encoder_pruning {
  const int64_t *tokens; /* (n_layers, n_sequences), never rising, at least 1 where there is one */
  const int64_t *heads;  /* the same, or NULL: all */
  const uint8_t
      *protect;         /* (tokens) kept whatever their importance, as are first tokens; or NULL */
  int32_t *kept_tokens; /* out: what each layer worked on, as tokens of the run: one after the other
                             by layer and sequence */
  uint8_t *kept_heads; /* out (n_layers, n_sequences, model's n_heads): what each layer worked on */
} spt_encoder_pruning;

/* What a layer did: multiply-adds, and bytes of the weights read (once) and of the activations that
 * the part reads and writes, in the products' type. */
enum { SPT_COST_PROJECTIONS, SPT_COST_SCORES, SPT_COST_VALUES, SPT_COST_FFN, SPT_COST_PARTS };
typedef struct spt_part_cost {
  int64_t multiply_adds, bytes;
} spt_part_cost;

/* Sequence i is tokens [offsets[i], offsets[i + 1]). hidden: (tokens, width) float32, or with
 * `first_only` (n_sequences, width): each sequence's first token alone, for which the last layer
 * then computes nothing else. An empty sequence has no first token: zeros. */
typedef struct spt_encoder_run {
  const spt_encoder_model *model;
  int64_t n_sequences;
  const int64_t *offsets;   /* (n_sequences + 1) */
  const int32_t *ids;       /* (tokens) */
  const int32_t *positions; /* (tokens) */
  const int32_t *types;     /* (tokens), or NULL: all 0 */
  bool first_only;
  float *hidden;                      /* of kept tokens alone */
  const spt_encoder_pruning *pruning; /* or NULL */
  spt_part_cost *cost;                /* (n_layers, SPT_COST_PARTS), or NULL */
} spt_encoder_run;

/* Holds a workspace that grows to the largest run so far. Thread-safe: a run that finds the workspace
 * in use takes a temporary one. */
typedef struct spt_encoder spt_encoder;

SPT_WARN_UNUSED spt_status spt_encoder_create(spt_device *, const spt_encoder_model *,
                                              spt_encoder **out, spt_error *);
SPT_WARN_UNUSED spt_status spt_encoder_forward(spt_encoder *, const spt_encoder_run *, spt_error *);
void spt_encoder_free(spt_encoder *);

#endif
