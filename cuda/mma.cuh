/* mma.cuh: products on tensor cores by whole warps, and the loads that bring their operands.
 *
 * A warp holds a 16 x k tile A, a k x 8 tile B and a 16 x 8 tile of float32 sums C, spread over its lanes
 * as PTX lays them out. With g = lane / 4 and t = lane % 4:
 *
 *   C, all shapes     acc[0], acc[1]: row g, columns 2t, 2t + 1; acc[2], acc[3]: the same of row g + 8
 *   A, 16-bit, k = 16 a[0]: row g, columns 2t, 2t + 1 (the first in the low half); a[1]: row g + 8;
 *                     a[2], a[3]: rows g, g + 8, columns 2t + 8, 2t + 9
 *   B, 16-bit, k = 16 b0: column g, rows 2t, 2t + 1; b1: column g, rows 2t + 8, 2t + 9
 *   A, TF32, k = 8    a[0]: row g, column t; a[1]: row g + 8; a[2], a[3]: rows g, g + 8, column t + 4
 *   B, TF32, k = 8    b0: column g, row t; b1: column g, row t + 4
 *
 * So two sums of 16 x 8, side by side, rounded to 16 bits, are the A of a next product without moving:
 * a[0] = acc[0..1] of the left, a[1] = acc[2..3] of the left, a[2], a[3] = those of the right.
 *
 * ldmatrix loads 8 x 8 tiles of 16-bit elements from shared memory. Lane 8 i + r names where row r of tile i
 * starts (16-byte aligned); r[i] is then row g, columns 2t and 2t + 1 of tile i, or with _trans rows 2t and
 * 2t + 1 of column g. x1 and x2 read the addresses of lanes 0-7 and 0-15, but sm_75 wants the other
 * lanes' to be valid too.
 *
 * All 32 lanes call together. sm_75 knows float16 with k = 8 only: float16 is two of those; bfloat16 and
 * TF32 are float32 FMAs on what shuffles bring, right but slow (32 shuffles a product). */
#ifndef SPATILE_CUDA_MMA_CUH
#define SPATILE_CUDA_MMA_CUH

#include <stdint.h>

#include "storage.cuh"

#if defined(SPT_CUDA_ON_CPU)

/* What a lane brings to a product, and takes away. */
struct spt_emulated_mma {
  float acc[4];
  uint32_t a[4], b[2];
};

static inline void spt_emulated_sums_in(float (*c)[8], spt_emulated_mma *const *lanes) {
  for (int lane = 0; lane < 32; lane++) {
    for (int i = 0; i < 4; i++) {
      c[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2] = lanes[lane]->acc[i];
    }
  }
}
static inline void spt_emulated_sums_out(spt_emulated_mma *const *lanes, float (*c)[8]) {
  for (int lane = 0; lane < 32; lane++) {
    for (int i = 0; i < 4; i++) {
      lanes[lane]->acc[i] = c[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2];
    }
  }
}

template <typename T>
static void spt_emulated_combine_16x8x16(void *const brought[32], unsigned) {
  spt_emulated_mma *const *lanes = (spt_emulated_mma *const *)brought;
  float a[16][16], b[16][8], c[16][8];
  for (int lane = 0; lane < 32; lane++) {
    int g = lane / 4, t = lane % 4;
    for (int half = 0; half < 2; half++) {
      for (int i = 0; i < 4; i++) {
        T element = {(uint16_t)(lanes[lane]->a[i] >> 16 * half)};
        a[g + 8 * (i % 2)][2 * t + 8 * (i / 2) + half] = spt_to_float(element);
      }
      for (int i = 0; i < 2; i++) {
        T element = {(uint16_t)(lanes[lane]->b[i] >> 16 * half)};
        b[2 * t + 8 * i + half][g] = spt_to_float(element);
      }
    }
  }
  spt_emulated_sums_in(c, lanes);
  spt_emulated_multiply(c, &a[0][0], b, 16);
  spt_emulated_sums_out(lanes, c);
}

static inline void spt_emulated_combine_16x8x8(void *const brought[32], unsigned) {
  spt_emulated_mma *const *lanes = (spt_emulated_mma *const *)brought;
  float a[16][8], b[8][8], c[16][8];
  for (int lane = 0; lane < 32; lane++) {
    int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; i++) { /* the low 13 bits are not looked at */
      a[g + 8 * (i % 2)][t + 4 * (i / 2)] = spt_bits_to_float(lanes[lane]->a[i] & 0xffffe000u);
    }
    for (int i = 0; i < 2; i++) {
      b[t + 4 * i][g] = spt_bits_to_float(lanes[lane]->b[i] & 0xffffe000u);
    }
  }
  spt_emulated_sums_in(c, lanes);
  spt_emulated_multiply(c, &a[0][0], b, 8);
  spt_emulated_sums_out(lanes, c);
}

