/* The instructions of AMX that products take, by name. A register is a literal from 0 to 7 (or a macro
 * for one): its number is part of the instruction, which no function's argument can be.
 *
 * With SPATILE_EMULATE_AMX the same names run on any processor (amx_emulation.h). */
#ifndef SPATILE_CPU_AMX_TILE_H
#define SPATILE_CPU_AMX_TILE_H

#include <stdint.h>

/* What LDTILECFG reads, in palette 1: 8 registers of up to 16 rows of up to 64 bytes. */
typedef struct amx_config {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[8], reserved_row_bytes[8];
  uint8_t rows[8], reserved_rows[8];
} amx_config;

_Static_assert(sizeof(amx_config) == 64, "LDTILECFG reads 64 bytes");

#if defined(SPATILE_EMULATE_AMX)
#include "amx_emulation.h"
#else
#include <immintrin.h>

/* All registers become zero. */
static inline void amx_configure(const amx_config *config) {
  /* The intrinsic owns up to reading 8 bytes, so the compiler could drop the stores of the others. */
  __asm__ volatile("" ::"m"(*config));
  _tile_loadconfig(config);
}
/* Tiles in use cost 8 KiB at every switch of threads, and keep the core from its deepest sleep. */
static inline void amx_release(void) { _tile_release(); }

#define amx_zero(tile) _tile_zero(tile)
/* Row r from, or to, `stride` bytes times r behind the pointer. The compiler isn't told what is read:
 * nothing may be loaded that the same function stored. */
#define amx_load(tile, from, stride) _tile_loadd(tile, from, stride)
#define amx_store(tile, to, stride) _tile_stored(tile, to, stride)
/* sum (m, n) float32 += a (m, 2 k) · b (2 k, n) in bfloat16, b with its rows 2 i and 2 i + 1 side by
 * side in row i. */
#define amx_dot_bf16(sum, a, b) _tile_dpbf16ps(sum, a, b)
#endif

#endif
