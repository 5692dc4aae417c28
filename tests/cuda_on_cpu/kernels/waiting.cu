/* waiting.cu: kernels that wait for one another, rightly and wrongly. Each launcher returns CUDA's code. */
#include "exported.h"
#include "warp.cuh"

/* out[i] = in[n - 1 - i], through shared memory. */
__global__ void reverse_kernel(const int *in, int *out, int n) {
  SPT_SHARED(int, tile);
  int i = (int)threadIdx.x;
  tile[i] = in[i];
  __syncthreads();
  out[i] = tile[n - 1 - i];
}
EXPORTED int run_reverse(const int *in, int *out, int n) {
  return launched(reverse_kernel, 1, n, sizeof(int) * n, 0, in, out, n);
}

/* out: 3 counts of threads whose number is below `limit`: how many, whether any, whether all. */
__global__ void count_kernel(int *out, int limit) {
  int below = (int)threadIdx.x < limit;
  int count = __syncthreads_count(below), any = __syncthreads_or(below);
  int all = __syncthreads_and(below);
  if (threadIdx.x == blockDim.x - 1) {
    out[0] = count;
    out[1] = any;
    out[2] = all;
  }
}
EXPORTED int run_count(int *out, int threads, int limit) {
  return launched(count_kernel, 1, threads, 0, 0, out, limit);
}

/* out (8, 32): what each lane gets of a value that is its number plus 100. */
__global__ void shuffle_kernel(int *out, int amount, int width) {
  int lane = (int)threadIdx.x;
  long long wide = 100 + lane;
  out[lane] = __shfl_sync(SPT_ALL_LANES, 100 + lane, amount, width);
  out[32 + lane] = __shfl_up_sync(SPT_ALL_LANES, 100 + lane, (unsigned)amount, width);
  out[64 + lane] = __shfl_down_sync(SPT_ALL_LANES, 100 + lane, (unsigned)amount, width);
  out[96 + lane] = (int)__shfl_xor_sync(SPT_ALL_LANES, wide, amount, width);
  out[128 + lane] = (int)__ballot_sync(SPT_ALL_LANES, lane % 3 == 0);
  out[160 + lane] = __any_sync(SPT_ALL_LANES, lane == amount);
  out[192 + lane] = __all_sync(SPT_ALL_LANES, lane != amount);
  out[224 + lane] = (int)__match_any_sync(SPT_ALL_LANES, lane / 5);
}
EXPORTED int run_shuffle(int *out, int amount, int width) {
  return launched(shuffle_kernel, 1, 32, 0, 0, out, amount, width);
}

/* Halves of a warp that take part in collectives of their own. */
__global__ void halves_kernel(int *out) {
  int lane = (int)threadIdx.x;
  if (lane < 16) {
    out[lane] = __shfl_xor_sync(0x0000ffffu, lane, 1);
  } else {
    out[lane] = __shfl_xor_sync(0xffff0000u, lane, 2);
  }
  __syncwarp();
  out[lane] += __shfl_sync(SPT_ALL_LANES, lane, 31);
}
EXPORTED int run_halves(int *out) { return launched(halves_kernel, 1, 32, 0, 0, out); }

/* out[0]: the sum of all numbers of threads over all blocks. */
__global__ void sum_kernel(unsigned long long *out) {
  int lane_sum = (int)spt_warp_sum((float)threadIdx.x);
  if (threadIdx.x % SPT_WARP == 0) {
    atomicAdd(out, (unsigned long long)lane_sum);
  }
}
EXPORTED int run_sum(unsigned long long *out, int blocks, int threads) {
  return launched(sum_kernel, blocks, threads, 0, 0, out);
}

enum Wrong {
  EXITS,
  OTHER_BARRIER,
  BARRIER_AND_SHUFFLE,
  LANE_MISSING,
  OTHER_MASK,
  NOT_NAMED,
  READS_INACTIVE,
  PARTIAL_WARP,
  WIDTH,
  DEADLOCK_OF_HALVES
};

__global__ void wrong_kernel(int how, int *out) {
  int i = (int)threadIdx.x;
  switch (how) {
    case EXITS:
      if (i == 3) {
        return;
      }
      __syncthreads();
      break;
    case OTHER_BARRIER:
      if (i < 32) {
        __syncthreads();
      } else {
        __syncthreads();
      }
      break;
    case BARRIER_AND_SHUFFLE:
      if (i == 7) {
        __syncthreads();
      } else {
        out[i] = __shfl_sync(SPT_ALL_LANES, i, 0);
        __syncthreads();
      }
      break;
    case LANE_MISSING:
      if (i % 32 != 9) {
        out[i] = __shfl_sync(SPT_ALL_LANES, i, 0);
      }
      break;
    case OTHER_MASK:
      out[i] = __shfl_sync(i % 2 ? SPT_ALL_LANES : 0x55555555u, i, 0);
      break;
    case NOT_NAMED:
      out[i] = __shfl_sync(1u, i, 0);
      break;
    case READS_INACTIVE:
      if (i % 32 < 8) {
        out[i] = __shfl_down_sync(0xffu, i, 4);
      }
      break;
    case PARTIAL_WARP:
      out[i] = __shfl_sync(SPT_ALL_LANES, i, 0);
      break;
    case WIDTH:
      out[i] = __shfl_sync(SPT_ALL_LANES, i, 0, 24);
      break;
    default:
      if (i % 32 < 16) {
        __syncwarp();
      } else {
        out[i] = __any_sync(SPT_ALL_LANES, i);
      }
  }
}
EXPORTED int run_wrong(int how, int threads) {
  int *out;
  cudaMalloc(&out, 1024 * sizeof(int));
  int code = launched(wrong_kernel, dim3(1, 2), threads, 0, 0, how, out);
  cudaFree(out);
  return code;
}
