/* Products and triangular factors in double, for the second-order ops.
 *
 * The product keeps one block of 8 lanes by as many columns as the registers hold: a step loads the
 * lanes of one term once, and broadcasts its column values straight from memory. What is long comes in
 * once, in order; b stays in L1 (the callers cut the depth for that). */
#include <math.h>

#include "vec.h"

#define F64_WIDTH (VEC_WIDTH / 2)
#define F64_VECS (SPT_F64_LANES / F64_WIDTH)
#if VEC_WIDTH == 16
#define F64_COLUMNS 16
#else
#define F64_COLUMNS 4
#endif

typedef double vec_f64 __attribute__((vector_size(VEC_BYTES)));
typedef double vec_f64_unaligned __attribute__((vector_size(VEC_BYTES), aligned(8), may_alias));

static inline vec_f64 f64_load(const double *p) { return *(const vec_f64_unaligned *)p; }
static inline void f64_store(double *p, vec_f64 v) { *(vec_f64_unaligned *)p = v; }
static inline vec_f64 f64_set(double value) { return value - (vec_f64){0}; }

static inline __attribute__((always_inline)) void f64_product_columns(const spt_f64_product *p,
                                                                      int64_t block, int64_t column,
                                                                      const int columns) {
  vec_f64 sum[F64_COLUMNS][F64_VECS];
  double *c = p->c + column * p->c_row + block * p->c_block;
  const double *a = p->a + block * p->a_block, *b = p->b + column;
#pragma GCC unroll 16
  for (int i = 0; i < columns; i++) {
    for (int v = 0; v < F64_VECS; v++) {
      sum[i][v] = f64_load(c + i * p->c_row + v * F64_WIDTH);
    }
  }
  for (int64_t k = 0; k < p->depth; k++, a += p->a_row, b += p->b_row) {
    vec_f64 lanes[F64_VECS];
    for (int v = 0; v < F64_VECS; v++) {
      lanes[v] = f64_load(a + v * F64_WIDTH);
    }
#pragma GCC unroll 16
    for (int i = 0; i < columns; i++) {
      vec_f64 value = f64_set(b[i]);
      for (int v = 0; v < F64_VECS; v++) {
        sum[i][v] -= value * lanes[v];
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < columns; i++) {
    for (int v = 0; v < F64_VECS; v++) {
      f64_store(c + i * p->c_row + v * F64_WIDTH, sum[i][v]);
    }
  }
}

static void f64_subtract_product(const spt_f64_product *p) {
  for (int64_t block = 0; block < p->blocks; block++) {
    int64_t i = 0;
    for (; i + F64_COLUMNS <= p->columns; i += F64_COLUMNS) {
      f64_product_columns(p, block, i, F64_COLUMNS);
    }
#if F64_COLUMNS > 8
    for (; i + 8 <= p->columns; i += 8) {
      f64_product_columns(p, block, i, 8);
    }
    for (; i + 4 <= p->columns; i += 4) {
      f64_product_columns(p, block, i, 4);
    }
#endif
    for (; i < p->columns; i++) {
      f64_product_columns(p, block, i, 1);
    }
  }
}

static bool f64_cholesky(double *a, int64_t row, int64_t n) {
  for (int64_t k = 0; k < n; k++) {
    double *pivot = a + k * row;
    if (!(pivot[k] > 0.0)) {
      return false;
    }
    double reciprocal = 1.0 / sqrt(pivot[k]);
    for (int64_t j = k + 1; j < n; j++) {
      pivot[j] *= reciprocal;
    }
    pivot[k] = reciprocal;
    for (int64_t i = k + 1; i < n; i++) {
      vec_f64 value = f64_set(pivot[i]);
      for (int64_t j = i / F64_WIDTH * F64_WIDTH; j < n; j += F64_WIDTH) {
        double *at = a + i * row + j;
        f64_store(at, f64_load(at) - value * f64_load(pivot + j));
      }
    }
  }
  return true;
}

/* As soon as a row is known it leaves all later ones: these do not wait for one another. */
static void f64_solve(double *x, int64_t x_row, int64_t x_block, int64_t blocks, const double *u,
                      int64_t u_row, int64_t n) {
  for (int64_t block = 0; block < blocks; block++) {
    double *lanes = x + block * x_block;
    for (int64_t i = 0; i < n; i++) {
      vec_f64 known[F64_VECS];
      for (int v = 0; v < F64_VECS; v++) {
        double *at = lanes + i * x_row + v * F64_WIDTH;
        known[v] = f64_load(at) * f64_set(u[i * u_row + i]);
        f64_store(at, known[v]);
      }
      for (int64_t j = i + 1; j < n; j++) {
        for (int v = 0; v < F64_VECS; v++) {
          double *at = lanes + j * x_row + v * F64_WIDTH;
          f64_store(at, f64_load(at) - f64_set(u[i * u_row + j]) * known[v]);
        }
      }
    }
  }
}

static double f64_dot(const double *x, const double *y, int64_t n) {
  vec_f64 sum[SPT_F64_LANES / F64_WIDTH] = {0};
  for (int64_t i = 0; i < n; i += SPT_F64_LANES) {
    for (int v = 0; v < F64_VECS; v++) {
      sum[v] += f64_load(x + i + v * F64_WIDTH) * f64_load(y + i + v * F64_WIDTH);
    }
  }
  double total = 0.0;
  for (int v = 0; v < F64_VECS; v++) {
    for (int lane = 0; lane < F64_WIDTH; lane++) {
      total += sum[v][lane];
    }
  }
  return total;
}
