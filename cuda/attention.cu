/* attention: the slot, the choice of a kernel (attention_shapes.h), and importance at its end.
 *
 *   attention_whole_rows.cu  16 bits, short rows: all scores of a row at once, one exact softmax
 *   attention_streaming.cu   16 bits, longer rows: an online softmax over blocks of keys
 *   attention_floats.cu      float32: the same, by FMAs
 *   attention_simple.cu      everything else
 *
 * SPATILE_CUDA_ATTENTION = whole_rows, streaming or simple takes that one where it can: for tests, which
 * hold the kernels against each other. */
#include <stdlib.h>

#include "attention_forward.cuh"
#include "attention_run.h"
#include "slots.h"

static const char OP[] = "attention";

/* ---- importance ---------------------------------------------------------------------------------- */

static const int FINISH_KEYS = 32, FINISH_GROUPS = 8;

struct finish_sums {
  int64_t tile, key_chunks;
  spt_heads tokens, heads; /* where they go */
  bool accumulate;
};

static __device__ __forceinline__ void finish_store(float *to, double sum, bool accumulate) {
  *to = accumulate ? *to + (float)sum : (float)sum;
}

/* A sequence's partial sums are those of slots [*first, *first + number given). */
static __device__ __forceinline__ int64_t finish_slots(const spt_attention_view &v,
                                                       const spt_span &s, int64_t tile,
                                                       int64_t *first) {
  *first = v.packed ? s.q_start / tile + s.number : s.number * ((v.queries + tile - 1) / tile);
  return (s.queries + tile - 1) / tile;
}

/* 32 keys of a sequence; the partial sums of each are added by 8 threads, always the same ones. */
static __device__ void finish_tokens(const spt_attend &a, const finish_sums &f, const spt_span &s,
                                     int64_t key, double *shared) {
  int group = threadIdx.x / FINISH_KEYS;
  double sum = 0.0;
  if (a.sums.shares != NULL) {
    int64_t start = a.view.packed ? s.k_start : s.number * a.view.keys;
    if (group == 0 && key < s.keys) {
      unsigned long long shares = a.sums.shares[start + key];
      sum = shares >= SPT_SHARE_IS_NAN ? (double)NAN : (double)shares / (double)a.sums.share_units;
    }
  } else if (key < s.keys) {
    int64_t first, n = finish_slots(a.view, s, f.tile, &first) * a.view.heads;
    const float *from = a.sums.tokens + first * a.view.heads * a.sums.token_pitch + key;
    for (int64_t i = group; i < n; i += FINISH_GROUPS) {
      sum += from[i * a.sums.token_pitch];
    }
  }
  shared[threadIdx.x] = sum;
  __syncthreads();
  for (int g = 1; group == 0 && g < FINISH_GROUPS; g++) {
    sum += shared[threadIdx.x + g * FINISH_KEYS];
  }
  if (group == 0 && key < s.key_rows) {
    finish_store(spt_token_row<float>(f.tokens, s.number, s.k_start + key, 0), sum, f.accumulate);
  }
}

static __device__ void finish_heads(const spt_attend &a, const finish_sums &f, const spt_span &s) {
  int64_t first, n = finish_slots(a.view, s, f.tile, &first);
  for (int64_t head = threadIdx.x; head < a.view.heads; head += blockDim.x) {
    double sum = 0.0;
    for (int64_t i = 0; i < n; i++) {
      sum += a.sums.heads[(first + i) * a.view.heads + head];
    }
    int64_t to = a.head != NULL ? a.head[head] : head;
    finish_store(spt_token_row<float>(f.heads, s.number, 0, to), sum, f.accumulate);
  }
}

/* Grid: (sequences, key chunks and one for the heads). */
__global__ void finish_importance_kernel(spt_attend a, finish_sums f) {
  SPT_SHARED(double, shared);
  spt_span s = spt_span_of(a.view, blockIdx.x / (unsigned)(f.key_chunks + 1));
  int64_t chunk = blockIdx.x % (unsigned)(f.key_chunks + 1);
  if (chunk < f.key_chunks) {
    finish_tokens(a, f, s, chunk * FINISH_KEYS + threadIdx.x % FINISH_KEYS, shared);
  } else {
    finish_heads(a, f, s);
  }
}

/* ---- what a problem says of itself --------------------------------------------------------------- */

