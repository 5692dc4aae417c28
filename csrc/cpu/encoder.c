/* The encoder on the CPU. All tokens of a batch lie in panels of 16, back to back; every layer is a
 * handful of parallel phases over panels, strips and heads. */
#include "../encoder.h"
#include "../integer.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "ops.h"
#include "pool.h"
#include "product.h"
#include "scratch.h"
#include "tier.h"

typedef struct cpu_encoder {
  pthread_mutex_t lock; /* of the workspace; never waited for */
  float *workspace;
  int64_t capacity; /* floats */
  const spt_encoder_model *model;
} cpu_encoder;

/* One run. Panel p of a buffer with f features starts at buffer + p * f * 16. */
typedef struct pass {
  const spt_cpu_tier *tier;
  const spt_encoder_model *model;
  const spt_encoder_run *run;
  const spt_encoder_layer *layer;
  int64_t tokens, n_panels; /* of all sequences */
  int64_t longest;          /* sequence */
  /* In the last layer of a first_only run the queries are the first tokens alone: `queries` panels
   * whose lane i is sequence i. Elsewhere they are the tokens themselves. */
  bool first_only;
  int64_t query_panels;
  float *x, *y, *qkv, *context, *inner; /* width, width, qkv, context and FFN features */
  float *first_x, *first_q;             /* the queries' x and Q in that last layer */
  float *scratch;                       /* attention's, one piece a worker */
  int workers;
  int64_t scratch_stride;
  int64_t *panel_sequence; /* (n_panels): the sequence of the panel's first token */
} pass;

static int64_t rows_of(const spt_encoder_matrix *m) {
  return m->strips != NULL ? m->strips->out : m->csr->out;
}

/* ---- embeddings ------------------------------------------------------------------------------- */

static void embed_panel(void *context, int64_t panel, int worker) {
  (void)worker;
  const pass *p = context;
  const spt_encoder_model *m = p->model;
  int64_t width = m->width;
  float *x = p->x + panel * width * SPT_LANES;
  for (int64_t l = 0; l < SPT_LANES; l++) {
    int64_t token = panel * SPT_LANES + l;
    if (token >= p->tokens) {
      for (int64_t f = 0; f < width; f++) {
        x[f * SPT_LANES + l] = 0.0f;
      }
      continue;
    }
    const float *word = m->word + p->run->ids[token] * width;
    const float *position = m->position + p->run->positions[token] * width;
    if (m->type == NULL) {
      for (int64_t f = 0; f < width; f++) {
        x[f * SPT_LANES + l] = word[f] + position[f];
      }
    } else {
      const float *type = m->type + (p->run->types != NULL ? p->run->types[token] : 0) * width;
      for (int64_t f = 0; f < width; f++) {
        x[f * SPT_LANES + l] = word[f] + type[f] + position[f];
      }
    }
  }
  p->tier->panel_layer_norm(x, width, m->norm_weight, m->norm_bias, m->norm_eps);
}

/* ---- products --------------------------------------------------------------------------------- */

static void multiply(const spt_encoder_matrix *w, const float *x, int64_t x_width, float *y,
                     const float *residual, spt_activation activation, int64_t n_panels) {
  int64_t out = rows_of(w);
  spt_panel_product product = {.strips = w->strips,
                               .csr = w->csr,
                               .x = x,
                               .y = y,
                               .bias = w->bias,
                               .residual = residual,
                               .x_stride = x_width * SPT_LANES,
                               .y_stride = out * SPT_LANES,
                               .residual_stride = out * SPT_LANES,
                               .activation = activation};
  spt_product_run(&product, 0, spt_product_units(&product), n_panels);
}

/* Q of the first tokens from first_x, K and V of all tokens from x. */
static void project_first(const pass *p, int64_t q_rows) {
  const spt_encoder_matrix *w = &p->layer->qkv;
  int64_t stride = rows_of(w) * SPT_LANES;
  spt_panel_product product = {.strips = w->strips,
                               .csr = w->csr,
                               .bias = w->bias,
                               .x = p->first_x,
                               .y = p->first_q,
                               .x_stride = p->model->width * SPT_LANES,
                               .y_stride = stride};
  spt_product_run(&product, 0, q_rows / SPT_STRIP, p->query_panels);
  product.x = p->x;
  product.y = p->qkv;
  spt_product_run(&product, q_rows / SPT_STRIP, spt_product_units(&product), p->n_panels);
}

