/* layer_norm over rows (rows, n) of any strides, x + residual being what is normalised. Bound by memory:
 * a row is read once and written once, up to the width that shared memory holds (about 12,000 elements on
 * any GPU, 56,000 on Hopper); weight and bias come from L1.
 *
 * float32 sums are enough, as what is summed for the variance is centred on a first mean, and so is what
 * corrects that mean: with d = t - first mean, mean(d) is what its rounding left. */
#include "rows.cuh"
#include "slots.h"

struct layer_norm_job {
  spt_any_view x, residual, y; /* residual: x again where there is none */
  bool has_residual;
  bool float_parameters; /* weight and bias are float, else of x's type; both 16-byte aligned */
  const void *weight, *bias;
  float eps;
  int64_t rows, n;
};

/* What centres and scales a row, from sums of d and of its squares. */
struct layer_norm_moments {
  float mean; /* of d */
  float scale;
};

static __device__ __forceinline__ layer_norm_moments moments_of(float sum, float squares, int64_t n,
                                                                float eps) {
  layer_norm_moments m;
  m.mean = sum / (float)n;
  float variance = squares / (float)n - m.mean * m.mean;
  variance = variance < 0.0f ? 0.0f : variance; /* by rounding; NaN stays */
  m.scale = 1.0f / sqrtf(variance + eps);
  return m;
}

/* Pack p of t = x + residual; 0 past the end. */
template <typename T, bool PACKED>
static __device__ __forceinline__ void load_total(float (&to)[spt_pack<T>::N],
                                                  const layer_norm_job &job, const char *x,
                                                  const char *residual, int64_t p) {
  constexpr int N = spt_pack<T>::N;
  spt_load_row<T, PACKED>(to, x, job.x, p, job.n, 0.0f);
  if (job.has_residual) {
    float other[N];
    spt_load_row<T, PACKED>(other, residual, job.residual, p, job.n, 0.0f);
#pragma unroll
    for (int i = 0; i < N; i++) {
      to[i] += other[i];
    }
  }
}

/* Adds to the sums of d = v - mean what is inside the row. */
template <int N>
static __device__ __forceinline__ void add_moments(const float (&v)[N], float mean, int64_t first,
                                                   int64_t n, float *sum, float *squares) {
#pragma unroll
  for (int i = 0; i < N; i++) {
    float d = first + i < n ? v[i] - mean : 0.0f;
    *sum += d;
    *squares += d * d;
  }
}

template <typename T>
static __device__ __forceinline__ void load_parameter(float (&to)[spt_pack<T>::N], const void *data,
                                                      bool floats, int64_t first, int64_t n) {
  constexpr int N = spt_pack<T>::N;
  const float *wide = static_cast<const float *>(data) + first;
  const T *narrow = static_cast<const T *>(data) + first;
  if (first + N <= n && floats) {
    spt_kept(to, wide);
  } else if (first + N <= n) {
    spt_load_pack(to, narrow);
  } else {
#pragma unroll
    for (int i = 0; i < N; i++) {
      to[i] = 0.0f;
      if (first + i < n) {
        to[i] = floats ? wide[i] : spt_load(narrow + i);
      }
    }
  }
}

/* v becomes the result. */
template <typename T>
static __device__ __forceinline__ void normalise(float (&v)[spt_pack<T>::N],
                                                 const layer_norm_job &job, float mean,
                                                 layer_norm_moments m, int64_t first) {
  constexpr int N = spt_pack<T>::N;
  float weight[N], bias[N];
  load_parameter<T>(weight, job.weight, job.float_parameters, first, job.n);
  load_parameter<T>(bias, job.bias, job.float_parameters, first, job.n);
#pragma unroll
  for (int i = 0; i < N; i++) {
    v[i] = (v[i] - mean - m.mean) * m.scale * weight[i] + bias[i];
  }
}

template <typename T, int PACKS, bool PACKED>
__global__ void __launch_bounds__(SPT_WARP_ROW_THREADS, SPT_WARP_ROW_BLOCKS)
    layer_norm_warp_kernel(layer_norm_job job) {
  constexpr int N = spt_pack<T>::N;
  int lane = (int)(threadIdx.x % SPT_WARP);
  int64_t warps = blockDim.x / SPT_WARP, step = gridDim.x * warps;
  for (int64_t r = blockIdx.x * warps + threadIdx.x / SPT_WARP; r < job.rows; r += step) {
    const char *x = job.x.at(r), *residual = job.has_residual ? job.residual.at(r) : nullptr;
    float v[PACKS][N], total = 0.0f, sum = 0.0f, squares = 0.0f;
#pragma unroll
    for (int k = 0; k < PACKS; k++) {
      load_total<T, PACKED>(v[k], job, x, residual, lane + k * SPT_WARP);
    }
#pragma unroll
    for (int k = 0; k < PACKS; k++) {
#pragma unroll
      for (int i = 0; i < N; i++) {
        total += v[k][i];
      }
    }
    float mean = spt_warp_sum(total) / (float)job.n;
#pragma unroll
    for (int k = 0; k < PACKS; k++) {
      add_moments(v[k], mean, (int64_t)(lane + k * SPT_WARP) * N, job.n, &sum, &squares);
    }
    sum = spt_warp_sum(sum);
    layer_norm_moments m = moments_of(sum, spt_warp_sum(squares), job.n, job.eps);
    char *y = job.y.at(r);
#pragma unroll
    for (int k = 0; k < PACKS; k++) {
      int64_t p = lane + k * SPT_WARP;
      if (p * N < job.n) {
        normalise<T>(v[k], job, mean, m, p * N);
        spt_store_row<T, PACKED>(y, job.y, v[k], p, job.n);
      }
    }
  }
}

