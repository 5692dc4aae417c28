/* topk.cuh: what topk's kernels share: sequences, keys, and the writing of what is selected.
 *
 * A score becomes an unsigned key, smaller for a larger score, so that the k smallest keys are wanted. The
 * selection is a key: all below it, and of its equals as many as are missing, the first ones. */
#ifndef SPATILE_CUDA_TOPK_CUH
#define SPATILE_CUDA_TOPK_CUH

#include "context.h"
#include "pack.cuh"
#include "warp.cuh"

#define SPT_NO_KEY 0xffffffffu /* after every score's, whatever its type */

/* A packed sequence: scores [first, first + n), results [out, out + k). */
struct spt_topk_sequence {
  int64_t first, n, k, out;
};

struct spt_topk_job {
  spt_any_view scores, values; /* by row; values: anything where there are none */
  spt_view<int64_t> indices;   /* by row */
  int64_t index_step;
  bool with_values;
  const spt_topk_sequence *sequences; /* NULL: rows of n, k each */
  int64_t count, n, k;
  bool protected_first;
  const uint8_t *protect;     /* or NULL */
  unsigned long long *nan_at; /* the least number of a score that is NaN */
};

/* One row or sequence. `first` is the index of its first score, `number` that score's in the array. */
struct spt_topk_row {
  const char *scores;
  char *values;
  int64_t *indices;
  int64_t n, k, first, number;
};

static __device__ __forceinline__ spt_topk_row spt_topk_row_of(const spt_topk_job &job, int64_t i) {
  if (job.sequences == nullptr) {
    return {job.scores.at(i), job.values.at(i), job.indices.at(i), job.n, job.k, 0, i * job.n};
  }
  spt_topk_sequence s = job.sequences[i];
  return {job.scores.view.data + s.first * job.scores.step,
          job.values.view.data + s.out * job.values.step,
          job.indices.data + s.out * job.index_step,
          s.n,
          s.k,
          s.first,
          s.first};
}

/* Bits of a key that tell scores of T apart, an even number; those below are all the score's sign. */
template <typename T>
struct spt_topk_bits;
template <>
struct spt_topk_bits<float> {
  static constexpr int N = 32;
};
template <>
struct spt_topk_bits<spt_half> {
  static constexpr int N = 20;
};
template <>
struct spt_topk_bits<spt_bfloat> {
  static constexpr int N = 16;
};

/* 0 is no score's. Adding 0 makes -0 equal to 0. */
template <typename T>
static __device__ __forceinline__ uint32_t spt_topk_key(float score) {
  uint32_t bits = __float_as_uint(score + 0.0f);
  return (bits >> 31 ? bits : ~bits & 0x7fffffffu) >> (32 - spt_topk_bits<T>::N);
}

#define SPT_NO_NAN INT64_MAX

/* The keys of scores j, j + step, ... that lie before `end`, SPT_NO_KEY for the others; *nan_at becomes
 * the least j whose score is NaN, if there is one below it. All loads are under way before the first is
 * waited for: nothing between them may write. */
template <typename T, int N>
static __device__ __forceinline__ void spt_topk_load(uint32_t (&keys)[N], const spt_topk_job &job,
                                                     const spt_topk_row &row, int64_t j,
                                                     int64_t step, int64_t end, int64_t *nan_at) {
  float scores[N];
#pragma unroll
  for (int i = 0; i < N; i++) {
    int64_t at = j + i * step;
    const char *score = row.scores + at * job.scores.step;
    scores[i] = at < end ? spt_load(reinterpret_cast<const T *>(score)) : 0.0f;
  }
#pragma unroll
  for (int i = 0; i < N; i++) {
    int64_t at = j + i * step;
    bool is_first = job.protected_first && at == 0;
    if (job.protect != nullptr && at < end) {
      is_first = job.protect[row.first + at] != 0;
    }
    keys[i] = at >= end ? SPT_NO_KEY : is_first ? 0 : spt_topk_key<T>(scores[i]);
    *nan_at = scores[i] != scores[i] && at < *nan_at ? at : *nan_at;
  }
}

