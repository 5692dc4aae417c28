/* launch.h: how a .cu file meets the GPU, and nothing else may: launches, shared memory, errors.
 *
 * The same source is built twice: by nvcc for a GPU, and by the host compiler against
 * tests/cuda_on_cpu/cuda_runtime.h, which runs the kernels thread by thread. Therefore
 *  - kernels are launched by SPT_LAUNCH alone,
 *  - shared memory is SPT_SHARED alone (dynamic: poisoned before each block and guarded at its end),
 *  - PTX stands only in the wrappers of mma.cuh, async_copy.cuh, exp2.cuh and opaque.cuh, beside a
 *    host twin,
 *  - no library for device code (cub, cooperative groups, cuda_fp16.h) but storage.cuh's conversions. */
#ifndef SPATILE_CUDA_LAUNCH_H
#define SPATILE_CUDA_LAUNCH_H

#include <cuda_runtime.h>

#include "../csrc/backend.h"

#if defined(SPT_CUDA_ON_CPU)
/* cuda_runtime.h's stand-in has SPT_LAUNCH_ON_CPU(kernel, grid, block, shared, stream, ...) and
 * spt_emulated_shared(). */
#define SPT_LAUNCH_RAW SPT_LAUNCH_ON_CPU
#define SPT_SHARED(type, name) type *name = (type *)spt_emulated_shared()
#else
#define SPT_LAUNCH_RAW(kernel, grid, block, shared, stream, ...) \
  kernel<<<grid, block, shared, stream>>>(__VA_ARGS__)
extern __shared__ __align__(1024) unsigned char spt_shared_memory[];
#define SPT_SHARED(type, name) type *name = reinterpret_cast<type *>(spt_shared_memory)
#endif

/* A status that says what was being done, from a code of the CUDA runtime. `bytes` is what was asked
 * for where memory lacked. Clears the runtime's error, so that later calls are not poisoned. */
SPT_WARN_UNUSED spt_status spt_cuda_fail(spt_error *err, const char *op, const char *doing,
                                         cudaError_t code, size_t bytes);

#define SPT_CUDA_TRY(op, doing, call)                         \
  do {                                                        \
    cudaError_t spt_code_ = (call);                           \
    if (spt_code_ != cudaSuccess) {                           \
      return spt_cuda_fail(err, (op), (doing), spt_code_, 0); \
    }                                                         \
  } while (0)

/* Lets the kernel's blocks have as much shared memory as the device has for one, `bytes` at least. Never less
 * than another thread, or a graph, launches the kernel with: the limit is the kernel's, not a launch's. */
SPT_WARN_UNUSED cudaError_t spt_cuda_allow_shared(const void *kernel, size_t bytes);

/* Launches in the calling function's name; `err` is the caller's. A kernel with commas in its name
 * goes in parentheses. More than 48 KB of shared memory is asked for first. */
#define SPT_LAUNCH(op, kernel, grid, block, shared, stream, ...)                      \
  do {                                                                                \
    if ((size_t)(shared) > 48 * 1024) {                                               \
      SPT_CUDA_TRY(op, "reserving shared memory",                                     \
                   spt_cuda_allow_shared((const void *)(kernel), (size_t)(shared)));  \
    }                                                                                 \
    SPT_LAUNCH_RAW(kernel, (grid), (block), (size_t)(shared), (stream), __VA_ARGS__); \
    SPT_CUDA_TRY(op, "launching " #kernel, cudaGetLastError());                       \
  } while (0)

static inline int64_t spt_blocks(int64_t n, int64_t per_block) {
  return n / per_block + (n % per_block != 0);
}

#endif
