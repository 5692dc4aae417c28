/* encoder: a compiled model is checked once, when it is created; a run's tokens are checked each time. */
#include "../encoder.h"

#include <stdlib.h>

#include "check.h"

struct spt_encoder {
  spt_device *device;
  void *state; /* the backend's */
  spt_encoder_model model;
};

static spt_status bad_layer(spt_error *err, int64_t layer, const char *what, int64_t found,
                            int64_t expected) {
  return spt_fail(err, SPT_INVALID_VALUE, "encoder: layer %lld: %s is %lld, expected %lld",
                  (long long)layer, what, (long long)found, (long long)expected);
}

static int64_t out_of(const spt_encoder_matrix *m) {
  return m->strips != NULL ? m->strips->out : m->csr != NULL ? m->csr->out : -1;
}
static int64_t in_of(const spt_encoder_matrix *m) {
  return m->strips != NULL ? m->strips->in : m->csr != NULL ? m->csr->in : -1;
}

/* Q's strips must come first, and hold Q's rows alone: a run may compute them by themselves. */
static bool q_stands_first(const spt_encoder_matrix *qkv, int64_t q_rows) {
  if (qkv->csr != NULL) {
    return q_rows % SPT_STRIP == 0;
  }
  for (int64_t s = 0; s < qkv->strips->n_strips; s++) {
    for (int r = 0; r < SPT_STRIP; r++) {
      int64_t row = spt_strip_row(qkv->strips, s, r);
      if (row >= 0 && (row < q_rows) != (s < q_rows / SPT_STRIP)) {
        return false;
      }
    }
  }
  return q_rows % SPT_STRIP == 0;
}

static spt_status check_heads(const spt_encoder_layer *l, int64_t layer, int64_t width,
                              int64_t n_heads, int64_t *context, spt_error *err) {
  int64_t rows = out_of(&l->qkv);
  if (l->head_dim < 1) {
    return bad_layer(err, layer, "head_dim", l->head_dim, 1);
  }
  *context = 0;
  for (int32_t h = 0; h < l->n_heads; h++) {
    int64_t q_end = l->q_row[h] + (int64_t)l->head_dim, k_end = l->k_row[h] + (int64_t)l->head_dim;
    int64_t v_end = l->v_row[h] + (int64_t)l->v_width[h];
    int64_t last = q_end > k_end ? q_end : k_end;
    last = v_end > last ? v_end : last;
    if (q_end > l->q_rows || l->k_row[h] < l->q_rows || l->v_row[h] < l->q_rows) {
      return bad_layer(err, layer, "the end of a head's Q, before K and V", q_end, l->q_rows);
    }
    if (l->q_row[h] < 0 || l->k_row[h] < 0 || l->v_row[h] < 0 || l->v_width[h] < 0 || last > rows) {
      return bad_layer(err, layer, "a head's last row of qkv", last, rows);
    }
    if (l->head[h] < (h > 0 ? l->head[h - 1] + 1 : 0) || l->head[h] >= n_heads) {
      return bad_layer(err, layer, "a head's number, ascending and below", l->head[h], n_heads);
    }
    *context += l->v_width[h];
    if (l->merged_row != NULL && l->v_width[h] != l->v_width[0]) {
      return bad_layer(err, layer, "the value width of a merged head", l->v_width[h],
                       l->v_width[0]);
    }
  }
  if (l->merged_row != NULL) {
    *context = l->n_heads > 0 ? l->v_width[0] : 0;
    for (int64_t r = 0; r < *context; r++) {
      if (l->merged_row[r] < 0 || l->merged_row[r] >= width) {
        return bad_layer(err, layer, "a merged row", l->merged_row[r], width - 1);
      }
    }
  }
  return SPT_OK;
}

