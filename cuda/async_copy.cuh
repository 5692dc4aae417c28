/* async_copy.cuh: cp.async, from global to shared memory past the registers. sm_75 has none: there the copy is
 * done when the call returns, and commit and wait do nothing.
 *
 * spt_cp_async_N(to, from, used): N bytes, both addresses multiples of N; of `from` only the first `used`
 *     bytes are read, the others are 0 in `to`. With used = 0, `from` must still be an address that the
 *     kernel may read.
 * spt_cp_async_commit(): the calling thread's copies since its last commit are a group.
 * spt_cp_async_wait<N>(): until all but the newest N of the calling thread's groups are there. Other
 *     threads see them after a barrier that follows. */
#ifndef SPATILE_CUDA_ASYNC_COPY_CUH
#define SPATILE_CUDA_ASYNC_COPY_CUH

#include <stdint.h>

#include "launch.h"

#if defined(SPT_CUDA_ON_CPU)

#include "async_ops.h"

static inline void spt_cp_async_4(void *to, const void *from, int used = 4) {
  spt_emulated_copy_async(to, from, 4, (unsigned)used);
}
static inline void spt_cp_async_8(void *to, const void *from, int used = 8) {
  spt_emulated_copy_async(to, from, 8, (unsigned)used);
}
static inline void spt_cp_async_16(void *to, const void *from, int used = 16) {
  spt_emulated_copy_async(to, from, 16, (unsigned)used);
}
static inline void spt_cp_async_commit() { spt_emulated_copy_commit(); }
template <int PENDING>
static inline void spt_cp_async_wait() {
  spt_emulated_copy_wait(PENDING);
}

#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800

static __device__ __forceinline__ uint32_t spt_shared_address(const void *shared) {
  return (uint32_t)__cvta_generic_to_shared(shared);
}
static __device__ __forceinline__ void spt_cp_async_4(void *to, const void *from, int used = 4) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(spt_shared_address(to)),
               "l"(__cvta_generic_to_global(from)), "r"(used)
               : "memory");
}
static __device__ __forceinline__ void spt_cp_async_8(void *to, const void *from, int used = 8) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(spt_shared_address(to)),
               "l"(__cvta_generic_to_global(from)), "r"(used)
               : "memory");
}
/* 16 bytes pass by the first cache: what a tile holds is read from shared memory. */
static __device__ __forceinline__ void spt_cp_async_16(void *to, const void *from, int used = 16) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(spt_shared_address(to)),
               "l"(__cvta_generic_to_global(from)), "r"(used)
               : "memory");
}
static __device__ __forceinline__ void spt_cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int PENDING>
static __device__ __forceinline__ void spt_cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

#else /* sm_75 */

template <typename T>
static __device__ __forceinline__ void spt_copy_now(void *to, const void *from, int used) {
  T value = T();
  if (used == (int)sizeof(T)) {
    value = *static_cast<const T *>(from);
  } else {
    for (int i = 0; i < (int)sizeof(T); i++) {
      reinterpret_cast<char *>(&value)[i] = i < used ? static_cast<const char *>(from)[i] : 0;
    }
  }
  *static_cast<T *>(to) = value;
}
static __device__ __forceinline__ void spt_cp_async_4(void *to, const void *from, int used = 4) {
  spt_copy_now<uint32_t>(to, from, used);
}
static __device__ __forceinline__ void spt_cp_async_8(void *to, const void *from, int used = 8) {
  spt_copy_now<uint2>(to, from, used);
}
static __device__ __forceinline__ void spt_cp_async_16(void *to, const void *from, int used = 16) {
  spt_copy_now<uint4>(to, from, used);
}
static __device__ __forceinline__ void spt_cp_async_commit() {}
template <int PENDING>
static __device__ __forceinline__ void spt_cp_async_wait() {}

#endif
#endif
