/* attention_backward's dbias, in the bias's own shape and type: the sum of dS over what it was broadcast along.
 * 32 elements and 8 slices of their sums to a block, each pair's two products recomputed by one thread;
 * few elements with long sums are cut into several blocks' parts, which a second kernel adds in order.
 * Bound by loads, like attention_backward_simple.cu. */
#include "attention_backward.cuh"
#include "attention_backward_pair.cuh"
#include "pack.cuh"

static const int BIAS_SLICES = 8;
static const int BIAS_OUTPUTS = 32;

/* dbias and what each of its elements sums: sequences, heads, queries, keys. */
struct bias_sums {
  char *dbias;
  int32_t dtype;               /* the bias's, which need not be q's */
  int64_t shape[4], stride[4]; /* of dbias; strides in bytes */
  int64_t summed[4];           /* 1 where dbias has the axis */
  int64_t outputs, length;     /* elements; pairs of each */
  int64_t parts;
};

/* The pair number `i` of an element at `at`. */
static __device__ __forceinline__ void find_pair(const bias_sums &b, const int64_t *at, int64_t i,
                                                 int64_t *pair) {
  for (int axis = 3; axis >= 0; axis--) {
    pair[axis] = b.summed[axis] > 1 ? i % b.summed[axis] : at[axis];
    i /= b.summed[axis];
  }
}

static __device__ __forceinline__ void find_element(const bias_sums &b, int64_t i, int64_t *at) {
  for (int axis = 3; axis >= 0; axis--) {
    at[axis] = i % b.shape[axis];
    i /= b.shape[axis];
  }
}

static __device__ __forceinline__ void store_element(const bias_sums &b, const int64_t *at,
                                                     float value) {
  int64_t offset =
      at[0] * b.stride[0] + at[1] * b.stride[1] + at[2] * b.stride[2] + at[3] * b.stride[3];
  spt_store_any(b.dbias + offset, b.dtype, value);
}

/* Grid: (32 elements each, parts). `partial` is (parts, elements), or NULL where there is one part. */
template <typename T>
__global__ void bias_kernel(spt_backward p, bias_sums b, float *partial) {
  SPT_SHARED(float, sums); /* (slices, 32) */
  const spt_attention_view &v = p.view;
  int output = threadIdx.x % BIAS_OUTPUTS, slice = threadIdx.x / BIAS_OUTPUTS;
  int64_t element = (int64_t)blockIdx.x * BIAS_OUTPUTS + output;
  int64_t part = blockIdx.y, per_part = (b.length + b.parts - 1) / b.parts;
  int64_t last = spt_least(b.length, (part + 1) * per_part), at[4], pair[4];
  float sum = 0.0f;
  if (element < b.outputs) {
    find_element(b, element, at);
    for (int64_t i = part * per_part + slice; i < last; i += BIAS_SLICES) {
      find_pair(b, at, i, pair);
      spt_span s = spt_span_of(v, pair[0]);
      if (spt_window_has(v, s, pair[2], pair[3])) {
        int64_t stats = spt_stats_row(v, s, pair[1]) + pair[2];
        sum += spt_lone_pair<T>(p, s, pair[1], pair[2], pair[3], p.lse[stats], p.delta[stats]).ds;
      }
    }
  }
  sums[slice * BIAS_OUTPUTS + output] = sum;
  __syncthreads();
  if (slice == 0 && element < b.outputs) {
    for (int other = 1; other < BIAS_SLICES; other++) {
      sum += sums[other * BIAS_OUTPUTS + output];
    }
    if (partial != NULL) {
      partial[part * b.outputs + element] = sum;
    } else {
      store_element(b, at, sum);
    }
  }
}

__global__ void bias_parts_kernel(bias_sums b, const float *partial) {
  int64_t element = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, at[4];
  if (element < b.outputs) {
    float sum = 0.0f;
    for (int64_t part = 0; part < b.parts; part++) {
      sum += partial[part * b.outputs + element];
    }
    find_element(b, element, at);
    store_element(b, at, sum);
  }
}

/* As many parts as give every multiprocessor some blocks, while each slice still has pairs to add. */
static int64_t parts_of(const spt_cuda_queue *queue, const bias_sums *b) {
  int64_t blocks = spt_blocks(b->outputs, BIAS_OUTPUTS);
  int64_t wanted = spt_blocks(4 * (int64_t)queue->device->sm_count, blocks);
  return spt_most(1, spt_least(spt_least(wanted, 1024), b->length / (4 * BIAS_SLICES)));
}

spt_status spt_backward_bias(spt_cuda_queue *queue, const spt_backward *p, const spt_tensor *dbias,
                             spt_dtype dtype, spt_error *err) {
  const char *op = "attention_backward";
  const spt_attention_view &v = p->view;
  const int64_t full[4] = {v.sequences, v.heads, v.queries, v.keys};
  spt_scratch scratch(queue, op);
  float *partial = NULL;
  bias_sums b;
  b.dbias = static_cast<char *>(dbias->data);
  b.dtype = dbias->dtype;
  b.outputs = b.length = 1;
  for (int axis = 0; axis < 4; axis++) {
    b.shape[axis] = dbias->shape[axis];
    b.stride[axis] = dbias->stride[axis] * spt_storage_bytes(dbias->dtype);
    b.summed[axis] = dbias->shape[axis] == 1 ? full[axis] : 1;
    b.outputs *= b.shape[axis];
    b.length *= b.summed[axis];
  }
  if (b.outputs == 0) {
    return SPT_OK;
  }
  b.parts = parts_of(queue, &b);
  if (b.parts > 1) {
    SPT_TRY(scratch.take(&partial, b.parts * b.outputs, err));
  }
  dim3 grid((unsigned)spt_blocks(b.outputs, BIAS_OUTPUTS), (unsigned)b.parts);
  const int threads = BIAS_OUTPUTS * BIAS_SLICES;
  SPT_WITH_STORAGE(dtype, T, {
    SPT_LAUNCH(op, bias_kernel<T>, grid, threads, threads * sizeof(float), queue->stream, *p, b,
               partial);
  });
  if (partial != NULL) {
    SPT_LAUNCH(op, bias_parts_kernel, (unsigned)spt_blocks(b.outputs, threads), threads, 0,
               queue->stream, b, partial);
  }
  return SPT_OK;
}
