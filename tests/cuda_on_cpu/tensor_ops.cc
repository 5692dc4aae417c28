/* tensor_ops.cc: the products of tensor cores. Products are exact where operands have 11 bits or fewer; sums
 * are rounded after each, in the order of depth. A tensor core's own order and rounding are not specified. */
#include "cuda_runtime.h"

void spt_emulated_multiply(float (*c)[8], const float *a, const float (*b)[8], int depth) {
  for (int row = 0; row < 16; row++) {
    float sums[8];
    memcpy(sums, c[row], sizeof sums);
    for (int k = 0; k < depth; k++) {
      for (int col = 0; col < 8; col++) {
        sums[col] = fmaf(a[row * depth + k], b[k][col], sums[col]);
      }
    }
    memcpy(c[row], sums, sizeof sums);
  }
}
