/* topk and select_tokens: the k largest of each row or packed sequence, in their original order, of equals
 * the first. Three forms, by a sequence's length:
 *  - up to 1024: a warp, keys in registers. The k-th smallest key is found bit by bit, counting the keys
 *    below a trial by votes or shuffles; that ends as soon as exactly k lie below. Bound by instructions
 *    (about 30 trials of n / 32 comparisons), reads each score once.
 *  - up to what shared memory holds: a block, keys in shared memory, two bits a pass. Bound by reading
 *    those 16 times at most.
 *  - longer, or long and few: many blocks a sequence (topk_long.cu).
 * Selected scores are then written in order, by counting those before them. The host waits at the end for
 * one number, the first NaN's. */
#include <stdlib.h>

#include "slots.h"
#include "topk.cuh"

#define WARP_THREADS 128
#define BLOCK_THREADS 1024 /* at most: a thread then has 64 registers, or the launch fails */
#define ALONE 16384        /* longer sequences, if few, are shared by blocks */

/* ---- a warp for each sequence ------------------------------------------------------------------- */

/* How many of the warp's keys are below a trial. */
template <int ROUNDS>
static __device__ __forceinline__ int count_below(const uint32_t (&keys)[ROUNDS], uint32_t trial) {
  int n = 0;
#pragma unroll
  for (int r = 0; r < ROUNDS; r++) {
    bool below = keys[r] < trial;
    /* Five shuffles add up the lanes' counts: votes are fewer where there are few keys. */
    n += ROUNDS <= 4 ? __popc(__ballot_sync(SPT_ALL_LANES, below)) : below;
  }
  return ROUNDS <= 4 ? n : spt_warp_sum(n);
}

/* 1 <= k <= keys that are scores'. */
template <int BITS, int ROUNDS>
static __device__ __forceinline__ spt_topk_selection select_by_warp(const uint32_t (&keys)[ROUNDS],
                                                                    int k) {
  uint32_t found = 0; /* bits of the k-th smallest key */
  int below = 0;
  for (int bit = BITS - 1; bit >= 0; bit--) {
    uint32_t trial = found | 1u << bit;
    int n = count_below(keys, trial);
    if (n == k) {
      return {trial, 0};
    }
    if (n < k) {
      found = trial;
      below = n;
    }
  }
  return {found, k - below};
}

/* Sequences of up to 32 * ROUNDS scores. */
template <typename T, int ROUNDS>
__global__ void __launch_bounds__(WARP_THREADS)
    topk_warp_kernel(spt_topk_job job, int64_t first, int64_t count) {
  int lane = (int)(threadIdx.x % SPT_WARP);
  int64_t warps = blockDim.x / SPT_WARP, step = gridDim.x * warps;
  for (int64_t i = blockIdx.x * warps + threadIdx.x / SPT_WARP; i < count; i += step) {
    spt_topk_row row = spt_topk_row_of(job, first + i);
    uint32_t keys[ROUNDS];
    int64_t nan_at = SPT_NO_NAN;
    spt_topk_load<T>(keys, job, row, lane, SPT_WARP, row.n, &nan_at);
    spt_topk_report(job, row, nan_at);
    if (__any_sync(SPT_ALL_LANES, nan_at != SPT_NO_NAN) || row.k == 0) {
      continue;
    }
    spt_topk_selection most = select_by_warp<spt_topk_bits<T>::N>(keys, (int)row.k);
    spt_topk_before before = {0, 0};
#pragma unroll
    for (int r = 0; r < ROUNDS; r++) {
      spt_topk_write<T>(job, row, most, keys[r], r * SPT_WARP, &before);
    }
  }
}

/* ---- a block for each sequence ------------------------------------------------------------------ */

#define COUNT_BITS 21 /* of each of three counts in one word */

struct block_memory {
  unsigned long long sums[2][SPT_WARP];
  uint32_t counts[2 * SPT_WARP];
};

/* How many of n keys are below each of three trials, `step` apart. sums: of this pass and the one after
 * the next. */
static __device__ __forceinline__ unsigned long long count_below_three(const uint32_t *keys, int n,
                                                                       uint32_t trial,
                                                                       uint32_t step,
                                                                       unsigned long long *sums) {
  int lane = (int)(threadIdx.x % SPT_WARP);
  uint32_t a = 0, b = 0, c = 0;
  for (int i = (int)threadIdx.x; i < n; i += (int)blockDim.x) {
    uint32_t key = keys[i];
    a += key < trial;
    b += key < trial + step;
    c += key < trial + 2 * step;
  }
  unsigned long long sum =
      a | (unsigned long long)b << COUNT_BITS | (unsigned long long)c << 2 * COUNT_BITS;
  sum = spt_warp_sum(sum);
  if (lane == 0) {
    sums[threadIdx.x / SPT_WARP] = sum;
  }
  __syncthreads();
  return spt_warp_sum(lane < (int)(blockDim.x / SPT_WARP) ? sums[lane] : 0ull);
}

