/* tensor_cores.cu: the wrappers of mma.cuh and async_copy.cuh, their operands given lane by lane. */
#include "async_copy.cuh"
#include "exported.h"
#include "mma.cuh"

/* a (32, 4), b (32, 2): registers by lane; acc (32, 4). */
template <int KIND>
__global__ void product_kernel(const uint32_t *a, const uint32_t *b, float *acc) {
  int lane = (int)threadIdx.x;
  float sums[4];
  uint32_t left[4];
  for (int i = 0; i < 4; i++) {
    left[i] = a[4 * lane + i];
    sums[i] = acc[4 * lane + i];
  }
  if (KIND == 0) {
    spt_mma_16x8x16<spt_half>(sums, left, b[2 * lane], b[2 * lane + 1]);
  } else if (KIND == 1) {
    spt_mma_16x8x16<spt_bfloat>(sums, left, b[2 * lane], b[2 * lane + 1]);
  } else {
    spt_mma_16x8x8_tf32(sums, left, b[2 * lane], b[2 * lane + 1]);
  }
  for (int i = 0; i < 4; i++) {
    acc[4 * lane + i] = sums[i];
  }
}
EXPORTED int run_product(int kind, const uint32_t *a, const uint32_t *b, float *acc) {
  switch (kind) {
    case 0:
      return launched((product_kernel<0>), 1, 32, 0, 0, a, b, acc);
    case 1:
      return launched((product_kernel<1>), 1, 32, 0, 0, a, b, acc);
    default:
      return launched((product_kernel<2>), 1, 32, 0, 0, a, b, acc);
  }
}

/* in: bytes of shared memory; rows[lane]: where the lane points, in bytes; out (32, 4). */
__global__ void ldmatrix_kernel(int tiles, int trans, const unsigned char *in, int bytes,
                                const int *rows, uint32_t *out) {
  SPT_SHARED(unsigned char, memory);
  for (int i = (int)threadIdx.x; i < bytes; i += 32) {
    memory[i] = in[i];
  }
  __syncthreads();
  const unsigned char *row = memory + rows[threadIdx.x];
  uint32_t one[1] = {0}, two[2] = {0, 0}, four[4] = {0, 0, 0, 0};
  if (tiles == 1) {
    trans ? spt_ldmatrix_x1_trans(one, row) : spt_ldmatrix_x1(one, row);
    four[0] = one[0];
  } else if (tiles == 2) {
    trans ? spt_ldmatrix_x2_trans(two, row) : spt_ldmatrix_x2(two, row);
    four[0] = two[0];
    four[1] = two[1];
  } else {
    trans ? spt_ldmatrix_x4_trans(four, row) : spt_ldmatrix_x4(four, row);
  }
  for (int i = 0; i < 4; i++) {
    out[4 * threadIdx.x + i] = four[i];
  }
}
EXPORTED int run_ldmatrix(int tiles, int trans, const unsigned char *in, int bytes, const int *rows,
                          uint32_t *out) {
  return launched(ldmatrix_kernel, 1, 32, bytes, 0, tiles, trans, in, bytes, rows, out);
}

/* Three groups of copies: 16 bytes, 4 and 8 and 16 of which only `used` are read. out (3, 3, 32, 4):
 * what shared memory holds after waits that leave 2, 1 and 0 groups. */
__global__ void copies_kernel(const uint32_t *in, uint32_t *out, int used) {
  SPT_SHARED(uint32_t, memory);
  int lane = (int)threadIdx.x;
  uint32_t *mine = memory + 4 * lane;
  spt_cp_async_16(mine, in + 4 * lane);
  spt_cp_async_commit();
  spt_cp_async_4(mine + 128, in + 4 * lane);
  spt_cp_async_8(mine + 128 + 2, in + 4 * lane + 2);
  spt_cp_async_commit();
  spt_cp_async_16(mine + 256, in + 4 * lane, used);
  spt_cp_async_commit();
  for (int left = 2; left >= 0; left--) {
    if (left == 2) {
      spt_cp_async_wait<2>();
    } else if (left == 1) {
      spt_cp_async_wait<1>();
    } else {
      spt_cp_async_wait<0>();
    }
    __syncthreads();
    for (int i = 0; i < 12; i++) {
      out[((2 - left) * 3 + i / 4) * 128 + 4 * lane + i % 4] =
          memory[i / 4 * 128 + 4 * lane + i % 4];
    }
    __syncthreads();
  }
}
EXPORTED int run_copies(const uint32_t *in, uint32_t *out, int used) {
  return launched(copies_kernel, 1, 32, 3 * 512, 0, in, out, used);
}

/* A copy that is misaligned, or that goes past shared memory. */
__global__ void wrong_copy_kernel(const unsigned char *in, int to, int from) {
  SPT_SHARED(unsigned char, memory);
  spt_cp_async_16(memory + to, in + from);
  spt_cp_async_commit();
  spt_cp_async_wait<0>();
}
EXPORTED int run_wrong_copy(const unsigned char *in, int to, int from) {
  return launched(wrong_copy_kernel, 1, 1, 64, 0, in, to, from);
}