static int64_t longest(const spt_attention_problem *p, const int64_t *offsets, int64_t each) {
  int64_t most = offsets == NULL && p->lengths == NULL ? each : 0;
  for (int64_t n = 0; n < p->sequences; n++) {
    if (offsets != NULL) {
      most = spt_most(most, offsets[n + 1] - offsets[n]);
    } else if (p->lengths != NULL) {
      most = spt_most(most, p->lengths[n]);
    }
  }
  return most;
}

static spt_pairs pairs_of(const spt_tensor *t) {
  if (t->data == NULL) {
    return {};
  }
  return {t->data, t->dtype, t->stride[0], t->stride[1], t->stride[2], t->stride[3]};
}

static spt_status upload(spt_cuda_queue *queue, spt_scratch *scratch, const char *op,
                         const int64_t *host, int64_t n, const int64_t **device, spt_error *err) {
  int64_t *piece;
  SPT_TRY(scratch->take(&piece, n, err));
  *device = piece;
  return spt_cuda_to_device(queue, op, piece, host, (size_t)n * sizeof *host, err);
}

spt_status spt_attention_view_of(spt_cuda_queue *queue, spt_scratch *scratch, const char *op,
                                 const spt_attention_problem *p, const int64_t *q_offsets,
                                 const int64_t *kv_offsets, spt_attention_view *v, spt_error *err) {
  *v = {};
  v->sequences = p->sequences;
  v->heads = p->heads;
  v->kv_heads = p->kv_heads;
  v->d = p->d;
  v->dv = p->dv;
  v->queries = p->queries;
  v->keys = p->keys;
  v->packed = p->q_offsets != NULL;
  v->left = p->left;
  v->right = p->right;
  v->scale = p->scale;
  v->mask = pairs_of(&p->mask);
  v->bias = pairs_of(&p->bias);
  v->dropout = {p->dropout > 0.0, (uint32_t)(p->dropout * 0x1p32),
                (float)(1.0 / (1.0 - p->dropout)), p->seed};
  v->q_offsets = q_offsets;
  v->kv_offsets = kv_offsets;
  if (v->packed && q_offsets == NULL) {
    SPT_TRY(upload(queue, scratch, op, p->q_offsets, p->sequences + 1, &v->q_offsets, err));
    v->kv_offsets = v->q_offsets;
    if (p->kv_offsets != p->q_offsets) {
      SPT_TRY(upload(queue, scratch, op, p->kv_offsets, p->sequences + 1, &v->kv_offsets, err));
    }
  }
  if (p->lengths != NULL) {
    SPT_TRY(upload(queue, scratch, op, p->lengths, p->sequences, &v->lengths, err));
  }
  return SPT_OK;
}

static void describe(const spt_cuda_queue *queue, const spt_attention_problem *p,
                     const spt_attend *a, spt_attention_shape *s) {
  s->floats = p->q.dtype == SPT_F32;
  s->products = p->q.dtype == SPT_F16 || queue->device->capability >= 80;
  s->extras = spt_has_extras(a);
  s->d = p->d;
  s->dv = p->dv;
  s->heads = p->heads;
  s->sequences = p->sequences;
  s->rows = p->q_offsets != NULL ? p->queries : p->sequences * p->queries;
  s->packed = p->q_offsets != NULL;
  s->most_keys = longest(p, p->kv_offsets, p->keys);
  s->left = p->left;
  s->right = p->right;
  s->sm_count = queue->device->sm_count;
  s->shared_per_block = queue->device->shared_per_block;
}

/* ---- the slot ------------------------------------------------------------------------------------ */

/* Sums are kept by block where rows are short: no memory to clear first. */
static const int64_t MOST_KEYS_BY_BLOCK = 1024;

