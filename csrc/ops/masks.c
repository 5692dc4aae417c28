/* apply_mask, expand_mask and prune_mask. */
#include <stdio.h>
#include <stdlib.h>

#include "check.h"
#include "groups.h"

static spt_status check_mask(const char *op, const char *arg, const spt_tensor *mask,
                             const spt_grid *grid, spt_error *err) {
  SPT_TRY(spt_check_dtype(op, arg, mask, SPT_BOOL, err));
  return spt_check_per_group(op, arg, mask, grid, err);
}

spt_status spt_apply_mask(spt_device *device, const spt_apply_mask_args *a, spt_error *err) {
  const char *op = "apply_mask_";
  spt_apply_mask_problem p = {0};
  SPT_TRY(spt_check_storage(op, "w", &a->w, err));
  SPT_TRY(spt_grid_of(op, "w", &a->w, a->group_rows, a->group_cols, &p.grid, err));
  SPT_TRY(check_mask(op, "mask", &a->mask, &p.grid, err));
  SPT_TRY(spt_check_output(op, "w", &a->w, err));
  SPT_TRY(spt_check_slot(op, device, device->backend->apply_mask != NULL, err));
  p.mask = spt_matrix_of(&a->mask);
  return device->backend->apply_mask(device->state, &p, err);
}

spt_status spt_expand_mask(spt_device *device, const spt_expand_mask_args *a, spt_error *err) {
  const char *op = "expand_mask";
  spt_expand_mask_problem p = {0};
  SPT_TRY(spt_check_dtype(op, "expanded", &a->expanded, SPT_BOOL, err));
  SPT_TRY(spt_grid_of(op, "expanded", &a->expanded, a->group_rows, a->group_cols, &p.grid, err));
  SPT_TRY(spt_check_output(op, "expanded", &a->expanded, err));
  SPT_TRY(check_mask(op, "mask", &a->mask, &p.grid, err));
  SPT_TRY(spt_check_slot(op, device, device->backend->expand_mask != NULL, err));
  p.mask = spt_matrix_of(&a->mask);
  return device->backend->expand_mask(device->state, &p, err);
}

static spt_status check_matrices(const char *op, const spt_prune_mask_args *a, spt_grid *grids,
                                 spt_matrix *masks, spt_error *err) {
  for (int64_t i = 0; i < a->n_matrices; i++) {
    const spt_prune_matrix *m = &a->matrices[i];
    char w[32] = "w";
    if (a->n_matrices > 1) {
      snprintf(w, sizeof w, "w[%lld]", (long long)i);
    }
    SPT_TRY(spt_check_storage(op, w, &m->w, err));
    SPT_TRY(spt_grid_of(op, w, &m->w, m->group_rows, m->group_cols, &grids[i], err));
    SPT_TRY(check_mask(op, "mask", &m->mask, &grids[i], err));
    SPT_TRY(spt_check_output(op, "mask", &m->mask, err));
    masks[i] = spt_matrix_of(&m->mask);
  }
  return SPT_OK;
}

spt_status spt_prune_mask(spt_device *device, const spt_prune_mask_args *a, spt_error *err) {
  const char *op = "prune_mask";
  if (!(a->sparsity >= 0.0 && a->sparsity < 1.0)) {
    return spt_fail(err, SPT_INVALID_VALUE, "%s: sparsity is %.9g, expected a value in [0, 1)", op,
                    a->sparsity);
  }
  SPT_TRY(spt_check_slot(op, device, device->backend->prune_mask != NULL, err));
  size_t count = (size_t)a->n_matrices + 1;
  spt_grid *grids = calloc(count, sizeof *grids);
  spt_matrix *masks = calloc(count, sizeof *masks);
  spt_status status;
  if (grids == NULL || masks == NULL) {
    status = spt_fail(err, SPT_OUT_OF_MEMORY, "%s: no memory for a list of %lld matrices", op,
                      (long long)a->n_matrices);
  } else {
    status = check_matrices(op, a, grids, masks, err);
  }
  if (status == SPT_OK) {
    spt_prune_mask_problem p = {.grids = grids,
                                .masks = masks,
                                .n_matrices = a->n_matrices,
                                .sparsity = a->sparsity,
                                .scope = a->scope};
    status = device->backend->prune_mask(device->state, &p, err);
  }
  free(grids);
  free(masks);
  return status;
}
