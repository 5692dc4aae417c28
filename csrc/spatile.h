/* spatile.h: the public C contract of the core.
 *
 * Every fallible call returns a spt_status and, unless it is SPT_OK, writes one sentence into the
 * caller's spt_error ("op: argument is FOUND, expected EXPECTED"). There is no global error state:
 * a backend may live in another shared object and compute on other threads.
 *
 * Tensors are views of the device's memory; what is a plain pointer to numbers is the host's. The
 * caller owns the memory, keeps it alive during the call, and allocates outputs; the core allocates workspaces only, of which it keeps a bounded amount for its next
 * calls. Outputs may not overlap inputs unless an op says so. Optional tensors are pointers, NULL
 * where absent. */
#ifndef SPATILE_H
#define SPATILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__cplusplus)
extern "C" {
#endif

#define SPT_MAX_NDIM 8
#define SPT_WARN_UNUSED __attribute__((warn_unused_result))

typedef enum spt_status {
  SPT_OK = 0,
  SPT_INVALID_VALUE, /* ValueError */
  SPT_INVALID_DTYPE, /* TypeError */
  SPT_UNSUPPORTED,   /* NotImplementedError */
  SPT_OUT_OF_MEMORY, /* MemoryError */
  SPT_DEVICE_ERROR,  /* RuntimeError */
} spt_status;

typedef struct spt_error {
  char message[512];
} spt_error;

/* Writes the message and returns the status, so that `return spt_fail(...)` reads as one step. */
spt_status spt_fail(spt_error *err, spt_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#define SPT_TRY(call)                    \
  do {                                   \
    spt_status spt_try_status_ = (call); \
    if (spt_try_status_ != SPT_OK) {     \
      return spt_try_status_;            \
    }                                    \
  } while (0)

typedef enum spt_dtype {
  SPT_F32 = 0,
  SPT_F16,
  SPT_BF16,
  SPT_F64,
  SPT_BOOL,
  SPT_U8,
  SPT_I32,
  SPT_I64,
  SPT_OTHER_DTYPE,
} spt_dtype;

const char *spt_dtype_name(spt_dtype dtype);
size_t spt_dtype_size(spt_dtype dtype); /* bytes; 0 for SPT_OTHER_DTYPE */
static inline bool spt_dtype_is_storage(spt_dtype dtype) {
  return dtype == SPT_F32 || dtype == SPT_F16 || dtype == SPT_BF16;
}

typedef struct spt_tensor {
  void *data;
  spt_dtype dtype;
  int32_t ndim;
  int64_t shape[SPT_MAX_NDIM];
  int64_t stride[SPT_MAX_NDIM]; /* in elements; may be zero (broadcast) or negative */
  bool writable;
} spt_tensor;

/* ---- devices ------------------------------------------------------------------------------- */

/* A device is a processor and, on a GPU, a stream of it that ops enqueue on. */
typedef struct spt_device spt_device;

spt_device *spt_cpu_device(void); /* the built-in one; never NULL, never freed */

/* GPUs: the first call that needs one looks for the CUDA backend's library, the file that the
 * environment variable SPATILE_CUDA_LIBRARY names or else libspatile_cuda.so beside this one; where that
 * fails, the next call looks again. Devices are cached and never freed. In a child of fork
 * they are refused where the parent had loaded the library: the driver does not survive it. */
SPT_WARN_UNUSED spt_status spt_gpu_count(int *count, spt_error *);
SPT_WARN_UNUSED spt_status spt_gpu_device(int ordinal, uintptr_t stream, spt_device **,
                                          spt_error *);
/* Whose memory this is; -1 where no GPU's. */
SPT_WARN_UNUSED spt_status spt_gpu_of(const void *data, int *ordinal, spt_error *);
/* Waits for the streams of this GPU that have been used here. */
SPT_WARN_UNUSED spt_status spt_gpu_synchronise(int ordinal, const char *op, spt_error *);
const char *spt_gpu_library(void);      /* the file; "" where none is looked for */
const char *spt_gpu_backend_name(void); /* "cuda"; "cuda-on-cpu" emulated; "" where not loaded */

int spt_device_ordinal(const spt_device *);      /* -1 for the CPU */
uintptr_t spt_device_stream(const spt_device *); /* the driver's handle; 0: its default */

typedef struct spt_device_properties {
  char name[128];
  int32_t major, minor;    /* compute capability */
  int64_t memory, free;    /* bytes */
  int32_t driver, runtime; /* 1000 * major + 10 * minor */
  int32_t multiprocessors;
  char cublas[512]; /* the file of what multiplies dense matrices, or why there is none */
} spt_device_properties;
SPT_WARN_UNUSED spt_status spt_device_properties_of(spt_device *, spt_device_properties *,
                                                    spt_error *);

/* Memory of a GPU, in the order of its stream; backend.h has the terms. Not for the CPU. */
SPT_WARN_UNUSED spt_status spt_device_alloc(spt_device *, const char *op, size_t bytes, void **data,
                                            spt_error *);
void spt_device_free(spt_device *, void *data, bool shared); /* a child of fork frees nothing */
SPT_WARN_UNUSED spt_status spt_device_upload(spt_device *, const char *op, void *to,
                                             const void *from, size_t bytes, spt_error *);
SPT_WARN_UNUSED spt_status spt_device_download(spt_device *, const char *op, void *to,
                                               const void *from, size_t bytes, spt_error *);
SPT_WARN_UNUSED spt_status spt_device_synchronise(spt_device *, const char *op, spt_error *);
SPT_WARN_UNUSED spt_status spt_device_order(spt_device *earlier, spt_device *later, const char *op,
                                            spt_error *);

/* Once, when the library is loaded: makes forks of the process safe from then on. */
void spt_cpu_load(void);

/* CPU tier: "scalar", "avx2", "avx512", "avx512_bf16", "amx_bf16". Selecting one that this CPU or
 * build lacks is an error. */
const char *spt_cpu_tier_name(void);   /* "none" where SPATILE_CPU_TIER names none that runs */
bool spt_cpu_bf16_is_native(void);     /* whether its processor multiplies bfloat16 itself */
const char *spt_cpu_tier_reason(void); /* why this tier was chosen, for a human */
int spt_cpu_tier_count(void);
const char *spt_cpu_tier_at(int i); /* tiers that this machine can run, slowest first */
SPT_WARN_UNUSED spt_status spt_cpu_select_tier(const char *name, spt_error *err);

int spt_num_threads(void);
SPT_WARN_UNUSED spt_status spt_set_num_threads(int64_t n, spt_error *err);

/* ---- weights as the products read them -------------------------------------------------------
 *
 * A matrix (out, in) is cut into strips of 16 output rows. A strip keeps runs of neighbouring
 * input columns; a kept column holds 16 weights, one for each row of the strip. Dense is one run of
 * all columns; 16x16 tiles are runs of multiples of 16; dropped rows leave the strip list through
 * `rows`; dropped columns are gaps between runs. One kernel serves them all. */
#define SPT_STRIP 16

typedef struct spt_strips {
  int64_t out, in; /* logical shape */
  int64_t n_strips;
  int64_t n_columns;        /* kept columns over all strips: values holds n_columns * 16 floats */
  const int64_t *run_ptr;   /* (n_strips + 1): the strip's runs */
  const int64_t *value_ptr; /* (n_strips + 1): the strip's first kept column in values */
  const int32_t *run_start; /* first input column of a run */
  const int32_t *run_len;   /* columns in a run, at least 1 */
  const float *values;      /* (n_columns, 16), or NULL where they are stored in 16 bits: */
  const uint16_t *half;     /* (n_columns, 16) */
  spt_dtype half_dtype;     /* SPT_F16 or SPT_BF16 */
  const int32_t *rows;      /* (n_strips * 16) output row of each strip row, -1 for padding;
                               NULL: strip row r of strip s is output row 16 s + r */
} spt_strips;

/* The output row that row r of a strip computes, or -1. */
static inline int64_t spt_strip_row(const spt_strips *w, int64_t strip, int r) {
  int64_t at = strip * SPT_STRIP + r;
  return w->rows != NULL ? w->rows[at] : at < w->out ? at : -1;
}

/* Irregular sparsity: compressed sparse rows. */
typedef struct spt_csr {
  int64_t out, in;
  const int64_t *row_ptr; /* (out + 1) */
  const int32_t *col;     /* (nnz) */
  const float *values;    /* (nnz) */
} spt_csr;

/* Packed weights in the form that a device's products in `compute` read: made once, and valid on its
 * own and on every stream of the device. strips or csr is given; index_only: the strips go beside a
 * dense array, and their values are not read. */
typedef struct spt_prepared spt_prepared;
SPT_WARN_UNUSED spt_status spt_prepare(spt_device *, const spt_strips *, const spt_csr *,
                                       bool index_only, spt_dtype compute, spt_prepared **out,
                                       spt_error *);
void spt_prepared_free(spt_prepared *);

/* ---- ops: one argument struct and one function per op ------------------------------------- */

typedef enum spt_activation {
  SPT_ACT_NONE = 0,
  SPT_ACT_GELU,
  SPT_ACT_GELU_TANH,
  SPT_ACT_RELU,
  SPT_ACT_TANH,
} spt_activation;

/* y = act(x · wᵀ + bias) + residual. x (n, in), y (n, out), residual (n, out), bias (out).
 * Exactly one of dense, strips and csr is given; dense is (out, in). Or dense and strips, of one
 * shape: then the strips say which weights count and dense what they are; strips' values are not
 * read. What stored columns hold besides kept groups is dense's to have as zero.
 *
 * compute is SPT_F32, or SPT_BF16: x and w are rounded to bfloat16 and sums are float32; CSR stays
 * float32. `prepared` is of the strips or CSR, on this device and for this compute type: it saves
 * rounding w at each call, and on a GPU moving it there. */
typedef struct spt_linear_args {
  spt_tensor x, y;
  const spt_tensor *dense;
  const spt_strips *strips;
  const spt_csr *csr;
  const spt_tensor *bias, *residual;
  spt_activation activation;
  spt_dtype compute;
  const spt_prepared *prepared; /* or NULL */
} spt_linear_args;
SPT_WARN_UNUSED spt_status spt_linear(spt_device *, const spt_linear_args *, spt_error *);

/* Gradients of y = x · wᵀ + b. grad (n, out), x (n, in). Each output may be NULL.
 * dw: (out, in) for dense, zero outside the strips where they are given too; (n_columns, 16) for
 * strips, (nnz) for csr, float32 both. compute, SPT_F32 or SPT_BF16, is what the product behind dx is
 * done in; the other two are sums in float32 or better. */
typedef struct spt_linear_backward_args {
  spt_tensor grad, x;
  const spt_tensor *dense;
  const spt_strips *strips;
  const spt_csr *csr;
  const spt_tensor *dx, *dw, *dbias;
  spt_dtype compute;
  const spt_prepared *prepared; /* or NULL */
} spt_linear_backward_args;
SPT_WARN_UNUSED spt_status spt_linear_backward(spt_device *, const spt_linear_backward_args *,
                                               spt_error *);

/* ---- groups: a pattern cuts a matrix w (out, in) into a grid of rectangles ------------------
 *
 * Groups are group_rows x group_cols (at least 1); the last of each direction may overhang w, and
 * what overhangs counts nowhere. An array with one entry per group (norms, beta, mask) is
 * (ceil(out / group_rows), ceil(in / group_cols)). Squares are summed in double, so none leaves the
 * range. beta is optional where a pointer: absent means 1 everywhere. */

/* norms (float32): the L2 norm of each group. */
typedef struct spt_group_norms_args {
  spt_tensor w, norms;
  int64_t group_rows, group_cols;
} spt_group_norms_args;
SPT_WARN_UNUSED spt_status spt_group_norms(spt_device *, const spt_group_norms_args *, spt_error *);

/* beta (float32) = 1 / (norm + eps). */
typedef struct spt_group_beta_args {
  spt_tensor w, beta;
  int64_t group_rows, group_cols;
  double eps;
} spt_group_beta_args;
SPT_WARN_UNUSED spt_status spt_group_beta(spt_device *, const spt_group_beta_args *, spt_error *);

/* *penalty = sum of beta · norm. */
typedef struct spt_group_lasso_args {
  spt_tensor w;
  const spt_tensor *beta;
  int64_t group_rows, group_cols;
  double *penalty;
} spt_group_lasso_args;
SPT_WARN_UNUSED spt_status spt_group_lasso(spt_device *, const spt_group_lasso_args *, spt_error *);

/* grad = strength · beta · w / norm, 0 in a zero group; added to grad where `add`. */
typedef struct spt_group_lasso_grad_args {
  spt_tensor w, grad;
  const spt_tensor *beta;
  int64_t group_rows, group_cols;
  double strength;
  bool add;
} spt_group_lasso_grad_args;
SPT_WARN_UNUSED spt_status spt_group_lasso_grad(spt_device *, const spt_group_lasso_grad_args *,
                                                spt_error *);

/* In place: w = w · max(0, 1 - strength · beta / norm). */
typedef struct spt_group_shrink_args {
  spt_tensor w;
  const spt_tensor *beta;
  int64_t group_rows, group_cols;
  double strength;
} spt_group_shrink_args;
SPT_WARN_UNUSED spt_status spt_group_shrink(spt_device *, const spt_group_shrink_args *,
                                            spt_error *);

/* In place: groups of w whose mask is false become zero. */
typedef struct spt_apply_mask_args {
  spt_tensor w, mask;
  int64_t group_rows, group_cols;
} spt_apply_mask_args;
SPT_WARN_UNUSED spt_status spt_apply_mask(spt_device *, const spt_apply_mask_args *, spt_error *);

/* expanded (out, in) bool: each element's entry of the mask. */
typedef struct spt_expand_mask_args {
  spt_tensor mask, expanded;
  int64_t group_rows, group_cols;
} spt_expand_mask_args;
SPT_WARN_UNUSED spt_status spt_expand_mask(spt_device *, const spt_expand_mask_args *, spt_error *);

/* What competes: the groups of one matrix, of all matrices, or of one row of the grid. */
typedef enum spt_prune_scope {
  SPT_SCOPE_MATRIX = 0,
  SPT_SCOPE_GLOBAL,
  SPT_SCOPE_ROW_BALANCED,
} spt_prune_scope;

typedef struct spt_prune_matrix {
  spt_tensor w, mask;
  int64_t group_rows, group_cols;
} spt_prune_matrix;

/* Masks (bool, true = keep): of the n groups that compete, min(floor(sparsity · n + 0.5), n - 1) are
 * pruned, those of the lowest norm / sqrt(elements inside w); of equals the earlier is kept. */
typedef struct spt_prune_mask_args {
  const spt_prune_matrix *matrices;
  int64_t n_matrices;
  double sparsity; /* in [0, 1) */
  spt_prune_scope scope;
} spt_prune_mask_args;
SPT_WARN_UNUSED spt_status spt_prune_mask(spt_device *, const spt_prune_mask_args *, spt_error *);

/* ---- second-order pruning: for y = x · wᵀ, the error of a changed w is that of its outputs ----------
 *
 * gram (in, in), float32 or float64, is xᵀ · x of the inputs, and h is gram + damping · (mean of its
 * diagonal) on the diagonal, damping > 0. The rows of w that share a row of the grid are a block, and
 * blocks do not touch one another. `op` is what messages begin with, NULL being the op's own name, and
 * `index` the matrix's place in the caller's list, or -1. */

/* Each block's groups in the order in which it would lose them, one at a time: the group q next of
 * which Σ_rows w_q · ((h⁻¹)_qq)⁻¹ · w_qᵀ per weight is least (of equals the last), the others then
 * making up for it. That sum is the step's cost. An input whose diagonal entry is 0 makes its weights
 * free. order (int64) and cost (float64) are of the grid's shape. */
typedef struct spt_second_order_removals_args {
  const char *op;
  int64_t index;
  spt_tensor w, gram, order, cost;
  int64_t group_rows, group_cols;
  double damping;
} spt_second_order_removals_args;
SPT_WARN_UNUSED spt_status spt_second_order_removals(spt_device *,
                                                     const spt_second_order_removals_args *,
                                                     spt_error *);

/* pruned = w without the groups whose mask is false, and changed elsewhere so that the output changes
 * least; blocks that lose nothing keep their bits. *cost = tr(Δ · gram · Δᵀ), Δ = pruned - w. */
typedef struct spt_second_order_apply_args {
  const char *op;
  int64_t index;
  spt_tensor w, gram, mask, pruned; /* pruned: in w's dtype */
  int64_t group_rows, group_cols;
  double damping;
  double *cost;
} spt_second_order_apply_args;
SPT_WARN_UNUSED spt_status spt_second_order_apply(spt_device *, const spt_second_order_apply_args *,
                                                  spt_error *);

/* ---- rows: ops along the last axis of a tensor of any rank ----------------------------------- */

/* y = (t - mean) / sqrt(variance + eps) · weight + bias with t = x + residual; weight, bias (n). */
typedef struct spt_layer_norm_args {
  spt_tensor x, y, weight, bias;
  const spt_tensor *residual;
  double eps;
} spt_layer_norm_args;
SPT_WARN_UNUSED spt_status spt_layer_norm(spt_device *, const spt_layer_norm_args *, spt_error *);

/* y = GELU(x), element by element: the exact one, or its tanh approximation. */
typedef struct spt_gelu_args {
  spt_tensor x, y;
  bool tanh;
} spt_gelu_args;
SPT_WARN_UNUSED spt_status spt_gelu(spt_device *, const spt_gelu_args *, spt_error *);

/* y = x / (1 - p) where the element is kept, else 0. Element n in row-major order is kept iff its
 * word of Philox4x32-10 is at least floor(p · 2^32): word n / 16 mod 4 of the counter (c mod 2^32,
 * c / 2^32, 0, 2^32 - 1) with c = n / 64 · 16 + n mod 16, the key being the seed. */
typedef struct spt_dropout_args {
  spt_tensor x, y;
  double p; /* in [0, 1) */
  uint64_t seed;
} spt_dropout_args;
SPT_WARN_UNUSED spt_status spt_dropout(spt_device *, const spt_dropout_args *, spt_error *);

/* y = exp(x) / sum exp(x); a row that is -infinity throughout gives zeros. */
typedef struct spt_softmax_args {
  spt_tensor x, y;
} spt_softmax_args;
SPT_WARN_UNUSED spt_status spt_softmax(spt_device *, const spt_softmax_args *, spt_error *);

/* rows (..., width) = table (n, width) at ids (...), which are int32 or int64. */
typedef struct spt_embedding_args {
  spt_tensor ids, table, rows;
} spt_embedding_args;
SPT_WARN_UNUSED spt_status spt_embedding(spt_device *, const spt_embedding_args *, spt_error *);

/* The k largest of each row, in their original order; of equals the first. NaN is an error.
 *
 * Rows are the last axis of scores (..., n): values and indices are (..., k). Or, with `offsets`,
 * scores is 1-D, sequence i is [offsets[i], offsets[i + 1]) and gives counts[i]; values and indices
 * are 1-D, sequence after sequence, and indices count from the start of scores. */
typedef struct spt_topk_args {
  spt_tensor scores, values, indices; /* indices int64 */
  int64_t k;
  const int64_t *offsets; /* (n_sequences + 1) in host memory, or NULL */
  const int64_t *counts;  /* (n_sequences) */
  int64_t n_sequences;
} spt_topk_args;
SPT_WARN_UNUSED spt_status spt_topk(spt_device *, const spt_topk_args *, spt_error *);

/* indices (int64): the counts[i] tokens of sequence i with the largest importance (1-D), as topk gives
 * them with offsets, but those that are protected before all others. protect is bool, one a token and
 * contiguous, or NULL: the first token of each sequence. */
typedef struct spt_select_tokens_args {
  spt_tensor importance, indices;
  const spt_tensor *protect;
  const int64_t *offsets; /* (n_sequences + 1) */
  const int64_t *counts;  /* (n_sequences) */
  int64_t n_sequences;
} spt_select_tokens_args;
SPT_WARN_UNUSED spt_status spt_select_tokens(spt_device *, const spt_select_tokens_args *,
                                             spt_error *);

/* out (k, width) = rows of x (t, width) at index (k), which is int32 or int64. */
typedef struct spt_gather_tokens_args {
  spt_tensor x, index, out;
} spt_gather_tokens_args;
SPT_WARN_UNUSED spt_status spt_gather_tokens(spt_device *, const spt_gather_tokens_args *,
                                             spt_error *);

/* out = softmax(scale q kT + bias) v per head, over the pairs that mask, lengths, causal and window
 * leave. q (b, sq, h, d), k (b, sk, hk, d), v (b, sk, hk, dv), out (b, sq, h, dv); or packed (t, h, d)
 * with offsets (b + 1), and kv_offsets where the keys' differ. hk divides h. */
typedef struct spt_attention_args {
  spt_tensor q, k, v, out;
  const spt_tensor *mask;    /* bool, (b, h, sq, sk), each side that or 1; true: attend */
  const spt_tensor *bias;    /* the same in any of the three float types; added to the scores */
  const spt_tensor *lengths; /* int64 (b), contiguous, in host memory; sq == sk */
  const spt_tensor *offsets, *kv_offsets; /* int64 (b + 1), contiguous, in host memory */
  const spt_tensor *lse;                  /* float32 (b, h, sq), packed (h, t) */
  const spt_tensor *token_importance;     /* float32 (b, sk), packed (tk) */
  const spt_tensor *head_importance;      /* float32 (b, h) */
  bool causal;                            /* aligned to the bottom right, as is the window */
  int64_t window_left, window_right;      /* -1: unbounded */
  double scale;                           /* NAN: 1 / sqrt(d) */
  double dropout;                         /* [0, 1) */
  uint64_t seed;
} spt_attention_args;
SPT_WARN_UNUSED spt_status spt_attention(spt_device *, const spt_attention_args *, spt_error *);

/* out and lse of `forward` are what attention gave, and are read; its importances are NULL. grad is
 * like out, the gradients like their arrays; each may be NULL. */
typedef struct spt_attention_backward_args {
  spt_attention_args forward;
  spt_tensor grad;
  const spt_tensor *dq, *dk, *dv, *dbias;
} spt_attention_backward_args;
SPT_WARN_UNUSED spt_status spt_attention_backward(spt_device *, const spt_attention_backward_args *,
                                                  spt_error *);

#if defined(__cplusplus)
}
#endif

#endif
