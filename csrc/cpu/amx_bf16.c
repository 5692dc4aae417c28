/* The tier of processors with AMX's tiles of bfloat16: that of AVX512_BF16 with products by tiles. An
 * emulated one has a name of its own, and needs no AVX512_BF16. */
#include "simd/panel.h"
#include "simd/panel_gather.h"
#include "simd/linear_amx.h"
#include "simd/attention.h"
#include "simd/attention_backward.h"
#include "simd/linear_backward.h"
#include "simd/csr.h"
#include "simd/dropout.h"
#include "simd/rows.h"
#include "simd/select_row.h"
#include "simd/groups.h"
#include "simd/f64.h"
#include "simd/panel_layer_norm.h"

const spt_cpu_tier spt_cpu_tier_amx_bf16 = {
#if defined(SPATILE_EMULATE_AMX)
    .name = "amx_bf16_emulated",
#else
    .name = "amx_bf16",
#endif
    .bf16_native = true,
    .bf16_granule = 8,
    .bf16_by_rows = true,
#include "tier_table.h"
};