/* ---- attention -------------------------------------------------------------------------------- */

/* The queries in lanes [lane, lane_end) of a panel, all of one sequence. */
static void attend(const pass *p, int32_t head, int64_t sequence, int64_t query_panel, int lane,
                   int lane_end, int64_t context_row, int64_t context_width, int worker) {
  const spt_encoder_layer *l = p->layer;
  int64_t qkv_stride = rows_of(&l->qkv) * SPT_LANES;
  int64_t begin = p->run->offsets[sequence], end = p->run->offsets[sequence + 1];
  const float *keys = p->qkv + begin / SPT_LANES * qkv_stride;
  const float *queries = p->first_only ? p->first_q : p->qkv;
  spt_attention_block block = {
      .q = queries + query_panel * qkv_stride + l->q_row[head] * SPT_LANES,
      .k = keys + l->k_row[head] * SPT_LANES,
      .v = keys + l->v_row[head] * SPT_LANES,
      .k_stride = qkv_stride,
      .v_stride = qkv_stride,
      .d = l->head_dim,
      .dv = l->v_width[head],
      .key_begin = begin % SPT_LANES,
      .key_end = begin % SPT_LANES + end - begin,
      .lane_begin = lane,
      .lane_end = lane_end,
      .first_key = -SPT_UNBOUNDED,
      .last_key = SPT_UNBOUNDED,
      .scale = p->layer->scale,
      .scratch = p->scratch + worker * p->scratch_stride,
      .out = p->context + (query_panel * context_width + context_row) * SPT_LANES,
      .accumulate = l->merged_row != NULL && head > 0,
  };
  p->tier->attention_block(&block);
}

static int64_t context_width_of(const spt_encoder_layer *l) {
  if (l->merged_row != NULL) {
    return l->n_heads > 0 ? l->v_width[0] : 0;
  }
  int64_t width = 0;
  for (int32_t h = 0; h < l->n_heads; h++) {
    width += l->v_width[h];
  }
  return width;
}

static void attend_panel(const pass *p, int32_t head, int64_t panel, int64_t context_row,
                         int64_t context_width, int worker) {
  const int64_t *offsets = p->run->offsets;
  if (p->first_only) {
    int64_t last = spt_min((panel + 1) * SPT_LANES, p->run->n_sequences);
    for (int64_t s = panel * SPT_LANES; s < last; s++) {
      int lane = (int)(s - panel * SPT_LANES);
      if (offsets[s + 1] > offsets[s]) {
        attend(p, head, s, panel, lane, lane + 1, context_row, context_width, worker);
      }
    }
    return;
  }
  int64_t first = panel * SPT_LANES, end = spt_min(first + SPT_LANES, p->tokens);
  for (int64_t s = p->panel_sequence[panel]; s < p->run->n_sequences && offsets[s] < end; s++) {
    int lane = (int)(spt_max(offsets[s], first) - first);
    int lane_end = (int)(spt_min(offsets[s + 1], end) - first);
    if (lane_end > lane) {
      attend(p, head, s, panel, lane, lane_end, context_row, context_width, worker);
    }
  }
}

/* Tasks are (head, panel), or panels alone where the heads add up into one context. */
static void attention_task(void *context, int64_t task, int worker) {
  const pass *p = context;
  const spt_encoder_layer *l = p->layer;
  int64_t context_width = context_width_of(l);
  if (l->merged_row != NULL) {
    for (int32_t h = 0; h < l->n_heads; h++) {
      attend_panel(p, h, task, 0, context_width, worker);
    }
    return;
  }
  int32_t head = (int32_t)(task / p->query_panels);
  int64_t context_row = 0;
  for (int32_t h = 0; h < head; h++) {
    context_row += l->v_width[h];
  }
  attend_panel(p, head, task % p->query_panels, context_row, context_width, worker);
}