static spt_status check_layer(const spt_encoder_layer *l, int64_t layer, int64_t width,
                              int64_t n_heads, spt_error *err) {
  int64_t context = 0;
  SPT_TRY(check_heads(l, layer, width, n_heads, &context, err));
  if (in_of(&l->qkv) != width) {
    return bad_layer(err, layer, "the input width of qkv", in_of(&l->qkv), width);
  }
  if (!q_stands_first(&l->qkv, l->q_rows)) {
    return spt_fail(err, SPT_INVALID_VALUE,
                    "encoder: layer %lld: Q's rows are mixed with others, expected whole strips of "
                    "them before K and V",
                    (long long)layer);
  }
  if (l->merged_row == NULL) {
    if (in_of(&l->o) != context) {
      return bad_layer(err, layer, "the input width of o", in_of(&l->o), context);
    }
    if (out_of(&l->o) != width) {
      return bad_layer(err, layer, "the output width of o", out_of(&l->o), width);
    }
  }
  if (in_of(&l->up) != width) {
    return bad_layer(err, layer, "the input width of up", in_of(&l->up), width);
  }
  if (in_of(&l->down) != out_of(&l->up)) {
    return bad_layer(err, layer, "the input width of down", in_of(&l->down), out_of(&l->up));
  }
  if (out_of(&l->down) != width) {
    return bad_layer(err, layer, "the output width of down", out_of(&l->down), width);
  }
  return SPT_OK;
}

/* Q and K are read in pairs of rows, V by rows: the pairs come first, and begin at even rows. */
static spt_status check_pairs(const spt_encoder_layer *l, int64_t layer, spt_error *err) {
  int32_t v_row = INT32_MAX;
  for (int32_t h = 0; h < l->n_heads; h++) {
    v_row = l->v_row[h] < v_row ? l->v_row[h] : v_row;
  }
  for (int32_t h = 0; h < l->n_heads; h++) {
    int32_t k_end = l->k_row[h] + l->head_dim;
    if (l->q_row[h] % 2 != 0 || l->k_row[h] % 2 != 0 || v_row % 2 != 0 || k_end > v_row) {
      return spt_fail(
          err, SPT_UNSUPPORTED,
          "encoder: layer %lld: head %d has Q at row %d, K at %d, the first V is at %d, "
          "expected even rows and V behind every K for bfloat16",
          (long long)layer, (int)h, (int)l->q_row[h], (int)l->k_row[h], (int)v_row);
    }
  }
  return SPT_OK;
}

/* bfloat16 contracts over pairs of features. */
static spt_status check_bf16(const spt_encoder_layer *l, int64_t layer, spt_error *err) {
  const spt_encoder_matrix *matrices[] = {&l->qkv, &l->o, &l->up, &l->down};
  for (int i = 0; i < 4; i++) {
    if (matrices[i]->csr != NULL) {
      return spt_fail(err, SPT_INVALID_VALUE,
                      "encoder: layer %lld: a product is CSR, expected strips for bfloat16",
                      (long long)layer);
    }
  }
  if (l->head_dim % 2 != 0) {
    return spt_fail(err, SPT_UNSUPPORTED,
                    "encoder: layer %lld: head_dim is %d, expected an even one for bfloat16",
                    (long long)layer, (int)l->head_dim);
  }
  return check_pairs(l, layer, err);
}

spt_status spt_encoder_create(spt_device *device, const spt_encoder_model *model, spt_encoder **out,
                              spt_error *err) {
  if (model->width < 1) {
    return spt_fail(err, SPT_INVALID_VALUE, "encoder: width is %lld, expected at least 1",
                    (long long)model->width);
  }
  if (model->vocabulary < 1 || model->positions < 1 || (model->type != NULL && model->types < 1)) {
    return spt_fail(err, SPT_INVALID_VALUE,
                    "encoder: the embedding tables have %lld words, %lld positions and %lld types, "
                    "expected at least one of each",
                    (long long)model->vocabulary, (long long)model->positions,
                    (long long)model->types);
  }
  if (model->compute != SPT_F32 && model->compute != SPT_BF16) {
    return spt_fail(err, SPT_INVALID_VALUE, "encoder: compute is %s, expected float32 or bfloat16",
                    spt_dtype_name(model->compute));
  }
  for (int64_t i = 0; i < model->n_layers; i++) {
    SPT_TRY(check_layer(&model->layers[i], i, model->width, model->n_heads, err));
    if (model->compute == SPT_BF16) {
      SPT_TRY(check_bf16(&model->layers[i], i, err));
    }
  }
  SPT_TRY(spt_check_slot("encoder", device, device->backend->encoder_create != NULL, err));
  spt_encoder *encoder = calloc(1, sizeof *encoder);
  if (encoder == NULL) {
    return spt_fail(err, SPT_OUT_OF_MEMORY, "encoder: no memory");
  }
  encoder->device = device;
  encoder->model = *model;
  spt_status status =
      device->backend->encoder_create(device->state, &encoder->model, &encoder->state, err);
  if (status != SPT_OK) {
    free(encoder);
    return status;
  }
  *out = encoder;
  return SPT_OK;
}

