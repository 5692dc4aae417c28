/* dropout: y = x / (1 - p) or 0, as Philox decides by an element's number; any strides. In float32 bound
 * by memory; in 16 bits the generator's integer products (20 for 4 elements) take as long as that.
 *
 * A counter's four words go to elements that lie 16 apart. A thread therefore takes as many neighbouring
 * counters as a pack has elements, and four packs that lie 16 elements apart: it reads 16 bytes at a
 * time, and two (or four) threads share the 64 elements of a group. */
#include <math.h>

#include "context.h"
#include "pack.cuh"
#include "philox.cuh"
#include "slots.h"

#define DROPOUT_THREADS 256
#define GROUP 64 /* elements of 16 counters */
#define WORDS 4
#define APART (GROUP / WORDS)

struct dropout_rule {
  uint64_t seed;
  uint32_t threshold; /* kept iff the element's word is at least this */
  float scale;        /* of what is kept */
};

static __device__ __forceinline__ float drop(float x, uint32_t word, const dropout_rule &rule) {
  return word >= rule.threshold ? x * rule.scale : 0.0f;
}

/* x, y: `groups` whole groups of neighbours, aligned to 16 bytes. */
template <typename T>
__global__ void __launch_bounds__(DROPOUT_THREADS)
    dropout_packs_kernel(const T *x, T *y, int64_t groups, dropout_rule rule) {
  constexpr int N = spt_pack<T>::N, THREADS = APART / N; /* of a group */
  int64_t step = (int64_t)gridDim.x * blockDim.x, n = groups * THREADS;
  for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
    int64_t group = i / THREADS, column = i % THREADS * N;
    const T *from = x + group * GROUP + column;
    T *to = y + group * GROUP + column;
    float v[WORDS][N];
#pragma unroll
    for (int w = 0; w < WORDS; w++) {
      spt_load_pack(v[w], from + w * APART);
    }
#pragma unroll
    for (int j = 0; j < N; j++) {
      spt_philox_counter c =
          spt_philox_of_elements(rule.seed, (uint64_t)(group * APART + column + j));
#pragma unroll
      for (int w = 0; w < WORDS; w++) {
        v[w][j] = drop(v[w][j], c.word[w], rule);
      }
    }
#pragma unroll
    for (int w = 0; w < WORDS; w++) {
      spt_store_pack(to + w * APART, v[w]);
    }
  }
}

/* A thread for each counter from `first` on, and for its elements below n. */
__global__ void dropout_kernel(spt_any_view x, spt_any_view y, int64_t first, int64_t counters,
                               int64_t n, dropout_rule rule) {
  int64_t step = (int64_t)gridDim.x * blockDim.x;
  for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < counters; i += step) {
    int64_t counter = first + i, at = counter / APART * GROUP + counter % APART;
    spt_philox_counter c = spt_philox_of_elements(rule.seed, (uint64_t)counter);
#pragma unroll
    for (int w = 0; w < WORDS; w++) {
      int64_t element = at + w * APART;
      if (element < n) {
        float value = spt_load_any(x.at(element), x.dtype);
        spt_store_any(y.at(element), y.dtype, drop(value, c.word[w], rule));
      }
    }
  }
}

spt_status spt_cuda_dropout(void *state, const spt_dropout_problem *p, spt_error *err) {
  const spt_cuda_queue *queue = spt_queue_of(state);
  const char *op = "dropout";
  int64_t n = spt_view_elements(&p->x), most = 64 * (int64_t)queue->device->sm_count, whole = 0;
  dropout_rule rule = {p->seed, (uint32_t)floor(ldexp(p->p, 32)), (float)(1.0 / (1.0 - p->p))};
  if (p->x.ndim == 1 && spt_has_packed_rows(&p->x, p->x.dtype) &&
      spt_has_packed_rows(&p->y, p->x.dtype)) {
    whole = n / GROUP;
  }
  if (whole > 0) {
    SPT_WITH_STORAGE(p->x.dtype, T, {
      int64_t blocks = spt_blocks(whole * (APART / spt_pack<T>::N), DROPOUT_THREADS);
      SPT_LAUNCH(op, (dropout_packs_kernel<T>), (unsigned)spt_least(blocks, most), DROPOUT_THREADS,
                 0, queue->stream, static_cast<const T *>(p->x.data), static_cast<T *>(p->y.data),
                 whole, rule);
    });
  }
  int64_t counters = (spt_blocks(n, GROUP) - whole) * APART; /* of the groups that are left */
  if (counters > 0) {
    spt_any_view x(p->x, p->x.ndim), y(p->y, p->y.ndim);
    unsigned blocks = (unsigned)spt_least(spt_blocks(counters, DROPOUT_THREADS), most);
    SPT_LAUNCH(op, dropout_kernel, blocks, DROPOUT_THREADS, 0, queue->stream, x, y, whole * APART,
               counters, n, rule);
  }
  return SPT_OK;
}
