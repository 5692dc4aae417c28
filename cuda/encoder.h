/* encoder.h: what the files of the encoder share: the model on the device, and one run of it. */
#ifndef SPATILE_CUDA_ENCODER_H
#define SPATILE_CUDA_ENCODER_H

#include "../csrc/encoder.h"
#include "../csrc/encoder_cost.h"
#include "context.h"

/* A product as linear's slot takes it. */
typedef struct spt_gpu_product {
  spt_weight weight; /* the caller's tables, in host memory */
  void *prepared;
  const float *bias; /* device, or NULL */
} spt_gpu_product;

/* Some rows of a matrix as one of their own. */
typedef struct spt_gpu_part {
  spt_strips strips;
  spt_csr csr;
  int32_t *rows; /* strips.rows, where the matrix has them */
  spt_gpu_product product;
} spt_gpu_part;

/* Heads of a layer that lie at equal steps, so that one call serves them all. Columns of qkv and, for
 * `context`, of the heads' results. */
typedef struct spt_gpu_heads {
  int32_t first, count, width;
  int64_t q, k, v, context;
  int64_t q_step, k_step, v_step;
} spt_gpu_heads;

typedef struct spt_gpu_layer {
  const spt_encoder_layer *table; /* the caller's */
  spt_gpu_product qkv, o, up, down;
  spt_gpu_part first_q, rest_kv; /* Q apart from K and V: of the last layer alone */
  const float *norm1_weight, *norm1_bias, *norm2_weight, *norm2_bias, *merged_bias;
  const int32_t *merged_row;
  const int32_t *head; /* (n_heads) numbers in the model */
  spt_gpu_heads *groups;
  int32_t n_groups;
  int64_t qkv_width, context_width;
} spt_gpu_layer;

typedef struct spt_gpu_encoder {
  spt_cuda_queue *queue;
  const spt_encoder_model *model;
  spt_gpu_layer *layers; /* (n_layers) */
  const float *word, *position, *type, *norm_weight, *norm_bias;
  /* Which heads each layer has: (n_layers, model's n_heads) 0 or 1. */
  const uint8_t *layer_heads;
  spt_layer_size *sizes; /* (n_layers) */
  void **owned;          /* device memory to give back */
  int64_t n_owned;
  struct spt_gpu_graphs *graphs; /* encoder_graph.h; NULL: every run goes kernel by kernel */
} spt_gpu_encoder;

/* (rows, width) float32, and beside it in the type of the products where that is another. */
typedef struct spt_gpu_rows {
  float *f32;
  void *narrow; /* f32 itself where products are in float32 */
} spt_gpu_rows;

/* One run. Layer i works on tokens [offsets[i][s], offsets[i][s + 1]) of sequence s. */
typedef struct spt_gpu_pass {
  const spt_gpu_encoder *encoder;
  spt_cuda_queue *queue;
  const spt_encoder_model *model;
  const spt_encoder_run *run;
  spt_dtype narrow; /* what products read and write */
  int64_t n;        /* sequences */
  /* (n_layers + 1, n + 1), the last row like the one before it: on the host and on the device */
  int64_t *host_offsets;
  const int64_t *offsets;
  const int64_t *first_offsets; /* (n + 1): one row for each sequence that has a token, */
  const int32_t *first_rows;    /* and which row of the last layer's it is */
  int64_t *host_first_offsets;
  const int32_t *ids, *positions, *types; /* types may be NULL */
  spt_gpu_rows x, y, next;                /* next: what x was compacted to, or the first tokens' */
  void *qkv, *q, *context, *next_context, *inner;
  /* with pruning: */
  const int64_t *counts_heads;         /* (n_layers, n) or NULL */
  const uint8_t *protect;              /* (tokens) or NULL */
  float *importance, *next_importance; /* (tokens) */
  float *head_importance;              /* (n, n_heads) */
  uint8_t *alive;                      /* (n, n_heads) */
  int32_t *kept_tokens;                /* the run's, one layer after the other */
  int32_t *source;                     /* (tokens) row of x that each kept token had */
  uint8_t *kept_heads;                 /* (n_layers, n, n_heads) */
  int32_t *nan_layer;                  /* lowest layer whose importance is NaN, or n_layers */
} spt_gpu_pass;

