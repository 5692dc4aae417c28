/* What this processor *and* its operating system allow: CPUID says which instructions exist, XGETBV
 * whether the kernel saves the registers that they use. AMX's 8 KiB a process must ask for besides. */
#include "cpu_features.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <stdint.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

/* Older compilers don't name these. */
#define AVX512_BF16 (1u << 5) /* of leaf 7, subleaf 1, EAX */
#define AMX_BF16 (1u << 22)   /* of leaf 7, EDX */
#define AMX_TILE (1u << 24)
#define AMX_STATE 0x60000u /* of XCR0: the tiles' configuration and their data */

static uint64_t enabled_state(void) {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t)high << 32 | low;
}

/* The palette that amx_tile.h configures: 8 tiles of 16 rows of 64 bytes. */
static bool has_amx_palette(void) {
  uint32_t a, b, c, d;
  return __get_cpuid_count(0x1d, 1, &a, &b, &c, &d) && (b >> 16) >= 8 && (b & 0xffff) >= 64 &&
         (c & 0xffff) >= 16;
}

/* Holds for all threads of the process and its children, those that run already too. Refused by
 * kernels that don't know it, and where a thread's signal stack is too small for the tiles. */
static bool amx_permitted(void) {
#if defined(__linux__) && defined(SYS_arch_prctl)
  const long request_permission = 0x1023, tile_data = 18;
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
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
  bool amx = (d & AMX_TILE) && (d & AMX_BF16) && (state & AMX_STATE) == AMX_STATE;
  bool ymm = (state & 0x6) == 0x6, zmm = (state & 0xe6) == 0xe6;
  found.avx2 = ymm && fma && f16c && (b & bit_AVX2);
  found.avx512 = found.avx2 && zmm && (b & bit_AVX512F) && (b & bit_AVX512BW) &&
                 (b & bit_AVX512VL) && (b & bit_AVX512DQ);
  if (__get_cpuid_count(7, 1, &a, &b, &c, &d)) {
    found.avx512_bf16 = found.avx512 && (a & AVX512_BF16);
  }
  found.amx_bf16 = found.avx512_bf16 && amx && has_amx_palette() && amx_permitted();
  return found;
}
#else
spt_cpu_features spt_cpu_detect(void) { return (spt_cpu_features){0}; }
#endif
