/* attention on the CPU: a task packs the keys and values of one (sequence, kv head) into panels and
 * runs the query heads that share them, 16 queries at a time. Where such tasks are too few for the
 * threads, the queries are divided too, and each part packs again: that costs a sixteenth of a block,
 * and saves a barrier. */
#include "attention.h"

#include "bf16.h"

#include "ops.h"
#include "pool.h"

#define PART_BLOCKS 8 /* at least 128 queries for each packing */
#define TASKS_PER_THREAD 4

struct attention_job {
  const spt_cpu_tier *tier;
  const spt_attention_problem *p;
  bool bf16;            /* products in it: the arrays are, and the processor multiplies it */
  int64_t parts;        /* of a sequence's queries */
  int64_t group;        /* query heads of a kv head */
  int64_t key_panels;   /* of the longest sequence */
  float *token_partial; /* by task: the importance of its keys; NULL where not wanted */
  float *head_partial;  /* (task, group) */
  spt_pieces pieces;
};

/* A piece of scratch memory, divided. In bfloat16 the panels of k, v and q take the first halves of
 * the float32 panels' places. */
typedef struct workspace {
  float *k, *v, *q, *out, *added, *tokens, *block;
} workspace;

/* Returns the floats used, or -1 on overflow; memory NULL only counts. */
static int64_t divide(workspace *w, float *memory, const struct attention_job *job) {
  const spt_attention_problem *p = job->p;
  int64_t keys = job->key_panels * SPT_LANES, used = 0, row = spt_panel_floats(keys, 1);
  int64_t k = spt_panel_floats(keys, p->d), v = spt_panel_floats(keys, p->dv);
  if (k < 0 || v < 0) {
    return -1;
  }
  bool importance = job->token_partial != NULL;
  const struct {
    float **at;
    int64_t floats;
  } fields[] = {
      {&w->k, k},
      {&w->v, v},
      {&w->q, p->d * SPT_LANES},
      {&w->out, p->dv * SPT_LANES},
      {&w->added, spt_has_added(p) ? row * SPT_LANES : 0},
      {&w->tokens, importance ? row * SPT_LANES : 0},
      {&w->block, spt_attention_scratch(p->d, p->dv, keys, importance)},
  };
  for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
    *fields[i].at = memory != NULL && fields[i].floats > 0 ? memory + used : NULL;
    used += fields[i].floats;
  }
  return used;
}

/* 16 rows of bfloat16 as a pair panel at `panel`, which has room for the float32 one. */
static void pack_pairs(const struct attention_job *job, float *panel, const spt_matrix *m,
                       int64_t row) {
  spt_matrix words;
  if (spt_as_words(m, &words)) {
    job->tier->panel_pack(panel, &words, row);
  } else {
    job->tier->panel_pack(panel, m, row);
    job->tier->panel_narrow((uint16_t *)panel, panel, m->cols);
  }
}

static void pack_keys(const struct attention_job *job, const workspace *w, const spt_sequence *s,
                      int64_t kv_head) {
  const spt_attention_problem *p = job->p;
  spt_matrix k = spt_head_matrix(&p->k, s->number, s->k_start, kv_head, s->keys, p->d);
  spt_matrix v = spt_head_matrix(&p->v, s->number, s->k_start, kv_head, s->keys, p->dv);
  for (int64_t row = 0; row < s->keys; row += SPT_LANES) {
    float *k_panel = w->k + row * p->d, *v_panel = w->v + row * p->dv;
    if (job->bf16) {
      pack_pairs(job, k_panel, &k, row);
      pack_pairs(job, v_panel, &v, row);
      job->tier->panel_split((uint16_t *)v_panel, (uint16_t *)v_panel, p->dv);
    } else {
      job->tier->panel_pack(k_panel, &k, row);
      job->tier->panel_pack(v_panel, &v, row);
    }
  }
}

