/* The AVX-512 tier (F, BW, VL, DQ): registers of 16 floats, one to a panel's row. */
#include "simd/panel.h"
#include "simd/panel_gather.h"
#include "simd/linear_bf16.h"
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

const spt_cpu_tier spt_cpu_tier_avx512 = {
    .name = "avx512",
    .bf16_granule = 1,
#include "tier_table.h"
};
