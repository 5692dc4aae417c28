/* Tokens and heads that leave an encoder's run between its layers. How many stay is known before the run,
 * which ones is decided here, on the device: nothing waits for the host. A block selects a sequence's
 * tokens by four passes over the bytes of their importance, a thread its heads. */
#include "encoder.h"
#include "view.cuh"
#include "warp.cuh"

#define SELECT_THREADS 256
#define SELECT_WARPS (SELECT_THREADS / SPT_WARP)
#define BUCKETS 256

/* Ascending where importance falls; none is 0, which is for what stays whatever its importance. */
static __device__ __forceinline__ uint32_t key_of(float importance) {
  uint32_t bits = __float_as_uint(importance + 0.0f); /* -0 is 0 */
  return bits >> 31 ? bits : ~bits & 0x7fffffffu;
}

/* ---- tokens ----------------------------------------------------------------------------------- */

struct select_arguments {
  const int64_t *offsets, *next_offsets; /* (n + 1) */
  const int64_t *last_offsets;           /* of the last layer */
  const int64_t *given_offsets;          /* of the first */
  const int32_t *token;                  /* (tokens) of the run, those of this layer */
  const float *importance;               /* (tokens) */
  const uint8_t *protect;                /* by token of the run, or NULL */
  int32_t *source, *next_token;          /* (next tokens) */
  float *next_importance;
  int32_t *nan_layer;
  int32_t layer;
};

struct select_shared {
  uint32_t bucket[BUCKETS];
  uint32_t totals[2][SELECT_WARPS];
  uint32_t prefix, remaining;
};

static __device__ uint32_t token_key(const select_arguments &a, int64_t row, int64_t first) {
  int32_t token = a.token[row];
  bool stays = token == first || (a.protect != nullptr && a.protect[token] != 0);
  return stays ? 0 : key_of(a.importance[row]);
}

/* The count-th smallest of a sequence's keys, in `prefix`; in `remaining` how many of its equals are
 * among the count smallest. */
static __device__ void find_last_key(const select_arguments &a, select_shared *s, int64_t begin,
                                     int64_t end, int64_t first, int64_t count) {
  if (threadIdx.x == 0) {
    s->prefix = 0;
    s->remaining = (uint32_t)count;
  }
  uint32_t known = 0; /* bits that are settled */
  for (int shift = 24; shift >= 0; shift -= 8) {
    s->bucket[threadIdx.x] = 0;
    __syncthreads();
    uint32_t prefix = s->prefix;
    for (int64_t row = begin + threadIdx.x; row < end; row += SELECT_THREADS) {
      uint32_t key = token_key(a, row, first);
      if ((key & known) == prefix) {
        atomicAdd(&s->bucket[key >> shift & 255], 1u);
      }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      uint32_t b = 0;
      while (s->bucket[b] < s->remaining) {
        s->remaining -= s->bucket[b++];
      }
      s->prefix = prefix | b << shift;
    }
    known |= 255u << shift;
    __syncthreads();
  }
}

/* How many threads before this one have the flag; *total: how many in the block. */
static __device__ uint32_t rank_of(bool flag, uint32_t *totals, uint32_t *total) {
  uint32_t lane = threadIdx.x % SPT_WARP, warp = threadIdx.x / SPT_WARP;
  uint32_t votes = __ballot_sync(SPT_ALL_LANES, flag);
  if (lane == 0) {
    totals[warp] = __popc(votes);
  }
  __syncthreads();
  uint32_t rank = __popc(votes & ((1u << lane) - 1)), sum = 0;
  for (uint32_t w = 0; w < SELECT_WARPS; w++) {
    rank += w < warp ? totals[w] : 0;
    sum += totals[w];
  }
  *total = sum;
  return rank;
}

__global__ void select_tokens_kernel(select_arguments a) {
  SPT_SHARED(select_shared, s);
  int64_t n = blockIdx.x, begin = a.offsets[n], end = a.offsets[n + 1];
  int64_t to = a.next_offsets[n], count = a.next_offsets[n + 1] - to;
  bool loses = a.last_offsets[n + 1] - a.last_offsets[n] < end - begin;
  for (int64_t row = begin + threadIdx.x; loses && row < end; row += SELECT_THREADS) {
    if (isnan(a.importance[row])) {
      atomicMin(a.nan_layer, a.layer);
    }
  }
  bool all = count == end - begin;
  if (!all) {
    find_last_key(a, s, begin, end, a.given_offsets[n], count);
  }
  uint32_t equals_before = 0;
  for (int64_t chunk = begin; chunk < end; chunk += SELECT_THREADS) {
    int64_t row = chunk + threadIdx.x;
    uint32_t key = row < end && !all ? token_key(a, row, a.given_offsets[n]) : 0;
    bool equal = row < end && !all && key == s->prefix;
    uint32_t equals, kept;
    uint32_t equal_rank = equals_before + rank_of(equal, s->totals[0], &equals);
    bool keep = row < end && (all || key < s->prefix || (equal && equal_rank < s->remaining));
    uint32_t rank = rank_of(keep, s->totals[1], &kept);
    if (keep) {
      a.source[to + rank] = (int32_t)row;
      a.next_token[to + rank] = a.token[row];
      a.next_importance[to + rank] = a.importance[row];
    }
    to += kept;
    equals_before += equals;
    __syncthreads(); /* totals are written again */
  }
}

