/* Group norms, beta, the reweighted group lasso, its gradient and its proximal step. */
#include "../integer.h"
#include "check.h"
#include "groups.h"

/* A group is never taken larger than the matrix, so that no product of sizes can overflow. */
static int64_t clip(int64_t group, int64_t size) {
  int64_t most = size > 1 ? size : 1;
  return group < most ? group : most;
}

spt_status spt_grid_of(const char *op, const char *arg, const spt_tensor *w, int64_t group_rows,
                       int64_t group_cols, spt_grid *grid, spt_error *err) {
  SPT_TRY(spt_check_ndim(op, arg, w, 2, err));
  if (group_rows < 1 || group_cols < 1) {
    return spt_fail(err, SPT_INVALID_VALUE, "%s: groups are %lld x %lld, expected at least 1 x 1",
                    op, (long long)group_rows, (long long)group_cols);
  }
  *grid = (spt_grid){.w = spt_matrix_of(w)};
  grid->group_rows = clip(group_rows, w->shape[0]);
  grid->group_cols = clip(group_cols, w->shape[1]);
  grid->down = spt_ceil_div(w->shape[0], grid->group_rows);
  grid->across = spt_ceil_div(w->shape[1], grid->group_cols);
  return SPT_OK;
}

spt_status spt_check_per_group(const char *op, const char *arg, const spt_tensor *t,
                               const spt_grid *grid, spt_error *err) {
  SPT_TRY(spt_check_ndim(op, arg, t, 2, err));
  SPT_TRY(spt_check_dim(op, arg, t, 0, grid->down, err));
  return spt_check_dim(op, arg, t, 1, grid->across, err);
}

static spt_status weights(const char *op, const spt_tensor *w, int64_t group_rows,
                          int64_t group_cols, spt_grid *grid, spt_error *err) {
  SPT_TRY(spt_check_storage(op, "w", w, err));
  return spt_grid_of(op, "w", w, group_rows, group_cols, grid, err);
}

static spt_status result(const char *op, const char *arg, const spt_tensor *t, const spt_grid *grid,
                         spt_error *err) {
  SPT_TRY(spt_check_dtype(op, arg, t, SPT_F32, err));
  SPT_TRY(spt_check_per_group(op, arg, t, grid, err));
  return spt_check_output(op, arg, t, err);
}

static spt_status optional_beta(const char *op, const spt_tensor *beta, const spt_grid *grid,
                                spt_matrix *m, spt_error *err) {
  *m = spt_matrix_of(NULL);
  if (beta != NULL) {
    SPT_TRY(spt_check_storage(op, "beta", beta, err));
    SPT_TRY(spt_check_per_group(op, "beta", beta, grid, err));
    *m = spt_matrix_of(beta);
  }
  return SPT_OK;
}

spt_status spt_group_norms(spt_device *device, const spt_group_norms_args *a, spt_error *err) {
  const char *op = "group_norms";
  spt_group_norms_problem p = {0};
  SPT_TRY(weights(op, &a->w, a->group_rows, a->group_cols, &p.grid, err));
  SPT_TRY(result(op, "norms", &a->norms, &p.grid, err));
  SPT_TRY(spt_check_slot(op, device, device->backend->group_norms != NULL, err));
  p.norms = spt_matrix_of(&a->norms);
  return device->backend->group_norms(device->state, &p, err);
}

spt_status spt_group_beta(spt_device *device, const spt_group_beta_args *a, spt_error *err) {
  const char *op = "group_beta";
  spt_group_beta_problem p = {.eps = a->eps};
  SPT_TRY(weights(op, &a->w, a->group_rows, a->group_cols, &p.grid, err));
  SPT_TRY(spt_check_amount(op, "eps", a->eps, err));
  SPT_TRY(result(op, "beta", &a->beta, &p.grid, err));
  SPT_TRY(spt_check_slot(op, device, device->backend->group_beta != NULL, err));
  p.beta = spt_matrix_of(&a->beta);
  return device->backend->group_beta(device->state, &p, err);
}

spt_status spt_group_lasso(spt_device *device, const spt_group_lasso_args *a, spt_error *err) {
  const char *op = "group_lasso";
  spt_group_lasso_problem p = {.penalty = a->penalty};
  SPT_TRY(weights(op, &a->w, a->group_rows, a->group_cols, &p.grid, err));
  SPT_TRY(optional_beta(op, a->beta, &p.grid, &p.beta, err));
  SPT_TRY(spt_check_slot(op, device, device->backend->group_lasso != NULL, err));
  return device->backend->group_lasso(device->state, &p, err);
}

spt_status spt_group_lasso_grad(spt_device *device, const spt_group_lasso_grad_args *a,
                                spt_error *err) {
  const char *op = a->add ? "add_group_lasso_grad_" : "group_lasso_grad";
  spt_group_lasso_grad_problem p = {.strength = a->strength, .add = a->add};
  SPT_TRY(weights(op, &a->w, a->group_rows, a->group_cols, &p.grid, err));
  SPT_TRY(optional_beta(op, a->beta, &p.grid, &p.beta, err));
  SPT_TRY(spt_check_amount(op, "strength", a->strength, err));
  SPT_TRY(spt_check_storage(op, "grad", &a->grad, err));
  SPT_TRY(spt_check_shape(op, "grad", &a->grad, &a->w, err));
  SPT_TRY(spt_check_output(op, "grad", &a->grad, err));
  SPT_TRY(spt_check_slot(op, device, device->backend->group_lasso_grad != NULL, err));
  p.grad = spt_matrix_of(&a->grad);
  return device->backend->group_lasso_grad(device->state, &p, err);
}

spt_status spt_group_shrink(spt_device *device, const spt_group_shrink_args *a, spt_error *err) {
  const char *op = "group_shrink_";
  spt_group_shrink_problem p = {.strength = a->strength};
  SPT_TRY(weights(op, &a->w, a->group_rows, a->group_cols, &p.grid, err));
  SPT_TRY(optional_beta(op, a->beta, &p.grid, &p.beta, err));
  SPT_TRY(spt_check_amount(op, "strength", a->strength, err));
  SPT_TRY(spt_check_output(op, "w", &a->w, err));
  SPT_TRY(spt_check_slot(op, device, device->backend->group_shrink != NULL, err));
  return device->backend->group_shrink(device->state, &p, err);
}
