/* The encoder on the CPU: what outlives a run, and the memory of one. All tokens of a batch lie in
 * panels of 16, back to back. */
#include "../encoder.h"

#include <pthread.h>
#include <stdlib.h>

#include "encoder_pass.h"
#include "ops.h"
#include "scratch.h"

typedef struct cpu_encoder {
  pthread_mutex_t lock; /* of the workspace; never waited for */
  float *workspace;
  int64_t capacity; /* floats */
  const spt_encoder_model *model;
  spt_layer_bf16 *layers_bf16; /* (n_layers), or NULL */
} cpu_encoder;

/* What a model's widest layer needs. */
struct widths {
  int64_t qkv, context, inner, scratch;
  bool merged; /* some layer */
};

static struct widths widths_of(const spt_encoder_pass *p) {
  struct widths w = {0};
  for (int64_t i = 0; i < p->model->n_layers; i++) {
    const spt_encoder_layer *l = &p->model->layers[i];
    w.qkv = spt_max(w.qkv, spt_rows_of(&l->qkv));
    w.context = spt_max(w.context, spt_context_width(l));
    w.inner = spt_max(w.inner, spt_rows_of(&l->up));
    w.merged |= l->merged_row != NULL;
    for (int32_t h = 0; h < l->n_heads; h++) {
      w.scratch =
          spt_max(w.scratch, spt_attention_scratch(l->head_dim, l->v_width[h], p->longest, false));
    }
  }
  return w;
}

#define ABSENT (-1)

/* Lays the buffers out in the workspace; with base NULL only counts. Returns the floats needed, or -1
 * where that exceeds int64. */
static int64_t lay_out(spt_encoder_pass *p, float *base) {
  struct widths w = widths_of(p);
  bool bf16 = p->layers_bf16 != NULL;
  int64_t first_panels = p->run->first_only ? spt_ceil_div(p->run->n_sequences, SPT_LANES) : 0;
  int64_t panels = spt_max(p->n_panels, first_panels), width = p->model->width;
  p->scratch_stride = spt_ceil_div(w.scratch, SPT_LANES) * SPT_LANES;
  p->x.features = p->y.features = p->first_x.features = width;
  struct {
    void **buffer;
    int64_t columns; /* of 16 floats, or of 32 bfloat16; ABSENT: the buffer is NULL */
  } parts[] = {
      {(void **)&p->x.f32, panels * width},
      {(void **)&p->y.f32, panels * width},
      {(void **)&p->qkv.f32, bf16 ? ABSENT : panels * w.qkv},
      {(void **)&p->context.f32, bf16 && !w.merged ? ABSENT : panels * w.context},
      {(void **)&p->inner.f32, bf16 ? ABSENT : panels * w.inner},
      {(void **)&p->first_x.f32, first_panels * width},
      {(void **)&p->first_q.f32, bf16 ? ABSENT : first_panels * w.qkv},
      {(void **)&p->x.bf16, bf16 ? panels * spt_pair_panel_features(width) / 2 : ABSENT},
      {(void **)&p->y.bf16, bf16 ? panels * spt_pair_panel_features(width) / 2 : ABSENT},
      {(void **)&p->qkv.bf16, bf16 ? panels * spt_pair_panel_features(w.qkv) / 2 : ABSENT},
      {(void **)&p->context.bf16, bf16 ? panels * spt_pair_panel_features(w.context) / 2 : ABSENT},
      {(void **)&p->inner.bf16, bf16 ? panels * spt_pair_panel_features(w.inner) / 2 : ABSENT},
      {(void **)&p->first_x.bf16,
       bf16 ? first_panels * spt_pair_panel_features(width) / 2 : ABSENT},
      {(void **)&p->first_q.bf16,
       bf16 ? first_panels * spt_pair_panel_features(w.qkv) / 2 : ABSENT},
      {(void **)&p->scratch, p->workers * p->scratch_stride / SPT_LANES},
      {(void **)&p->panel_sequence, spt_ceil_div(p->n_panels * 2, SPT_LANES)},
  };
  int64_t at = 0;
  for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
    bool here = parts[i].columns != ABSENT;
    *parts[i].buffer = base != NULL && here ? base + at * SPT_LANES : NULL;
    at += here ? parts[i].columns : 0;
  }
  return at > INT64_MAX / 64 ? -1 : at * SPT_LANES;
}

static void find_sequences(spt_encoder_pass *p) {
  const int64_t *offsets = p->run->offsets;
  int64_t s = 0;
  for (int64_t panel = 0; panel < p->n_panels; panel++) {
    while (offsets[s + 1] <= panel * SPT_LANES) {
      s++;
    }
    p->panel_sequence[panel] = s;
  }
}

