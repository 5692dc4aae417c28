/* The ops of groups.cu where each weight is a group: no square and no root, |w| being the norm.
 *
 * Bound by memory, as there; with beta, as much again is read. A gradient is strength * beta with the
 * weight's sign, and what the proximal step leaves of |w| is |w| - strength * beta: one rounding each. */
#include "group_cells.cuh"

/* What becomes of x: all but the penalty. `narrow`: the amount fits float32. */
static __device__ __forceinline__ float element_value(const group_job &job, bool narrow, float x,
                                                      float beta) {
  float size = fabsf(x), pull;
  if (job.rule == GROUP_NORM) {
    return size;
  }
  if (job.rule == GROUP_BETA) {
    return narrow ? 1.0f / (size + (float)job.amount) : (float)(1.0 / ((double)size + job.amount));
  }
  if (x == 0.0f) {
    return x; /* a zero group is not pulled, whatever beta is */
  }
  if (job.rule == GROUP_GRAD) {
    pull = narrow ? (float)job.amount * beta : (float)(job.amount * (double)beta);
    return size < INFINITY ? (x < 0.0f ? -pull : pull) : NAN; /* infinity over infinity */
  }
  float kept =
      narrow ? size - (float)job.amount * beta : (float)((double)size - job.amount * (double)beta);
  kept = kept < 0.0f ? 0.0f : kept; /* NaN stays */
  return x < 0.0f ? -kept : kept;
}

template <typename T, bool PACKED>
static __device__ __forceinline__ void elements_of_pack(const group_job &job, bool narrow,
                                                        const spt_place &at, const spt_cursor &c,
                                                        const spt_raw &x, double *penalty) {
  constexpr int N = spt_pack<T>::N;
  const group_array &y = job.scaled;
  int64_t row = at.first_row + c.row, col = at.first_col + c.col;
  float value[N];
  spt_raw old = {}, to = {};
  if (PACKED && job.add && c.inside(at)) {
    old = load_raw<T, true>(cell_of<const T>(y, at), y, at, c);
  }
#pragma unroll
  for (int e = 0; e < N; e++) {
    if (!c.inside(at, e)) {
      continue;
    }
    float beta = job.beta.data != NULL ? load_any(job.beta, row, col + e) : 1.0f;
    float weight = raw_element((T *)nullptr, x, e);
    value[e] = element_value(job, narrow, weight, beta);
    *penalty += (double)beta * (double)fabsf(weight);
    if (job.values.data != NULL && !(PACKED && job.packed_values)) {
      reinterpret_cast<float *>(
          job.values.data)[row * job.values.row + (col + e) * job.values.col] = value[e];
    }
    if (y.data != NULL && PACKED) {
      float before = job.add ? raw_element((T *)nullptr, old, e) : 0.0f;
      value[e] = job.add ? before + value[e] : value[e];
      set_raw_element(spt_round_to((T *)nullptr, value[e]), &to, e);
    } else if (y.data != NULL) {
      char *place = y.data + (row * y.row + (col + e) * y.col) * (y.dtype == SPT_F32 ? 4 : 2);
      spt_store_any(place, y.dtype, job.add ? spt_load_any(place, y.dtype) + value[e] : value[e]);
    }
  }
  if (!PACKED || !c.inside(at)) {
    return;
  }
  if (y.data != NULL) {
    *reinterpret_cast<spt_raw *>(reinterpret_cast<T *>(y.data) + row * y.row + col) = to;
  }
  if (job.values.data != NULL && job.packed_values) {
    float *values = reinterpret_cast<float *>(job.values.data) + row * job.values.row + col;
#pragma unroll
    for (int e = 0; e < N; e += 4) {
      const float part[4] = {value[e], value[e + 1], value[e + 2], value[e + 3]};
      spt_store_pack(values + e, part);
    }
  }
}

template <typename T, bool PACKED>
__global__ void __launch_bounds__(THREADS, 3) group_elements_kernel(group_job job) {
  SPT_SHARED(double, memory);
  const spt_patch &p = job.patch;
  double penalty = 0.0;
  bool narrow = job.amount == 0.0 || (job.amount >= LEAST_FACTOR && job.amount <= MOST_FACTOR);
  for (int64_t cell = blockIdx.x; cell < p.cells; cell += gridDim.x) {
    spt_place at = spt_place_of(p, cell);
    const T *w = cell_of<const T>(job.w, at);
    spt_cursor c(at);
#pragma unroll 1
    for (int i = 0; i < p.packs; i += BATCH) {
      spt_raw x[BATCH];
      spt_cursor to = c;
#pragma unroll
      for (int u = 0; u < BATCH; u++) {
        x[u] = load_raw<T, PACKED>(w, job.w, at, c);
        c.advance(p, at);
      }
#pragma unroll
      for (int u = 0; u < BATCH; u++) {
        elements_of_pack<T, PACKED>(job, narrow, at, to, x[u], &penalty);
        to.advance(p, at);
      }
    }
  }
  if (job.penalties != NULL) {
    store_block_sum(penalty, memory, job.penalties);
  }
}

spt_status spt_cuda_group_elements(spt_cuda_queue *queue, const char *op, const group_job &job,
                                   bool packed, int64_t blocks, spt_error *err) {
  size_t shared = THREADS * sizeof(double);
  SPT_WITH_STORAGE(job.w.dtype, T, {
    if (packed) {
      SPT_LAUNCH(op, (group_elements_kernel<T, true>), (unsigned)blocks, THREADS, shared,
                 queue->stream, job);
    } else {
      SPT_LAUNCH(op, (group_elements_kernel<T, false>), (unsigned)blocks, THREADS, shared,
                 queue->stream, job);
    }
  });
  return SPT_OK;
}