/* ---- heads ------------------------------------------------------------------------------------ */

struct head_arguments {
  const int64_t *offsets;     /* (n + 1) */
  const int64_t *counts;      /* (n_layers, n) */
  const uint8_t *layer_heads; /* (n_layers, n_heads) */
  const float *importance;    /* (n, n_heads) */
  uint8_t *alive;             /* (n, n_heads) */
  int32_t *nan_layer;
  int32_t layer, n_layers, n_heads;
  int64_t n;
};

/* Heads that a layer has and the sequence has not dropped; *last is one of them. */
static __device__ int heads_left(const head_arguments &a, const uint8_t *alive, int layer,
                                 int *last) {
  int left = 0;
  for (int h = 0; h < a.n_heads; h++) {
    if (alive[h] && a.layer_heads[layer * a.n_heads + h]) {
      left++;
      *last = h;
    }
  }
  return left;
}

/* Whether a later layer has no other head left. */
static __device__ bool is_last_head(const head_arguments &a, const uint8_t *alive, int head) {
  for (int layer = a.layer + 1; layer < a.n_layers; layer++) {
    int last = -1;
    if (heads_left(a, alive, layer, &last) == 1 && last == head) {
      return true;
    }
  }
  return false;
}

/* The least important of the next layer's heads that is after `bound` in the order in which they go: by
 * falling key, of equals the last head first. -1: none. */
static __device__ int next_to_go(const head_arguments &a, const uint8_t *alive,
                                 const float *importance, uint32_t bound_key, int bound_head) {
  int found = -1;
  uint32_t found_key = 0;
  for (int h = 0; h < a.n_heads; h++) {
    uint32_t key = key_of(importance[h]);
    bool after = key < bound_key || (key == bound_key && h < bound_head);
    if (after && alive[h] && a.layer_heads[(a.layer + 1) * a.n_heads + h] &&
        (found < 0 || key >= found_key)) {
      found = h;
      found_key = key;
    }
  }
  return found;
}

__global__ void select_heads_kernel(head_arguments a) {
  int64_t s = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (s >= a.n || a.offsets[s + 1] == a.offsets[s]) {
    return;
  }
  uint8_t *alive = a.alive + s * a.n_heads;
  const float *importance = a.importance + s * a.n_heads;
  int last = -1;
  bool loses = false;
  for (int layer = a.layer + 1; layer < a.n_layers; layer++) {
    loses |= a.counts[layer * a.n + s] < heads_left(a, alive, layer, &last);
  }
  if (!loses) {
    return;
  }
  for (int h = 0; h < a.n_heads; h++) {
    if (isnan(importance[h])) {
      atomicMin(a.nan_layer, a.layer);
      return;
    }
  }
  int left = heads_left(a, alive, a.layer + 1, &last), head = a.n_heads;
  uint32_t key = 0xffffffffu;
  while (left > a.counts[(a.layer + 1) * a.n + s]) {
    head = next_to_go(a, alive, importance, key, head);
    if (head < 0) {
      return;
    }
    key = key_of(importance[head]);
    if (!is_last_head(a, alive, head)) {
      alive[head] = 0;
      left--;
    }
  }
}

__global__ void note_heads_kernel(uint8_t *noted, const uint8_t *alive, const uint8_t *layer_heads,
                                  int64_t n, int32_t n_heads) {
  int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n * n_heads) {
    noted[i] = layer_heads[i % n_heads] && alive[i];
  }
}

__global__ void count_up_kernel(int32_t *to, int64_t n, int32_t *nan_layer, int32_t n_layers) {
  int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) {
    to[i] = (int32_t)i;
  }
  if (i == 0) {
    *nan_layer = n_layers;
  }
}

/* ---- launchers -------------------------------------------------------------------------------- */

