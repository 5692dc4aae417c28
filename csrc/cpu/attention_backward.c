/* attention_backward on the CPU: a task owns the keys and values of one (sequence, kv head), so the
 * gradients that its query heads share need no other task. A bias that several sequences or heads
 * share has one gradient too: then one task runs all of them, in order. */
#include <string.h>

#include "attention.h"
#include "ops.h"
#include "pool.h"

struct backward_job {
  const spt_cpu_tier *tier;
  const spt_attention_backward_problem *p;
  int64_t sequences_per_task, heads_per_task; /* kv heads */
  int64_t group;                              /* query heads of a kv head */
  int64_t key_panels;                         /* of the longest sequence */
  float *bias_grad;                           /* contiguous, of the bias's shape; or NULL */
  spt_pieces pieces;
};

/* A piece of scratch memory, divided. */
typedef struct workspace {
  float *k, *v, *k_grad, *v_grad;
  float *q, *grad, *out, *q_grad;
  float *added, *scores_grad, *block;
} workspace;

/* Returns the floats used, or -1 on overflow; memory NULL only counts. */
static int64_t divide(workspace *w, float *memory, const struct backward_job *job) {
  const spt_attention_problem *f = &job->p->forward;
  int64_t keys = job->key_panels * SPT_LANES, used = 0, row = keys * SPT_LANES;
  int64_t k = spt_panel_floats(keys, f->d), v = spt_panel_floats(keys, f->dv);
  if (k < 0 || v < 0) {
    return -1;
  }
  const struct {
    float **at;
    int64_t floats;
  } fields[] = {
      {&w->k, k},
      {&w->v, v},
      {&w->k_grad, k},
      {&w->v_grad, v},
      {&w->q, f->d * SPT_LANES},
      {&w->grad, f->dv * SPT_LANES},
      {&w->out, f->dv * SPT_LANES},
      {&w->q_grad, f->d * SPT_LANES},
      {&w->added, spt_has_added(f) ? row : 0},
      {&w->scores_grad, job->bias_grad != NULL ? row : 0},
      {&w->block, spt_attention_backward_scratch(f->d)},
  };
  for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
    *fields[i].at = memory != NULL && fields[i].floats > 0 ? memory + used : NULL;
    used += fields[i].floats;
  }
  return used;
}

static void load_lse(const spt_attention_problem *f, const spt_sequence *s, int64_t head,
                     int64_t query, float *lse) {
  for (int64_t l = 0; l < SPT_LANES; l++) {
    bool inside = query + l < s->queries;
    lse[l] = inside ? *spt_head_float(&f->lse, s->number, s->q_start + query + l, head) : 0.0f;
  }
}

static void add_bias_gradient(const struct backward_job *job, const workspace *w,
                              const spt_sequence *s, int64_t head, int64_t query) {
  const int64_t *shape = job->p->dbias.shape;
  int64_t lanes = s->queries - query < SPT_LANES ? s->queries - query : SPT_LANES;
  int64_t image = (shape[0] > 1 ? s->number : 0) * shape[1] + (shape[1] > 1 ? head : 0);
  for (int64_t j = 0; j < s->keys; j++) {
    for (int64_t l = 0; l < lanes; l++) {
      int64_t row = image * shape[2] + (shape[2] > 1 ? query + l : 0);
      job->bias_grad[row * shape[3] + (shape[3] > 1 ? j : 0)] += w->scores_grad[j * SPT_LANES + l];
    }
  }
}

static void differentiate_block(const struct backward_job *job, const workspace *w,
                                const spt_sequence *s, int64_t head, int64_t query, bool gather) {
  const spt_attention_backward_problem *p = job->p;
  const spt_attention_problem *f = &p->forward;
  int64_t left = s->queries - query;
  float lse[SPT_LANES];
  spt_matrix q = spt_head_matrix(&f->q, s->number, s->q_start, head, s->queries, f->d);
  spt_matrix out = spt_head_matrix(&f->out, s->number, s->q_start, head, s->queries, f->dv);
  spt_matrix grad = spt_head_matrix(&p->grad, s->number, s->q_start, head, s->queries, f->dv);
  spt_attention_dropout dropout = spt_dropout_of(f, s->number, head);
  job->tier->panel_pack(w->q, &q, query);
  job->tier->panel_pack(w->out, &out, query);
  job->tier->panel_pack(w->grad, &grad, query);
  load_lse(f, s, head, query, lse);
  if (gather) {
    spt_gather_added(w->added, job->tier, f, s, head, query);
  }
  job->tier->attention_backward_block(&(spt_attention_backward_block){
      .q = w->q,
      .out = w->out,
      .grad = w->grad,
      .k = w->k,
      .v = w->v,
      .k_stride = f->d * SPT_LANES,
      .v_stride = f->dv * SPT_LANES,
      .d = f->d,
      .dv = f->dv,
      .keys = s->keys,
      .lanes = left < SPT_LANES ? (int)left : SPT_LANES,
      .query = query,
      .first_key = spt_first_key(f, s, query),
      .last_key = spt_last_key(f, s, query),
      .scale = f->scale,
      .added = w->added,
      .dropout = f->dropout > 0.0 ? &dropout : NULL,
      .lse = lse,
      .scratch = w->block,
      .q_grad = w->q_grad,
      .k_grad = w->k_grad,
      .v_grad = w->v_grad,
      .scores_grad = w->scores_grad,
  });
  if (p->dq.data != NULL) {
    spt_matrix dq = spt_head_matrix(&p->dq, s->number, s->q_start, head, s->queries, f->d);
    job->tier->panel_unpack(&dq, query, w->q_grad);
  }
  if (w->scores_grad != NULL) {
    add_bias_gradient(job, w, s, head, query);
  }
}