/* 1 <= k <= n. */
template <int BITS>
static __device__ spt_topk_selection select_by_block(const uint32_t *keys, int n, int k,
                                                     block_memory *memory) {
  uint32_t found = 0;
  int below = 0;
  for (int bit = BITS - 2; bit >= 0; bit -= 2) {
    uint32_t step = 1u << bit;
    unsigned long long counts =
        count_below_three(keys, n, found + step, step, memory->sums[bit / 2 % 2]);
    uint32_t base = found;
    for (uint32_t digit = 1; digit < 4; digit++, counts >>= COUNT_BITS) {
      int count = (int)(counts & ((1u << COUNT_BITS) - 1));
      if (count == k) {
        return {base + digit * step, 0};
      }
      if (count < k) {
        found = base + digit * step;
        below = count;
      }
    }
  }
  return {found, k - below};
}

template <typename T>
__global__ void __launch_bounds__(BLOCK_THREADS)
    topk_block_kernel(spt_topk_job job, int64_t first, int64_t count) {
  SPT_SHARED(block_memory, memory);
  uint32_t *keys = reinterpret_cast<uint32_t *>(memory + 1);
  for (int64_t i = blockIdx.x; i < count; i += gridDim.x) {
    spt_topk_row row = spt_topk_row_of(job, first + i);
    int64_t nan_at = SPT_NO_NAN;
    for (int64_t j = threadIdx.x; j < row.n; j += 4 * blockDim.x) {
      uint32_t some[4];
      spt_topk_load<T>(some, job, row, j, blockDim.x, row.n, &nan_at);
#pragma unroll
      for (int i = 0; i < 4; i++) {
        if (j + i * blockDim.x < row.n) {
          keys[j + i * blockDim.x] = some[i];
        }
      }
    }
    spt_topk_report(job, row, nan_at);
    if (!__syncthreads_or(nan_at != SPT_NO_NAN) && row.k > 0) {
      spt_topk_selection most =
          select_by_block<spt_topk_bits<T>::N>(keys, (int)row.n, (int)row.k, memory);
      spt_topk_before before = {0, 0};
      spt_topk_write_block<T>(job, row, most, keys, (int)row.n, 0, memory->counts, &before);
    }
    __syncthreads(); /* before the next sequence's keys */
  }
}

/* ---- launchers ---------------------------------------------------------------------------------- */

/* What serves a sequence: warps of so many rounds, a block, or many. */
enum { BY_1_ROUND, BY_4_ROUNDS, BY_16_ROUNDS, BY_32_ROUNDS, BY_BLOCK, BY_BLOCKS, FORMS };

static int form_of(const spt_cuda_queue *queue, int64_t n, int64_t count) {
  if (n <= 32 * SPT_WARP) {
    return n <= SPT_WARP        ? BY_1_ROUND
           : n <= 4 * SPT_WARP  ? BY_4_ROUNDS
           : n <= 16 * SPT_WARP ? BY_16_ROUNDS
                                : BY_32_ROUNDS;
  }
  size_t bytes = sizeof(block_memory) + (size_t)n * sizeof(uint32_t);
  bool few = n > ALONE && 2 * count < queue->device->sm_count;
  return !few && bytes <= (size_t)queue->device->shared_per_block ? BY_BLOCK : BY_BLOCKS;
}

template <typename T>
static spt_status launch(const spt_cuda_queue *queue, const char *op, const spt_topk_job &job,
                         int form, int64_t first, int64_t count, int64_t longest, spt_error *err) {
  int64_t most = 64 * (int64_t)queue->device->sm_count;
  unsigned warps = (unsigned)spt_least(spt_blocks(count, WARP_THREADS / SPT_WARP), most);
  unsigned blocks = (unsigned)spt_least(count, most);
  int threads = longest <= 4096 ? 256 : longest <= 16384 ? 512 : BLOCK_THREADS;
  size_t shared = sizeof(block_memory) + (size_t)longest * sizeof(uint32_t);
  switch (form) {
    case BY_1_ROUND:
      SPT_LAUNCH(op, (topk_warp_kernel<T, 1>), warps, WARP_THREADS, 0, queue->stream, job, first,
                 count);
      return SPT_OK;
    case BY_4_ROUNDS:
      SPT_LAUNCH(op, (topk_warp_kernel<T, 4>), warps, WARP_THREADS, 0, queue->stream, job, first,
                 count);
      return SPT_OK;
    case BY_16_ROUNDS:
      SPT_LAUNCH(op, (topk_warp_kernel<T, 16>), warps, WARP_THREADS, 0, queue->stream, job, first,
                 count);
      return SPT_OK;
    case BY_32_ROUNDS:
      SPT_LAUNCH(op, (topk_warp_kernel<T, 32>), warps, WARP_THREADS, 0, queue->stream, job, first,
                 count);
      return SPT_OK;
    default:
      SPT_LAUNCH(op, (topk_block_kernel<T>), blocks, threads, shared, queue->stream, job, first,
                 count);
      return SPT_OK;
  }
}

