/* topk: the k largest of each row or packed sequence, in their original order. */
#include "sequences.h"

static spt_status check_rows(const char *op, const spt_topk_args *a, spt_error *err) {
  const spt_tensor *outputs[] = {&a->values, &a->indices};
  const char *names[] = {"values", "indices"};
  if (a->scores.ndim == 0) {
    return spt_fail(err, SPT_INVALID_VALUE, "%s: scores has 0 dimensions, expected at least 1", op);
  }
  int last = a->scores.ndim - 1;
  if (a->k < 0 || a->k > a->scores.shape[last]) {
    return spt_fail(err, SPT_INVALID_VALUE, "%s: k is %lld, expected 0 to %lld", op,
                    (long long)a->k, (long long)a->scores.shape[last]);
  }
  for (int i = 0; i < 2; i++) {
    SPT_TRY(spt_check_ndim(op, names[i], outputs[i], a->scores.ndim, err));
    for (int axis = 0; axis < last; axis++) {
      SPT_TRY(spt_check_dim(op, names[i], outputs[i], axis, a->scores.shape[axis], err));
    }
    SPT_TRY(spt_check_dim(op, names[i], outputs[i], last, a->k, err));
  }
  return SPT_OK;
}

spt_status spt_check_sequences(const char *op, const char *arg, const spt_tensor *scores,
                               const int64_t *offsets, const int64_t *counts, int64_t n_sequences,
                               int64_t *total, spt_error *err) {
  SPT_TRY(spt_check_ndim(op, arg, scores, 1, err));
  if (offsets[0] != 0) {
    return spt_fail(err, SPT_INVALID_VALUE, "%s: offsets[0] is %lld, expected 0", op,
                    (long long)offsets[0]);
  }
  *total = 0;
  for (int64_t i = 0; i < n_sequences; i++) {
    if (offsets[i + 1] < offsets[i]) {
      return spt_fail(err, SPT_INVALID_VALUE, "%s: offsets[%lld] is %lld, expected at least %lld",
                      op, (long long)i + 1, (long long)offsets[i + 1], (long long)offsets[i]);
    }
    int64_t length = offsets[i + 1] - offsets[i];
    if (counts[i] < 0 || counts[i] > length) {
      return spt_fail(err, SPT_INVALID_VALUE, "%s: k is %lld for sequence %lld, expected 0 to %lld",
                      op, (long long)counts[i], (long long)i, (long long)length);
    }
    *total += counts[i];
  }
  if (offsets[n_sequences] != scores->shape[0]) {
    return spt_fail(err, SPT_INVALID_VALUE, "%s: offsets ends at %lld, expected %s.shape[0] = %lld",
                    op, (long long)offsets[n_sequences], arg, (long long)scores->shape[0]);
  }
  return SPT_OK;
}

static spt_status check_packed(const char *op, const spt_topk_args *a, spt_error *err) {
  int64_t total;
  SPT_TRY(spt_check_ndim(op, "values", &a->values, 1, err));
  SPT_TRY(spt_check_ndim(op, "indices", &a->indices, 1, err));
  SPT_TRY(spt_check_sequences(op, "scores", &a->scores, a->offsets, a->counts, a->n_sequences,
                              &total, err));
  SPT_TRY(spt_check_dim(op, "values", &a->values, 0, total, err));
  return spt_check_dim(op, "indices", &a->indices, 0, total, err);
}

spt_status spt_topk(spt_device *device, const spt_topk_args *a, spt_error *err) {
  const char *op = "topk";
  SPT_TRY(spt_check_storage(op, "scores", &a->scores, err));
  SPT_TRY(spt_check_dtype(op, "values", &a->values, a->scores.dtype, err));
  SPT_TRY(spt_check_dtype(op, "indices", &a->indices, SPT_I64, err));
  SPT_TRY(a->offsets != NULL ? check_packed(op, a, err) : check_rows(op, a, err));
  SPT_TRY(spt_check_output(op, "values", &a->values, err));
  SPT_TRY(spt_check_output(op, "indices", &a->indices, err));
  SPT_TRY(spt_check_slot(op, device, device->backend->topk != NULL, err));
  spt_topk_problem p = {.op = op,
                        .arg = "scores",
                        .scores = a->scores,
                        .values = a->values,
                        .indices = a->indices,
                        .k = a->k,
                        .offsets = a->offsets,
                        .counts = a->counts,
                        .n_sequences = a->n_sequences};
  if (a->offsets == NULL) {
    spt_merge_axes((spt_tensor *[]){&p.scores, &p.values, &p.indices}, 3, 1);
  }
  return device->backend->topk(device->state, &p, err);
}
