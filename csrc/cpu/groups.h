/* What the ops on masks have of those on groups. */
#ifndef SPATILE_CPU_GROUPS_H
#define SPATILE_CPU_GROUPS_H

#include "../backend.h"

/* scores (down, across) float32: norm / sqrt(elements of the group inside w). Finite weights give
 * finite scores, whatever their size. */
spt_status spt_cpu_group_scores(const char *op, const spt_grid *grid, const spt_matrix *scores,
                                spt_error *err);

#endif
