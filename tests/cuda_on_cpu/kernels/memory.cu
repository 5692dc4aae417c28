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

/* ---- graphs ---- */

__global__ void scale_kernel(int *data, int n, int by) {
  int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) {
    data[i] *= by;
  }
}

/* A graph of: data = host's n values, then data *= 2 and data *= 3 on another stream, then out = data. Replayed
 * twice, the host's values changed in between; out (2, n). */
EXPORTED int run_graph(int *host, int *out, int n) {
  int *data;
  cudaStream_t stream, side;
  cudaEvent_t forked, joined;
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  size_t bytes = sizeof(int) * n;
  cudaMalloc(&data, bytes);
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  cudaStreamCreateWithFlags(&side, cudaStreamNonBlocking);
  cudaEventCreateWithFlags(&forked, cudaEventDisableTiming);
  cudaEventCreateWithFlags(&joined, cudaEventDisableTiming);
  cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
  cudaMemcpyAsync(data, host, bytes, cudaMemcpyHostToDevice, stream);
  SPT_LAUNCH_RAW(scale_kernel, n / 32 + 1, 32, 0, stream, data, n, 2);
  cudaEventRecord(forked, stream);
  cudaStreamWaitEvent(side, forked, 0);
  SPT_LAUNCH_RAW(scale_kernel, n / 32 + 1, 32, 0, side, data, n, 3);
  cudaEventRecord(joined, side);
  cudaStreamWaitEvent(stream, joined, 0);
  cudaMemcpyAsync(host, data, bytes, cudaMemcpyDeviceToHost, stream);
  int before = host[0];
  int code = cudaStreamEndCapture(stream, &graph);
  if (code != cudaSuccess || host[0] != before) {
    return code != cudaSuccess ? code : -1;
  }
  code = cudaGraphInstantiate(&exec, graph, 0);
  cudaGraphDestroy(graph);
  for (int replay = 0; replay < 2 && code == cudaSuccess; replay++) {
    code = cudaGraphLaunch(exec, stream);
    cudaStreamSynchronize(stream);
    memcpy(out + replay * n, host, bytes);
    for (int i = 0; i < n; i++) {
      host[i] = -i;
    }
  }
  cudaGraphExecDestroy(exec);
  cudaEventDestroy(forked);
  cudaEventDestroy(joined);
  cudaStreamDestroy(side);
  cudaStreamDestroy(stream);
  cudaFree(data);
  return code;
}

/* What may not be done while a stream is captured; how it ends. 0: synchronise, 1: allocate, 2: leave a stream
 * unjoined, 3: use the legacy stream, 4: nothing wrong. */
EXPORTED int run_wrong_capture(int how) {
  cudaStream_t stream, side;
  cudaEvent_t forked;
  cudaGraph_t graph;
  int *data;
  cudaMalloc(&data, 4);
  cudaStreamCreate(&stream);
  cudaStreamCreate(&side);
  cudaEventCreate(&forked);
  cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal);
  cudaMemsetAsync(data, 0, 4, stream);
  cudaEventRecord(forked, stream);
  void *more = NULL;
  if (how == 0) {
    cudaStreamSynchronize(stream);
  } else if (how == 1) {
    cudaMalloc(&more, 4);
  } else if (how == 2) {
    cudaStreamWaitEvent(side, forked, 0);
  } else if (how == 3) {
    cudaMemsetAsync(data, 0, 4, 0);
  }
  int code = cudaStreamEndCapture(stream, &graph);
  cudaGetLastError();
  cudaGraphDestroy(graph);
  cudaEventDestroy(forked);
  cudaStreamDestroy(side);
  cudaStreamDestroy(stream);
  cudaFree(data);
  return code;
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
