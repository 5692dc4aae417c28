/* A run of the encoder: one upload, kernels on one stream, then the results come down. What its layers need
 * is known before it begins, so nothing in between waits for the host, and a graph can stand for it. */
#include <stdlib.h>
#include <string.h>

#include "encoder_graph.h"
#include "slots.h"
#include "view.cuh"

/* ---- what goes up ----------------------------------------------------------------------------- */

/* Reserves n elements: with host NULL only counts. Returns where they are on the host. */
template <typename T>
static T *reserve(spt_gpu_upload *up, int64_t n, const T **device) {
  up->bytes = (up->bytes + 15) / 16 * 16;
  size_t at = up->bytes;
  up->bytes += (size_t)n * sizeof(T);
  if (up->host == NULL) {
    return NULL;
  }
  *device = (const T *)(up->device + at);
  return (T *)(up->host + at);
}

template <typename T>
static void reserve_copy(spt_gpu_upload *up, const T *from, int64_t n, const T **device) {
  *device = NULL;
  if (from != NULL) {
    T *to = reserve(up, n, device);
    if (to != NULL) {
      memcpy(to, from, (size_t)n * sizeof(T));
    }
  }
}

static void fill_offsets(const spt_gpu_pass *p) {
  const spt_encoder_run *run = p->run;
  int64_t layers = p->model->n_layers;
  for (int64_t i = 0; i <= layers; i++) {
    int64_t *to = p->host_offsets + i * (p->n + 1);
    to[0] = 0;
    int64_t counted = spt_least(i, layers - 1); /* nothing goes behind the last layer */
    for (int64_t s = 0; s < p->n; s++) {
      int64_t count = run->pruning != NULL && layers > 0 ? run->pruning->tokens[counted * p->n + s]
                                                         : run->offsets[s + 1] - run->offsets[s];
      to[s + 1] = to[s] + count;
    }
  }
}

static void fill_firsts(const spt_gpu_pass *p, int32_t *rows) {
  const int64_t *offsets = spt_gpu_host_offsets(p, p->model->n_layers);
  int64_t n = 0;
  p->host_first_offsets[0] = 0;
  for (int64_t s = 0; s < p->n; s++) {
    if (offsets[s + 1] > offsets[s]) {
      rows[n++] = (int32_t)offsets[s];
    }
    p->host_first_offsets[s + 1] = n;
  }
}

void spt_gpu_lay_out_upload(spt_gpu_pass *p, spt_gpu_upload *up) {
  const spt_encoder_run *run = p->run;
  const spt_encoder_pruning *pruning = run->pruning;
  int64_t tokens = run->offsets[p->n], layers = p->model->n_layers;
  up->bytes = 0;
  p->host_offsets = reserve(up, (layers + 1) * (p->n + 1), &p->offsets);
  p->host_first_offsets = reserve(up, p->n + 1, &p->first_offsets);
  int32_t *first_rows = reserve(up, p->n, &p->first_rows);
  if (up->host != NULL) {
    fill_offsets(p);
    fill_firsts(p, first_rows);
  }
  reserve_copy(up, run->ids, tokens, &p->ids);
  reserve_copy(up, run->positions, tokens, &p->positions);
  reserve_copy(up, run->types, tokens, &p->types);
  if (pruning != NULL) {
    reserve_copy(up, pruning->heads, layers * p->n, &p->counts_heads);
    reserve_copy(up, pruning->protect, tokens, &p->protect);
  }
}

/* ---- what lies on the device ------------------------------------------------------------------ */

static spt_status take_rows(spt_scratch *s, const spt_gpu_pass *p, spt_gpu_rows *rows, int64_t n,
                            spt_error *err) {
  int64_t elements = n * p->model->width;
  SPT_TRY(s->take(&rows->f32, elements, err));
  rows->narrow = rows->f32;
  if (p->narrow != SPT_F32) {
    char *narrow;
    SPT_TRY(s->take(&narrow, elements * (int64_t)spt_dtype_size(p->narrow), err));
    rows->narrow = narrow;
  }
  return SPT_OK;
}

