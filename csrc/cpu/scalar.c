/* The scalar tier: every kernel as its definition reads, compiled without vectorisation. It is what
 * another processor family runs, and the second oracle of the tests. */
#include "scalar/linear.h"
#include "scalar/attention.h"
#include "scalar/attention_backward.h"
#include "scalar/linear_backward.h"
#include "scalar/csr.h"
#include "scalar/dropout.h"
#include "scalar/rows.h"
#include "simd/select_row.h"
#include "scalar/groups.h"
#include "scalar/f64.h"
#include "scalar/panel_layer_norm.h"
#include "scalar/panel.h"

const spt_cpu_tier spt_cpu_tier_scalar = {
    .name = "scalar",
    .bf16_granule = 1,
#include "tier_table.h"
};
