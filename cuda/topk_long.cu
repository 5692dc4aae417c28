/* topk of long sequences, each shared by many blocks: a radix select with 11 bits a pass. A block counts
 * the digits of its chunk in shared memory and adds them to the sequence's histogram; each block of the
 * next kernel begins by finding in it which digit the k-th smallest key has, which is cheaper than a
 * kernel of its own for that. Then chunks count what they select, and write it behind what those before
 * them do. Bound by memory: scores are read 5 times (4 in 16 bits), from
 * L2 where they fit that. Counts are whole numbers, so the order in which blocks add does not show. */
#include "topk.cuh"

#define THREADS 256
#define DIGIT 11
#define BINS (1 << DIGIT)
#define TILE 8192 /* keys that a block writes at a time */
#define AT_ONCE 4 /* loads of a thread */
#define MOST_CHUNKS 2048
#define MOST_SEQUENCES 512 /* of one launch: their histograms take 48 KiB each */

template <typename T>
struct digits {
  static constexpr int PASSES = (spt_topk_bits<T>::N + DIGIT - 1) / DIGIT;
  /* Bits of a key that are still unknown before a pass. */
  static __host__ __device__ constexpr int unknown(int pass) {
    return spt_topk_bits<T>::N > pass * DIGIT ? spt_topk_bits<T>::N - pass * DIGIT : 0;
  }
};
#define MOST_PASSES 3

/* What is known of the k-th smallest key: bits from `shift` up, and its place among keys that share
 * them. */
struct known_bits {
  uint32_t prefix;
  int shift;
  int64_t k;
};

struct long_job {
  spt_topk_job job;
  int64_t first;            /* sequence */
  int64_t chunk, chunks;    /* keys of a block, blocks of a sequence */
  unsigned long long *bins; /* (sequences, MOST_PASSES, BINS) */
  known_bits *known;        /* (sequences, MOST_PASSES), behind each pass */
  spt_topk_before *counts;  /* (sequences, chunks) */
};

struct find_memory {
  unsigned long long sums[THREADS / SPT_WARP];
  uint32_t digit;
  unsigned long long below;
};

/* The digit of the k-th smallest of the keys that `bins` counts, by the whole block. 1 <= k <= all. */
static __device__ void find_digit(const unsigned long long *bins, int64_t k, find_memory *memory) {
  const int each = BINS / THREADS;
  int lane = (int)(threadIdx.x % SPT_WARP), warp = (int)(threadIdx.x / SPT_WARP);
  unsigned long long own = 0;
  for (int i = 0; i < each; i++) {
    own += bins[threadIdx.x * each + i];
  }
  unsigned long long up_to = own; /* sum over the lanes up to this one */
  for (int offset = 1; offset < SPT_WARP; offset *= 2) {
    unsigned long long other = __shfl_up_sync(SPT_ALL_LANES, up_to, offset);
    up_to += lane >= offset ? other : 0;
  }
  __syncthreads(); /* of whoever still reads the last digit */
  if (lane == SPT_WARP - 1) {
    memory->sums[warp] = up_to;
  }
  __syncthreads();
  unsigned long long below = up_to - own;
  for (int w = 0; w < warp; w++) {
    below += memory->sums[w];
  }
  if (below < (unsigned long long)k && (unsigned long long)k <= below + own) {
    int bin = (int)threadIdx.x * each;
    while (below + bins[bin] < (unsigned long long)k) {
      below += bins[bin++];
    }
    memory->digit = (uint32_t)bin;
    memory->below = below;
  }
  __syncthreads();
}

/* What is known before a pass: what was before the last one, and what that one's histogram adds. The
 * sequence's first block leaves it for the next. */
template <typename T>
static __device__ known_bits find_bits(const long_job &a, int64_t sequence, int pass, int64_t k,
                                       find_memory *memory) {
  known_bits known = {0, digits<T>::unknown(0), k};
  known_bits *all = a.known + sequence * MOST_PASSES;
  if (pass == 0) {
    return known;
  }
  if (pass > 1) {
    known = all[pass - 2];
  }
  find_digit(a.bins + (sequence * MOST_PASSES + pass - 1) * BINS, known.k, memory);
  known.shift = digits<T>::unknown(pass);
  known.prefix |= memory->digit << known.shift;
  known.k -= (int64_t)memory->below;
  if (blockIdx.x % a.chunks == 0 && threadIdx.x == 0) {
    all[pass - 1] = known;
  }
  return known;
}

/* One more in a bin for each lane that takes part. Lanes that all want the same bin, as those of equal or
 * sorted scores do, would add one after the other. */
