/* attention and attention_backward: what may attend to what, settled before any backend sees it. */
#include <math.h>

#include "check.h"

/* Packed arrays are (t, h, d), batched ones (b, s, h, d). */
static spt_heads heads_of(const spt_tensor *t) {
  if (t == NULL) {
    return (spt_heads){0};
  }
  int token = t->ndim == 4 ? 1 : 0;
  return (spt_heads){.data = t->data,
                     .dtype = t->dtype,
                     .sequence = token == 1 ? t->stride[0] : 0,
                     .token = t->stride[token],
                     .head = t->stride[token + 1],
                     .feature = t->stride[token + 2]};
}

static spt_status check_int64(const char *op, const char *arg, const spt_tensor *t, int64_t n,
                              spt_error *err) {
  SPT_TRY(spt_check_dtype(op, arg, t, SPT_I64, err));
  SPT_TRY(spt_check_ndim(op, arg, t, 1, err));
  if (n >= 0) {
    SPT_TRY(spt_check_dim(op, arg, t, 0, n, err));
  }
  if (t->shape[0] > 1 && t->stride[0] != 1) {
    return spt_fail(err, SPT_INVALID_VALUE, "%s: %s has stride %lld, expected a contiguous array",
                    op, arg, (long long)t->stride[0]);
  }
  return SPT_OK;
}

/* Starts at 0, never falls, ends at the number of tokens. */
static spt_status check_offsets(const char *op, const char *arg, const spt_tensor *t, int64_t n,
                                int64_t tokens, spt_error *err) {
  SPT_TRY(check_int64(op, arg, t, n, err));
  if (t->shape[0] == 0) {
    return spt_fail(err, SPT_INVALID_VALUE, "%s: %s.shape[0] is 0, expected at least 1", op, arg);
  }
  const int64_t *at = t->data;
  if (at[0] != 0) {
    return spt_fail(err, SPT_INVALID_VALUE, "%s: %s[0] is %lld, expected 0", op, arg,
                    (long long)at[0]);
  }
  for (int64_t i = 1; i < t->shape[0]; i++) {
    if (at[i] < at[i - 1]) {
      return spt_fail(err, SPT_INVALID_VALUE, "%s: %s[%lld] is %lld, expected at least %lld", op,
                      arg, (long long)i, (long long)at[i], (long long)at[i - 1]);
    }
  }
  if (at[t->shape[0] - 1] != tokens) {
    return spt_fail(err, SPT_INVALID_VALUE,
                    "%s: %s[%lld] is %lld, expected %lld, the number of tokens", op, arg,
                    (long long)t->shape[0] - 1, (long long)at[t->shape[0] - 1], (long long)tokens);
  }
  return SPT_OK;
}

/* (b, h, sq, sk) with stride 0 where the argument was broadcast. */
static spt_status broadcast_pairs(const char *op, const char *arg, const spt_tensor *t,
                                  const spt_attention_problem *p, spt_tensor *to, spt_error *err) {
  const int64_t full[4] = {p->sequences, p->heads, p->queries, p->keys};
  if (p->q_offsets != NULL) {
    return spt_fail(err, SPT_UNSUPPORTED, "%s: %s beside offsets, expected batched arrays", op,
                    arg);
  }
  SPT_TRY(spt_check_ndim(op, arg, t, 4, err));
  *to = *t;
  for (int i = 0; i < 4; i++) {
    if (t->shape[i] != full[i] && t->shape[i] != 1) {
      return spt_fail(err, SPT_INVALID_VALUE, "%s: %s.shape[%d] is %lld, expected %lld or 1", op,
                      arg, i, (long long)t->shape[i], (long long)full[i]);
    }
    to->stride[i] = t->shape[i] == 1 ? 0 : t->stride[i];
    to->shape[i] = full[i];
  }
  return SPT_OK;
}