static inline void spt_emulated_product(const spt_emulated_site &site, float (&acc)[4],
                                        const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                        spt_emulated_combine combine) {
  spt_emulated_mma mine = {{acc[0], acc[1], acc[2], acc[3]}, {a[0], a[1], a[2], a[3]}, {b0, b1}};
  spt_emulated_meet(site, 0xffffffffu, &mine, combine);
  memcpy(acc, mine.acc, sizeof mine.acc);
}

template <typename T>
static inline void spt_mma_16x8x16(float (&acc)[4], const uint32_t (&a)[4], uint32_t b0,
                                   uint32_t b1, SPT_SITE) {
  spt_emulated_product({"mma 16x8x16", file, line}, acc, a, b0, b1,
                       spt_emulated_combine_16x8x16<T>);
}
static inline void spt_mma_16x8x8_tf32(float (&acc)[4], const uint32_t (&a)[4], uint32_t b0,
                                       uint32_t b1, SPT_SITE) {
  spt_emulated_product({"mma 16x8x8 of TF32", file, line}, acc, a, b0, b1,
                       spt_emulated_combine_16x8x8);
}
static inline uint32_t spt_to_tf32(float value) {
  uint32_t bits = spt_float_to_bits(value);
  return (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & 0xffffe000u;
}

struct spt_emulated_rows {
  const void *row;
  uint32_t r[4];
};
template <int TILES, bool TRANS>
static void spt_emulated_combine_ldmatrix(void *const brought[32], unsigned) {
  spt_emulated_rows *const *lanes = (spt_emulated_rows *const *)brought;
  for (int i = 0; i < TILES; i++) {
    uint16_t tile[8][8];
    for (int row = 0; row < 8; row++) {
      spt_emulated_check_shared("ldmatrix", 8 * i + row, lanes[8 * i + row]->row, 16);
      spt_emulated_read_row(tile[row], lanes[8 * i + row]->row);
    }
    for (int lane = 0; lane < 32; lane++) {
      int g = lane / 4, t = lane % 4;
      uint16_t low = TRANS ? tile[2 * t][g] : tile[g][2 * t];
      uint16_t high = TRANS ? tile[2 * t + 1][g] : tile[g][2 * t + 1];
      lanes[lane]->r[i] = (uint32_t)high << 16 | low;
    }
  }
}
template <int TILES, bool TRANS>
static inline void spt_ldmatrix(uint32_t (&r)[TILES], const void *row, const char *file, int line) {
  spt_emulated_rows mine = {row, {0, 0, 0, 0}};
  spt_emulated_meet({"ldmatrix", file, line}, 0xffffffffu, &mine,
                    spt_emulated_combine_ldmatrix<TILES, TRANS>);
  memcpy(r, mine.r, sizeof r);
}
#define SPT_LDMATRIX(name, tiles, trans)                                     \
  static inline void name(uint32_t (&r)[tiles], const void *row, SPT_SITE) { \
    spt_ldmatrix<tiles, trans>(r, row, file, line);                          \
  }
SPT_LDMATRIX(spt_ldmatrix_x1, 1, false)
SPT_LDMATRIX(spt_ldmatrix_x2, 2, false)
SPT_LDMATRIX(spt_ldmatrix_x4, 4, false)
SPT_LDMATRIX(spt_ldmatrix_x1_trans, 1, true)
SPT_LDMATRIX(spt_ldmatrix_x2_trans, 2, true)
SPT_LDMATRIX(spt_ldmatrix_x4_trans, 4, true)
#undef SPT_LDMATRIX

#else

static __device__ __forceinline__ uint32_t spt_matrix_address(const void *row) {
  return (uint32_t)__cvta_generic_to_shared(row);
}
static __device__ __forceinline__ void spt_ldmatrix_x1(uint32_t (&r)[1], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
               : "=r"(r[0])
               : "r"(spt_matrix_address(row))
               : "memory");
}
static __device__ __forceinline__ void spt_ldmatrix_x2(uint32_t (&r)[2], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(spt_matrix_address(row))
               : "memory");
}
static __device__ __forceinline__ void spt_ldmatrix_x4(uint32_t (&r)[4], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(spt_matrix_address(row))
               : "memory");
}
static __device__ __forceinline__ void spt_ldmatrix_x1_trans(uint32_t (&r)[1], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
               : "=r"(r[0])
               : "r"(spt_matrix_address(row))
               : "memory");
}
static __device__ __forceinline__ void spt_ldmatrix_x2_trans(uint32_t (&r)[2], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(spt_matrix_address(row))
               : "memory");
}
static __device__ __forceinline__ void spt_ldmatrix_x4_trans(uint32_t (&r)[4], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(spt_matrix_address(row))
               : "memory");
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800

