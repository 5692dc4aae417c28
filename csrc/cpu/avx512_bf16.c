/* The AVX-512 tier on processors that multiply pairs of bfloat16 (AVX512_BF16). */
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

const spt_cpu_tier spt_cpu_tier_avx512_bf16 = {
    .name = "avx512_bf16",
    .bf16_native = true,
    .bf16_granule = 1,
#include "tier_table.h"
};
