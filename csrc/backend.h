/* backend.h: the one table that a backend fills, and the derived problems that its slots receive.
 *
 * The op layer (ops/) has validated everything and put it into the forms below: a slot only asserts.
 * A NULL slot means "not supported", and the op layer says so. Slots are thread-safe: callers may
 * come from several threads at once.
 *
 * Memory: the data of tensors, matrices and heads is the device's. Plain pointers in a problem
 * (offsets, counts, lengths, penalty, cost, the arrays of strips and CSR) are the host's, but for
 * spt_topk_problem's protect. On the CPU the two are one.
 *
 * Order: the CPU's slots return when the result is there. A GPU's enqueue on the stream of their
 * `state` and return; they wait only for what they return to the host, or to refuse data. Whoever
 * reads results on the host or on another stream calls synchronise or order first. */
#ifndef SPATILE_BACKEND_H
#define SPATILE_BACKEND_H

#include "encoder.h"
#include "spatile.h"

#define SPT_BACKEND_ABI 2

/* A matrix in memory: `row` and `col` are strides in elements. */
typedef struct spt_matrix {
  void *data;
  spt_dtype dtype;
  int64_t rows, cols;
  int64_t row, col;
} spt_matrix;

/* Where a product's weights are: one of the three is set (dense.data, strips, csr), or dense.data
 * and strips, whose index then says which weights of dense count and whose values are not read. */
typedef struct spt_weight {
  spt_matrix dense;
  const spt_strips *strips;
  const spt_csr *csr;
  int64_t out, in;
} spt_weight;

typedef struct spt_linear_problem {
  spt_matrix x, y;
  spt_weight w;
  spt_matrix bias;     /* (1, out), or data NULL */
  spt_matrix residual; /* (n, out), or data NULL */
  spt_activation activation;
  spt_dtype compute;    /* SPT_F32 or SPT_BF16 */
  const void *prepared; /* what prepare made of w, or NULL */
} spt_linear_problem;

typedef struct spt_linear_backward_problem {
  spt_matrix grad, x;
  spt_weight w;
  spt_matrix dx, dw, dbias; /* data NULL where not wanted */
  spt_dtype compute;        /* of dx; the others are sums of float32 products */
  const void *prepared;     /* what prepare made of w, or NULL */
} spt_linear_backward_problem;

/* A matrix and its grid of groups. 1 <= group_rows <= max(1, w.rows), and so for the columns. */
typedef struct spt_grid {
  spt_matrix w;
  int64_t group_rows, group_cols;
  int64_t down, across; /* groups along rows and columns: the shape of what is per group */
} spt_grid;

typedef struct spt_group_norms_problem {
  spt_grid grid;
  spt_matrix norms;
} spt_group_norms_problem;

typedef struct spt_group_beta_problem {
  spt_grid grid;
  spt_matrix beta;
  double eps;
} spt_group_beta_problem;

typedef struct spt_group_lasso_problem {
  spt_grid grid;
  spt_matrix beta; /* or data NULL */
  double *penalty;
} spt_group_lasso_problem;

typedef struct spt_group_lasso_grad_problem {
  spt_grid grid;
  spt_matrix beta; /* or data NULL */
  spt_matrix grad;
  double strength;
  bool add;
} spt_group_lasso_grad_problem;

typedef struct spt_group_shrink_problem {
  spt_grid grid;
  spt_matrix beta; /* or data NULL */
  double strength;
} spt_group_shrink_problem;

typedef struct spt_apply_mask_problem {
  spt_grid grid;
  spt_matrix mask;
} spt_apply_mask_problem;

typedef struct spt_expand_mask_problem {
  spt_grid grid; /* of the expanded mask */
  spt_matrix mask;
} spt_expand_mask_problem;

/* Weights that are not finite are this slot's to refuse. */
typedef struct spt_prune_mask_problem {
  const spt_grid *grids;
  const spt_matrix *masks;
  int64_t n_matrices;
  double sparsity;
  spt_prune_scope scope;
} spt_prune_mask_problem;

/* Refusing weights that are not finite, and a gram that is not finite, symmetric and positive
 * semidefinite, is the slot's. */
typedef struct spt_second_order_problem {
  const char *op;                 /* what messages call the op, */
  char w_name[32], gram_name[32]; /* and these two, which may be one of many */
  spt_grid grid;
  spt_matrix gram; /* float32 or float64 */
  double damping;
} spt_second_order_problem;

typedef struct spt_second_order_removals_problem {
  spt_second_order_problem of;
  spt_matrix order, cost; /* int64 and float64 */
} spt_second_order_removals_problem;