/* 16 queries of a head, from the caller's arrays and back into them. */
static void attend(const struct attention_job *job, const workspace *w, const spt_sequence *s,
                   int64_t head, int64_t query, bool gather, float *head_importance) {
  const spt_attention_problem *p = job->p;
  int64_t left = s->queries - query;
  float lse[SPT_LANES];
  spt_matrix q = spt_head_matrix(&p->q, s->number, s->q_start, head, s->queries, p->d);
  spt_matrix out = spt_head_matrix(&p->out, s->number, s->q_start, head, s->queries, p->dv);
  spt_attention_dropout dropout = spt_dropout_of(p, s->number, head);
  if (job->bf16) {
    pack_pairs(job, w->q, &q, query);
  } else {
    job->tier->panel_pack(w->q, &q, query);
  }
  if (gather) {
    spt_gather_added(w->added, job->tier, p, s, head, query);
  }
  int words = job->bf16 ? 2 : 1; /* elements in a float's place */
  job->tier->attention_block(&(spt_attention_block){
      .q = job->bf16 ? NULL : w->q,
      .k = job->bf16 ? NULL : w->k,
      .v = job->bf16 ? NULL : w->v,
      .q_pairs = job->bf16 ? (uint16_t *)w->q : NULL,
      .k_pairs = job->bf16 ? (uint16_t *)w->k : NULL,
      .v_rows = job->bf16 ? (uint16_t *)w->v : NULL,
      .k_stride = p->d * SPT_LANES * words,
      .v_stride = p->dv * SPT_LANES * words,
      .d = p->d,
      .dv = p->dv,
      .key_end = s->keys,
      .lane_end = left < SPT_LANES ? (int)left : SPT_LANES,
      .query = query,
      .first_key = spt_first_key(p, s, query),
      .last_key = spt_last_key(p, s, query),
      .scale = p->scale,
      .added = w->added,
      .dropout = p->dropout > 0.0 ? &dropout : NULL,
      .scratch = w->block,
      .out = w->out,
      .lse = p->lse.data != NULL ? lse : NULL,
      .token_importance = w->tokens,
      .head_importance = head_importance,
  });
  job->tier->panel_unpack(&out, query, w->out);
  for (int64_t l = 0; p->lse.data != NULL && l < SPT_LANES && l < left; l++) {
    *spt_head_float(&p->lse, s->number, s->q_start + query + l, head) = lse[l];
  }
}

static void clear_padding(const spt_attention_problem *p, const spt_sequence *s, int64_t head) {
  spt_matrix out = spt_head_matrix(&p->out, s->number, s->q_start, head, s->query_rows, p->dv);
  spt_clear_rows(&out, s->queries, s->query_rows);
  for (int64_t i = s->queries; p->lse.data != NULL && i < s->query_rows; i++) {
    *spt_head_float(&p->lse, s->number, s->q_start + i, head) = -INFINITY;
  }
}

/* Where a task's token importance starts: the tasks of a sequence lie side by side. */
static float *token_partial(const struct attention_job *job, const spt_sequence *s, int64_t task) {
  const spt_attention_problem *p = job->p;
  int64_t start = p->q_offsets != NULL ? s->k_start : s->number * p->keys;
  int64_t per_sequence = p->kv_heads * job->parts;
  return job->token_partial + start * per_sequence + task % per_sequence * s->keys;
}

static void attend_part(void *context, int64_t task, int worker) {
  struct attention_job *job = context;
  const spt_attention_problem *p = job->p;
  int64_t part = task % job->parts, kv_head = task / job->parts % p->kv_heads;
  spt_sequence s = spt_sequence_of(p, task / job->parts / p->kv_heads);
  int64_t blocks = spt_ceil_div(s.queries, SPT_LANES);
  int64_t begin = blocks * part / job->parts, end = blocks * (part + 1) / job->parts;
  int piece = spt_take_piece(&job->pieces, worker);
  workspace w;
  divide(&w, job->pieces.memory + piece * job->pieces.floats, job);
  if (begin < end) {
    pack_keys(job, &w, &s, kv_head);
  }
  for (int64_t j = 0; w.tokens != NULL && j < s.keys * SPT_LANES; j++) {
    w.tokens[j] = 0.0f;
  }
  for (int64_t g = 0; g < job->group; g++) {
    float *sum = job->head_partial != NULL ? job->head_partial + task * job->group + g : NULL;
    if (sum != NULL) {
      *sum = 0.0f;
    }
    int64_t head = kv_head * job->group + g;
    for (int64_t block = begin; block < end; block++) {
      bool gather = w.added != NULL && spt_added_is_stale(p, g == 0, block == begin);
      attend(job, &w, &s, head, block * SPT_LANES, gather, sum);
    }
    if (part == 0) {
      clear_padding(p, &s, head);
    }
  }
  if (w.tokens != NULL) {
    float *partial = token_partial(job, &s, task);
    for (int64_t j = 0; j < s.keys; j++) {
      partial[j] = 0.0f;
      for (int l = 0; l < SPT_LANES; l++) {
        partial[j] += w.tokens[j * SPT_LANES + l];
      }
    }
  }
  spt_give_piece(&job->pieces, piece);
}

