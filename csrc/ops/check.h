/* Validation shared by the ops: every message names op, argument, what was found and expected. */
#ifndef SPATILE_OPS_CHECK_H
#define SPATILE_OPS_CHECK_H

#include "../backend.h"

SPT_WARN_UNUSED spt_status spt_check_ndim(const char *op, const char *arg, const spt_tensor *t,
                                          int ndim, spt_error *err);
SPT_WARN_UNUSED spt_status spt_check_dim(const char *op, const char *arg, const spt_tensor *t,
                                         int dim, int64_t expected, spt_error *err);
/* float32, float16 or bfloat16 */
SPT_WARN_UNUSED spt_status spt_check_storage(const char *op, const char *arg, const spt_tensor *t,
                                             spt_error *err);
SPT_WARN_UNUSED spt_status spt_check_dtype(const char *op, const char *arg, const spt_tensor *t,
                                           spt_dtype expected, spt_error *err);
SPT_WARN_UNUSED spt_status spt_check_writable(const char *op, const char *arg, const spt_tensor *t,
                                              spt_error *err);
/* An output's elements must each have an address of their own: no zero stride, no overlap. */
SPT_WARN_UNUSED spt_status spt_check_output(const char *op, const char *arg, const spt_tensor *t,
                                            spt_error *err);
/* The backend has this slot, and can run at all. */
SPT_WARN_UNUSED spt_status spt_check_slot(const char *op, const spt_device *device, bool present,
                                          spt_error *err);

/* 2-D view of a checked tensor; `missing` (data NULL) for an absent one. */
spt_matrix spt_matrix_of(const spt_tensor *t);
spt_matrix spt_row_of(const spt_tensor *t); /* 1-D (n) as (1, n) */
int64_t spt_element_count(const spt_tensor *t);

/* Two tensors of one shape: `arg` is t, `other` is what it must agree with. */
SPT_WARN_UNUSED spt_status spt_check_shape(const char *op, const char *arg, const spt_tensor *t,
                                           const spt_tensor *other, spt_error *err);
/* A finite number of at least 0. */
SPT_WARN_UNUSED spt_status spt_check_amount(const char *op, const char *arg, double value,
                                            spt_error *err);
/* Joins neighbouring axes that all the tensors step through alike; the last `kept` stay. The tensors
 * agree in all other axes. Axes of one element go. */
void spt_merge_axes(spt_tensor *const *tensors, int count, int kept);

#endif