/* Bytes of a token in the widest layer. */
struct token_bytes {
  int64_t qkv, q, context, inner;
};

static token_bytes widest(const spt_gpu_pass *p) {
  token_bytes w = {1, 1, 1, 1};
  int64_t element = (int64_t)spt_dtype_size(p->narrow);
  for (int64_t i = 0; i < p->model->n_layers; i++) {
    const spt_gpu_layer *l = &p->encoder->layers[i];
    int64_t context = l->context_width * element;
    if (l->table->merged_row != NULL) {
      context = l->context_width * l->table->n_heads * (int64_t)sizeof(float);
    }
    w.qkv = spt_most(w.qkv, l->qkv_width * element);
    w.q = spt_most(w.q, l->table->q_rows * element);
    w.context = spt_most(w.context, context);
    w.inner = spt_most(w.inner, l->up.weight.out * element);
  }
  return w;
}

static spt_status take_bytes(spt_scratch *s, void **piece, int64_t bytes, spt_error *err) {
  char *data;
  SPT_TRY(s->take(&data, bytes, err));
  *piece = data;
  return SPT_OK;
}

static spt_status take_pruning(spt_scratch *s, spt_gpu_pass *p, spt_error *err) {
  int64_t tokens = spt_gpu_tokens(p, 0), heads = p->n * p->model->n_heads, noted = tokens;
  for (int64_t i = 0; i < p->model->n_layers; i++) { /* with one layer's more than are noted */
    noted += spt_gpu_tokens(p, i);
  }
  SPT_TRY(s->take(&p->importance, tokens, err));
  SPT_TRY(s->take(&p->next_importance, tokens, err));
  SPT_TRY(s->take(&p->head_importance, heads, err));
  SPT_TRY(s->take(&p->alive, heads, err));
  SPT_TRY(s->take(&p->kept_tokens, noted, err));
  SPT_TRY(s->take(&p->source, tokens, err));
  SPT_TRY(s->take(&p->kept_heads, p->model->n_layers * heads, err));
  return s->take(&p->nan_layer, 1, err);
}

spt_status spt_gpu_take_activations(spt_scratch *s, spt_gpu_pass *p, spt_error *err) {
  int64_t tokens = spt_gpu_tokens(p, 0), firsts = p->host_first_offsets[p->n];
  token_bytes w = widest(p);
  SPT_TRY(take_rows(s, p, &p->x, tokens, err));
  SPT_TRY(take_rows(s, p, &p->y, tokens, err));
  if (p->run->pruning != NULL || p->run->first_only) {
    SPT_TRY(take_rows(s, p, &p->next, tokens, err));
  }
  SPT_TRY(take_bytes(s, &p->qkv, tokens * w.qkv, err));
  SPT_TRY(take_bytes(s, &p->q, firsts * w.q, err));
  SPT_TRY(take_bytes(s, &p->context, tokens * w.context, err));
  if (p->run->pruning != NULL) {
    SPT_TRY(take_bytes(s, &p->next_context, tokens * w.context, err));
    SPT_TRY(take_pruning(s, p, err));
  }
  return take_bytes(s, &p->inner, tokens * w.inner, err);
}

/* ---- what comes down -------------------------------------------------------------------------- */

/* Rows of the sequences that have tokens move apart, zeros between them. */
static void spread_firsts(const spt_gpu_pass *p) {
  int64_t width = p->model->width;
  for (int64_t s = p->n - 1; s >= 0; s--) {
    float *to = p->run->hidden + s * width;
    int64_t row = p->host_first_offsets[s];
    if (p->host_first_offsets[s + 1] == row) {
      memset(to, 0, (size_t)width * sizeof *to);
    } else if (row != s) {
      memcpy(to, p->run->hidden + row * width, (size_t)width * sizeof *to);
    }
  }
}