/* One block of memory that is filled on the host and goes to the device whole. */
typedef struct spt_gpu_upload {
  char *host, *device;
  size_t bytes;
} spt_gpu_upload;

/* Tokens of layer i in all, and its offsets. */
static inline const int64_t *spt_gpu_host_offsets(const spt_gpu_pass *p, int64_t layer) {
  return p->host_offsets + layer * (p->n + 1);
}
static inline const int64_t *spt_gpu_offsets(const spt_gpu_pass *p, int64_t layer) {
  return p->offsets + layer * (p->n + 1);
}
static inline int64_t spt_gpu_tokens(const spt_gpu_pass *p, int64_t layer) {
  return spt_gpu_host_offsets(p, layer)[p->n];
}

/* x = LayerNorm(word + position + type). */
SPT_WARN_UNUSED spt_status spt_gpu_embed(const spt_gpu_pass *, spt_error *);
/* to = LayerNorm(to.f32), rounded beside it. */
SPT_WARN_UNUSED spt_status spt_gpu_norm(const spt_gpu_pass *, const spt_gpu_rows *to, int64_t rows,
                                        const float *weight, const float *bias, spt_error *);
/* y = LayerNorm(residual + bias + the heads' results, added up and scattered): a merged layer's. */
SPT_WARN_UNUSED spt_status spt_gpu_merge_heads(const spt_gpu_pass *, const spt_gpu_layer *,
                                               const float *residual, int64_t rows, spt_error *);
/* Row i of `to` is row source[i] of `from`, `bytes` wide, an even number. */
SPT_WARN_UNUSED spt_status spt_gpu_gather(const spt_gpu_pass *, void *to, const void *from,
                                          const int32_t *source, int64_t rows, int64_t bytes,
                                          spt_error *);

/* context = the heads' attention over qkv; with `first`, of each sequence's first token alone. Adds to
 * the importance where tokens or heads go later on. */
SPT_WARN_UNUSED spt_status spt_gpu_attend(const spt_gpu_pass *, int64_t layer, bool first,
                                          spt_error *);

/* Before the first layer; before each, noting what it works on; behind its attention, when the next
 * layer's tokens and heads are chosen and x, context and importance of those tokens move together. */
SPT_WARN_UNUSED spt_status spt_gpu_pruning_start(const spt_gpu_pass *, spt_error *);
SPT_WARN_UNUSED spt_status spt_gpu_pruning_note(const spt_gpu_pass *, int64_t layer, spt_error *);
SPT_WARN_UNUSED spt_status spt_gpu_pruning_select(spt_gpu_pass *, int64_t layer, bool *compacted,
                                                  spt_error *);

/* What a run needs of the host: fills the block, of `bytes` bytes then, and points the pass into it. Without
 * memory of the host's only counts. */
void spt_gpu_lay_out_upload(spt_gpu_pass *, spt_gpu_upload *);
/* What layers read and write, once the block is laid out. */
SPT_WARN_UNUSED spt_status spt_gpu_take_activations(spt_scratch *, spt_gpu_pass *, spt_error *);
/* Everything from the ids to x of the last layer; with first_only, x's first rows. */
SPT_WARN_UNUSED spt_status spt_gpu_run_layers(spt_gpu_pass *, spt_error *);

/* The results into the run's memory; waits for them. */
SPT_WARN_UNUSED spt_status spt_gpu_take_down(const spt_gpu_pass *, spt_error *);
/* Into run->cost, once what was kept is known on the host. */
void spt_gpu_count_costs(const spt_gpu_pass *);

#endif
