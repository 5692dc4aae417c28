/* launch_cpu.h: a launch as a closure, where a thread is in its grid, and shared memory. */
#ifndef SPT_EMULATED_LAUNCH_CPU_H
#define SPT_EMULATED_LAUNCH_CPU_H

#include <functional>
#include <memory>
#include <utility>

#include "host_api.h"
#include "vectors.h"

/* Of the thread that runs; the scheduler sets them whenever it switches. */
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
static const int warpSize = 32;

/* Shared memory of the block that runs: exactly as large as the launch asked for, 1024-byte aligned. */
extern unsigned char *spt_emulated_shared_memory;
static inline void *spt_emulated_shared() { return spt_emulated_shared_memory; }

struct spt_emulated_config {
  const char *name; /* as the source writes it */
  const void *kernel;
  dim3 grid, block;
  size_t shared;
};

/* For what stands in for a library's kernels: host code that touches device memory when the stream, or a
 * graph captured from it, comes to it. */
cudaError_t spt_emulated_enqueue(cudaStream_t, std::function<void()> work);

/* Runs the launch, or records it where the stream is being captured. `thread` is what each thread does with
 * the arguments that `closure` keeps. */
void spt_emulated_launch(const spt_emulated_config &, cudaStream_t,
                         std::shared_ptr<const void> closure, void (*thread)(const void *closure));

/* The closure is the host's memory, which kernels may not read: here they do. */
#define SPT_UNWATCHED __attribute__((no_sanitize("thread")))
template <typename Closure>
SPT_UNWATCHED static void spt_emulated_call(const void *closure) {
  (*static_cast<const Closure *>(closure))();
}

/* Arguments are converted to the kernel's parameters at the call and kept by value, as CUDA does. */
template <typename... Parameters>
struct spt_emulated_kernel {
  void (*kernel)(Parameters...);
  spt_emulated_config config;
  cudaStream_t stream;

  void operator()(Parameters... arguments) const {
    void (*run)(Parameters...) = kernel;
    auto closure = [=]() SPT_UNWATCHED { run(arguments...); };
    typedef decltype(closure) Closure;
    spt_emulated_launch(config, stream, std::make_shared<const Closure>(closure),
                        spt_emulated_call<Closure>);
  }
};

template <typename... Parameters>
static inline spt_emulated_kernel<Parameters...> spt_emulated_kernel_of(
    const char *name, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared,
    cudaStream_t stream) {
  return {kernel, {name, (const void *)kernel, grid, block, shared}, stream};
}

#define SPT_LAUNCH_ON_CPU(kernel, grid, block, shared, stream, ...) \
  spt_emulated_kernel_of(#kernel, kernel, grid, block, shared, stream)(__VA_ARGS__)

#endif