static spt_status check_index(const char *what, const int32_t *values, int64_t n, int64_t limit,
                              spt_error *err) {
  for (int64_t i = 0; i < n; i++) {
    if (values[i] < 0 || values[i] >= limit) {
      return spt_fail(err, SPT_INVALID_VALUE, "encoder: %s[%lld] is %d, expected 0 to %lld", what,
                      (long long)i, (int)values[i], (long long)limit - 1);
    }
  }
  return SPT_OK;
}

/* Counts of one kind: from `first` (NULL: `every`) down, at least 1 where the first is. */
static spt_status check_counts(const spt_encoder_model *m, const spt_encoder_run *run,
                               const char *what, const int64_t *counts, int64_t every,
                               spt_error *err) {
  int64_t n = run->n_sequences;
  for (int64_t i = 0; i < m->n_layers * n; i++) {
    int64_t s = i % n, most = i >= n ? counts[i - n] : every;
    if (i < n && every < 0) {
      most = run->offsets[s + 1] - run->offsets[s];
    }
    int64_t least = i < n ? most : most < 1 ? most : 1;
    if (counts[i] < least || counts[i] > most) {
      return spt_fail(err, SPT_INVALID_VALUE,
                      "encoder: layer %lld keeps %lld %s of sequence %lld, expected %lld to %lld",
                      (long long)(i / n), (long long)counts[i], what, (long long)s,
                      (long long)least, (long long)most);
    }
  }
  return SPT_OK;
}

spt_status spt_encoder_forward(spt_encoder *encoder, const spt_encoder_run *run, spt_error *err) {
  const spt_encoder_model *m = &encoder->model;
  SPT_TRY(spt_device_check_alive(encoder->device, "encoder", err));
  if (run->offsets[0] != 0) {
    return spt_fail(err, SPT_INVALID_VALUE, "encoder: offsets[0] is %lld, expected 0",
                    (long long)run->offsets[0]);
  }
  for (int64_t i = 0; i < run->n_sequences; i++) {
    if (run->offsets[i + 1] < run->offsets[i]) {
      return spt_fail(err, SPT_INVALID_VALUE,
                      "encoder: offsets[%lld] is %lld, expected at least %lld", (long long)i + 1,
                      (long long)run->offsets[i + 1], (long long)run->offsets[i]);
    }
  }
  int64_t tokens = run->offsets[run->n_sequences];
  if (tokens > INT32_MAX || run->n_sequences > INT32_MAX) {
    return spt_fail(err, SPT_INVALID_VALUE,
                    "encoder: %lld tokens in %lld sequences, expected fewer than 2**31",
                    (long long)tokens, (long long)run->n_sequences);
  }
  SPT_TRY(check_index("ids", run->ids, tokens, m->vocabulary, err));
  SPT_TRY(check_index("positions", run->positions, tokens, m->positions, err));
  if (run->types != NULL && m->type != NULL) {
    SPT_TRY(check_index("types", run->types, tokens, m->types, err));
  }
  if (run->pruning != NULL) {
    SPT_TRY(check_counts(m, run, "tokens", run->pruning->tokens, -1, err));
    if (run->pruning->heads != NULL) {
      SPT_TRY(check_counts(m, run, "heads", run->pruning->heads, m->n_heads, err));
    }
  }
  spt_encoder_run checked = *run;
  checked.model = m;
  return encoder->device->backend->encoder_forward(encoder->state, &checked, err);
}

void spt_encoder_free(spt_encoder *encoder) {
  if (encoder != NULL) {
    if (spt_device_is_alive(encoder->device)) {
      encoder->device->backend->encoder_free(encoder->state);
    }
    free(encoder);
  }
}
