/* second_order_removals and second_order_apply. */
#include <math.h>
#include <stdio.h>

#include "check.h"
#include "groups.h"

static spt_status check_gram(const spt_second_order_problem *p, const spt_tensor *gram,
                             int64_t columns, spt_error *err) {
  if (gram->dtype != SPT_F32 && gram->dtype != SPT_F64) {
    return spt_fail(err, SPT_INVALID_DTYPE, "%s: %s.dtype is %s, expected float32 or float64",
                    p->op, p->gram_name, spt_dtype_name(gram->dtype));
  }
  SPT_TRY(spt_check_ndim(p->op, p->gram_name, gram, 2, err));
  SPT_TRY(spt_check_dim(p->op, p->gram_name, gram, 0, columns, err));
  return spt_check_dim(p->op, p->gram_name, gram, 1, columns, err);
}

static void name(char to[32], const char *arg, int64_t index) {
  if (index < 0) {
    snprintf(to, 32, "%s", arg);
  } else {
    snprintf(to, 32, "%s[%lld]", arg, (long long)index);
  }
}

static spt_status check_problem(spt_second_order_problem *p, int64_t index, const spt_tensor *w,
                                const spt_tensor *gram, int64_t group_rows, int64_t group_cols,
                                spt_error *err) {
  name(p->w_name, "w", index);
  name(p->gram_name, "gram", index);
  SPT_TRY(spt_check_storage(p->op, p->w_name, w, err));
  SPT_TRY(spt_grid_of(p->op, p->w_name, w, group_rows, group_cols, &p->grid, err));
  SPT_TRY(check_gram(p, gram, w->shape[1], err));
  if (!isfinite(p->damping) || !(p->damping > 0.0)) {
    return spt_fail(err, SPT_INVALID_VALUE, "%s: damping is %g, expected a finite number above 0",
                    p->op, p->damping);
  }
  p->gram = spt_matrix_of(gram);
  return SPT_OK;
}

spt_status spt_second_order_removals(spt_device *device, const spt_second_order_removals_args *a,
                                     spt_error *err) {
  const char *op = a->op != NULL ? a->op : "second_order_removals";
  spt_second_order_removals_problem p = {.of = {.op = op, .damping = a->damping}};
  SPT_TRY(check_problem(&p.of, a->index, &a->w, &a->gram, a->group_rows, a->group_cols, err));
  SPT_TRY(spt_check_dtype(op, "order", &a->order, SPT_I64, err));
  SPT_TRY(spt_check_per_group(op, "order", &a->order, &p.of.grid, err));
  SPT_TRY(spt_check_output(op, "order", &a->order, err));
  SPT_TRY(spt_check_dtype(op, "cost", &a->cost, SPT_F64, err));
  SPT_TRY(spt_check_per_group(op, "cost", &a->cost, &p.of.grid, err));
  SPT_TRY(spt_check_output(op, "cost", &a->cost, err));
  SPT_TRY(spt_check_slot(op, device, device->backend->second_order_removals != NULL, err));
  p.order = spt_matrix_of(&a->order);
  p.cost = spt_matrix_of(&a->cost);
  return device->backend->second_order_removals(device->state, &p, err);
}

spt_status spt_second_order_apply(spt_device *device, const spt_second_order_apply_args *a,
                                  spt_error *err) {
  const char *op = a->op != NULL ? a->op : "second_order_apply";
  spt_second_order_apply_problem p = {.of = {.op = op, .damping = a->damping}, .cost = a->cost};
  SPT_TRY(check_problem(&p.of, a->index, &a->w, &a->gram, a->group_rows, a->group_cols, err));
  SPT_TRY(spt_check_dtype(op, "mask", &a->mask, SPT_BOOL, err));
  SPT_TRY(spt_check_per_group(op, "mask", &a->mask, &p.of.grid, err));
  SPT_TRY(spt_check_dtype(op, "pruned", &a->pruned, a->w.dtype, err));
  SPT_TRY(spt_check_shape(op, "pruned", &a->pruned, &a->w, err));
  SPT_TRY(spt_check_output(op, "pruned", &a->pruned, err));
  SPT_TRY(spt_check_slot(op, device, device->backend->second_order_apply != NULL, err));
  p.mask = spt_matrix_of(&a->mask);
  p.pruned = spt_matrix_of(&a->pruned);
  return device->backend->second_order_apply(device->state, &p, err);
}
