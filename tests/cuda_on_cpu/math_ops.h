/* math_ops.h: device arithmetic in the host's. Approximate functions are exact here; those whose rounding
 * CUDA promises (__fmul_rn and the like) are never fused with what follows. Atomics are plain: one
 * thread runs at a time. */
#ifndef SPT_EMULATED_MATH_OPS_H
#define SPT_EMULATED_MATH_OPS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include <type_traits>

#include "vectors.h"

template <typename To, typename From>
static inline To spt_emulated_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "the same bits");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
/* A value that no later operation is contracted with. */
static inline float spt_emulated_rounded(float value) {
#if defined(__x86_64__)
  __asm__("" : "+x"(value));
#else
  volatile float kept = value;
  value = kept;
#endif
  return value;
}
static inline double spt_emulated_rounded(double value) {
#if defined(__x86_64__)
  __asm__("" : "+x"(value));
#else
  volatile double kept = value;
  value = kept;
#endif
  return value;
}

/* The C library has declared these names as its own. */
#define __expf expf
#define __exp10f(x) powf(10.0f, x)
#define __logf logf
#define __log2f log2f
#define __log10f log10f
#define __sinf sinf
#define __cosf cosf
#define __powf powf
#define __tanhf tanhf
static inline float __fdividef(float x, float y) { return x / y; }
static inline float fdividef(float x, float y) { return x / y; }
static inline float rsqrtf(float x) { return (float)(1.0 / sqrt((double)x)); }
static inline double rsqrt(double x) { return 1.0 / sqrt(x); }
static inline float __frsqrt_rn(float x) { return rsqrtf(x); }
static inline float __frcp_rn(float x) { return 1.0f / x; }
static inline float __fsqrt_rn(float x) { return sqrtf(x); }
static inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
static inline float normcdff(float x) { return 0.5f * erfcf(-x * 0.70710678118654752f); }

static inline float __fadd_rn(float x, float y) { return spt_emulated_rounded(x + y); }
static inline float __fsub_rn(float x, float y) { return spt_emulated_rounded(x - y); }
static inline float __fmul_rn(float x, float y) { return spt_emulated_rounded(x * y); }
static inline float __fdiv_rn(float x, float y) { return x / y; }
static inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
static inline double __dadd_rn(double x, double y) { return spt_emulated_rounded(x + y); }
static inline double __dsub_rn(double x, double y) { return spt_emulated_rounded(x - y); }
static inline double __dmul_rn(double x, double y) { return spt_emulated_rounded(x * y); }
static inline double __ddiv_rn(double x, double y) { return x / y; }
static inline double __dsqrt_rn(double x) { return sqrt(x); }
static inline double __fma_rn(double x, double y, double z) { return fma(x, y, z); }

static inline int __float_as_int(float x) { return spt_emulated_bits<int>(x); }
static inline unsigned __float_as_uint(float x) { return spt_emulated_bits<unsigned>(x); }
static inline float __int_as_float(int x) { return spt_emulated_bits<float>(x); }
static inline float __uint_as_float(unsigned x) { return spt_emulated_bits<float>(x); }
static inline long long __double_as_longlong(double x) { return spt_emulated_bits<long long>(x); }
static inline double __longlong_as_double(long long x) { return spt_emulated_bits<double>(x); }

/* Conversions to integers saturate, and NaN becomes 0 (32 bits) as on the device. */
template <typename To, typename From>
static inline To spt_emulated_to_integer(From x) {
  const To least = std::is_signed<To>::value ? (To)((To)1 << (8 * sizeof(To) - 1)) : (To)0;
  if (x != x) {
    return sizeof(To) == 4 ? (To)0 : (To)((To)1 << (8 * sizeof(To) - 1));
  }
  const From above = (From)ldexp(1.0, 8 * sizeof(To) - (std::is_signed<To>::value ? 1 : 0));
  if (x >= above) {
    return (To)~least;
  }
  return x <= (From)least ? least : (To)x;
}
#define SPT_CONVERSIONS(name, To, From, fdown, fup, fnear, fzero)                            \
  static inline To name##_rd(From x) { return spt_emulated_to_integer<To, From>(fdown(x)); } \
  static inline To name##_ru(From x) { return spt_emulated_to_integer<To, From>(fup(x)); }   \
  static inline To name##_rn(From x) { return spt_emulated_to_integer<To, From>(fnear(x)); } \
  static inline To name##_rz(From x) { return spt_emulated_to_integer<To, From>(fzero(x)); }
