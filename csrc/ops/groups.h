/* What the ops on groups and the ops on masks share. */
#ifndef SPATILE_OPS_GROUPS_H
#define SPATILE_OPS_GROUPS_H

#include "../backend.h"

/* The grid of a 2-D tensor of any dtype. */
SPT_WARN_UNUSED spt_status spt_grid_of(const char *op, const char *arg, const spt_tensor *w,
                                       int64_t group_rows, int64_t group_cols, spt_grid *grid,
                                       spt_error *err);
/* (grid->down, grid->across) */
SPT_WARN_UNUSED spt_status spt_check_per_group(const char *op, const char *arg, const spt_tensor *t,
                                               const spt_grid *grid, spt_error *err);

#endif