/* Pack p of a block's row: from shared memory, where this thread put it, or again from x. */
template <typename T, bool PACKED>
static __device__ __forceinline__ void load_again(float (&to)[spt_pack<T>::N],
                                                  const layer_norm_job &job, const float *kept,
                                                  const char *x, const char *residual, int64_t p) {
  if (kept != nullptr) {
    spt_kept(to, kept + p * spt_pack<T>::N);
  } else {
    load_total<T, PACKED>(to, job, x, residual, p);
  }
}

template <typename T, bool PACKED>
__global__ void __launch_bounds__(SPT_BLOCK_ROW_THREADS)
    layer_norm_block_kernel(layer_norm_job job, bool cached) {
  constexpr int N = spt_pack<T>::N;
  SPT_SHARED(float, partial);
  float *kept = cached ? partial + SPT_WARP : nullptr, v[N];
  int64_t packs = (job.n + N - 1) / N;
  for (int64_t r = blockIdx.x; r < job.rows; r += gridDim.x) {
    const char *x = job.x.at(r), *residual = job.has_residual ? job.residual.at(r) : nullptr;
    float total = 0.0f, sum = 0.0f, squares = 0.0f;
#pragma unroll 2
    for (int64_t p = threadIdx.x; p < packs; p += blockDim.x) {
      load_total<T, PACKED>(v, job, x, residual, p);
#pragma unroll
      for (int i = 0; i < N; i++) {
        total += v[i];
      }
      if (cached) {
        spt_keep(kept + p * N, v);
      }
    }
    float mean = spt_block_sum(total, partial) / (float)job.n;
    for (int64_t p = threadIdx.x; p < packs; p += blockDim.x) {
      load_again<T, PACKED>(v, job, kept, x, residual, p);
      add_moments(v, mean, p * N, job.n, &sum, &squares);
    }
    sum = spt_block_sum(sum, partial);
    layer_norm_moments m = moments_of(sum, spt_block_sum(squares, partial), job.n, job.eps);
    char *y = job.y.at(r);
    for (int64_t p = threadIdx.x; p < packs; p += blockDim.x) {
      load_again<T, PACKED>(v, job, kept, x, residual, p);
      normalise<T>(v, job, mean, m, p * N);
      spt_store_row<T, PACKED>(y, job.y, v, p, job.n);
    }
  }
}

template <typename T>
static spt_status layer_norm_of(const spt_cuda_queue *queue, const layer_norm_job &job, bool packed,
                                spt_error *err) {
  const char *op = "layer_norm";
  spt_row_plan plan = spt_plan_rows(queue, job.rows, job.n);
  if (plan.by_warp && packed) {
    SPT_WITH_PACKS(T, job.n, P,
                   SPT_LAUNCH(op, (layer_norm_warp_kernel<T, P, true>), plan.blocks, plan.threads,
                              0, queue->stream, job));
  } else if (plan.by_warp) {
    SPT_WITH_FEW_PACKS(T, job.n, P,
                       SPT_LAUNCH(op, (layer_norm_warp_kernel<T, P, false>), plan.blocks,
                                  plan.threads, 0, queue->stream, job));
  } else if (packed) {
    SPT_LAUNCH(op, (layer_norm_block_kernel<T, true>), plan.blocks, plan.threads, plan.shared,
               queue->stream, job, plan.cached);
  } else {
    SPT_LAUNCH(op, (layer_norm_block_kernel<T, false>), plan.blocks, plan.threads, plan.shared,
               queue->stream, job, plan.cached);
  }
  return SPT_OK;
}

static bool is_parameter(const spt_matrix *m, spt_dtype dtype) {
  return m->dtype == dtype && (m->cols == 1 || m->col == 1) &&
         (uintptr_t)m->data % SPT_PACK_BYTES == 0;
}

spt_status spt_cuda_layer_norm(void *state, const spt_layer_norm_problem *p, spt_error *err) {
  spt_cuda_queue *queue = spt_queue_of(state);
  spt_scratch scratch(queue, "layer_norm");
  spt_dtype dtype = p->x.dtype;
  int leading = p->x.ndim - 1;
  if (spt_view_elements(&p->x) == 0) {
    return SPT_OK;
  }
  bool has_residual = p->residual.data != NULL;
  bool packed = spt_has_packed_rows(&p->x, dtype) && spt_has_packed_rows(&p->y, dtype) &&
                (!has_residual || spt_has_packed_rows(&p->residual, dtype));
  bool floats =
      dtype == SPT_F32 || !is_parameter(&p->weight, dtype) || !is_parameter(&p->bias, dtype);
  spt_matrix weight = p->weight, bias = p->bias;
  if (floats) {
    SPT_TRY(
        spt_cuda_aligned_rows(queue, &scratch, "layer_norm", &p->weight, SPT_F32, &weight, err));
    SPT_TRY(spt_cuda_aligned_rows(queue, &scratch, "layer_norm", &p->bias, SPT_F32, &bias, err));
  }
  layer_norm_job job = {spt_any_view(p->x, leading),
                        spt_any_view(has_residual ? p->residual : p->x, leading),
                        spt_any_view(p->y, leading),
                        has_residual,
                        floats,
                        weight.data,
                        bias.data,
                        p->eps,
                        spt_row_total(&p->x),
                        p->x.shape[leading]};
  SPT_WITH_STORAGE(dtype, T, return layer_norm_of<T>(queue, job, packed, err));
  return SPT_OK;
}