/* Sums of float32 FMAs. Lane 4 g + t makes rows g and g + 8, columns 2t and 2t + 1: what it lacks of A is
 * with the lanes 4 g + s, what it needs of B with the lanes 4 (2t) + s and 4 (2t + 1) + s. element(r, i)
 * is the i-th of a register's PER elements. */
template <int PER, typename Element>
static __device__ __forceinline__ void spt_mma_by_shuffles(float (&acc)[4], const uint32_t (&a)[4],
                                                           uint32_t b0, uint32_t b1,
                                                           Element element) {
  int lane = (int)(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) & 31;
  for (int step = 0; step < 2; step++) { /* the halves of k */
    for (int s = 0; s < 4; s++) {
      int of_a = (lane & ~3) + s, of_b = 8 * (lane & 3) + s;
      uint32_t top = __shfl_sync(0xffffffffu, step ? a[2] : a[0], of_a);
      uint32_t bottom = __shfl_sync(0xffffffffu, step ? a[3] : a[1], of_a);
      uint32_t left = __shfl_sync(0xffffffffu, step ? b1 : b0, of_b);
      uint32_t right = __shfl_sync(0xffffffffu, step ? b1 : b0, of_b + 4);
#pragma unroll
      for (int i = 0; i < PER; i++) {
        acc[0] = fmaf(element(top, i), element(left, i), acc[0]);
        acc[1] = fmaf(element(top, i), element(right, i), acc[1]);
        acc[2] = fmaf(element(bottom, i), element(left, i), acc[2]);
        acc[3] = fmaf(element(bottom, i), element(right, i), acc[3]);
      }
    }
  }
}
struct spt_bfloat_of_two {
  __device__ __forceinline__ float operator()(uint32_t pair, int i) const {
    return __uint_as_float(i ? pair & 0xffff0000u : pair << 16);
  }
};
struct spt_tf32_itself {
  __device__ __forceinline__ float operator()(uint32_t bits, int) const {
    return __uint_as_float(bits);
  }
};
static __device__ __forceinline__ void spt_mma_step(float (&acc)[4], uint32_t a0, uint32_t a1,
                                                    uint32_t b) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
      "{%0, %1, %2, %3};"
      : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
      : "r"(a0), "r"(a1), "r"(b));
}
static __device__ __forceinline__ void spt_mma_of(spt_half *, float (&acc)[4],
                                                  const uint32_t (&a)[4], uint32_t b0,
                                                  uint32_t b1) {
  spt_mma_step(acc, a[0], a[1], b0);
  spt_mma_step(acc, a[2], a[3], b1);
}
static __device__ __forceinline__ void spt_mma_of(spt_bfloat *, float (&acc)[4],
                                                  const uint32_t (&a)[4], uint32_t b0,
                                                  uint32_t b1) {
  spt_mma_by_shuffles<2>(acc, a, b0, b1, spt_bfloat_of_two());
}
static __device__ __forceinline__ void spt_mma_16x8x8_tf32(float (&acc)[4], const uint32_t (&a)[4],
                                                           uint32_t b0, uint32_t b1) {
  spt_mma_by_shuffles<1>(acc, a, b0, b1, spt_tf32_itself());
}
static __device__ __forceinline__ uint32_t spt_to_tf32(float value) {
  uint32_t bits = __float_as_uint(value);
  return (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & 0xffffe000u;
}

#else

static __device__ __forceinline__ void spt_mma_of(spt_half *, float (&acc)[4],
                                                  const uint32_t (&a)[4], uint32_t b0,
                                                  uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
static __device__ __forceinline__ void spt_mma_of(spt_bfloat *, float (&acc)[4],
                                                  const uint32_t (&a)[4], uint32_t b0,
                                                  uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
static __device__ __forceinline__ void spt_mma_16x8x8_tf32(float (&acc)[4], const uint32_t (&a)[4],
                                                           uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
/* To nearest, ties away from 0. */
static __device__ __forceinline__ uint32_t spt_to_tf32(float value) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
}

#endif

/* acc += a b, T = spt_half or spt_bfloat. */
template <typename T>
static __device__ __forceinline__ void spt_mma_16x8x16(float (&acc)[4], const uint32_t (&a)[4],
                                                       uint32_t b0, uint32_t b1) {
  spt_mma_of((T *)nullptr, acc, a, b0, b1);
}

#endif
#endif
