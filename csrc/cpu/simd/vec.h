/* One SIMD register of floats at the width of the tier being compiled, and what intrinsics alone can
 * say about it. Arithmetic is the compiler's own on vector types: a * b + c becomes an FMA. */
#ifndef SPATILE_CPU_SIMD_VEC_H
#define SPATILE_CPU_SIMD_VEC_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "../half.h"
#include "../tier.h"

#if defined(__AVX512F__)
#define VEC_WIDTH 16
#define VEC_BYTES 64
#elif defined(__AVX2__)
#define VEC_WIDTH 8
#define VEC_BYTES 32
#else
#error "simd/ is compiled with -mavx2 or -mavx512f"
#endif

typedef float vec __attribute__((vector_size(VEC_BYTES)));
typedef float vec_unaligned __attribute__((vector_size(VEC_BYTES), aligned(4), may_alias));
typedef int32_t vec_int __attribute__((vector_size(VEC_BYTES)));

/* A panel's 16 lanes fill this many registers. */
#define VECS SPT_LANES / VEC_WIDTH

static inline vec vec_load(const float *p) { return *(const vec_unaligned *)p; }
static inline void vec_store(float *p, vec v) { *(vec_unaligned *)p = v; }
typedef int32_t vec_int_unaligned __attribute__((vector_size(VEC_BYTES), aligned(2), may_alias));
typedef int32_t bf16_pair __attribute__((aligned(2), may_alias));

static inline vec_int vec_load_pairs(const uint16_t *p) { return *(const vec_int_unaligned *)p; }
static inline void vec_store_pairs(uint16_t *p, vec_int v) { *(vec_int_unaligned *)p = v; }
static inline vec_int vec_set_pair(const uint16_t *p) {
  return *(const bf16_pair *)p - (vec_int){0};
}
static inline vec vec_set(float value) { return value - (vec){0}; }

/* Rounded to nearest even; a NaN stays one though its payload may be cut. */
static inline vec_int vec_bf16_bits(vec a) {
  vec_int bits = (vec_int)a;
  vec_int nan = (bits & 0x7fffffff) > 0x7f800000;
  vec_int rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return ((nan & (bits >> 16 | 0x40)) | (~nan & rounded)) & 0xffff;
}

/* bfloat16 in pairs: the low half of each 32 bits is the even element. */
static inline vec vec_even_bf16(vec_int pairs) { return (vec)(pairs << 16); }
static inline vec vec_odd_bf16(vec_int pairs) { return (vec)(pairs & (int32_t)0xffff0000); }

#if defined(__AVX512BF16__)
static inline vec_int vec_pairs_bf16(vec even, vec odd) {
  __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even);
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                         8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return (vec_int)_mm512_permutexvar_epi16(order, both);
}
/* sum + a's even elements * b's + a's odd elements * b's */
static inline vec vec_dot_bf16(vec sum, vec_int a, vec_int b) {
  return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}
#else
static inline vec_int vec_pairs_bf16(vec even, vec odd) {
  return vec_bf16_bits(even) | vec_bf16_bits(odd) << 16;
}
static inline vec vec_dot_bf16(vec sum, vec_int a, vec_int b) {
  sum += vec_even_bf16(a) * vec_even_bf16(b);
  return sum + vec_odd_bf16(a) * vec_odd_bf16(b);
}
#endif

#if VEC_WIDTH == 16
static inline vec vec_max(vec a, vec b) { return (vec)_mm512_max_ps((__m512)a, (__m512)b); }
static inline vec vec_min(vec a, vec b) { return (vec)_mm512_min_ps((__m512)a, (__m512)b); }
static inline vec vec_sqrt(vec a) { return (vec)_mm512_sqrt_ps((__m512)a); }
static inline float vec_sum(vec a) { return _mm512_reduce_add_ps((__m512)a); }
/* Lane g is the sum of v[g]. Each step halves how many lanes a sum is spread over, and how many
 * registers hold them. */
