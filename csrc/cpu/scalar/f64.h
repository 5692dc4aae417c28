/* Products and triangular factors in double, for the second-order ops. */
#include <math.h>

#include "../tier.h"

static void f64_subtract_product(const spt_f64_product *p) {
  for (int64_t i = 0; i < p->columns; i++) {
    for (int64_t at = 0; at < p->blocks * SPT_F64_LANES; at++) {
      int64_t block = at / SPT_F64_LANES, lane = at % SPT_F64_LANES;
      double *c = p->c + i * p->c_row + block * p->c_block + lane;
      const double *a = p->a + block * p->a_block + lane;
      for (int64_t k = 0; k < p->depth; k++) {
        *c -= a[k * p->a_row] * p->b[k * p->b_row + i];
      }
    }
  }
}

static bool f64_cholesky(double *a, int64_t row, int64_t n) {
  for (int64_t k = 0; k < n; k++) {
    double *pivot = a + k * row;
    if (!(pivot[k] > 0.0)) {
      return false;
    }
    pivot[k] = 1.0 / sqrt(pivot[k]);
    for (int64_t j = k + 1; j < n; j++) {
      pivot[j] *= pivot[k];
    }
    for (int64_t i = k + 1; i < n; i++) {
      for (int64_t j = i; j < n; j++) {
        a[i * row + j] -= pivot[i] * pivot[j];
      }
    }
  }
  return true;
}

static void f64_solve(double *x, int64_t x_row, int64_t x_block, int64_t blocks, const double *u,
                      int64_t u_row, int64_t n) {
  for (int64_t at = 0; at < blocks * SPT_F64_LANES; at++) {
    double *lane = x + at / SPT_F64_LANES * x_block + at % SPT_F64_LANES;
    for (int64_t i = 0; i < n; i++) {
      double value = lane[i * x_row];
      for (int64_t k = 0; k < i; k++) {
        value -= u[k * u_row + i] * lane[k * x_row];
      }
      lane[i * x_row] = value * u[i * u_row + i];
    }
  }
}

static double f64_dot(const double *x, const double *y, int64_t n) {
  double sum = 0.0;
  for (int64_t i = 0; i < n; i++) {
    sum += x[i] * y[i];
  }
  return sum;
}
