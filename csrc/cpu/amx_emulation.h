/* AMX as the Intel 64 and IA-32 Architectures Software Developer's Manual defines it (volume 2,
 * LDTILECFG, TILELOADD, TDPBF16PS, ...), on memory of the thread. What faults there aborts here, with
 * the reason. It proves values and bounds on processors without AMX; it says nothing about speed. */
#ifndef SPATILE_CPU_AMX_EMULATION_H
#define SPATILE_CPU_AMX_EMULATION_H

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xmmintrin.h>

#define AMX_ROWS 16
#define AMX_ROW_BYTES 64
#define AMX_COLUMNS (AMX_ROW_BYTES / 4)

/* Zero outside of a tile's configured rows and bytes, as the instructions leave it. */
typedef union amx_register {
  uint8_t bytes[AMX_ROWS][AMX_ROW_BYTES];
  uint16_t pairs[AMX_ROWS][AMX_COLUMNS][2];
  float floats[AMX_ROWS][AMX_COLUMNS];
} amx_register;

static _Thread_local struct {
  bool configured;
  amx_config config;
  amx_register tiles[8];
} amx;

static inline void amx_expect(bool holds, const char *what) {
  if (!holds) {
    fprintf(stderr, "AMX: %s\n", what);
    abort();
  }
}

static inline bool amx_all_zero(const void *bytes, size_t n) {
  static const uint8_t zeros[16];
  return memcmp(bytes, zeros, n) == 0;
}

static inline void amx_configure(const amx_config *c) {
  amx_expect(c->palette == 1, "the palette is not 1");
  amx_expect(c->start_row == 0, "a start row is not emulated");
  amx_expect(amx_all_zero(c->reserved, sizeof c->reserved) &&
                 amx_all_zero(c->reserved_row_bytes, sizeof c->reserved_row_bytes) &&
                 amx_all_zero(c->reserved_rows, sizeof c->reserved_rows),
             "a reserved byte of the configuration is set");
  for (int t = 0; t < 8; t++) {
    amx_expect(c->row_bytes[t] <= AMX_ROW_BYTES && c->rows[t] <= AMX_ROWS,
               "a tile is larger than the palette's");
    amx_expect((c->row_bytes[t] == 0) == (c->rows[t] == 0), "a tile has no rows or no bytes");
  }
  amx.config = *c;
  amx.configured = true;
  memset(amx.tiles, 0, sizeof amx.tiles);
}

static inline void amx_release(void) { memset(&amx, 0, sizeof amx); }

static inline amx_register *amx_tile(int tile) {
  amx_expect(amx.configured, "no tiles are configured");
  amx_expect(amx.config.rows[tile] != 0, "the tile is not configured");
  return &amx.tiles[tile];
}

static inline void amx_zero(int tile) { memset(amx_tile(tile), 0, sizeof(amx_register)); }

static inline void amx_load(int tile, const void *from, int64_t stride) {
  amx_register *to = amx_tile(tile);
  for (int r = 0; r < amx.config.rows[tile]; r++) {
    memcpy(to->bytes[r], (const char *)from + r * stride, amx.config.row_bytes[tile]);
  }
}

static inline void amx_store(int tile, void *to, int64_t stride) {
  const amx_register *from = amx_tile(tile);
  for (int r = 0; r < amx.config.rows[tile]; r++) {
    memcpy((char *)to + r * stride, from->bytes[r], amx.config.row_bytes[tile]);
  }
}

static inline float amx_float(uint16_t bf16) {
  uint32_t bits = (uint32_t)bf16 << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

/* Each row's even and odd products are summed apart from zero on, by fused multiply-adds in the order
 * of k; then both to each other, then that to the sum. Not inlined, so that none of it leaves the
 * rounding mode in which it is called. */
static __attribute__((noinline)) void amx_multiply(amx_register *sum, const amx_register *a,
                                                   const amx_register *b, int rows, int pairs) {
  float low[AMX_ROWS][AMX_COLUMNS], high[AMX_ROWS][AMX_COLUMNS];
  for (int k = 0; k < pairs; k++) {
    for (int n = 0; n < AMX_COLUMNS; n++) {
      low[k][n] = amx_float(b->pairs[k][n][0]);
      high[k][n] = amx_float(b->pairs[k][n][1]);
    }
  }
  for (int m = 0; m < rows; m++) {
    float even[AMX_COLUMNS] = {0}, odd[AMX_COLUMNS] = {0};
    for (int k = 0; k < pairs; k++) {
      float even_a = amx_float(a->pairs[m][k][0]), odd_a = amx_float(a->pairs[m][k][1]);
      for (int n = 0; n < AMX_COLUMNS; n++) {
        even[n] = __builtin_fmaf(even_a, low[k][n], even[n]);
        odd[n] = __builtin_fmaf(odd_a, high[k][n], odd[n]);
      }
    }
    for (int n = 0; n < AMX_COLUMNS; n++) {
      sum->floats[m][n] += even[n] + odd[n];
    }
  }
}

/* Exceptions masked, to nearest even, denormal operands and results taken as zero. */
#define AMX_MXCSR 0x9fc0u

static inline void amx_dot_bf16(int sum, int a, int b) {
  amx_register *c = amx_tile(sum);
  const amx_register *left = amx_tile(a), *right = amx_tile(b);
  const uint16_t *row_bytes = amx.config.row_bytes;
  const uint8_t *rows = amx.config.rows;
  amx_expect(sum != a && sum != b && a != b, "a product takes three different tiles");
  amx_expect(row_bytes[sum] % 4 == 0 && row_bytes[a] % 4 == 0 && row_bytes[b] % 4 == 0,
             "a row is not whole words");
  amx_expect(rows[sum] == rows[a] && row_bytes[sum] == row_bytes[b] && row_bytes[a] / 4 == rows[b],
             "the tiles of a product don't fit each other");
  uint32_t mode = _mm_getcsr();
  _mm_setcsr(AMX_MXCSR);
  amx_multiply(c, left, right, rows[sum], rows[b]);
  _mm_setcsr(mode);
}

#endif
