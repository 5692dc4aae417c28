/* prune_mask.cuh: which scores of a unit, whose groups compete, are kept: radix select. The kernels of
 * prune_mask.cu. */
#ifndef SPATILE_CUDA_PRUNE_MASK_CUH
#define SPATILE_CUDA_PRUNE_MASK_CUH

#include "view.cuh"
#include "warp.cuh"

#define THREADS 512
#define WARPS (THREADS / SPT_WARP)
#define DIGITS 2048          /* values of the first digit */
#define CHUNK (16 * THREADS) /* scores of a block that looks for equals in order */

/* Groups that compete. */
struct prune_unit {
  int64_t begin, n, pruned;
};

/* What is known of the score at the unit's rank: its upper digits; how many of those that have these
 * are pruned, and, at the end, how many have them. */
struct prune_rank {
  uint32_t key;
  int64_t pruned, equal;
};

static __device__ __forceinline__ int digit_shift(int digit) { return 20 - 10 * digit; }
static __device__ __forceinline__ int digit_values(int digit) { return digit == 0 ? DIGITS : 1024; }
static __device__ __forceinline__ bool has_digits(uint32_t key, uint32_t known, int digit) {
  return digit == 0 || key >> (digit_shift(digit) + 10) == known >> (digit_shift(digit) + 10);
}

/* ---- device: counting and finding --------------------------------------------------------------- */

/* Adds one for each lane that counts. Scores are alike, and one address takes one lane at a time: lanes
 * of one digit are added at once. All lanes of a warp come here. */
static __device__ __forceinline__ void count_digit(uint32_t *counts, bool counted, uint32_t digit) {
  unsigned lanes = __ballot_sync(SPT_ALL_LANES, counted);
  if (lanes == 0) {
    return;
  }
  int first = __ffs((int)lanes) - 1;
  uint32_t of_first = __shfl_sync(SPT_ALL_LANES, digit, first);
  if (__all_sync(SPT_ALL_LANES, !counted || digit == of_first)) {
    if ((int)threadIdx.x % SPT_WARP == first) {
      atomicAdd(&counts[digit], (unsigned)__popc(lanes));
    }
  } else if (counted) {
    atomicAdd(&counts[digit], 1u);
  }
}

/* The sum of `value` over the threads before this one, and over all. `spare`: WARPS of them. */
template <typename N>
static __device__ N sum_before(N value, N *spare, N *total) {
  int lane = (int)threadIdx.x % SPT_WARP, warp = (int)threadIdx.x / SPT_WARP;
  N sum = value;
  for (int offset = 1; offset < SPT_WARP; offset *= 2) {
    N before = __shfl_up_sync(SPT_ALL_LANES, sum, (unsigned)offset);
    sum += lane >= offset ? before : (N)0;
  }
  __syncthreads();
  if (lane == SPT_WARP - 1) {
    spare[warp] = sum;
  }
  __syncthreads();
  N before = 0, all = 0;
  for (int i = 0; i < WARPS; i++) {
    before += i < warp ? spare[i] : (N)0;
    all += spare[i];
  }
  *total = all;
  return before + sum - value;
}

/* The digit within which rank->pruned falls, from the counts of all its values. */
template <typename N>
static __device__ void find_digit(const N *counts, int digit, int64_t *spare, prune_rank *rank) {
  int each = digit_values(digit) / THREADS, first = (int)threadIdx.x * each;
  int64_t own = 0, total, k = rank->pruned;
  for (int i = 0; i < each; i++) {
    own += (int64_t)counts[first + i];
  }
  int64_t before = sum_before(own, spare, &total); /* all have read rank->pruned by now */
  if (before < k && k <= before + own) {
    int value = first;
    while (k > before + (int64_t)counts[value]) {
      before += (int64_t)counts[value++];
    }
    rank->key |= (uint32_t)value << digit_shift(digit);
    rank->pruned = k - before;
    rank->equal = (int64_t)counts[value];
  }
  __syncthreads();
}

/* Of a span of scores, `seen` of the unit's equals coming before it: what is kept. */
static __device__ void keep_span(const uint32_t *keys, uint8_t *keep, int64_t n, prune_rank rank,
                                 int64_t seen, int64_t *spare) {
  int64_t kept_equals = rank.equal - rank.pruned;
  for (int64_t first = 0; first < n; first += THREADS) {
    int64_t i = first + threadIdx.x, total = 0, before = 0;
    uint32_t key = i < n ? keys[i] : 0;
    bool equal = i < n && key == rank.key;
    if (kept_equals > 0) { /* else none is, whatever their order */
      before = seen + sum_before((int64_t)equal, spare, &total);
      seen += total;
    }
    if (i < n) {
      keep[i] = key > rank.key || (equal && before < kept_equals);
    }
  }
}

/* ---- kernels ------------------------------------------------------------------------------------ */

/* bad: the first score that is not finite, counting from `first`. */
__global__ void __launch_bounds__(THREADS)
    refuse_kernel(const uint32_t *keys, int64_t n, int64_t first, unsigned long long *bad) {
  for (int64_t i = blockIdx.x * (int64_t)THREADS + threadIdx.x; i < n;
       i += gridDim.x * (int64_t)THREADS) {
    if ((keys[i] & 0x7f800000u) == 0x7f800000u) {
      atomicMin(bad, (unsigned long long)(first + i));
    }
  }
}