static __device__ __forceinline__ void add_to_bins(uint32_t *bins, uint32_t bin, bool takes_part) {
  uint32_t votes = __ballot_sync(SPT_ALL_LANES, takes_part);
  if (votes == 0) {
    return;
  }
  uint32_t leader = (uint32_t)__popc((votes & (0u - votes)) - 1); /* the lowest that takes part */
  uint32_t wanted = __shfl_sync(SPT_ALL_LANES, bin, (int)leader);
  if (__all_sync(SPT_ALL_LANES, !takes_part || bin == wanted)) {
    if (threadIdx.x % SPT_WARP == leader) {
      atomicAdd(bins + wanted, (uint32_t)__popc(votes));
    }
  } else if (takes_part) {
    atomicAdd(bins + bin, 1u);
  }
}

/* Grid: (sequences * chunks). */
template <typename T>
__global__ void __launch_bounds__(THREADS) topk_digits_kernel(long_job a, int pass) {
  SPT_SHARED(uint32_t, bins);
  find_memory *memory = reinterpret_cast<find_memory *>(bins + BINS);
  int64_t sequence = blockIdx.x / a.chunks, begin = blockIdx.x % a.chunks * a.chunk;
  spt_topk_row row = spt_topk_row_of(a.job, a.first + sequence);
  int64_t end = spt_least(begin + a.chunk, row.n);
  unsigned long long *all = a.bins + (sequence * MOST_PASSES + pass) * BINS;
  int64_t nan_at = SPT_NO_NAN;
  if (begin >= end || (pass > 0 && row.k == 0)) { /* the first pass looks for NaN in any case */
    return;
  }
  known_bits known = find_bits<T>(a, sequence, pass, row.k, memory);
  int shift = digits<T>::unknown(pass + 1);
  for (int i = (int)threadIdx.x; i < BINS; i += THREADS) {
    bins[i] = 0;
  }
  __syncthreads();
  for (int64_t j = begin; j < end; j += AT_ONCE * THREADS) { /* all lanes stay, for the votes */
    uint32_t keys[AT_ONCE];
    spt_topk_load<T>(keys, a.job, row, j + threadIdx.x, THREADS, end, &nan_at);
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) {
      bool shares = pass == 0 || keys[i] >> known.shift == known.prefix >> known.shift;
      bool inside = j + threadIdx.x + i * THREADS < end;
      add_to_bins(bins, keys[i] >> shift & (BINS - 1), inside && shares);
    }
  }
  spt_topk_report(a.job, row, nan_at);
  __syncthreads();
  for (int i = (int)threadIdx.x; i < BINS; i += THREADS) {
    if (bins[i] > 0) {
      atomicAdd(all + i, (unsigned long long)bins[i]);
    }
  }
}

/* counts: what each chunk has below the key and equal to it. */
template <typename T>
__global__ void __launch_bounds__(THREADS) topk_count_kernel(long_job a) {
  SPT_SHARED(find_memory, memory);
  int64_t sequence = blockIdx.x / a.chunks, begin = blockIdx.x % a.chunks * a.chunk;
  spt_topk_row row = spt_topk_row_of(a.job, a.first + sequence);
  int64_t end = spt_least(begin + a.chunk, row.n);
  int64_t nan_at = SPT_NO_NAN;
  if (begin >= end || row.k == 0) {
    return; /* nobody reads the counts */
  }
  uint32_t key = find_bits<T>(a, sequence, digits<T>::PASSES, row.k, memory).prefix;
  uint32_t less = 0, equal = 0;
  for (int64_t j = begin + threadIdx.x; j < end; j += AT_ONCE * THREADS) {
    uint32_t keys[AT_ONCE];
    spt_topk_load<T>(keys, a.job, row, j, THREADS, end, &nan_at);
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) {
      less += keys[i] < key;
      equal += keys[i] == key;
    }
  }
  unsigned long long sum = spt_warp_sum((unsigned long long)equal << 32 | less);
  __syncthreads();
  if (threadIdx.x % SPT_WARP == 0) {
    memory->sums[threadIdx.x / SPT_WARP] = sum;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    sum = 0;
    for (int w = 0; w < THREADS / SPT_WARP; w++) {
      sum += memory->sums[w];
    }
    a.counts[blockIdx.x] = {(int64_t)(uint32_t)sum, (int64_t)(sum >> 32)};
  }
}

struct write_memory {
  unsigned long long less[THREADS / SPT_WARP], equal[THREADS / SPT_WARP];
  uint32_t counts[2 * SPT_WARP];
};