/* Panels of keys back to the caller's array, and zeros to the rows that do not count. */
static void store_key_gradient(const struct backward_job *job, const spt_heads *to,
                               const spt_sequence *s, int64_t head, int64_t width,
                               const float *panels) {
  if (to->data == NULL) {
    return;
  }
  spt_matrix m = spt_head_matrix(to, s->number, s->k_start, head, s->keys, width);
  for (int64_t row = 0; row < s->keys; row += SPT_LANES) {
    job->tier->panel_unpack(&m, row, panels + row * width);
  }
  spt_clear_rows(&m, s->keys, s->keys + s->query_rows - s->queries);
}

static void differentiate_head(const struct backward_job *job, const workspace *w,
                               const spt_sequence *s, int64_t kv_head) {
  const spt_attention_problem *f = &job->p->forward;
  spt_matrix k = spt_head_matrix(&f->k, s->number, s->k_start, kv_head, s->keys, f->d);
  spt_matrix v = spt_head_matrix(&f->v, s->number, s->k_start, kv_head, s->keys, f->dv);
  int64_t panels = spt_ceil_div(s->keys, SPT_LANES) * SPT_LANES;
  for (int64_t row = 0; row < s->keys; row += SPT_LANES) {
    job->tier->panel_pack(w->k + row * f->d, &k, row);
    job->tier->panel_pack(w->v + row * f->dv, &v, row);
  }
  if (panels > 0) {
    memset(w->k_grad, 0, (size_t)(panels * f->d) * sizeof(float));
    memset(w->v_grad, 0, (size_t)(panels * f->dv) * sizeof(float));
  }
  for (int64_t g = 0; g < job->group; g++) {
    int64_t head = kv_head * job->group + g;
    for (int64_t query = 0; query < s->queries; query += SPT_LANES) {
      bool gather = w->added != NULL && spt_added_is_stale(f, g == 0, query == 0);
      differentiate_block(job, w, s, head, query, gather);
    }
    if (job->p->dq.data != NULL) {
      spt_matrix dq =
          spt_head_matrix(&job->p->dq, s->number, s->q_start, head, s->query_rows, f->d);
      spt_clear_rows(&dq, s->queries, s->query_rows);
    }
  }
  store_key_gradient(job, &job->p->dk, s, kv_head, f->d, w->k_grad);
  store_key_gradient(job, &job->p->dv, s, kv_head, f->dv, w->v_grad);
}

static void differentiate_task(void *context, int64_t task, int worker) {
  struct backward_job *job = context;
  const spt_attention_problem *f = &job->p->forward;
  int64_t head_tasks = f->kv_heads / job->heads_per_task;
  int64_t sequence = task / head_tasks * job->sequences_per_task;
  int64_t kv_head = task % head_tasks * job->heads_per_task;
  int piece = spt_take_piece(&job->pieces, worker);
  workspace w;
  divide(&w, job->pieces.memory + piece * job->pieces.floats, job);
  for (int64_t n = sequence; n < sequence + job->sequences_per_task; n++) {
    spt_sequence s = spt_sequence_of(f, n);
    for (int64_t head = kv_head; head < kv_head + job->heads_per_task; head++) {
      differentiate_head(job, &w, &s, head);
    }
  }
  spt_give_piece(&job->pieces, piece);
}

static void store_bias_gradient(const struct backward_job *job) {
  const spt_tensor *to = &job->p->dbias;
  const float *from = job->bias_grad;
  for (int64_t n = 0; n < to->shape[0]; n++) {
    for (int64_t h = 0; h < to->shape[1]; h++) {
      for (int64_t i = 0; i < to->shape[2]; i++) {
        for (int64_t j = 0; j < to->shape[3]; j++, from++) {
          int64_t at =
              n * to->stride[0] + h * to->stride[1] + i * to->stride[2] + j * to->stride[3];
          spt_store(to->data, to->dtype, at, *from);
        }
      }
    }
  }
}

spt_status spt_cpu_attention_backward(void *state, const spt_attention_backward_problem *p,
                                      spt_error *err) {
  (void)state;
  const char *op = "attention_backward";
  const spt_attention_problem *f = &p->forward;
  spt_status status = SPT_OK;
  struct backward_job job = {.tier = spt_cpu_tier_in_use(), .p = p};
  job.group = f->heads / f->kv_heads;
  job.key_panels = spt_ceil_div(spt_most_keys(f), SPT_LANES);
  job.sequences_per_task = job.heads_per_task = 1;
  if (p->dbias.data != NULL) {
    const int64_t *shape = p->dbias.shape;
    int64_t count = shape[0] * shape[1] * shape[2] * shape[3];
    job.bias_grad = spt_scratch(op, count, sizeof(float), &status, err);
    job.sequences_per_task = shape[0] == 1 && f->sequences > 0 ? f->sequences : 1;
    job.heads_per_task = shape[1] == 1 ? f->kv_heads : 1;
    if (status != SPT_OK) {
      return status;
    }
    memset(job.bias_grad, 0, (size_t)count * sizeof(float));
  }
  int64_t tasks = f->sequences / job.sequences_per_task * (f->kv_heads / job.heads_per_task);
  if (tasks > 0) {
    int width = spt_pool_width(), n = tasks < width ? (int)tasks : width;
    status = spt_allocate_pieces(op, &job.pieces, n, divide(&(workspace){0}, NULL, &job), err);
  }
  if (status == SPT_OK) {
    spt_parallel_for(tasks, differentiate_task, &job);
    if (job.bias_grad != NULL) {
      store_bias_gradient(&job);
    }
  }
  spt_scratch_free(job.pieces.memory);
  spt_scratch_free(job.bias_grad);
  return status;
}
