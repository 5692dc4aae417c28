/* memory.cu: kernels that write where they may and where they may not, and the runtime's calls. */
#include "exported.h"

/* data[from ... to - 1] = value, of 4 bytes each. */
__global__ void fill_kernel(int *data, int from, int to, int value) {
  for (int i = from + (int)threadIdx.x; i < to; i += (int)blockDim.x) {
    data[i] = value;
  }
}
EXPORTED int run_fill(int *data, int from, int to, int value) {
  return launched(fill_kernel, 1, 32, 0, 0, data, from, to, value);
}

/* Writes int `at` of `bytes` of shared memory. */
__global__ void shared_kernel(int at) {
  SPT_SHARED(int, memory);
  if (threadIdx.x == 5) {
    memory[at] = 1;
  }
}
EXPORTED int run_shared(int at, int bytes) { return launched(shared_kernel, 3, 32, bytes, 0, at); }
EXPORTED int run_much_shared(int asked, int bytes) {
  int code = cudaFuncSetAttribute((const void *)shared_kernel,
                                  cudaFuncAttributeMaxDynamicSharedMemorySize, asked);
  return code != cudaSuccess ? (cudaGetLastError(), code)
                             : launched(shared_kernel, 1, 32, bytes, 0, 0);
}

/* out[i] = what is in shared memory before anything is stored. */
__global__ void uninitialised_kernel(unsigned *out) {
  SPT_SHARED(unsigned, memory);
  out[threadIdx.x] = memory[threadIdx.x];
  memory[threadIdx.x] = 0;
}
EXPORTED int run_uninitialised(unsigned *out) {
  return launched(uninitialised_kernel, 2, 32, 128, 0, out);
}

EXPORTED int run_config(int x, int y, int threads) {
  return launched(fill_kernel, dim3(x, y), threads, 0, 0, NULL, 0, 0, 0);
}

/* ---- for Python ---- */

EXPORTED void *take(size_t bytes) {
  void *data;
  return cudaMalloc(&data, bytes) == cudaSuccess ? data : NULL;
}
EXPORTED int give(void *data) { return cudaFree(data); }
EXPORTED int copy(void *to, const void *from, size_t bytes, int kind) {
  return cudaMemcpy(to, from, bytes, (cudaMemcpyKind)kind);
}
EXPORTED int synchronise() { return cudaDeviceSynchronize(); }
EXPORTED int devices() {
  int count = -1;
  int code = cudaGetDeviceCount(&count);
  return code == cudaSuccess ? count : -code;
}
EXPORTED int memory_type(const void *data) {
  cudaPointerAttributes attributes;
  cudaPointerGetAttributes(&attributes, data);
  return attributes.type;
}
EXPORTED int attribute(int which) {
  int value = -1;
  cudaDeviceGetAttribute(&value, (cudaDeviceAttr)which, 0);
  return value;
}
EXPORTED int last_error() { return cudaGetLastError(); }
EXPORTED const char *text_of(int code) { return cudaGetErrorString((cudaError_t)code); }
