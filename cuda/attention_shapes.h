/* attention_shapes.h: which of attention's kernels runs, and how its blocks are cut. Pure functions of sizes.
 * Every limit here is by reckoning, not measured. */
#ifndef SPATILE_CUDA_ATTENTION_SHAPES_H
#define SPATILE_CUDA_ATTENTION_SHAPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "view.cuh"

typedef enum spt_attention_form {
  SPT_ATTEND_SIMPLY,     /* any widths */
  SPT_ATTEND_WHOLE_ROWS, /* 16 bits: all scores of a row in registers */
  SPT_ATTEND_STREAMING,  /* 16 bits: blocks of keys, one after the other */
  SPT_ATTEND_FLOATS      /* float32: blocks of keys, one after the other */
} spt_attention_form;

typedef struct spt_attention_shape {
  bool floats;   /* float32, else 16 bits */
  bool products; /* the processor multiplies this type on tensor cores */
  bool extras;   /* pairs are looked at one by one */
  int64_t d, dv, heads, sequences;
  int64_t rows; /* queries of all sequences */
  bool packed;
  int64_t most_keys;   /* of any */
  int64_t left, right; /* the window */
  int sm_count, shared_per_block;
} spt_attention_shape;

typedef struct spt_attention_plan {
  spt_attention_form form;
  int tile;                 /* queries of a block */
  int row_warps, key_warps; /* whole rows: 16 queries each, `keys` keys each */
  int keys;
  int span;      /* whole rows: keys that a block has room for */
  int width;     /* streaming and floats: the kernel's own, at least d and dv */
  size_t shared; /* bytes */
} spt_attention_plan;

#define SPT_SIMPLE_TILE 4
#define SPT_KEYS_IN_INT (1 << 30)
#define SPT_MMA 16 /* queries, keys or features of one product */

static __host__ __device__ inline int spt_round_up(int64_t n, int unit) {
  return (int)((n + unit - 1) / unit * unit);
}

/* Rows in shared memory lie so far apart that 8 of them meet 32 banks. */
static __host__ __device__ inline int spt_half_pitch(int width) { return width + 8; }
static __host__ __device__ inline int spt_float_pitch(int width) { return width + 4; }
/* Of results, which a warp writes as 8 rows of 4 pairs. */
static __host__ __device__ inline int spt_result_pitch(int width) {
  return spt_round_up(width, 32) + 8;
}

/* About as many blocks as there are to run at once. */
static inline int64_t spt_attention_blocks(const spt_attention_shape *s, int tile) {
  int64_t each = s->rows / spt_most(1, s->sequences); /* where packed, on average */
  return s->heads * (s->packed ? spt_most(spt_blocks(s->rows, tile), s->sequences)
                               : s->sequences * spt_blocks(each, tile));
}

/* Keys that `tile` neighbouring queries may see, the first at a multiple of 16. */
static inline int64_t spt_span_seen(const spt_attention_shape *s, int64_t tile) {
  int64_t window = s->left + s->right;
  return window > s->most_keys ? s->most_keys
                               : spt_least(s->most_keys, window + tile + SPT_MMA - 1);
}

/* ---- whole rows ---------------------------------------------------------------------------------- */

/* Longer rows stream: a block would hold but 16 or 32 queries, and K and V be read for each. */
#define SPT_WHOLE_ROWS_MOST 512
#define SPT_WHOLE_ROWS_WIDTH 256

/* q, k and v; results take the place of q and k; then per warp and row a maximum and a sum, the columns'
 * sums, and a float per warp. */
static inline size_t spt_whole_rows_shared(const spt_attention_shape *s,
                                           const spt_attention_plan *p) {
  size_t wide = (size_t)spt_half_pitch(spt_round_up(s->d, SPT_MMA)) * 2;
  size_t values = (size_t)spt_half_pitch(spt_round_up(s->dv, 32)) * 2;
  size_t scores = ((size_t)p->tile + p->span) * wide;
  size_t results = (size_t)p->key_warps * p->tile * spt_result_pitch((int)s->dv) * 4;
  return (scores > results ? scores : results) + p->span * values +
         ((size_t)2 * p->key_warps * p->tile + (size_t)p->row_warps * p->span + 8) * 4;
}