/* A block for each unit. */
__global__ void __launch_bounds__(THREADS)
    prune_unit_kernel(const uint32_t *all_keys, uint8_t *all_keep, const prune_unit *units) {
  SPT_SHARED(int64_t, memory); /* sum_before's, the rank, counts */
  prune_rank *rank = reinterpret_cast<prune_rank *>(memory + WARPS);
  uint32_t *counts = reinterpret_cast<uint32_t *>(rank + 1);
  prune_unit unit = units[blockIdx.x];
  const uint32_t *keys = all_keys + unit.begin;
  if (threadIdx.x == 0) {
    *rank = {0, unit.pruned, unit.pruned == 0 ? unit.n : 0}; /* if none: all equal 0 or are above */
  }
  for (int digit = 0; digit < 3 && unit.pruned > 0; digit++) {
    for (int i = (int)threadIdx.x; i < digit_values(digit); i += THREADS) {
      counts[i] = 0;
    }
    __syncthreads();
    uint32_t known = rank->key;
#pragma unroll 4
    for (int64_t first = 0; first < unit.n; first += THREADS) {
      int64_t i = first + threadIdx.x;
      uint32_t key = i < unit.n ? keys[i] : 0;
      count_digit(counts, i < unit.n && has_digits(key, known, digit),
                  key >> digit_shift(digit) & (uint32_t)(digit_values(digit) - 1));
    }
    __syncthreads();
    find_digit(counts, digit, memory, rank);
  }
  __syncthreads();
  prune_rank found = *rank;
  keep_span(keys, all_keep + unit.begin, unit.n, found, 0, memory);
}

/* One unit of many groups: the kernels below, one after another. */
__global__ void __launch_bounds__(THREADS)
    start_kernel(prune_rank *rank, prune_unit unit, unsigned long long *counts) {
  if (threadIdx.x == 0) {
    *rank = {0, unit.pruned, unit.pruned == 0 ? unit.n : 0}; /* if none: all equal 0 or are above */
  }
  for (int i = (int)threadIdx.x; i < DIGITS; i += THREADS) {
    counts[i] = 0;
  }
}

__global__ void __launch_bounds__(THREADS)
    count_kernel(const uint32_t *keys, int64_t n, int digit, const prune_rank *rank,
                 unsigned long long *all_counts) {
  SPT_SHARED(uint32_t, counts);
  for (int i = (int)threadIdx.x; i < digit_values(digit); i += THREADS) {
    counts[i] = 0;
  }
  __syncthreads();
  uint32_t known = rank->key;
  int64_t step = (int64_t)gridDim.x * THREADS;
#pragma unroll 4
  for (int64_t first = blockIdx.x * (int64_t)THREADS; first < n; first += step) {
    int64_t i = first + threadIdx.x;
    uint32_t key = i < n ? keys[i] : 0;
    count_digit(counts, i < n && has_digits(key, known, digit),
                key >> digit_shift(digit) & (uint32_t)(digit_values(digit) - 1));
  }
  __syncthreads();
  for (int i = (int)threadIdx.x; i < digit_values(digit); i += THREADS) {
    if (counts[i] != 0) {
      atomicAdd(&all_counts[i], (unsigned long long)counts[i]);
    }
  }
}

/* One block; leaves the counts at 0. */
__global__ void __launch_bounds__(THREADS)
    find_kernel(int digit, prune_rank *rank, unsigned long long *counts) {
  SPT_SHARED(int64_t, memory);
  find_digit(counts, digit, memory, rank);
  for (int i = (int)threadIdx.x; i < DIGITS; i += THREADS) {
    counts[i] = 0;
  }
}

/* Equals of each chunk; nothing where their order does not matter. */
__global__ void __launch_bounds__(THREADS)
    equals_kernel(const uint32_t *keys, int64_t n, const prune_rank *rank, int64_t *equals) {
  SPT_SHARED(int64_t, memory);
  if (rank->equal == rank->pruned) {
    return;
  }
  int64_t chunks = (n + CHUNK - 1) / CHUNK;
  for (int64_t chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
    int64_t own = 0, total, end = spt_least((chunk + 1) * CHUNK, n);
    for (int64_t i = chunk * CHUNK + threadIdx.x; i < end; i += THREADS) {
      own += keys[i] == rank->key;
    }
    (void)sum_before(own, memory, &total);
    if (threadIdx.x == 0) {
      equals[chunk] = total;
    }
  }
}

/* One block: equals of the chunks before each. */
__global__ void __launch_bounds__(THREADS)
    equals_before_kernel(const prune_rank *rank, int64_t *equals, int64_t chunks) {
  SPT_SHARED(int64_t, memory);
  if (rank->equal == rank->pruned) {
    return;
  }
  int64_t seen = 0;
  for (int64_t first = 0; first < chunks; first += THREADS) {
    int64_t i = first + threadIdx.x, total;
    int64_t before = sum_before(i < chunks ? equals[i] : 0, memory, &total);
    if (i < chunks) {
      equals[i] = seen + before;
    }
    seen += total;
  }
}

__global__ void __launch_bounds__(THREADS)
    keep_kernel(const uint32_t *keys, uint8_t *keep, int64_t n, const prune_rank *rank,
                const int64_t *equals) {
  SPT_SHARED(int64_t, memory);
  prune_rank found = *rank;
  int64_t chunks = (n + CHUNK - 1) / CHUNK;
  for (int64_t chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
    int64_t begin = chunk * CHUNK, seen = found.equal == found.pruned ? 0 : equals[chunk];
    keep_span(keys + begin, keep + begin, spt_least(CHUNK, n - begin), found, seen, memory);
  }
}

#endif