static spt_status take_sums(spt_cuda_queue *queue, spt_scratch *scratch,
                            const spt_attention_problem *p, const spt_attention_shape *s,
                            const spt_attention_plan *plan, int64_t slots, spt_attend_sums *sums,
                            spt_error *err) {
  SPT_TRY(scratch->take(&sums->heads, slots * p->heads, err));
  if (plan->form == SPT_ATTEND_WHOLE_ROWS && s->most_keys <= MOST_KEYS_BY_BLOCK) {
    sums->token_pitch = s->most_keys;
    return scratch->take(&sums->tokens, slots * p->heads * s->most_keys, err);
  }
  int64_t keys = p->kv_offsets != NULL ? p->keys : p->sequences * p->keys;
  int bits = 40; /* of a unit's fineness; a key's probabilities add up to less than 2^62 of them */
  for (double most = 2.0 * (double)p->heads * (double)s->rows; most > 0x1p22; most /= 2) {
    bits--;
  }
  sums->share_units = (float)((int64_t)1 << (bits > 0 ? bits : 0));
  SPT_TRY(scratch->take(&sums->shares, keys, err));
  SPT_CUDA_TRY(
      OP, "clearing scratch memory",
      cudaMemsetAsync(sums->shares, 0, (size_t)keys * sizeof *sums->shares, queue->stream));
  return SPT_OK;
}

static spt_status finish_importance(spt_cuda_queue *queue, const spt_attention_problem *p,
                                    const spt_attend *a, int tile, bool accumulate,
                                    spt_error *err) {
  int64_t most = p->kv_offsets != NULL ? longest(p, p->kv_offsets, 0) : p->keys;
  finish_sums f = {tile, spt_blocks(most, FINISH_KEYS), p->token_importance, p->head_importance,
                   accumulate};
  const int threads = FINISH_KEYS * FINISH_GROUPS;
  SPT_LAUNCH(OP, finish_importance_kernel, (unsigned)(p->sequences * (f.key_chunks + 1)), threads,
             threads * sizeof(double), queue->stream, *a, f);
  return SPT_OK;
}

static spt_status attend(spt_cuda_queue *queue, const spt_attend *a, const spt_attention_plan *plan,
                         int64_t slots, spt_error *err) {
  if (slots * a->view.heads > INT32_MAX) {
    return spt_fail(err, SPT_UNSUPPORTED, "%s: %lld blocks of queries, expected at most 2^31 - 1",
                    OP, (long long)(slots * a->view.heads));
  }
  switch (plan->form) {
    case SPT_ATTEND_WHOLE_ROWS:
      return spt_attend_whole_rows(queue, a, plan, slots, err);
    case SPT_ATTEND_STREAMING:
      return spt_attend_streaming(queue, a, plan, slots, err);
    case SPT_ATTEND_FLOATS:
      return spt_attend_floats(queue, a, plan, slots, err);
    default:
      return spt_attend_simply(queue, a, slots, err);
  }
}

spt_status spt_cuda_attention_run(spt_cuda_queue *queue, const spt_attention_problem *p,
                                  const spt_attention_run *run, spt_error *err) {
  if (p->sequences == 0) {
    return SPT_OK;
  }
  spt_scratch scratch(queue, OP);
  spt_attend a = {};
  SPT_TRY(spt_attention_view_of(queue, &scratch, OP, p, run != NULL ? run->q_offsets : NULL,
                                run != NULL ? run->kv_offsets : NULL, &a.view, err));
  a.q = p->q;
  a.k = p->k;
  a.v = p->v;
  a.out = p->out;
  a.lse = p->lse;
  a.wide_q = spt_is_wide(p->q);
  a.wide_k = spt_is_wide(p->k);
  a.wide_v = spt_is_wide(p->v);
  a.wide_out = spt_is_wide(p->out);
  a.log2_scale = fabsf(p->scale) * 1.44269504088896341f;
  if (run != NULL) {
    a.kept = run->kept;
    a.kept_stride = run->kept_stride;
    a.head = run->head;
  }
  spt_attention_shape shape = {};
  describe(queue, p, &a, &shape);
  spt_attention_plan plan = spt_plan_attention(&shape, getenv("SPATILE_CUDA_ATTENTION"));
  int64_t slots = spt_query_slots(a.view, plan.tile);
  bool importance = p->token_importance.data != NULL;
  if (importance) {
    SPT_TRY(take_sums(queue, &scratch, p, &shape, &plan, slots, &a.sums, err));
  }
  if (p->queries > 0) {
    SPT_TRY(attend(queue, &a, &plan, slots, err));
  }
  return importance
             ? finish_importance(queue, p, &a, plan.tile, run != NULL && run->accumulate, err)
             : SPT_OK;
}

spt_status spt_cuda_attention(void *state, const spt_attention_problem *p, spt_error *err) {
  return spt_cuda_attention_run(spt_queue_of(state), p, NULL, err);
}