/* What the chunks before this block's have, added up by the block. */
static __device__ spt_topk_before add_chunks(const spt_topk_before *counts, int64_t n,
                                             write_memory *memory) {
  unsigned long long less = 0, equal = 0;
  for (int64_t i = threadIdx.x; i < n; i += THREADS) {
    less += (unsigned long long)counts[i].less;
    equal += (unsigned long long)counts[i].equal;
  }
  less = spt_warp_sum(less);
  equal = spt_warp_sum(equal);
  if (threadIdx.x % SPT_WARP == 0) {
    memory->less[threadIdx.x / SPT_WARP] = less;
    memory->equal[threadIdx.x / SPT_WARP] = equal;
  }
  __syncthreads();
  spt_topk_before before = {0, 0};
  for (int w = 0; w < THREADS / SPT_WARP; w++) {
    before.less += (int64_t)memory->less[w];
    before.equal += (int64_t)memory->equal[w];
  }
  return before;
}

template <typename T>
__global__ void __launch_bounds__(THREADS) topk_write_kernel(long_job a) {
  SPT_SHARED(write_memory, memory);
  uint32_t *keys = reinterpret_cast<uint32_t *>(memory + 1);
  int64_t sequence = blockIdx.x / a.chunks, at = blockIdx.x % a.chunks, begin = at * a.chunk;
  spt_topk_row row = spt_topk_row_of(a.job, a.first + sequence);
  int64_t end = spt_least(begin + a.chunk, row.n);
  int64_t nan_at = SPT_NO_NAN;
  if (begin >= end || row.k == 0) {
    return;
  }
  known_bits known = a.known[sequence * MOST_PASSES + digits<T>::PASSES - 1];
  spt_topk_selection most = {known.prefix, known.k};
  spt_topk_before before = add_chunks(a.counts + sequence * a.chunks, at, memory);
  for (int64_t tile = begin; tile < end; tile += TILE) {
    int n = (int)spt_least(TILE, end - tile);
    __syncthreads(); /* of the last tile's readers */
    for (int i = (int)threadIdx.x; i < TILE; i += AT_ONCE * THREADS) {
      uint32_t some[AT_ONCE];
      spt_topk_load<T>(some, a.job, row, tile + i, THREADS, end, &nan_at);
#pragma unroll
      for (int u = 0; u < AT_ONCE; u++) {
        keys[i + u * THREADS] = some[u];
      }
    }
    __syncthreads();
    spt_topk_write_block<T>(a.job, row, most, keys, n, tile, memory->counts, &before);
  }
}

template <typename T>
static spt_status launch(const spt_cuda_queue *queue, const char *op, const long_job &a,
                         int64_t count, spt_error *err) {
  unsigned blocks = (unsigned)(count * a.chunks);
  for (int pass = 0; pass < digits<T>::PASSES; pass++) {
    SPT_LAUNCH(op, topk_digits_kernel<T>, blocks, THREADS,
               BINS * sizeof(uint32_t) + sizeof(find_memory), queue->stream, a, pass);
  }
  SPT_LAUNCH(op, topk_count_kernel<T>, blocks, THREADS, sizeof(find_memory), queue->stream, a);
  SPT_LAUNCH(op, topk_write_kernel<T>, blocks, THREADS,
             sizeof(write_memory) + TILE * sizeof(uint32_t), queue->stream, a);
  return SPT_OK;
}

spt_status spt_topk_long(spt_cuda_queue *queue, const char *op, spt_dtype dtype,
                         const spt_topk_job &job, int64_t first, int64_t count, int64_t longest,
                         spt_error *err) {
  spt_scratch scratch(queue, op);
  int64_t at_once = spt_least(count, MOST_SEQUENCES), bins = at_once * MOST_PASSES * BINS;
  int64_t tiles = spt_blocks(longest, TILE), blocks = 8 * (int64_t)queue->device->sm_count;
  int64_t each = spt_most(spt_blocks(tiles * at_once, blocks), spt_blocks(tiles, MOST_CHUNKS));
  each = spt_least(each, tiles); /* tiles of a chunk: what a block does besides should not weigh */
  long_job a = {job, first, each * TILE, spt_blocks(tiles, each), NULL, NULL, NULL};
  SPT_TRY(scratch.take(&a.bins, bins, err));
  SPT_TRY(scratch.take(&a.known, at_once * MOST_PASSES, err));
  SPT_TRY(scratch.take(&a.counts, at_once * a.chunks, err));
  for (int64_t done = 0; done < count; done += at_once) {
    int64_t now = spt_least(at_once, count - done);
    a.first = first + done;
    SPT_CUDA_TRY(op, "clearing histograms",
                 cudaMemsetAsync(a.bins, 0, (size_t)bins * sizeof *a.bins, queue->stream));
    SPT_WITH_STORAGE(dtype, T, SPT_TRY(launch<T>(queue, op, a, now, err)));
  }
  return SPT_OK;
}