spt_status spt_gpu_pruning_start(const spt_gpu_pass *p, spt_error *err) {
  int64_t tokens = spt_gpu_tokens(p, 0), heads = p->n * p->model->n_heads;
  SPT_CUDA_TRY("encoder", "clearing importance",
               cudaMemsetAsync(p->importance, 0, (size_t)tokens * sizeof(float), p->queue->stream));
  SPT_CUDA_TRY(
      "encoder", "clearing importance",
      cudaMemsetAsync(p->head_importance, 0, (size_t)heads * sizeof(float), p->queue->stream));
  SPT_CUDA_TRY("encoder", "keeping all heads",
               cudaMemsetAsync(p->alive, 1, (size_t)heads, p->queue->stream));
  unsigned blocks = (unsigned)spt_most(1, spt_blocks(tokens, SELECT_THREADS));
  SPT_LAUNCH("encoder", count_up_kernel, blocks, SELECT_THREADS, 0, p->queue->stream,
             p->kept_tokens, tokens, p->nan_layer, (int32_t)p->model->n_layers);
  return SPT_OK;
}

spt_status spt_gpu_pruning_note(const spt_gpu_pass *p, int64_t layer, spt_error *err) {
  int64_t heads = p->n * p->model->n_heads;
  if (heads > 0) {
    unsigned blocks = (unsigned)spt_blocks(heads, SELECT_THREADS);
    SPT_LAUNCH("encoder", note_heads_kernel, blocks, SELECT_THREADS, 0, p->queue->stream,
               p->kept_heads + layer * heads, p->alive,
               p->encoder->layer_heads + layer * p->model->n_heads, p->n,
               (int32_t)p->model->n_heads);
  }
  return SPT_OK;
}

static spt_status select_heads(const spt_gpu_pass *p, int64_t layer, spt_error *err) {
  head_arguments a = {spt_gpu_offsets(p, layer),
                      p->counts_heads,
                      p->encoder->layer_heads,
                      p->head_importance,
                      p->alive,
                      p->nan_layer,
                      (int32_t)layer,
                      (int32_t)p->model->n_layers,
                      (int32_t)p->model->n_heads,
                      p->n};
  const int threads = 64;
  SPT_LAUNCH("encoder", select_heads_kernel, (unsigned)spt_blocks(p->n, threads), threads, 0,
             p->queue->stream, a);
  return SPT_OK;
}

static spt_status select_tokens(const spt_gpu_pass *p, int64_t layer, const int32_t *token,
                                int32_t *next_token, spt_error *err) {
  select_arguments a = {spt_gpu_offsets(p, layer),
                        spt_gpu_offsets(p, layer + 1),
                        spt_gpu_offsets(p, p->model->n_layers - 1),
                        spt_gpu_offsets(p, 0),
                        token,
                        p->importance,
                        p->protect,
                        p->source,
                        next_token,
                        p->next_importance,
                        p->nan_layer,
                        (int32_t)layer};
  SPT_LAUNCH("encoder", select_tokens_kernel, (unsigned)p->n, SELECT_THREADS, sizeof(select_shared),
             p->queue->stream, a);
  return SPT_OK;
}

template <typename T>
static void exchange(T *a, T *b) {
  T first = *a;
  *a = *b;
  *b = first;
}

spt_status spt_gpu_pruning_select(spt_gpu_pass *p, int64_t layer, bool *compacted, spt_error *err) {
  *compacted = false;
  if (layer + 1 == p->model->n_layers || p->n == 0) {
    return SPT_OK;
  }
  if (p->counts_heads != NULL) {
    SPT_TRY(select_heads(p, layer, err));
  }
  /* Each layer's tokens are noted one after the other. */
  const int32_t *token = p->kept_tokens;
  for (int64_t i = 0; i < layer; i++) {
    token += spt_gpu_tokens(p, i);
  }
  int64_t before = spt_gpu_tokens(p, layer), tokens = spt_gpu_tokens(p, layer + 1);
  int32_t *next_token = (int32_t *)token + before;
  SPT_TRY(select_tokens(p, layer, token, next_token, err));
  exchange(&p->importance, &p->next_importance);
  if (tokens == before) {
    return SPT_OK;
  }
  const spt_gpu_layer *l = &p->encoder->layers[layer];
  int64_t width = p->model->width * (int64_t)sizeof(float);
  bool merged = l->table->merged_row != NULL;
  int64_t context = merged ? l->context_width * l->table->n_heads * (int64_t)sizeof(float)
                           : l->context_width * (int64_t)spt_dtype_size(p->narrow);
  SPT_TRY(spt_gpu_gather(p, p->next.f32, p->x.f32, p->source, tokens, width, err));
  SPT_TRY(spt_gpu_gather(p, p->next_context, p->context, p->source, tokens, context, err));
  exchange(&p->x.f32, &p->next.f32);
  exchange(&p->context, &p->next_context);
  if (p->narrow == SPT_F32) {
    p->x.narrow = p->x.f32;
    p->next.narrow = p->next.f32;
  }
  *compacted = true;
  return SPT_OK;
}
