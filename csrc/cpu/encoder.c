/* The encoder on the CPU: what outlives a run, and the memory of one. All tokens of a batch lie in
 * panels of 16, back to back, but for a slot here and there that makes a sequence begin at an even one. */
#include "../encoder.h"

#include <pthread.h>
#include <stdlib.h>

#include "encoder_pass.h"
#include "ops.h"
#include "quick_select.h"
#include "scratch.h"

typedef struct cpu_encoder {
  pthread_mutex_t lock; /* of the workspace; never waited for */
  float *workspace;
  int64_t capacity; /* floats */
  const spt_encoder_model *model;
  spt_layer_bf16 *layers_bf16; /* (n_layers), or NULL */
  spt_layer_size *sizes;       /* (n_layers) */
} cpu_encoder;

/* What a model's widest layer needs. */
struct widths {
  int64_t qkv, context, inner, scratch, heads;
  bool merged; /* some layer */
};

static struct widths widths_of(const spt_encoder_pass *p) {
  struct widths w = {0};
  bool pruned = p->run->pruning != NULL;
  for (int64_t i = 0; i < p->model->n_layers; i++) {
    const spt_encoder_layer *l = &p->model->layers[i];
    w.qkv = spt_max(w.qkv, spt_rows_of(&l->qkv));
    w.context = spt_max(w.context, spt_context_width(l));
    w.inner = spt_max(w.inner, spt_rows_of(&l->up));
    w.heads = spt_max(w.heads, l->n_heads);
    w.merged |= l->merged_row != NULL;
    for (int32_t h = 0; h < l->n_heads; h++) {
      w.scratch =
          spt_max(w.scratch, spt_attention_scratch(l->head_dim, l->v_width[h], p->longest, pruned));
    }
  }
  if (pruned) { /* for a selection */
    int64_t keys = spt_max(p->longest, p->model->n_heads);
    w.scratch = spt_max(w.scratch, 2 * keys + SPT_SELECT_SAMPLE);
  }
  return w;
}

/* Columns of 16 floats that hold n elements of so many bytes. */
static int64_t columns_for(int64_t n, size_t size) {
  return spt_ceil_div(n * (int64_t)size, SPT_LANES * (int64_t)sizeof(float));
}

#define ABSENT (-1)

/* Hands out pieces of the workspace one after the other; with base NULL only counts. */
struct layout {
  float *base;
  int64_t at; /* in columns */
};

/* n elements, or none where n is ABSENT. */
static void *take(struct layout *to, int64_t n, size_t size) {
  void *piece = to->base != NULL && n != ABSENT ? to->base + to->at * SPT_LANES : NULL;
  to->at += n != ABSENT ? columns_for(n, size) : 0;
  return piece;
}

static void take_activations(struct layout *to, spt_activations *a, int64_t panels,
                             int64_t features, bool f32, bool bf16) {
  int64_t pairs = spt_pair_panel_features(features);
  a->f32 = take(to, f32 ? panels * features * SPT_LANES : ABSENT, sizeof(float));
  a->bf16 = take(to, bf16 ? panels * pairs * SPT_LANES : ABSENT, sizeof(uint16_t));
}

static void lay_out_placement(spt_encoder_pass *p, struct layout *to) {
  int64_t sequences = p->run->n_sequences, slots = p->n_panels * SPT_LANES;
  spt_placement *place = &p->place;
  place->begin = take(to, sequences, sizeof *place->begin);
  place->end = take(to, sequences, sizeof *place->end);
  place->token = take(to, slots, sizeof *place->token);
  place->source = take(to, slots, sizeof *place->source);
}

/* What a run with pruning needs besides. */
static void lay_out_kept(spt_encoder_pass *p, struct layout *to, const struct widths *w) {
  spt_kept *k = &p->kept;
  bool bf16 = p->layers_bf16 != NULL;
  int64_t sequences = p->run->n_sequences, slots = p->n_panels * SPT_LANES;
  p->most_slots = slots;
  k->importance = take(to, slots, sizeof *k->importance);
  k->shares = take(to, p->workers * slots, sizeof *k->shares);
  k->magnitudes = take(to, w->heads * slots, sizeof *k->magnitudes);
  k->head_importance = take(to, sequences * p->model->n_heads, sizeof *k->head_importance);
  k->heads = take(to, sequences * p->model->n_heads, sizeof *k->heads);
  k->loses_heads = take(to, sequences, sizeof *k->loses_heads);
  bool heads = p->run->pruning->heads != NULL;
  k->units = take(to, heads ? spt_ceil_div(w->qkv, SPT_STRIP) : ABSENT, sizeof *k->units);
  k->rows = take(to, w->qkv, sizeof *k->rows);
  k->nan = take(to, p->workers, sizeof *k->nan);
  take_activations(to, &k->x, p->n_panels, p->model->width, true, false);
  take_activations(to, &k->context, p->n_panels, w->context, !bf16 || w->merged, bf16);
  k->x.features = p->model->width;
}

