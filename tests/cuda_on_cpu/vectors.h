/* vectors.h: CUDA's small vectors, aligned as CUDA aligns them: nvcc's wide loads rely on that. */
#ifndef SPT_EMULATED_VECTORS_H
#define SPT_EMULATED_VECTORS_H

#include <stdint.h>

#define SPT_VECTORS(type, base, align2, align4)                                      \
  struct alignas(sizeof(type)) base##1 { type x; };                                  \
  struct alignas(align2) base##2 { type x, y; };                                     \
  struct base##3 { type x, y, z; };                                                  \
  struct alignas(align4) base##4 { type x, y, z, w; };                               \
  static inline base##1 make_##base##1(type x) { return {x}; }                       \
  static inline base##2 make_##base##2(type x, type y) { return {x, y}; }            \
  static inline base##3 make_##base##3(type x, type y, type z) { return {x, y, z}; } \
  static inline base##4 make_##base##4(type x, type y, type z, type w) { return {x, y, z, w}; }

SPT_VECTORS(signed char, char, 2, 4)
SPT_VECTORS(unsigned char, uchar, 2, 4)
SPT_VECTORS(short, short, 4, 8)
SPT_VECTORS(unsigned short, ushort, 4, 8)
SPT_VECTORS(int, int, 8, 16)
SPT_VECTORS(unsigned int, uint, 8, 16)
SPT_VECTORS(long long, longlong, 16, 16)
SPT_VECTORS(unsigned long long, ulonglong, 16, 16)
SPT_VECTORS(float, float, 8, 16)
SPT_VECTORS(double, double, 16, 16)
#undef SPT_VECTORS

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
};

#endif
