/* races.cu: kernels whose threads are in one another's way, and the same ones put right. For watched builds. */
#include "async_copy.cuh"
#include "exported.h"
#include "warp.cuh"

enum Race {
  NO_BARRIER,
  NO_SYNCWARP,
  NO_BARRIER_BEFORE_REUSE,
  ATOMIC_AND_PLAIN,
  ASYNC_OVER_READS,
  PAST_SHARED,
  PAST_DEVICE,
  BEFORE_DEVICE,
  HOST_MEMORY
};

/* With `right`, what is missing is there. */
__global__ void race_kernel(int how, bool right, const int *in, int *out, const int *host) {
  SPT_SHARED(int, memory);
  int i = (int)threadIdx.x, n = (int)blockDim.x;
  switch (how) {
    case NO_BARRIER:
      memory[i] = in[i];
      if (right) {
        __syncthreads();
      }
      out[i] = memory[n - 1 - i];
      break;
    case NO_SYNCWARP:
      memory[i] = in[i];
      if (right) {
        __syncwarp();
      }
      out[i] = memory[i ^ 1];
      break;
    case NO_BARRIER_BEFORE_REUSE:
      for (int round = 0; round < 2; round++) {
        memory[i] = in[i] + round;
        __syncthreads();
        out[i] = memory[(i + 40) % n];
        if (right) {
          __syncthreads();
        }
      }
      break;
    case ATOMIC_AND_PLAIN:
      if (i == 0) {
        memory[0] = 0;
      }
      __syncthreads();
      atomicAdd(memory, 1);
      if (right) {
        __syncthreads();
      }
      out[i] = memory[0];
      break;
    case ASYNC_OVER_READS:
      memory[4 * i] = in[i];
      __syncthreads();
      out[i] = memory[4 * ((i + 40) % n)];
      if (right) {
        __syncthreads();
      }
      spt_cp_async_16(memory + 4 * i, in);
      spt_cp_async_commit();
      spt_cp_async_wait<0>();
      break;
    case PAST_SHARED:
      memory[i] = i;
      out[i] = i == 9 ? memory[right ? 9 : 4 * n] : 0;
      break;
    case PAST_DEVICE:
      out[i] = in[right ? i : i + 1];
      break;
    case BEFORE_DEVICE:
      out[i] = in[right ? i : i - 1];
      break;
    default:
      out[i] = right ? in[0] : *host;
  }
}
EXPORTED int run_race(int how, int right, const int *in, int *out, int n) {
  int host = 5;
  return launched(race_kernel, 1, n, 16 * n, 0, how, right != 0, in, out, &host);
}

EXPORTED int host_reads(const int *in) { return *in == -1 ? -1 : cudaGetLastError(); }