spt_status spt_cpu_encoder_forward(void *state, const spt_encoder_run *run, spt_error *err) {
  cpu_encoder *encoder = state;
  spt_encoder_pass p = {.tier = spt_cpu_tier_in_use(),
                        .model = encoder->model,
                        .layers_bf16 = encoder->layers_bf16,
                        .run = run};
  p.workers = spt_pool_width();
  p.tokens = run->offsets[run->n_sequences];
  p.n_panels = spt_ceil_div(p.tokens, SPT_LANES);
  for (int64_t s = 0; s < run->n_sequences; s++) {
    p.longest = spt_max(p.longest, run->offsets[s + 1] - run->offsets[s]);
  }
  int64_t needed = lay_out(&p, NULL);
  if (needed < 0) {
    return spt_fail(err, SPT_OUT_OF_MEMORY, "encoder: no memory for a workspace of %lld tokens",
                    (long long)p.tokens);
  }
  spt_status status = SPT_OK;
  float *temporary = NULL;
  bool locked = pthread_mutex_trylock(&encoder->lock) == 0;
  if (!locked) {
    temporary = spt_scratch("encoder", needed, sizeof(float), &status, err);
  } else if (needed > encoder->capacity) {
    float *grown = spt_scratch("encoder", needed, sizeof(float), &status, err);
    if (grown != NULL) {
      free(encoder->workspace);
      encoder->workspace = grown;
      encoder->capacity = needed;
    }
  }
  if (status == SPT_OK) {
    lay_out(&p, locked ? encoder->workspace : temporary);
    find_sequences(&p);
    spt_encoder_run_layers(&p);
  }
  if (locked) {
    pthread_mutex_unlock(&encoder->lock);
  }
  spt_scratch_free(temporary);
  return status;
}

/* The float32 weights are not read again. */
static spt_status narrow_layers(cpu_encoder *encoder, spt_error *err) {
  const spt_encoder_model *m = encoder->model;
  const spt_cpu_tier *tier = spt_cpu_tier_in_use();
  encoder->layers_bf16 = calloc((size_t)m->n_layers + 1, sizeof *encoder->layers_bf16);
  if (encoder->layers_bf16 == NULL) {
    return spt_fail(err, SPT_OUT_OF_MEMORY, "encoder: no memory");
  }
  for (int64_t i = 0; i < m->n_layers; i++) {
    const spt_encoder_layer *l = &m->layers[i];
    spt_layer_bf16 *to = &encoder->layers_bf16[i];
    SPT_TRY(spt_strips_bf16_create("encoder", l->qkv.strips, tier, &to->qkv, err));
    if (l->merged_row == NULL) {
      SPT_TRY(spt_strips_bf16_create("encoder", l->o.strips, tier, &to->o, err));
    }
    SPT_TRY(spt_strips_bf16_create("encoder", l->up.strips, tier, &to->up, err));
    SPT_TRY(spt_strips_bf16_create("encoder", l->down.strips, tier, &to->down, err));
  }
  return SPT_OK;
}

spt_status spt_cpu_encoder_create(void *state, const spt_encoder_model *model, void **out,
                                  spt_error *err) {
  (void)state;
  cpu_encoder *encoder = calloc(1, sizeof *encoder);
  if (encoder == NULL) {
    return spt_fail(err, SPT_OUT_OF_MEMORY, "encoder: no memory");
  }
  pthread_mutex_init(&encoder->lock, NULL);
  encoder->model = model;
  if (model->compute == SPT_BF16) {
    spt_status status = narrow_layers(encoder, err);
    if (status != SPT_OK) {
      spt_cpu_encoder_free(encoder);
      return status;
    }
  }
  *out = encoder;
  return SPT_OK;
}

void spt_cpu_encoder_free(void *state) {
  cpu_encoder *encoder = state;
  for (int64_t i = 0; encoder->layers_bf16 != NULL && i < encoder->model->n_layers; i++) {
    spt_strips_bf16_free(encoder->layers_bf16[i].qkv);
    spt_strips_bf16_free(encoder->layers_bf16[i].o);
    spt_strips_bf16_free(encoder->layers_bf16[i].up);
    spt_strips_bf16_free(encoder->layers_bf16[i].down);
  }
  free(encoder->layers_bf16);
  pthread_mutex_destroy(&encoder->lock);
  free(encoder->workspace);
  free(encoder);
}
