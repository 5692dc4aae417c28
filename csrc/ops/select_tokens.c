/* select_tokens: the most important tokens of each packed sequence, protected ones before all others. */
#include "sequences.h"

spt_status spt_select_tokens(spt_device *device, const spt_select_tokens_args *a, spt_error *err) {
  const char *op = "select_tokens";
  int64_t total;
  SPT_TRY(spt_check_storage(op, "importance", &a->importance, err));
  SPT_TRY(spt_check_dtype(op, "indices", &a->indices, SPT_I64, err));
  SPT_TRY(spt_check_ndim(op, "indices", &a->indices, 1, err));
  SPT_TRY(spt_check_sequences(op, "importance", &a->importance, a->offsets, a->counts,
                              a->n_sequences, &total, err));
  SPT_TRY(spt_check_dim(op, "indices", &a->indices, 0, total, err));
  SPT_TRY(spt_check_output(op, "indices", &a->indices, err));
  if (a->protect != NULL) {
    SPT_TRY(spt_check_dtype(op, "protect", a->protect, SPT_BOOL, err));
    SPT_TRY(spt_check_ndim(op, "protect", a->protect, 1, err));
    SPT_TRY(spt_check_dim(op, "protect", a->protect, 0, a->importance.shape[0], err));
  }
  SPT_TRY(spt_check_slot(op, device, device->backend->topk != NULL, err));
  spt_topk_problem p = {.op = op,
                        .arg = "importance",
                        .scores = a->importance,
                        .indices = a->indices,
                        .protected_first = a->protect == NULL,
                        .protect = a->protect != NULL ? a->protect->data : NULL,
                        .offsets = a->offsets,
                        .counts = a->counts,
                        .n_sequences = a->n_sequences};
  return device->backend->topk(device->state, &p, err);
}