typedef struct spt_second_order_apply_problem {
  spt_second_order_problem of;
  spt_matrix mask, pruned;
  double *cost;
} spt_second_order_apply_problem;

/* The tensors of a row problem agree in every axis but the last. Axes before it are merged where all
 * of them allow it, so that rows of plain arrays have one stride. */
typedef struct spt_layer_norm_problem {
  spt_tensor x, y, residual; /* residual: or data NULL */
  spt_matrix weight, bias;   /* (1, n) */
  float eps;
} spt_layer_norm_problem;

/* All axes are merged where possible, the last one too; at least one is left. */
typedef struct spt_gelu_problem {
  spt_tensor x, y;
  spt_activation activation; /* SPT_ACT_GELU or SPT_ACT_GELU_TANH */
} spt_gelu_problem;

/* Elements are numbered in row-major order, before and after merging. */
typedef struct spt_dropout_problem {
  spt_tensor x, y;
  double p;
  uint64_t seed;
} spt_dropout_problem;

typedef struct spt_softmax_problem {
  spt_tensor x, y;
} spt_softmax_problem;

/* Rows of a table: for embedding and gather_tokens. An id outside the table is this slot's to refuse,
 * in the name of `op`, as one of `arg`. */
typedef struct spt_embedding_problem {
  const char *op, *arg;
  spt_tensor ids, rows;
  spt_matrix table;
} spt_embedding_problem;

/* For topk and select_tokens: sequences as in spt_topk_args (offsets and counts: the host's); NaN is this slot's to refuse, in the name
 * of `op`, as one in `arg`. values.data may be NULL. `protected_first` lets the first token of a
 * sequence, and `protect` (by token, or NULL) those where it is not 0, come before all others. */
typedef struct spt_topk_problem {
  const char *op, *arg;
  spt_tensor scores, values, indices;
  bool protected_first;
  const uint8_t *protect;
  int64_t k;
  const int64_t *offsets, *counts;
  int64_t n_sequences;
} spt_topk_problem;

/* Heads of token vectors in memory: strides in elements. Sequence n starts at n * sequence where
 * batched; packed arrays have one sequence stride of 0 and the offsets of the problem. */
typedef struct spt_heads {
  void *data; /* NULL where absent */
  spt_dtype dtype;
  int64_t sequence, token, head, feature;
} spt_heads;

#define SPT_UNBOUNDED (INT64_MAX / 4)

typedef struct spt_attention_problem {
  int64_t sequences, heads, kv_heads, d, dv;
  int64_t queries, keys;                 /* of each sequence, where batched */
  const int64_t *q_offsets, *kv_offsets; /* (sequences + 1) where packed, else NULL */
  const int64_t *lengths;                /* (sequences) or NULL: rows from there on do not count */
  spt_heads q, k, v, out;
  spt_heads lse;              /* float32, feature stride unused */
  spt_heads token_importance; /* float32, sequence and token strides */
  spt_heads head_importance;  /* float32, sequence and head strides */
  spt_tensor mask, bias;      /* (sequences, heads, queries, keys), strides 0 where broadcast */
  int64_t left, right;        /* query i sees keys i + keys - queries - left to ... + right */
  float scale;
  double dropout;
  uint64_t seed;
} spt_attention_problem;

/* out and lse of `forward` are read. Gradients have data NULL where not wanted. */
typedef struct spt_attention_backward_problem {
  spt_attention_problem forward;
  spt_heads grad, dq, dk, dv;
  spt_tensor dbias; /* the bias's own shape: 1 where it was broadcast */
} spt_attention_backward_problem;

