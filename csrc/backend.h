/* backend.h: the one table that a backend fills, and the derived problems that its slots receive.
 *
 * The op layer (ops/) has validated everything and put it into the forms below: a slot only asserts.
 * A NULL slot means "not supported", and the op layer says so. Slots are synchronous unless they
 * say otherwise, and thread-safe: callers may come from several threads at once. */
#ifndef SPATILE_BACKEND_H
#define SPATILE_BACKEND_H

#include "spatile.h"

#define SPT_BACKEND_ABI 1

/* A matrix in memory: `row` and `col` are strides in elements. */
typedef struct spt_matrix {
  void *data;
  spt_dtype dtype;
  int64_t rows, cols;
  int64_t row, col;
} spt_matrix;

/* Where a product's weights are: exactly one of the three is set (dense.data, strips, csr). */
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
} spt_linear_problem;

typedef struct spt_linear_backward_problem {
  spt_matrix grad, x;
  spt_weight w;
  spt_matrix dx, dw, dbias; /* data NULL where not wanted */
} spt_linear_backward_problem;

typedef struct spt_backend {
  uint32_t abi_version; /* SPT_BACKEND_ABI */
  uint32_t size;        /* sizeof(spt_backend) as the backend was built */
  const char *name;

  spt_status (*linear)(void *state, const spt_linear_problem *, spt_error *);
  spt_status (*linear_backward)(void *state, const spt_linear_backward_problem *, spt_error *);
} spt_backend;

struct spt_device {
  const spt_backend *backend;
  void *state;
};

extern const spt_backend spt_cpu_backend;

#endif