/* Sums over the tasks of a sequence, always in the same order. */
static void add_importance(void *context, int64_t sequence, int worker) {
  (void)worker;
  const struct attention_job *job = context;
  const spt_attention_problem *p = job->p;
  spt_sequence s = spt_sequence_of(p, sequence);
  int64_t rows = p->q_offsets != NULL ? s.keys : p->keys, tasks = p->kv_heads * job->parts;
  const float *partial = token_partial(job, &s, 0);
  for (int64_t j = 0; j < rows; j++) {
    double sum = 0.0;
    for (int64_t task = 0; j < s.keys && task < tasks; task++) {
      sum += partial[task * s.keys + j];
    }
    *spt_head_float(&p->token_importance, sequence, s.k_start + j, 0) = (float)sum;
  }
  for (int64_t head = 0; head < p->heads; head++) {
    double sum = 0.0;
    for (int64_t part = 0; part < job->parts; part++) {
      int64_t task = (sequence * p->kv_heads + head / job->group) * job->parts + part;
      sum += job->head_partial[task * job->group + head % job->group];
    }
    *spt_head_float(&p->head_importance, sequence, 0, head) = (float)sum;
  }
}

static int64_t parts_for(const spt_attention_problem *p, int64_t tasks, int width) {
  int64_t most = 0;
  for (int64_t n = 0; n < p->sequences; n++) {
    int64_t queries = spt_sequence_of(p, n).queries;
    most = queries > most ? queries : most;
  }
  int64_t useful = most / (PART_BLOCKS * SPT_LANES);
  int64_t wanted = width == 1 ? 1 : spt_ceil_div(TASKS_PER_THREAD * width, tasks);
  int64_t parts = wanted < useful ? wanted : useful;
  return parts > 1 ? parts : 1;
}

spt_status spt_cpu_attention(void *state, const spt_attention_problem *p, spt_error *err) {
  (void)state;
  const char *op = "attention";
  if (p->sequences == 0) {
    return SPT_OK;
  }
  spt_status status = SPT_OK;
  int64_t tasks = p->sequences * p->kv_heads;
  int width = spt_pool_width();
  struct attention_job job = {.tier = spt_cpu_tier_in_use(), .p = p};
  job.bf16 = job.tier->bf16_native && p->q.dtype == SPT_BF16 && p->k.dtype == SPT_BF16 &&
             p->v.dtype == SPT_BF16 && p->d % 2 == 0;
  job.parts = parts_for(p, tasks, width);
  job.group = p->heads / p->kv_heads;
  job.key_panels = spt_ceil_div(spt_most_keys(p), SPT_LANES);
  tasks *= job.parts;
  if (p->token_importance.data != NULL) {
    int64_t keys = p->kv_offsets != NULL ? p->kv_offsets[p->sequences] : p->sequences * p->keys;
    job.token_partial =
        spt_scratch(op, keys, (size_t)(p->kv_heads * job.parts) * sizeof(float), &status, err);
    job.head_partial = spt_scratch(op, tasks, (size_t)job.group * sizeof(float), &status, err);
  }
  if (status == SPT_OK) {
    int n = tasks < width ? (int)tasks : width;
    status = spt_allocate_pieces(op, &job.pieces, n, divide(&(workspace){0}, NULL, &job), err);
  }
  if (status == SPT_OK) {
    spt_parallel_for(tasks, attend_part, &job);
    if (job.token_partial != NULL) {
      spt_parallel_for(p->sequences, add_importance, &job);
    }
  }
  spt_scratch_free(job.pieces.memory);
  spt_scratch_free(job.token_partial);
  spt_scratch_free(job.head_partial);
  return status;
}
