/* pack.cuh: 16 bytes at a time where elements are neighbours and aligned, and elements of any dtype and
 * strides where they are not. */
#ifndef SPATILE_CUDA_PACK_CUH
#define SPATILE_CUDA_PACK_CUH

#include "storage.cuh"
#include "view.cuh"

#define SPT_PACK_BYTES 16

/* Aligned as it is, it is moved by one instruction. */
template <typename T>
struct alignas(SPT_PACK_BYTES) spt_pack {
  static constexpr int N = SPT_PACK_BYTES / (int)sizeof(T);
  T element[N];
};

/* N elements from p on, all of them there. */
template <typename T>
static __device__ __forceinline__ void spt_load_pack(float (&to)[spt_pack<T>::N], const T *p) {
  const spt_pack<T> raw = *reinterpret_cast<const spt_pack<T> *>(p);
#pragma unroll
  for (int i = 0; i < spt_pack<T>::N; i++) {
    to[i] = spt_to_float(raw.element[i]);
  }
}

template <typename T>
static __device__ __forceinline__ void spt_store_pack(T *p, const float (&from)[spt_pack<T>::N]) {
  spt_pack<T> raw;
#pragma unroll
  for (int i = 0; i < spt_pack<T>::N; i++) {
    raw.element[i] = spt_round_to((T *)nullptr, from[i]);
  }
  *reinterpret_cast<spt_pack<T> *>(p) = raw;
}

/* One element whose type is known only when the kernel runs. */
static __device__ __forceinline__ float spt_load_any(const char *p, int dtype) {
  if (dtype == SPT_F32) {
    return *reinterpret_cast<const float *>(p);
  }
  if (dtype == SPT_F16) {
    return spt_load(reinterpret_cast<const spt_half *>(p));
  }
  return spt_load(reinterpret_cast<const spt_bfloat *>(p));
}

static __device__ __forceinline__ void spt_store_any(char *p, int dtype, float value) {
  if (dtype == SPT_F32) {
    *reinterpret_cast<float *>(p) = value;
  } else if (dtype == SPT_F16) {
    spt_store(reinterpret_cast<spt_half *>(p), value);
  } else {
    spt_store(reinterpret_cast<spt_bfloat *>(p), value);
  }
}

static inline int64_t spt_storage_bytes(spt_dtype dtype) { return dtype == SPT_F32 ? 4 : 2; }

/* Of an array of a storage type: the element at a row-major number of its first `axes` axes (view.at),
 * and from there on along the last axis in steps. All in bytes. */
struct spt_any_view {
  spt_view<char> view;
  int64_t step;
  int32_t dtype;

  spt_any_view(const spt_tensor &t, int axes) : view(t), step(0), dtype(t.dtype) {
    int64_t size = spt_storage_bytes(t.dtype);
    for (int i = 0; i < t.ndim; i++) {
      view.stride[i] *= size;
    }
    step = t.ndim > 0 ? view.stride[t.ndim - 1] : 0;
    view.ndim = axes;
  }
  __device__ __forceinline__ char *at(int64_t i) const { return view.at(i); }
};

/* Whether each row (the last axis) of t is one of neighbours that start at multiples of 16 bytes. */
static inline bool spt_has_packed_rows(const spt_tensor *t, spt_dtype dtype) {
  int64_t size = spt_storage_bytes(dtype);
  if (t->dtype != dtype || t->ndim == 0 || (uintptr_t)t->data % SPT_PACK_BYTES != 0) {
    return false;
  }
  for (int i = 0; i < t->ndim - 1; i++) {
    if (t->shape[i] > 1 && t->stride[i] * size % SPT_PACK_BYTES != 0) {
      return false;
    }
  }
  return t->stride[t->ndim - 1] == 1;
}

#endif