/* Lays the buffers out in the workspace; with base NULL only counts. Returns the floats needed, or -1
 * where that exceeds int64. */
static int64_t lay_out(spt_encoder_pass *p, float *base) {
  struct widths w = widths_of(p);
  struct layout to = {base, 0};
  bool bf16 = p->layers_bf16 != NULL;
  int64_t first_panels = p->run->first_only ? spt_ceil_div(p->run->n_sequences, SPT_LANES) : 0;
  int64_t panels = spt_max(p->n_panels, first_panels), width = p->model->width;
  p->scratch_stride = spt_ceil_div(w.scratch, SPT_LANES) * SPT_LANES;
  p->x.features = p->y.features = p->first_x.features = width;
  take_activations(&to, &p->x, panels, width, true, bf16);
  take_activations(&to, &p->y, panels, width, true, bf16);
  take_activations(&to, &p->qkv, panels, w.qkv, !bf16, bf16);
  take_activations(&to, &p->context, panels, w.context, !bf16 || w.merged, bf16);
  take_activations(&to, &p->inner, panels, w.inner, !bf16, bf16);
  take_activations(&to, &p->first_x, first_panels, width, true, bf16);
  take_activations(&to, &p->first_q, first_panels, w.qkv, !bf16, bf16);
  p->scratch = take(&to, p->workers * p->scratch_stride, sizeof *p->scratch);
  p->panel_sequence = take(&to, p->n_panels, sizeof *p->panel_sequence);
  p->work = take(&to, p->workers, sizeof *p->work);
  if (spt_is_placed(p)) {
    lay_out_placement(p, &to);
  }
  if (p->run->pruning != NULL) {
    lay_out_kept(p, &to, &w);
  }
  return to.at > INT64_MAX / 64 ? -1 : to.at * SPT_LANES;
}

static void place_tokens(spt_encoder_pass *p) {
  const int64_t *offsets = p->run->offsets;
  spt_placement *place = &p->place;
  int64_t slot = 0;
  for (int64_t s = 0; s < p->run->n_sequences; s++) {
    place->begin[s] = slot;
    place->end[s] = slot + offsets[s + 1] - offsets[s];
    for (int64_t token = offsets[s]; token < offsets[s + 1]; token++) {
      place->token[slot++] = (int32_t)token;
    }
    int64_t stop = place->begin[s] + spt_slots_for(p, offsets[s + 1] - offsets[s]);
    while (slot < stop) {
      place->token[slot++] = -1;
    }
  }
  p->begin = place->begin;
  p->end = place->end;
}

/* Whether sequences have to be moved to begin at even slots, or, where tokens go, may have to be. */
static bool begins_even(const spt_encoder_pass *p) {
  bool odd = p->run->pruning != NULL;
  for (int64_t s = 0; s < p->run->n_sequences; s++) {
    odd |= p->run->offsets[s] % 2 != 0;
  }
  return odd && p->layers_bf16 != NULL;
}

spt_status spt_cpu_encoder_forward(void *state, const spt_encoder_run *run, spt_error *err) {
  cpu_encoder *encoder = state;
  spt_encoder_pass p = {.tier = spt_cpu_tier_in_use(),
                        .model = encoder->model,
                        .layers_bf16 = encoder->layers_bf16,
                        .sizes = encoder->sizes,
                        .run = run};
  p.workers = spt_pool_width();
  p.even = begins_even(&p);
  for (int64_t s = 0; s < run->n_sequences; s++) {
    int64_t length = run->offsets[s + 1] - run->offsets[s];
    p.longest = spt_max(p.longest, length);
    p.slots += spt_slots_for(&p, length);
  }
  p.n_panels = spt_ceil_div(p.slots, SPT_LANES);
  p.begin = run->offsets;
  p.end = run->offsets + 1;
  int64_t needed = lay_out(&p, NULL);
  if (needed < 0) {
    return spt_fail(err, SPT_OUT_OF_MEMORY, "encoder: no memory for a workspace of %lld tokens",
                    (long long)run->offsets[run->n_sequences]);
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
    if (spt_is_placed(&p)) {
      place_tokens(&p);
    }
    if (run->pruning != NULL) {
      spt_pruning_start(&p);
    }
    spt_find_sequences(&p);
    status = spt_encoder_run_layers(&p, err);
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
  encoder->sizes = calloc((size_t)model->n_layers + 1, sizeof *encoder->sizes);
  if (encoder->sizes == NULL) {
    spt_cpu_encoder_free(encoder);
    return spt_fail(err, SPT_OUT_OF_MEMORY, "encoder: no memory");
  }
  for (int64_t i = 0; i < model->n_layers; i++) {
    encoder->sizes[i] = spt_size_of_layer(&model->layers[i], model->compute);
  }
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
  free(encoder->sizes);
  pthread_mutex_destroy(&encoder->lock);
  free(encoder->workspace);
  free(encoder);
}