SPT_CONVERSIONS(__float2int, int, float, floorf, ceilf, rintf, truncf)
SPT_CONVERSIONS(__float2uint, unsigned, float, floorf, ceilf, rintf, truncf)
SPT_CONVERSIONS(__float2ll, long long, float, floorf, ceilf, rintf, truncf)
SPT_CONVERSIONS(__float2ull, unsigned long long, float, floorf, ceilf, rintf, truncf)
SPT_CONVERSIONS(__double2int, int, double, floor, ceil, rint, trunc)
SPT_CONVERSIONS(__double2uint, unsigned, double, floor, ceil, rint, trunc)
SPT_CONVERSIONS(__double2ll, long long, double, floor, ceil, rint, trunc)
SPT_CONVERSIONS(__double2ull, unsigned long long, double, floor, ceil, rint, trunc)
#undef SPT_CONVERSIONS
static inline float __int2float_rn(int x) { return (float)x; }
static inline float __uint2float_rn(unsigned x) { return (float)x; }
static inline float __ll2float_rn(long long x) { return (float)x; }
static inline float __ull2float_rn(unsigned long long x) { return (float)x; }
static inline float __double2float_rn(double x) { return (float)x; }
static inline double __int2double_rn(int x) { return (double)x; }
static inline double __uint2double_rn(unsigned x) { return (double)x; }
static inline double __ll2double_rn(long long x) { return (double)x; }
static inline double __ull2double_rn(unsigned long long x) { return (double)x; }

static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz((unsigned)x); }
static inline int __clzll(long long x) {
  return x == 0 ? 64 : __builtin_clzll((unsigned long long)x);
}
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __ffsll(long long x) { return __builtin_ffsll(x); }
static inline unsigned long long __brevll(unsigned long long x) {
  unsigned long long y = 0;
  for (int i = 0; i < 64; i++) {
    y |= (x >> i & 1) << (63 - i);
  }
  return y;
}
static inline unsigned __brev(unsigned x) { return (unsigned)(__brevll(x) >> 32); }
static inline unsigned __umulhi(unsigned x, unsigned y) {
  return (unsigned)((unsigned long long)x * y >> 32);
}
static inline int __mulhi(int x, int y) { return (int)((long long)x * y >> 32); }
__extension__ typedef unsigned __int128 spt_emulated_uint128;
__extension__ typedef __int128 spt_emulated_int128;
static inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
  return (unsigned long long)((spt_emulated_uint128)x * y >> 64);
}
static inline long long __mul64hi(long long x, long long y) {
  return (long long)((spt_emulated_int128)x * y >> 64);
}
static inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selectors) {
  unsigned long long bytes = (unsigned long long)y << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; i++) {
    unsigned selector = selectors >> 4 * i & 15;
    unsigned byte = (unsigned)(bytes >> 8 * (selector & 7)) & 0xff;
    if (selector & 8) { /* the sign, over all bits */
      byte = byte & 0x80 ? 0xff : 0;
    }
    result |= byte << 8 * i;
  }
  return result;
}
static inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return (unsigned)(((unsigned long long)high << 32 | low) << (shift & 31) >> 32);
}
static inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return (unsigned)(((unsigned long long)high << 32 | low) >> (shift & 31));
}

/* CUDA has min and max in the global namespace; NaN loses, as in fminf. */
#define SPT_LEAST_AND_MOST(T)                             \
  static inline T min(T x, T y) { return y < x ? y : x; } \
  static inline T max(T x, T y) { return x < y ? y : x; }
SPT_LEAST_AND_MOST(int)
SPT_LEAST_AND_MOST(unsigned)
SPT_LEAST_AND_MOST(long)
SPT_LEAST_AND_MOST(unsigned long)
SPT_LEAST_AND_MOST(long long)
SPT_LEAST_AND_MOST(unsigned long long)
#undef SPT_LEAST_AND_MOST
static inline float min(float x, float y) { return fminf(x, y); }
static inline float max(float x, float y) { return fmaxf(x, y); }
static inline double min(double x, double y) { return fmin(x, y); }
static inline double max(double x, double y) { return fmax(x, y); }