static void attention(pass *p) {
  const spt_encoder_layer *l = p->layer;
  if (p->query_panels > 0) {
    /* Lanes that no query fills are never written by a block; the next product reads them. */
    int64_t width = context_width_of(l), panels = p->query_panels;
    memset(p->context + (panels - 1) * width * SPT_LANES, 0,
           (size_t)(width * SPT_LANES) * sizeof(float));
    if (p->first_only) {
      memset(p->context, 0, (size_t)(panels * width * SPT_LANES) * sizeof(float));
    }
  }
  int64_t tasks = l->merged_row != NULL ? p->query_panels : l->n_heads * p->query_panels;
  spt_parallel_for_workers(tasks, p->workers, attention_task, p);
}

/* ---- after attention -------------------------------------------------------------------------- */

struct norm_job {
  const pass *p;
  float *x;
  const float *weight, *bias;
  const float *residual; /* of a merged layer: y = residual + bias + scattered context */
};

static void norm_panel(void *context, int64_t panel, int worker) {
  (void)worker;
  const struct norm_job *job = context;
  int64_t width = job->p->model->width;
  job->p->tier->panel_layer_norm(job->x + panel * width * SPT_LANES, width, job->weight, job->bias,
                                 job->p->model->norm_eps);
}

static void merged_panel(void *context, int64_t panel, int worker) {
  const struct norm_job *job = context;
  const spt_encoder_layer *l = job->p->layer;
  int64_t width = job->p->model->width, rows = context_width_of(l);
  float *y = job->x + panel * width * SPT_LANES;
  const float *from = job->p->context + panel * rows * SPT_LANES;
  const float *residual = job->residual + panel * width * SPT_LANES;
  for (int64_t f = 0; f < width; f++) {
    for (int lane = 0; lane < SPT_LANES; lane++) {
      y[f * SPT_LANES + lane] = residual[f * SPT_LANES + lane] + l->merged_bias[f];
    }
  }
  for (int64_t r = 0; r < rows; r++) {
    float *to = y + (int64_t)l->merged_row[r] * SPT_LANES;
    for (int lane = 0; lane < SPT_LANES; lane++) {
      to[lane] += from[r * SPT_LANES + lane];
    }
  }
  norm_panel(context, panel, worker);
}

static void run_layer(pass *p) {
  const spt_encoder_layer *l = p->layer;
  int64_t width = p->model->width, panels = p->query_panels;
  const float *x = p->first_only ? p->first_x : p->x;
  if (p->first_only) {
    project_first(p, l->q_rows);
  } else {
    multiply(&l->qkv, p->x, width, p->qkv, NULL, SPT_ACT_NONE, p->n_panels);
  }
  attention(p);
  struct norm_job job = {p, p->y, l->norm1_weight, l->norm1_bias, x};
  if (l->merged_row != NULL) {
    spt_parallel_for(panels, merged_panel, &job);
  } else {
    multiply(&l->o, p->context, context_width_of(l), p->y, x, SPT_ACT_NONE, panels);
    spt_parallel_for(panels, norm_panel, &job);
  }
  multiply(&l->up, p->y, width, p->inner, NULL, l->activation, panels);
  multiply(&l->down, p->inner, rows_of(&l->up), p->x, p->y, SPT_ACT_NONE, panels);
  job = (struct norm_job){p, p->x, l->norm2_weight, l->norm2_bias, NULL};
  spt_parallel_for(panels, norm_panel, &job);
}

/* Lane i of first_x is the first token of sequence i. */
static void gather_first(pass *p) {
  int64_t width = p->model->width;
  if (p->query_panels == 0) {
    return;
  }
  memset(p->first_x, 0, (size_t)(p->query_panels * width * SPT_LANES) * sizeof(float));
  for (int64_t s = 0; s < p->run->n_sequences; s++) {
    int64_t token = p->run->offsets[s];
    if (p->run->offsets[s + 1] == token) {
      continue;
    }
    const float *from = p->x + token / SPT_LANES * width * SPT_LANES + token % SPT_LANES;
    float *to = p->first_x + s / SPT_LANES * width * SPT_LANES + s % SPT_LANES;
    for (int64_t f = 0; f < width; f++) {
      to[f * SPT_LANES] = from[f * SPT_LANES];
    }
  }
}

