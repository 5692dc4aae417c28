/* cuda_runtime.h: stands in for CUDA's header of this name, so that the host compiler builds the .cu
 * files (SPT_CUDA_ON_CPU) and their kernels run on the CPU, thread by thread.
 *
 *  vectors.h     dim3, float4 and the like
 *  host_api.h    the runtime's functions that launchers call
 *  launch_cpu.h  launches, threadIdx and shared memory
 *  warp_ops.h    barriers, shuffles, votes
 *  math_ops.h    device arithmetic, atomics, loads with hints
 *
 * Kernels run one after another on the calling thread; each block's threads are coroutines, which
 * switch where they wait (block.cc). What the emulation finds wrong (a barrier that some threads never
 * reach, writes past an allocation or past shared memory, a lane that is read but does not take part)
 * is a failed launch whose text cudaGetErrorString gives.
 *
 * Environment: SPT_EMULATED_CAPABILITY (75, 80, 86, 89, 90; default 80), SPT_EMULATED_ORDER (forward,
 * reverse, or a number that seeds a shuffle: the order in which threads and blocks run),
 * SPT_EMULATED_FAULTS (faults.cc). */
#ifndef SPT_EMULATED_CUDA_RUNTIME_H
#define SPT_EMULATED_CUDA_RUNTIME_H

/* Before the qualifiers: the standard library has names of its own that look like them. */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <functional>
#include <type_traits>
#include <utility>

#if !defined(SPT_CUDA_ON_CPU)
#define SPT_CUDA_ON_CPU 1
#endif

#define CUDART_VERSION 13000

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __grid_constant__

#include "vectors.h"
#include "host_api.h"
#include "launch_cpu.h"
#include "warp_ops.h"
#include "math_ops.h"

#endif
