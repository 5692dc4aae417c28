/* graphs.cu: streams that are captured, rightly and wrongly, and graphs that are replayed. */
#include <thread>

#include "exported.h"

__global__ void set_kernel(int *data, int n, int value) {
  int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) {
    data[i] = value;
  }
}

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

/* What may not be done while a stream is captured; how the capture ends. 0: synchronise, 1: allocate, 2: leave
 * a stream unjoined, 3: use the legacy stream, 4: nothing wrong, 5: end it on another stream, 6: end it in
 * another thread, 7: wait for the device in another thread; in relaxed mode 8 to 10: as 5 to 7, 11: as 1. */
EXPORTED int run_wrong_capture(int how) {
  cudaStream_t stream, side;
  cudaEvent_t forked;
  cudaGraph_t graph = NULL;
  int *data;
  cudaMalloc(&data, 4);
  cudaStreamCreate(&stream);
  cudaStreamCreate(&side);
  cudaEventCreate(&forked);
  cudaStreamBeginCapture(stream,
                         how >= 8 ? cudaStreamCaptureModeRelaxed : cudaStreamCaptureModeGlobal);
  cudaMemsetAsync(data, 0, 4, stream);
  cudaEventRecord(forked, stream);
  void *more = NULL;
  int code = cudaSuccess;
  if (how == 0) {
    cudaStreamSynchronize(stream);
  } else if (how == 1 || how == 11) {
    cudaMalloc(&more, 4);
  } else if (how == 2) {
    cudaStreamWaitEvent(side, forked, 0);
  } else if (how == 3) {
    cudaMemsetAsync(data, 0, 4, 0);
  } else if (how == 5 || how == 8) {
    cudaStreamWaitEvent(side, forked, 0);
    code = cudaStreamEndCapture(side, &graph);
  } else if (how == 6 || how == 9) {
    std::thread([&] { code = cudaStreamEndCapture(stream, &graph); }).join();
  } else if (how == 7 || how == 10) {
    std::thread([] { cudaDeviceSynchronize(); }).join();
  }
  int end = how == 9 ? code : cudaStreamEndCapture(stream, &graph);
  code = code != cudaSuccess ? code : end;
  cudaGetLastError();
  if (graph != NULL) {
    cudaGraphDestroy(graph);
  }
  cudaFree(more);
  cudaEventDestroy(forked);
  cudaStreamDestroy(side);
  cudaStreamDestroy(stream);
  cudaFree(data);
  return code;
}

/* data = 7 by a graph, from its capture to its replay: the first code that is none of success. Nothing is
 * left of it. */
EXPORTED int run_captured_fill(int *data, int n) {
  cudaStream_t stream;
  cudaGraph_t graph = NULL;
  cudaGraphExec_t exec = NULL;
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  int code = cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
  SPT_LAUNCH_RAW(set_kernel, n / 32 + 1, 32, 0, stream, data, n, 7);
  int launched = cudaGetLastError(), end = cudaStreamEndCapture(stream, &graph);
  code = code != cudaSuccess ? code : launched != cudaSuccess ? launched : end;
  if (code == cudaSuccess) {
    code = cudaGraphInstantiate(&exec, graph, 0);
  }
  if (code == cudaSuccess) {
    code = cudaGraphLaunch(exec, stream);
  }
  if (graph != NULL) {
    cudaGraphDestroy(graph);
  }
  if (exec != NULL) {
    cudaGraphExecDestroy(exec);
  }
  cudaStreamDestroy(stream);
  cudaGetLastError();
  return code;
}

/* What is destroyed twice, or launched after it was destroyed. */
EXPORTED int run_destroyed_graph(int launch) {
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
  cudaStreamEndCapture(stream, &graph);
  cudaGraphInstantiate(&exec, graph, 0);
  cudaGraphDestroy(graph);
  cudaGraphExecDestroy(exec);
  int code = launch ? cudaGraphLaunch(exec, stream) : cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
  cudaGetLastError();
  return code;
}

/* A kernel captured with much shared memory, whose limit is lower when it is replayed. */
__global__ void shared_in_graph_kernel(int *data) {
  SPT_SHARED(int, memory);
  memory[threadIdx.x] = (int)threadIdx.x;
  data[threadIdx.x] = memory[threadIdx.x];
}
EXPORTED int run_graph_with_less_shared(int *data, int then) {
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  const void *kernel = (const void *)shared_in_graph_kernel;
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 100 * 1024);
  cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
  SPT_LAUNCH_RAW(shared_in_graph_kernel, 1, 32, 100 * 1024, stream, data);
  cudaStreamEndCapture(stream, &graph);
  cudaGraphInstantiate(&exec, graph, 0);
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, then);
  int code = cudaGraphLaunch(exec, stream);
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
  cudaGetLastError();
  return code;
}