/* 4 warps: as many queries as fill the GPU still, and the keys divided among the rest of the warps. */
static inline bool spt_plan_whole_rows(const spt_attention_shape *s, spt_attention_plan *p) {
  if (s->floats || !s->products || s->d > SPT_WHOLE_ROWS_WIDTH || s->dv > SPT_WHOLE_ROWS_WIDTH) {
    return false;
  }
  p->form = SPT_ATTEND_WHOLE_ROWS;
  for (p->row_warps = 4; p->row_warps >= 1; p->row_warps /= 2) {
    p->tile = SPT_MMA * p->row_warps;
    int64_t span = spt_span_seen(s, p->tile);
    bool few = spt_attention_blocks(s, p->tile) < s->sm_count;
    if (span > SPT_WHOLE_ROWS_MOST || (p->row_warps > 1 && few)) {
      continue;
    }
    int64_t each = spt_blocks(span, 4 / p->row_warps);
    p->keys = each <= 64 ? 64 : each <= 128 ? 128 : 256;
    p->key_warps = (int)spt_most(1, spt_blocks(span, p->keys));
    p->span = spt_round_up(span, SPT_MMA);
    p->shared = spt_whole_rows_shared(s, p);
    if (p->key_warps * p->row_warps <= 4 && p->shared <= (size_t)s->shared_per_block) {
      return true;
    }
  }
  return false;
}

/* ---- streaming ----------------------------------------------------------------------------------- */

static inline int spt_template_width(const spt_attention_shape *s) {
  int64_t width = spt_most(s->d, s->dv);
  return width <= 32 ? 32 : width <= 64 ? 64 : width <= 96 ? 96 : width <= 128 ? 128 : 256;
}

#define SPT_STREAM_WARPS 4
/* Keys at a time, by the kernel's width: what leaves room for two blocks on a multiprocessor. */
static inline int spt_stream_keys(int width) { return width > 128 ? 32 : 64; }

static inline bool spt_plan_streaming(const spt_attention_shape *s, spt_attention_plan *p) {
  if (s->floats || !s->products || s->d > 256 || s->dv > 256) {
    return false;
  }
  p->form = SPT_ATTEND_STREAMING;
  p->width = spt_template_width(s);
  p->keys = spt_stream_keys(p->width);
  for (int tiles = p->width > 64 || s->extras ? 1 : 2; tiles >= 1;
       tiles--) { /* of 16 queries, for each warp */
    p->tile = SPT_MMA * SPT_STREAM_WARPS * tiles;
    size_t rows = ((size_t)p->tile + 2 * (size_t)p->keys) * spt_half_pitch(p->width) * 2;
    size_t results = (size_t)p->tile * spt_result_pitch(p->width) * 4;
    size_t columns = (size_t)SPT_STREAM_WARPS * p->keys + 8;
    p->shared = (rows > results ? rows : results) + columns * 4;
    bool few = spt_attention_blocks(s, p->tile) < 2 * (int64_t)s->sm_count;
    if (p->shared <= (size_t)s->shared_per_block && (tiles == 1 || !few)) {
      return true;
    }
  }
  return false;
}

/* ---- float32 ------------------------------------------------------------------------------------- */

#define SPT_FLOAT_GROUPS 8 /* of 16 threads, which share queries */
static inline int spt_float_keys(int width) { return width > 96 ? 32 : 64; }

/* `rows` queries for each group of threads: 8 where there are blocks enough, else 4 or 2. */
static inline bool spt_plan_floats(const spt_attention_shape *s, spt_attention_plan *p) {
  if (!s->floats || s->d > 256 || s->dv > 256) {
    return false;
  }
  p->form = SPT_ATTEND_FLOATS;
  p->width = spt_template_width(s);
  p->keys = spt_float_keys(p->width);
  for (int rows = p->width > 128 ? 4 : 8; rows >= 2; rows /= 2) {
    p->tile = SPT_FLOAT_GROUPS * rows;
    size_t floats = ((size_t)p->tile + 2 * (size_t)p->keys) * spt_float_pitch(p->width) +
                    (size_t)p->tile * spt_float_pitch(p->keys) + 8;
    size_t results = (size_t)p->tile * spt_result_pitch(p->width) + 8;
    p->shared = (floats > results ? floats : results) * 4;
    bool few = spt_attention_blocks(s, p->tile) < 2 * (int64_t)s->sm_count;
    if (p->shared <= (size_t)s->shared_per_block && (rows == 2 || !few)) {
      return true;
    }
  }
  return false;
}

/* `only`: a form's name, which then runs wherever it can; or NULL. */
static inline spt_attention_plan spt_plan_attention(const spt_attention_shape *s,
                                                    const char *only) {
  spt_attention_plan p = {};
  bool any = only == NULL || *only == 0, tiles = s->most_keys < SPT_KEYS_IN_INT;
  if (tiles && (any || strcmp(only, "whole_rows") == 0) && spt_plan_whole_rows(s, &p)) {
    return p;
  }
  if (tiles && (any || strcmp(only, "streaming") == 0) && spt_plan_streaming(s, &p)) {
    return p;
  }
  if (tiles && (any || strcmp(only, "simple") != 0) && spt_plan_floats(s, &p)) {
    return p;
  }
  p = {};
  p.form = SPT_ATTEND_SIMPLY;
  p.tile = SPT_SIMPLE_TILE;
  return p;
}

#endif