/* Heads, widths, dtypes and sequences of q, k and v. */
static spt_status check_operands(const char *op, const spt_attention_args *a,
                                 spt_attention_problem *p, spt_error *err) {
  bool packed = a->offsets != NULL;
  int ndim = packed ? 3 : 4, token = ndim - 3, head = ndim - 2, feature = ndim - 1;
  const spt_tensor *arrays[] = {&a->q, &a->k, &a->v};
  const char *names[] = {"q", "k", "v"};
  for (int i = 0; i < 3; i++) {
    SPT_TRY(spt_check_storage(op, names[i], arrays[i], err));
    SPT_TRY(spt_check_ndim(op, names[i], arrays[i], ndim, err));
    SPT_TRY(spt_check_dtype(op, names[i], arrays[i], a->q.dtype, err));
  }
  p->heads = a->q.shape[head];
  p->kv_heads = a->k.shape[head];
  p->d = a->q.shape[feature];
  p->dv = a->v.shape[feature];
  p->queries = a->q.shape[token];
  p->keys = a->k.shape[token];
  SPT_TRY(spt_check_dim(op, "k", &a->k, feature, p->d, err));
  SPT_TRY(spt_check_dim(op, "v", &a->v, token, p->keys, err));
  SPT_TRY(spt_check_dim(op, "v", &a->v, head, p->kv_heads, err));
  if (p->d == 0 || p->dv == 0) {
    return spt_fail(err, SPT_INVALID_VALUE, "%s: %s.shape[%d] is 0, expected at least 1", op,
                    p->d == 0 ? "q" : "v", feature);
  }
  if (p->heads == 0 || p->kv_heads == 0) {
    return spt_fail(err, SPT_INVALID_VALUE, "%s: %s.shape[%d] is 0, expected at least 1", op,
                    p->heads == 0 ? "q" : "k", head);
  }
  if (p->heads % p->kv_heads != 0) {
    return spt_fail(err, SPT_INVALID_VALUE,
                    "%s: q.shape[%d] is %lld, expected a multiple of the %lld heads of k", op, head,
                    (long long)p->heads, (long long)p->kv_heads);
  }
  if (!packed) {
    p->sequences = a->q.shape[0];
    SPT_TRY(spt_check_dim(op, "k", &a->k, 0, p->sequences, err));
    return spt_check_dim(op, "v", &a->v, 0, p->sequences, err);
  }
  SPT_TRY(check_offsets(op, "offsets", a->offsets, -1, p->queries, err));
  p->sequences = a->offsets->shape[0] - 1;
  p->q_offsets = p->kv_offsets = a->offsets->data;
  if (a->kv_offsets != NULL) {
    SPT_TRY(check_offsets(op, "kv_offsets", a->kv_offsets, p->sequences + 1, p->keys, err));
    p->kv_offsets = a->kv_offsets->data;
    return SPT_OK;
  }
  return spt_check_dim(op, "k", &a->k, 0, p->queries, err);
}

static spt_status check_lengths(const char *op, const spt_tensor *lengths, spt_attention_problem *p,
                                spt_error *err) {
  if (p->q_offsets != NULL) {
    return spt_fail(err, SPT_INVALID_VALUE, "%s: lengths beside offsets, expected one of them", op);
  }
  if (p->queries != p->keys) {
    return spt_fail(err, SPT_INVALID_VALUE,
                    "%s: lengths beside %lld queries and %lld keys, expected as many of both", op,
                    (long long)p->queries, (long long)p->keys);
  }
  SPT_TRY(check_int64(op, "lengths", lengths, p->sequences, err));
  p->lengths = lengths->data;
  for (int64_t n = 0; n < p->sequences; n++) {
    if (p->lengths[n] < 0 || p->lengths[n] > p->queries) {
      return spt_fail(err, SPT_INVALID_VALUE, "%s: lengths[%lld] is %lld, expected 0 to %lld", op,
                      (long long)n, (long long)p->lengths[n], (long long)p->queries);
    }
  }
  return SPT_OK;
}