/* Tells the host. */
static __device__ __forceinline__ void spt_topk_report(const spt_topk_job &job,
                                                       const spt_topk_row &row, int64_t nan_at) {
  if (nan_at != SPT_NO_NAN) {
    atomicMin(job.nan_at, (unsigned long long)(row.number + nan_at));
  }
}

struct spt_topk_selection {
  uint32_t key;
  int64_t ties; /* of those that equal key */
};

/* Keys before a place, of a row in order. */
struct spt_topk_before {
  int64_t less, equal;
};

/* Score j is the next one that is kept. Bits are copied, so that -0 stays -0. */
template <typename T>
static __device__ __forceinline__ void spt_topk_put(const spt_topk_job &job,
                                                    const spt_topk_row &row, int64_t at,
                                                    int64_t j) {
  row.indices[at * job.index_step] = row.first + j;
  if (job.with_values) {
    *reinterpret_cast<T *>(row.values + at * job.values.step) =
        *reinterpret_cast<const T *>(row.scores + j * job.scores.step);
  }
}

/* A warp's next 32 keys, that of lane 0 being score j's: writes those that are selected and counts them
 * in. */
template <typename T>
static __device__ __forceinline__ void spt_topk_write(const spt_topk_job &job,
                                                      const spt_topk_row &row,
                                                      const spt_topk_selection &most, uint32_t key,
                                                      int64_t j, spt_topk_before *before) {
  uint32_t lane = threadIdx.x % SPT_WARP, below = (1u << lane) - 1;
  uint32_t less = __ballot_sync(SPT_ALL_LANES, key < most.key);
  uint32_t equal = __ballot_sync(SPT_ALL_LANES, key == most.key);
  int64_t ties = before->equal + __popc(equal & below);
  if (key < most.key || (key == most.key && ties < most.ties)) {
    int64_t at = before->less + __popc(less & below) + spt_least(ties, most.ties);
    spt_topk_put<T>(job, row, at, j + lane);
  }
  before->less += __popc(less);
  before->equal += __popc(equal);
}

/* A block's n keys in shared memory, the first being score j's, of which `before` went before: writes
 * those that are selected, and adds them all to `before`. counts: 2 * 32 uint32 of shared memory. */
template <typename T>
static __device__ void spt_topk_write_block(const spt_topk_job &job, const spt_topk_row &row,
                                            const spt_topk_selection &most, const uint32_t *keys,
                                            int n, int64_t j, uint32_t *counts,
                                            spt_topk_before *before) {
  int lane = (int)(threadIdx.x % SPT_WARP), warp = (int)(threadIdx.x / SPT_WARP);
  int warps = (int)(blockDim.x / SPT_WARP);
  int each = (n + warps * SPT_WARP - 1) / (warps * SPT_WARP) * SPT_WARP; /* keys of a warp */
  int begin = warp * each, end = begin + each < n ? begin + each : n;
  uint32_t less = 0, equal = 0;
  for (int i = begin + lane; i < end; i += SPT_WARP) {
    less += keys[i] < most.key;
    equal += keys[i] == most.key;
  }
  less = spt_warp_sum(less);
  equal = spt_warp_sum(equal);
  __syncthreads(); /* of whoever still reads what was there */
  if (lane == 0) {
    counts[warp] = less;
    counts[SPT_WARP + warp] = equal;
  }
  __syncthreads();
  less = lane < warps ? counts[lane] : 0;
  equal = lane < warps ? counts[SPT_WARP + lane] : 0;
  spt_topk_before own = *before;
  own.less += spt_warp_sum(lane < warp ? less : 0);
  own.equal += spt_warp_sum(lane < warp ? equal : 0);
  before->less += spt_warp_sum(less);
  before->equal += spt_warp_sum(equal);
  for (int i = begin; i < end; i += SPT_WARP) {
    uint32_t key = i + lane < end ? keys[i + lane] : SPT_NO_KEY;
    spt_topk_write<T>(job, row, most, key, j + i, &own);
  }
}

/* topk_long.cu: sequences [first, first + count) of the job, `longest` of them. */
SPT_WARN_UNUSED spt_status spt_topk_long(spt_cuda_queue *, const char *op, spt_dtype dtype,
                                         const spt_topk_job &, int64_t first, int64_t count,
                                         int64_t longest, spt_error *);

#endif