/* Loads and stores with hints for the caches. */
#define SPT_HINTED_LOAD(name)           \
  template <typename T>                 \
  static inline T name(const T *data) { \
    return *data;                       \
  }
SPT_HINTED_LOAD(__ldg)
SPT_HINTED_LOAD(__ldca)
SPT_HINTED_LOAD(__ldcg)
SPT_HINTED_LOAD(__ldcs)
SPT_HINTED_LOAD(__ldlu)
SPT_HINTED_LOAD(__ldcv)
#undef SPT_HINTED_LOAD
#define SPT_HINTED_STORE(name)                \
  template <typename T>                       \
  static inline void name(T *data, T value) { \
    *data = value;                            \
  }
SPT_HINTED_STORE(__stwb)
SPT_HINTED_STORE(__stcg)
SPT_HINTED_STORE(__stcs)
SPT_HINTED_STORE(__stwt)
#undef SPT_HINTED_STORE

static inline void __threadfence() {}
static inline void __threadfence_block() {}
static inline void __threadfence_system() {}
static inline void __nanosleep(unsigned) {}

/* ---- atomics ---- the types that CUDA has them for */

#if defined(SPT_EMULATED_WATCH)
void spt_emulated_atomic_begin(const void *data, size_t bytes);
#else
static inline void spt_emulated_atomic_begin(const void *, size_t) {}
#endif

template <typename T, typename Change>
SPT_UNWATCHED static inline T spt_emulated_atomic(T *data, Change change) {
  spt_emulated_atomic_begin(data, sizeof(T));
  T old = *data;
  *data = change(old);
  return old;
}
#define SPT_ATOMIC(name, T, expression)                                       \
  static inline T name(T *data, T value) {                                    \
    return spt_emulated_atomic(data, [=](T old) -> T { return expression; }); \
  }
SPT_ATOMIC(atomicAdd, int, (int)((unsigned)old + (unsigned)value))
SPT_ATOMIC(atomicAdd, unsigned, old + value)
SPT_ATOMIC(atomicAdd, unsigned long long, old + value)
SPT_ATOMIC(atomicAdd, float, old + value)
SPT_ATOMIC(atomicAdd, double, old + value)
SPT_ATOMIC(atomicSub, int, (int)((unsigned)old - (unsigned)value))
SPT_ATOMIC(atomicSub, unsigned, old - value)
SPT_ATOMIC(atomicInc, unsigned, old >= value ? 0 : old + 1)
SPT_ATOMIC(atomicDec, unsigned, old == 0 || old > value ? value : old - 1)
#define SPT_ATOMIC_INTEGERS(T)                        \
  SPT_ATOMIC(atomicMax, T, old < value ? value : old) \
  SPT_ATOMIC(atomicMin, T, value < old ? value : old) \
  SPT_ATOMIC(atomicAnd, T, old &value)                \
  SPT_ATOMIC(atomicOr, T, old | value)                \
  SPT_ATOMIC(atomicXor, T, old ^ value)
SPT_ATOMIC_INTEGERS(int)
SPT_ATOMIC_INTEGERS(unsigned)
SPT_ATOMIC_INTEGERS(unsigned long long)
SPT_ATOMIC(atomicMax, long long, old < value ? value : old)
SPT_ATOMIC(atomicMin, long long, value < old ? value : old)
SPT_ATOMIC(atomicExch, int, ((void)old, value))
SPT_ATOMIC(atomicExch, unsigned, ((void)old, value))
SPT_ATOMIC(atomicExch, unsigned long long, ((void)old, value))
SPT_ATOMIC(atomicExch, float, ((void)old, value))
#undef SPT_ATOMIC_INTEGERS
#undef SPT_ATOMIC
#define SPT_ATOMIC_CAS(T)                                                                   \
  static inline T atomicCAS(T *data, T expected, T value) {                                 \
    return spt_emulated_atomic(data, [=](T old) { return old == expected ? value : old; }); \
  }
SPT_ATOMIC_CAS(int)
SPT_ATOMIC_CAS(unsigned)
SPT_ATOMIC_CAS(unsigned long long)
SPT_ATOMIC_CAS(unsigned short)
#undef SPT_ATOMIC_CAS

#endif