static spt_status check_window(const char *op, const spt_attention_args *a,
                               spt_attention_problem *p, spt_error *err) {
  if (a->window_left < -1 || a->window_right < -1) {
    return spt_fail(err, SPT_INVALID_VALUE,
                    "%s: window is (%lld, %lld), expected numbers of keys, at least 0", op,
                    (long long)a->window_left, (long long)a->window_right);
  }
  p->left = a->window_left < 0 ? SPT_UNBOUNDED : a->window_left;
  p->right = a->causal ? 0 : a->window_right < 0 ? SPT_UNBOUNDED : a->window_right;
  p->left = p->left > SPT_UNBOUNDED ? SPT_UNBOUNDED : p->left;
  p->right = p->right > SPT_UNBOUNDED ? SPT_UNBOUNDED : p->right;
  return SPT_OK;
}

static spt_status derive(const char *op, const spt_attention_args *a, spt_attention_problem *p,
                         spt_error *err) {
  SPT_TRY(check_operands(op, a, p, err));
  if (a->kv_offsets != NULL && a->offsets == NULL) {
    return spt_fail(err, SPT_INVALID_VALUE, "%s: kv_offsets without offsets, expected both", op);
  }
  if (a->lengths != NULL) {
    SPT_TRY(check_lengths(op, a->lengths, p, err));
  }
  if (a->mask != NULL) {
    SPT_TRY(spt_check_dtype(op, "mask", a->mask, SPT_BOOL, err));
    SPT_TRY(broadcast_pairs(op, "mask", a->mask, p, &p->mask, err));
  }
  if (a->bias != NULL) {
    SPT_TRY(spt_check_storage(op, "bias", a->bias, err));
    SPT_TRY(broadcast_pairs(op, "bias", a->bias, p, &p->bias, err));
  }
  SPT_TRY(check_window(op, a, p, err));
  if (!(a->dropout >= 0.0 && a->dropout < 1.0)) {
    return spt_fail(err, SPT_INVALID_VALUE, "%s: dropout is %g, expected 0 or more and below 1", op,
                    a->dropout);
  }
  p->scale = isnan(a->scale) ? (float)(1.0 / sqrt((double)p->d)) : (float)a->scale;
  p->dropout = a->dropout;
  p->seed = a->seed;
  p->q = heads_of(&a->q);
  p->k = heads_of(&a->k);
  p->v = heads_of(&a->v);
  p->out = heads_of(&a->out);
  return SPT_OK;
}

/* `t` has the shape of `like` but for its last width, and its dtype. */
static spt_status check_like(const char *op, const char *arg, const spt_tensor *t,
                             const spt_tensor *like, int64_t width, spt_error *err) {
  SPT_TRY(spt_check_ndim(op, arg, t, like->ndim, err));
  SPT_TRY(spt_check_dtype(op, arg, t, like->dtype, err));
  for (int i = 0; i < like->ndim - 1; i++) {
    SPT_TRY(spt_check_dim(op, arg, t, i, like->shape[i], err));
  }
  return spt_check_dim(op, arg, t, like->ndim - 1, width, err);
}

/* float32 of this shape. */
static spt_status check_float32(const char *op, const char *arg, const spt_tensor *t, int ndim,
                                const int64_t *shape, spt_error *err) {
  SPT_TRY(spt_check_dtype(op, arg, t, SPT_F32, err));
  SPT_TRY(spt_check_ndim(op, arg, t, ndim, err));
  for (int i = 0; i < ndim; i++) {
    SPT_TRY(spt_check_dim(op, arg, t, i, shape[i], err));
  }
  return SPT_OK;
}

/* lse is (b, h, sq), packed (h, t): heads before tokens. */
static spt_status derive_lse(const char *op, const spt_tensor *lse, spt_attention_problem *p,
                             spt_error *err) {
  int64_t shape[3] = {p->sequences, p->heads, p->queries};
  int packed = p->q_offsets != NULL;
  SPT_TRY(check_float32(op, "lse", lse, 3 - packed, shape + packed, err));
  p->lse = (spt_heads){.data = lse->data,
                       .dtype = SPT_F32,
                       .sequence = packed ? 0 : lse->stride[0],
                       .head = lse->stride[1 - packed],
                       .token = lse->stride[2 - packed]};
  return SPT_OK;
}