static spt_status take_down(const spt_gpu_pass *p, void *to, const void *from, int64_t bytes,
                            spt_error *err) {
  return bytes == 0 ? SPT_OK : spt_cuda_to_host(p->queue, "encoder", to, from, (size_t)bytes, err);
}

static spt_status take_down_pruning(const spt_gpu_pass *p, spt_error *err) {
  const spt_encoder_pruning *pruning = p->run->pruning;
  int64_t layers = p->model->n_layers, noted = 0;
  int32_t nan_layer;
  SPT_TRY(take_down(p, &nan_layer, p->nan_layer, sizeof nan_layer, err));
  if (nan_layer < layers) {
    return spt_fail(err, SPT_INVALID_VALUE,
                    "encoder: layer %d: the importance of tokens or heads is NaN, expected "
                    "numbers that can be ordered",
                    (int)nan_layer);
  }
  for (int64_t i = 0; i < layers; i++) {
    noted += spt_gpu_tokens(p, i);
  }
  SPT_TRY(
      take_down(p, pruning->kept_tokens, p->kept_tokens, noted * (int64_t)sizeof(int32_t), err));
  return take_down(p, pruning->kept_heads, p->kept_heads, layers * p->n * p->model->n_heads, err);
}

spt_status spt_gpu_take_down(const spt_gpu_pass *p, spt_error *err) {
  if (p->run->pruning != NULL) {
    SPT_TRY(take_down_pruning(p, err));
  }
  int64_t rows =
      p->run->first_only ? p->host_first_offsets[p->n] : spt_gpu_tokens(p, p->model->n_layers);
  SPT_TRY(
      take_down(p, p->run->hidden, p->x.f32, rows * p->model->width * (int64_t)sizeof(float), err));
  if (p->run->first_only) {
    spread_firsts(p);
  }
  if (p->run->cost != NULL) {
    spt_gpu_count_costs(p);
  }
  return SPT_OK;
}

/* ---- a run ------------------------------------------------------------------------------------ */

static spt_status run_on_device(spt_gpu_pass *p, spt_gpu_upload *up, spt_error *err) {
  spt_scratch scratch(p->queue, "encoder");
  SPT_TRY(scratch.take(&up->device, (int64_t)up->bytes, err));
  spt_gpu_lay_out_upload(p, up);
  SPT_TRY(spt_cuda_to_device(p->queue, "encoder", up->device, up->host, up->bytes, err));
  SPT_TRY(spt_gpu_take_activations(&scratch, p, err));
  SPT_TRY(spt_gpu_run_layers(p, err));
  return spt_gpu_take_down(p, err);
}

static spt_status run_plainly(spt_gpu_pass p, spt_error *err) {
  spt_gpu_upload up = {};
  spt_gpu_lay_out_upload(&p, &up); /* counts */
  up.host = (char *)malloc(up.bytes + 1);
  if (up.host == NULL) {
    return spt_fail(err, SPT_OUT_OF_MEMORY, "encoder: no memory");
  }
  spt_status status = run_on_device(&p, &up, err);
  free(up.host);
  return status;
}

spt_status spt_cuda_encoder_forward(void *encoder, const spt_encoder_run *run, spt_error *err) {
  spt_gpu_encoder *e = (spt_gpu_encoder *)encoder;
  spt_gpu_pass p = {};
  p.encoder = e;
  p.queue = e->queue;
  p.model = e->model;
  p.run = run;
  p.narrow = e->model->compute;
  p.n = run->n_sequences;
  bool done = false;
  spt_gpu_shape *shape = spt_gpu_shape_claim(e->graphs, &p);
  spt_status status = spt_gpu_shape_run(shape, &p, &done, err);
  if (!done) {
    status = run_plainly(p, err);
  }
  if (status == SPT_OUT_OF_MEMORY && spt_gpu_graphs_drop(e->graphs)) {
    status = run_plainly(p, err);
  }
  spt_gpu_shape_release(e->graphs, shape, status == SPT_OK);
  return status;
}