typedef struct spt_backend {
  uint32_t abi_version; /* SPT_BACKEND_ABI */
  uint32_t size;        /* sizeof(spt_backend) as the backend was built */
  const char *name;

  /* Devices: NULL, all of these, in the CPU backend, whose state is NULL. `device` is what open gave;
   * nothing is initialised before open but what counting needs. device.c calls open once for each
   * ordinal and on_stream once for each stream of it, and closes neither while the process runs. */
  spt_status (*device_count)(int *count, spt_error *);
  spt_status (*open)(int ordinal, void **device, spt_error *);
  void (*close)(void *device); /* waits for its work; frees the device's states and pooled memory */
  spt_status (*properties)(void *device, spt_device_properties *, spt_error *);
  /* The `state` that slots get for work on this stream. The stream is a handle of the driver's,
   * 0 being its default one; it stays the caller's. */
  spt_status (*on_stream)(void *device, uintptr_t stream, void **state, spt_error *);
  /* Whose memory this is; -1 where no device's. */
  spt_status (*device_of)(const void *data, int *ordinal, spt_error *);

  /* Memory in the order of the state's stream: what is freed may be handed out again at once, to
   * work that is enqueued later. `shared`: streams that this state does not know may still use it, so
   * the device is waited for. Aligned to 256 bytes; 0 bytes give a pointer too. `op` begins messages.
   * free ignores failures, and NULL. */
  spt_status (*alloc)(void *state, const char *op, size_t bytes, void **data, spt_error *);
  void (*free)(void *state, void *data, bool shared);
  /* The host's memory has been read, or written, when they return. */
  spt_status (*upload)(void *state, const char *op, void *to, const void *from, size_t bytes,
                       spt_error *);
  spt_status (*download)(void *state, const char *op, void *to, const void *from, size_t bytes,
                         spt_error *);
  spt_status (*synchronise)(void *state, const char *op, spt_error *); /* with this stream */
  /* What is enqueued on `later` from now on waits for what is on `earlier` now; of one device. */
  spt_status (*order)(void *earlier, void *later, const char *op, spt_error *);

  /* Optional: why the backend can run nothing at all, as an error that names the op. */
  spt_status (*usable)(void *state, const char *op, spt_error *);

  /* Optional: weights in the form that this backend's products in `compute` read, made once; valid on
   * its own, on every state of the device. It may be NULL where the backend has nothing to prepare.
   * Of strips or CSR; where w.dense.data is set too, of the strips' index alone. The caller frees it,
   * when no call uses it any more; freeing waits for work that may. */
  spt_status (*prepare)(void *state, const spt_weight *, spt_dtype compute, void **prepared,
                        spt_error *);
  void (*prepared_free)(void *state, void *prepared);

  spt_status (*linear)(void *state, const spt_linear_problem *, spt_error *);
  spt_status (*linear_backward)(void *state, const spt_linear_backward_problem *, spt_error *);
  spt_status (*attention)(void *state, const spt_attention_problem *, spt_error *);
  spt_status (*attention_backward)(void *state, const spt_attention_backward_problem *,
                                   spt_error *);

  spt_status (*group_norms)(void *state, const spt_group_norms_problem *, spt_error *);
  spt_status (*group_beta)(void *state, const spt_group_beta_problem *, spt_error *);
  spt_status (*group_lasso)(void *state, const spt_group_lasso_problem *, spt_error *);
  spt_status (*group_lasso_grad)(void *state, const spt_group_lasso_grad_problem *, spt_error *);
  spt_status (*group_shrink)(void *state, const spt_group_shrink_problem *, spt_error *);
  spt_status (*apply_mask)(void *state, const spt_apply_mask_problem *, spt_error *);
  spt_status (*expand_mask)(void *state, const spt_expand_mask_problem *, spt_error *);
  spt_status (*prune_mask)(void *state, const spt_prune_mask_problem *, spt_error *);

  spt_status (*second_order_removals)(void *state, const spt_second_order_removals_problem *,
                                      spt_error *);
  spt_status (*second_order_apply)(void *state, const spt_second_order_apply_problem *,
                                   spt_error *);

  spt_status (*layer_norm)(void *state, const spt_layer_norm_problem *, spt_error *);
  spt_status (*gelu)(void *state, const spt_gelu_problem *, spt_error *);
  spt_status (*dropout)(void *state, const spt_dropout_problem *, spt_error *);
  spt_status (*softmax)(void *state, const spt_softmax_problem *, spt_error *);
  spt_status (*embedding)(void *state, const spt_embedding_problem *, spt_error *);
  spt_status (*topk)(void *state, const spt_topk_problem *, spt_error *);

  /* A compiled encoder. The model outlives what create makes; forward is thread-safe. */
  spt_status (*encoder_create)(void *state, const spt_encoder_model *, void **encoder, spt_error *);
  spt_status (*encoder_forward)(void *encoder, const spt_encoder_run *, spt_error *);
  void (*encoder_free)(void *encoder);
} spt_backend;

/* Ops get one for a device and a stream. */
struct spt_device {
  const spt_backend *backend;
  void *state;
  void *opened;     /* what open gave; NULL for the CPU */
  int ordinal;      /* -1 for the CPU */
  uintptr_t stream; /* 0 for the CPU */
};

extern const spt_backend spt_cpu_backend;

/* device.c: false for a GPU of the process that this one was forked from. */
bool spt_device_is_alive(const spt_device *);
SPT_WARN_UNUSED spt_status spt_device_check_alive(const spt_device *, const char *op, spt_error *);

/* The one symbol that a library with a backend exports; the table is never freed. */
#define SPT_BACKEND_ENTRY "spt_backend_entry"
typedef const spt_backend *(*spt_backend_entry_function)(void);

#endif