static spt_status derive_importance(const char *op, const spt_attention_args *a,
                                    spt_attention_problem *p, spt_error *err) {
  const spt_tensor *tokens = a->token_importance, *heads = a->head_importance;
  int64_t token_shape[2] = {p->sequences, p->keys}, head_shape[2] = {p->sequences, p->heads};
  int packed = p->q_offsets != NULL;
  if (tokens == NULL || heads == NULL) {
    return spt_fail(err, SPT_INVALID_VALUE,
                    "%s: one of token_importance and head_importance, expected both or neither",
                    op);
  }
  SPT_TRY(check_float32(op, "token_importance", tokens, 2 - packed, token_shape + packed, err));
  SPT_TRY(check_float32(op, "head_importance", heads, 2, head_shape, err));
  SPT_TRY(spt_check_output(op, "token_importance", tokens, err));
  SPT_TRY(spt_check_output(op, "head_importance", heads, err));
  p->token_importance = (spt_heads){.data = tokens->data,
                                    .dtype = SPT_F32,
                                    .sequence = packed ? 0 : tokens->stride[0],
                                    .token = tokens->stride[1 - packed]};
  p->head_importance = (spt_heads){.data = heads->data,
                                   .dtype = SPT_F32,
                                   .sequence = heads->stride[0],
                                   .head = heads->stride[1]};
  return SPT_OK;
}

spt_status spt_attention(spt_device *device, const spt_attention_args *a, spt_error *err) {
  const char *op = "attention";
  spt_attention_problem p = {0};
  SPT_TRY(derive(op, a, &p, err));
  SPT_TRY(check_like(op, "out", &a->out, &a->q, p.dv, err));
  SPT_TRY(spt_check_output(op, "out", &a->out, err));
  if (a->lse != NULL) {
    SPT_TRY(derive_lse(op, a->lse, &p, err));
    SPT_TRY(spt_check_output(op, "lse", a->lse, err));
  }
  if (a->token_importance != NULL || a->head_importance != NULL) {
    SPT_TRY(derive_importance(op, a, &p, err));
  }
  SPT_TRY(spt_check_slot(op, device, device->backend->attention != NULL, err));
  return device->backend->attention(device->state, &p, err);
}

static spt_status check_gradient(const char *op, const char *arg, const spt_tensor *t,
                                 const spt_tensor *like, spt_error *err) {
  if (t == NULL) {
    return SPT_OK;
  }
  SPT_TRY(check_like(op, arg, t, like, like->shape[like->ndim - 1], err));
  return spt_check_output(op, arg, t, err);
}

spt_status spt_attention_backward(spt_device *device, const spt_attention_backward_args *a,
                                  spt_error *err) {
  const char *op = "attention_backward";
  const spt_attention_args *f = &a->forward;
  spt_attention_backward_problem p = {0};
  SPT_TRY(derive(op, f, &p.forward, err));
  SPT_TRY(check_like(op, "out", &f->out, &f->q, p.forward.dv, err));
  SPT_TRY(check_like(op, "grad", &a->grad, &f->q, p.forward.dv, err));
  if (f->lse == NULL) {
    return spt_fail(err, SPT_INVALID_VALUE, "%s: lse is absent, expected attention's", op);
  }
  SPT_TRY(derive_lse(op, f->lse, &p.forward, err));
  SPT_TRY(check_gradient(op, "dq", a->dq, &f->q, err));
  SPT_TRY(check_gradient(op, "dk", a->dk, &f->k, err));
  SPT_TRY(check_gradient(op, "dv", a->dv, &f->v, err));
  if (a->dbias != NULL) {
    if (f->bias == NULL) {
      return spt_fail(err, SPT_INVALID_VALUE, "%s: need_bias without bias, expected a bias", op);
    }
    SPT_TRY(check_gradient(op, "dbias", a->dbias, f->bias, err));
    p.dbias = *a->dbias;
  }
  SPT_TRY(spt_check_slot(op, device, device->backend->attention_backward != NULL, err));
  p.grad = heads_of(&a->grad);
  p.dq = heads_of(a->dq);
  p.dk = heads_of(a->dk);
  p.dv = heads_of(a->dv);
  return device->backend->attention_backward(device->state, &p, err);
}
