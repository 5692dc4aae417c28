/* What this processor *and* its operating system allow: CPUID says which instructions exist, XGETBV
 * whether the kernel saves the registers that they use. */
#include "cpu_features.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <stdint.h>

#define AVX512_BF16 (1u << 5) /* of leaf 7, subleaf 1, EAX; older compilers don't name it */

static uint64_t enabled_state(void) {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t)high << 32 | low;
}

spt_cpu_features spt_cpu_detect(void) {
  spt_cpu_features found = {0};
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) {
    return found;
  }
  bool osxsave = c & bit_OSXSAVE, fma = c & bit_FMA, f16c = c & bit_F16C;
  if (!osxsave || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
    return found;
  }
  uint64_t state = enabled_state();
  bool ymm = (state & 0x6) == 0x6, zmm = (state & 0xe6) == 0xe6;
  found.avx2 = ymm && fma && f16c && (b & bit_AVX2);
  found.avx512 = found.avx2 && zmm && (b & bit_AVX512F) && (b & bit_AVX512BW) &&
                 (b & bit_AVX512VL) && (b & bit_AVX512DQ);
  if (__get_cpuid_count(7, 1, &a, &b, &c, &d)) {
    found.avx512_bf16 = found.avx512 && (a & AVX512_BF16);
  }
  return found;
}
#else
spt_cpu_features spt_cpu_detect(void) { return (spt_cpu_features){0}; }
#endif