static spt_status select_from(spt_cuda_queue *queue, const spt_topk_problem *p,
                              const spt_topk_job &job, int form, int64_t first, int64_t count,
                              int64_t longest, spt_error *err) {
  if (form == BY_BLOCKS) {
    return spt_topk_long(queue, p->op, p->scores.dtype, job, first, count, longest, err);
  }
  SPT_WITH_STORAGE(p->scores.dtype, T,
                   return launch<T>(queue, p->op, job, form, first, count, longest, err));
  return SPT_OK;
}

/* The sequences of a packed problem sorted by what serves them: form f's are [ends[f - 1], ends[f]). */
struct sorted_sequences {
  int64_t ends[FORMS], longest[FORMS];
};

static sorted_sequences sort_sequences(const spt_cuda_queue *queue, const spt_topk_problem *p,
                                       spt_topk_sequence *sorted) {
  sorted_sequences s = {};
  int64_t next[FORMS], out = 0, end = 0;
  for (int64_t i = 0; i < p->n_sequences; i++) {
    int64_t n = p->offsets[i + 1] - p->offsets[i];
    int form = form_of(queue, n, p->n_sequences);
    s.ends[form]++;
    s.longest[form] = spt_most(s.longest[form], n);
  }
  for (int form = 0; form < FORMS; form++) {
    next[form] = end;
    end += s.ends[form];
    s.ends[form] = end;
  }
  for (int64_t i = 0; i < p->n_sequences; i++) {
    int64_t n = p->offsets[i + 1] - p->offsets[i];
    sorted[next[form_of(queue, n, p->n_sequences)]++] = {p->offsets[i], n, p->counts[i], out};
    out += p->counts[i];
  }
  return s;
}

static spt_status select_packed(spt_cuda_queue *queue, spt_scratch *scratch,
                                const spt_topk_problem *p, spt_topk_job job, spt_error *err) {
  spt_topk_sequence *on_device = NULL;
  size_t bytes = (size_t)p->n_sequences * sizeof(spt_topk_sequence);
  spt_topk_sequence *sorted = static_cast<spt_topk_sequence *>(malloc(bytes));
  if (sorted == NULL) {
    return spt_fail(err, SPT_OUT_OF_MEMORY, "%s: no memory for %lld sequences", p->op,
                    (long long)p->n_sequences);
  }
  sorted_sequences s = sort_sequences(queue, p, sorted);
  spt_status status = scratch->take(&on_device, p->n_sequences, err);
  if (status == SPT_OK) {
    status = spt_cuda_to_device(queue, p->op, on_device, sorted, bytes, err);
  }
  free(sorted);
  job.sequences = on_device;
  for (int form = 0; form < FORMS && status == SPT_OK; form++) {
    int64_t first = form > 0 ? s.ends[form - 1] : 0, count = s.ends[form] - first;
    if (count > 0) {
      status = select_from(queue, p, job, form, first, count, s.longest[form], err);
    }
  }
  return status;
}

spt_status spt_cuda_topk(void *state, const spt_topk_problem *p, spt_error *err) {
  spt_cuda_queue *queue = spt_queue_of(state);
  spt_scratch scratch(queue, p->op);
  const spt_tensor *values = p->values.data != NULL ? &p->values : &p->scores;
  const unsigned long long none = UINT64_MAX;
  unsigned long long nan_at = none;
  bool packed = p->offsets != NULL;
  int last = p->scores.ndim - 1;
  spt_topk_job job = {spt_any_view(p->scores, last),
                      spt_any_view(*values, last),
                      spt_view<int64_t>(p->indices),
                      p->indices.stride[last],
                      p->values.data != NULL,
                      NULL,
                      packed ? p->n_sequences : 1,
                      p->scores.shape[last],
                      p->k,
                      p->protected_first,
                      p->protect,
                      NULL};
  job.indices.ndim = last;
  for (int i = 0; !packed && i < last; i++) {
    job.count *= p->scores.shape[i];
  }
  if (job.count == 0 || p->scores.shape[last] == 0) {
    return SPT_OK;
  }
  SPT_TRY(scratch.take(&job.nan_at, 1, err));
  SPT_CUDA_TRY(p->op, "clearing a flag",
               cudaMemsetAsync(job.nan_at, 0xff, sizeof *job.nan_at, queue->stream));
  if (packed) {
    SPT_TRY(select_packed(queue, &scratch, p, job, err));
  } else {
    int form = form_of(queue, job.n, job.count);
    SPT_TRY(select_from(queue, p, job, form, 0, job.count, job.n, err));
  }
  SPT_TRY(spt_cuda_to_host(queue, p->op, &nan_at, job.nan_at, sizeof nan_at, err));
  if (nan_at != none) {
    return spt_fail(err, SPT_INVALID_VALUE,
                    "%s: %s holds NaN (element %lld), expected numbers that can be ordered", p->op,
                    p->arg, (long long)nan_at);
  }
  return SPT_OK;
}