static void unpack_panel(void *context, int64_t panel, int worker) {
  (void)worker;
  const pass *p = context;
  int64_t width = p->model->width;
  spt_matrix hidden = {.data = p->run->hidden,
                       .dtype = SPT_F32,
                       .rows = p->run->first_only ? p->run->n_sequences : p->tokens,
                       .cols = width,
                       .row = width,
                       .col = 1};
  p->tier->panel_unpack(&hidden, panel * SPT_LANES, p->x + panel * width * SPT_LANES);
}

static void run_layers(pass *p) {
  spt_parallel_for(p->n_panels, embed_panel, p);
  p->query_panels = p->n_panels;
  for (int64_t i = 0; i < p->model->n_layers; i++) {
    p->layer = &p->model->layers[i];
    if (p->run->first_only && i + 1 == p->model->n_layers) {
      p->first_only = true;
      p->query_panels = spt_ceil_div(p->run->n_sequences, SPT_LANES);
      gather_first(p);
    }
    run_layer(p);
  }
  if (p->run->first_only && p->model->n_layers == 0) {
    p->query_panels = spt_ceil_div(p->run->n_sequences, SPT_LANES);
    gather_first(p);
    p->x = p->first_x;
  }
  spt_parallel_for(p->query_panels, unpack_panel, p);
  for (int64_t s = 0; p->run->first_only && s < p->run->n_sequences; s++) {
    if (p->run->offsets[s + 1] == p->run->offsets[s]) {
      memset(p->run->hidden + s * p->model->width, 0, (size_t)p->model->width * sizeof(float));
    }
  }
}

/* ---- workspace -------------------------------------------------------------------------------- */

/* Lays the buffers out in the workspace; with base NULL only counts. Returns the floats needed. */
static int64_t lay_out(pass *p, float *base) {
  int64_t qkv = 0, context = 0, inner = 0, scratch = 0;
  for (int64_t i = 0; i < p->model->n_layers; i++) {
    const spt_encoder_layer *l = &p->model->layers[i];
    qkv = spt_max(qkv, rows_of(&l->qkv));
    context = spt_max(context, context_width_of(l));
    inner = spt_max(inner, rows_of(&l->up));
    for (int32_t h = 0; h < l->n_heads; h++) {
      scratch =
          spt_max(scratch, spt_attention_scratch(l->head_dim, l->v_width[h], p->longest, false));
    }
  }
  int64_t first_panels = p->run->first_only ? spt_ceil_div(p->run->n_sequences, SPT_LANES) : 0;
  int64_t panels = spt_max(p->n_panels, first_panels), width = p->model->width;
  p->scratch_stride = spt_ceil_div(scratch, SPT_LANES) * SPT_LANES;
  struct {
    float **buffer;
    int64_t columns; /* of 16 floats */
  } parts[] = {
      {&p->x, panels * width},
      {&p->y, panels * width},
      {&p->qkv, panels * qkv},
      {&p->context, panels * context},
      {&p->inner, panels * inner},
      {&p->first_x, first_panels * width},
      {&p->first_q, first_panels * qkv},
      {&p->scratch, p->workers * p->scratch_stride / SPT_LANES},
      {(float **)&p->panel_sequence, spt_ceil_div(p->n_panels * 2, SPT_LANES)},
  };
  int64_t at = 0;
  for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
    if (base != NULL) {
      *parts[i].buffer = base + at * SPT_LANES;
    }
    at += parts[i].columns;
  }
  return at * SPT_LANES;
}

static void find_sequences(pass *p) {
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
  pass p = {.tier = spt_cpu_tier_in_use(), .model = encoder->model, .run = run};
  p.workers = spt_pool_width();
  p.tokens = run->offsets[run->n_sequences];
  p.n_panels = spt_ceil_div(p.tokens, SPT_LANES);
  for (int64_t s = 0; s < run->n_sequences; s++) {
    p.longest = spt_max(p.longest, run->offsets[s + 1] - run->offsets[s]);
  }
  int64_t needed = lay_out(&p, NULL);
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
    run_layers(&p);
  }
  if (locked) {
    pthread_mutex_unlock(&encoder->lock);
  }
  free(temporary);
  return status;
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
  *out = encoder;
  return SPT_OK;
}

void spt_cpu_encoder_free(void *state) {
  cpu_encoder *encoder = state;
  pthread_mutex_destroy(&encoder->lock);
  free(encoder->workspace);
  free(encoder);
}