static inline __m512 vec_halve_lanes(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
}
static inline vec vec_sums_of(const vec *v) {
  __m512 quarter[4];
#pragma GCC unroll 4
  for (int g = 0; g < 4; g++) {
    __m512 a = (__m512)v[g], b = (__m512)v[g + 4], c = (__m512)v[g + 8], d = (__m512)v[g + 12];
    a = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    c = _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xee));
    quarter[g] = _mm512_add_ps(_mm512_shuffle_f32x4(a, c, 0x88), _mm512_shuffle_f32x4(a, c, 0xdd));
  }
  __m512 even = vec_halve_lanes(quarter[0], quarter[2]);
  return (vec)vec_halve_lanes(even, vec_halve_lanes(quarter[1], quarter[3]));
}
/* The same for whole numbers. */
static inline __m512i vec_halve_int_lanes(__m512i a, __m512i b) {
  return _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
}
static inline vec_int vec_int_sums_of(const vec_int *v) {
  __m512i quarter[4];
#pragma GCC unroll 4
  for (int g = 0; g < 4; g++) {
    __m512i a = (__m512i)v[g], b = (__m512i)v[g + 4], c = (__m512i)v[g + 8], d = (__m512i)v[g + 12];
    a = _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x44), _mm512_shuffle_i32x4(a, b, 0xee));
    c = _mm512_add_epi32(_mm512_shuffle_i32x4(c, d, 0x44), _mm512_shuffle_i32x4(c, d, 0xee));
    quarter[g] =
        _mm512_add_epi32(_mm512_shuffle_i32x4(a, c, 0x88), _mm512_shuffle_i32x4(a, c, 0xdd));
  }
  __m512i even = vec_halve_int_lanes(quarter[0], quarter[2]);
  return (vec_int)vec_halve_int_lanes(even, vec_halve_int_lanes(quarter[1], quarter[3]));
}
static inline void vec_add_to_doubles(double *p, vec_int a) {
  __m512d low = _mm512_cvtepi32_pd(_mm512_castsi512_si256((__m512i)a));
  __m512d high = _mm512_cvtepi32_pd(_mm512_extracti64x4_epi64((__m512i)a, 1));
  _mm512_storeu_pd(p, _mm512_add_pd(_mm512_loadu_pd(p), low));
  _mm512_storeu_pd(p + 8, _mm512_add_pd(_mm512_loadu_pd(p + 8), high));
}
static inline vec_int vec_to_int(vec a) { return (vec_int)_mm512_cvtps_epi32((__m512)a); }
/* Around the caches; p begins a register's worth of memory. */
static inline void vec_stream(float *p, vec a) { _mm512_stream_ps(p, (__m512)a); }
static inline uint32_t vec_or(vec_int a) { return (uint32_t)_mm512_reduce_or_epi32((__m512i)a); }
static inline vec vec_round(vec a) {
  return (vec)_mm512_roundscale_ps((__m512)a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
/* a * 2^n for a whole number n, with gradual underflow and overflow */
static inline vec vec_scale2(vec a, vec n) { return (vec)_mm512_scalef_ps((__m512)a, (__m512)n); }
static inline vec vec_load_f16(const uint16_t *p) {
  return (vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
static inline vec vec_load_bf16(const uint16_t *p) {
  return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16);
}
static inline void vec_store_f16(uint16_t *p, vec a) {
  _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph((__m512)a, _MM_FROUND_TO_NEAREST_INT));
}
static inline void vec_store_bf16(uint16_t *p, vec a) {
  _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16((__m512i)vec_bf16_bits(a)));
}
/* The first n < 16 lanes; the others load as zero. */
static inline vec vec_load_part(const float *p, int64_t n) {
  return (vec)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
}
static inline void vec_store_part(float *p, vec a, int64_t n) {
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)a);
}
#else
static inline vec vec_max(vec a, vec b) { return (vec)_mm256_max_ps((__m256)a, (__m256)b); }
static inline vec vec_min(vec a, vec b) { return (vec)_mm256_min_ps((__m256)a, (__m256)b); }
static inline vec vec_sqrt(vec a) { return (vec)_mm256_sqrt_ps((__m256)a); }
static inline float vec_sum(vec a) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128((__m256)a), _mm256_extractf128_ps((__m256)a, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}
/* Lane g is the sum of v[g]. */
static inline vec vec_sums_of(const vec *v) {
  __m256 half[2];
#pragma GCC unroll 2
  for (int g = 0; g < 2; g++) {
    __m256 a = _mm256_hadd_ps((__m256)v[4 * g], (__m256)v[4 * g + 1]);
    __m256 b = _mm256_hadd_ps((__m256)v[4 * g + 2], (__m256)v[4 * g + 3]);
    half[g] = _mm256_hadd_ps(a, b);
  }
  return (vec)_mm256_add_ps(_mm256_permute2f128_ps(half[0], half[1], 0x20),
                            _mm256_permute2f128_ps(half[0], half[1], 0x31));
}
/* The same for whole numbers. */
static inline vec_int vec_int_sums_of(const vec_int *v) {
  __m256i half[2];
#pragma GCC unroll 2
  for (int g = 0; g < 2; g++) {
    __m256i a = _mm256_hadd_epi32((__m256i)v[4 * g], (__m256i)v[4 * g + 1]);
    __m256i b = _mm256_hadd_epi32((__m256i)v[4 * g + 2], (__m256i)v[4 * g + 3]);
    half[g] = _mm256_hadd_epi32(a, b);
  }
  return (vec_int)_mm256_add_epi32(_mm256_permute2x128_si256(half[0], half[1], 0x20),
                                   _mm256_permute2x128_si256(half[0], half[1], 0x31));
}
static inline void vec_add_to_doubles(double *p, vec_int a) {
  __m256d low = _mm256_cvtepi32_pd(_mm256_castsi256_si128((__m256i)a));
  __m256d high = _mm256_cvtepi32_pd(_mm256_extracti128_si256((__m256i)a, 1));
  _mm256_storeu_pd(p, _mm256_add_pd(_mm256_loadu_pd(p), low));
  _mm256_storeu_pd(p + 4, _mm256_add_pd(_mm256_loadu_pd(p + 4), high));
}
static inline vec_int vec_to_int(vec a) { return (vec_int)_mm256_cvtps_epi32((__m256)a); }
/* Around the caches; p begins a register's worth of memory. */
static inline void vec_stream(float *p, vec a) { _mm256_stream_ps(p, (__m256)a); }
static inline uint32_t vec_or(vec_int a) {
  __m128i half =
      _mm_or_si128(_mm256_castsi256_si128((__m256i)a), _mm256_extracti128_si256((__m256i)a, 1));
  half = _mm_or_si128(half, _mm_unpackhi_epi64(half, half));
  return (uint32_t)(_mm_cvtsi128_si32(half) | _mm_extract_epi32(half, 1));
}
static inline vec vec_round(vec a) {
  return (vec)_mm256_round_ps((__m256)a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
/* Two factors: 2^n alone leaves the exponent's range before a * 2^n does. |n| <= 250. */
static inline vec vec_scale2(vec a, vec n) {
  vec_int whole = (vec_int)_mm256_cvtps_epi32((__m256)n), half = whole >> 1;
  return a * (vec)((half + 127) << 23) * (vec)((whole - half + 127) << 23);
}
static inline vec vec_load_f16(const uint16_t *p) {
  return (vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}
static inline vec vec_load_bf16(const uint16_t *p) {
  return (vec)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16);
}
static inline void vec_store_f16(uint16_t *p, vec a) {
  _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph((__m256)a, _MM_FROUND_TO_NEAREST_INT));
}
static inline void vec_store_bf16(uint16_t *p, vec a) {
  __m256i bits = (__m256i)vec_bf16_bits(a);
  _mm_storeu_si128((__m128i *)p, _mm_packus_epi32(_mm256_castsi256_si128(bits),
                                                  _mm256_extracti128_si256(bits, 1)));
}
/* The first n < 8 lanes; the others load as zero. */
static inline __m256i vec_part_mask(int64_t n) {
  return (__m256i)((vec_int){0, 1, 2, 3, 4, 5, 6, 7} < (int32_t)n);
}
static inline vec vec_load_part(const float *p, int64_t n) {
  return (vec)_mm256_maskload_ps(p, vec_part_mask(n));
}
static inline void vec_store_part(float *p, vec a, int64_t n) {
  _mm256_maskstore_ps(p, vec_part_mask(n), (__m256)a);
}
#endif

/* Lane g is the sum of the row v[g] in memory. */
static inline vec vec_sums(const float (*v)[VEC_WIDTH]) {
  vec rows[VEC_WIDTH];
#pragma GCC unroll 16
  for (int g = 0; g < VEC_WIDTH; g++) {
    rows[g] = vec_load(v[g]);
  }
  return vec_sums_of(rows);
}

#endif
