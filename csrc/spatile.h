/* spatile.h: the public C contract of the core.
 *
 * Every fallible call returns a spt_status and, unless it is SPT_OK, writes one sentence into the
 * caller's spt_error ("op: argument is FOUND, expected EXPECTED"). There is no global error state:
 * a backend may live in another shared object and compute on other threads.
 *
 * Tensors are views. The caller owns the memory, keeps it alive during the call, and allocates
 * outputs; the core allocates workspaces only, and frees them before it returns. Outputs may not
 * overlap inputs unless an op says so. Optional tensors are pointers, NULL where absent. */
#ifndef SPATILE_H
#define SPATILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

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

#define SPT_TRY(call)                       \
  do {                                      \
    spt_status spt_try_status_ = (call);    \
    if (spt_try_status_ != SPT_OK) {        \
      return spt_try_status_;               \
    }                                       \
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

typedef struct spt_device spt_device;

spt_device *spt_cpu_device(void); /* the built-in one; never NULL, never freed */

/* CPU tier: "scalar", "avx2", "avx512". Selecting one that this CPU or build lacks is an error. */
const char *spt_cpu_tier_name(void);
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
  int64_t out, in;          /* logical shape */
  int64_t n_strips;
  int64_t n_columns;        /* kept columns over all strips: values holds n_columns * 16 floats */
  const int64_t *run_ptr;   /* (n_strips + 1): the strip's runs */
  const int64_t *value_ptr; /* (n_strips + 1): the strip's first kept column in values */
  const int32_t *run_start; /* first input column of a run */
  const int32_t *run_len;   /* columns in a run, at least 1 */
  const float *values;      /* (n_columns, 16) */
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

/* ---- ops: one argument struct and one function per op ------------------------------------- */

typedef enum spt_activation {
  SPT_ACT_NONE = 0,
  SPT_ACT_GELU,
  SPT_ACT_GELU_TANH,
  SPT_ACT_RELU,
  SPT_ACT_TANH,
} spt_activation;

/* y = act(x · wᵀ + bias) + residual. x (n, in), y (n, out), residual (n, out), bias (out).
 * Exactly one of dense, strips and csr is given; dense is (out, in). */
typedef struct spt_linear_args {
  spt_tensor x, y;
  const spt_tensor *dense;
  const spt_strips *strips;
  const spt_csr *csr;
  const spt_tensor *bias, *residual;
  spt_activation activation;
} spt_linear_args;
SPT_WARN_UNUSED spt_status spt_linear(spt_device *, const spt_linear_args *, spt_error *);

/* Gradients of y = x · wᵀ + b. grad (n, out), x (n, in). Each output may be NULL.
 * dw: (out, in) for dense, (n_columns, 16) for strips, (nnz) for csr; float32 for the last two. */
typedef struct spt_linear_backward_args {
  spt_tensor grad, x;
  const spt_tensor *dense;
  const spt_strips *strips;
  const spt_csr *csr;
  const spt_tensor *dx, *dw, *dbias;
} spt_linear_backward_args;
SPT_WARN_UNUSED spt_status spt_linear_backward(spt_device *, const spt_linear_backward_args *,
                                               spt_error *);

#endif
