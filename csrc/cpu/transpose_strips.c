/* Strips of w to strips of w transposed.
 *
 * A block is what one strip of w has in one strip of the result: up to 16 columns of w, by the rows
 * of w's strip. Blocks are numbered in w's order, in which the columns of one follow one another. */
#include <string.h>

#include "../integer.h"
#include "pool.h"
#include "scratch.h"
#include "tier.h"
#include "weight_strips.h"

typedef struct transposition {
  const spt_strips *w;
  int64_t n_strips;        /* of the result */
  int32_t *place;          /* (in) where a column of w is among the result's: strip * 16 + lane */
  int64_t *first;          /* (strips of w + 1) the first block of each */
  int64_t *base;           /* (blocks) a block's first column in the result */
  int64_t *columns, *runs; /* (n_strips) counts; then the next column, the next run */
  int64_t *end;            /* (n_strips) the row behind the last run's */
  int64_t *seen;           /* (n_strips) the strip of w that was there last */
  int32_t *run_start, *run_len;
  float *values;
} transposition;

/* The rows of a strip that exist, as runs of neighbours. */
typedef struct row_runs {
  int count, rows;
  int64_t start[SPT_STRIP];
  int len[SPT_STRIP];
} row_runs;

static row_runs rows_of(const spt_strips *w, int64_t strip) {
  row_runs found = {0};
  for (int r = 0; r < SPT_STRIP; r++) {
    int64_t row = spt_strip_row(w, strip, r);
    int last = found.count - 1;
    if (row < 0) {
      continue;
    }
    if (last >= 0 && found.start[last] + found.len[last] == row) {
      found.len[last]++;
    } else {
      found.start[found.count] = row;
      found.len[found.count++] = 1;
    }
    found.rows++;
  }
  return found;
}

/* Columns that are kept anywhere come first, so that those dropped everywhere share no strip with
 * them. Returns whether none was moved. */
static bool place_columns(const spt_strips *w, int32_t *place) {
  int64_t n_runs = w->run_ptr[w->n_strips];
  int32_t alive = 0;
  memset(place, 0, (size_t)w->in * sizeof *place);
  for (int64_t run = 0; run < n_runs; run++) {
    for (int32_t k = 0; k < w->run_len[run]; k++) {
      alive += place[w->run_start[run] + k] == 0;
      place[w->run_start[run] + k] = 1;
    }
  }
  int32_t next = 0, next_dead = alive;
  bool same = true;
  for (int64_t c = 0; c < w->in; c++) {
    place[c] = place[c] ? next++ : next_dead++;
    same = same && place[c] == c;
  }
  return same;
}

/* Goes through all blocks: counts columns and runs, or where `fill`, notes where they are. Returns the
 * number of blocks. */
static int64_t walk_blocks(transposition *t, bool fill) {
  const spt_strips *w = t->w;
  int64_t blocks = 0;
  for (int64_t i = 0; i < t->n_strips; i++) {
    t->seen[i] = t->end[i] = -1;
  }
  for (int64_t s = 0; s < w->n_strips; s++) {
    row_runs rows = rows_of(w, s);
    t->first[s] = blocks;
    for (int64_t run = w->run_ptr[s]; run < w->run_ptr[s + 1]; run++) {
      const int32_t *place = t->place + w->run_start[run];
      for (int32_t k = 0; k < w->run_len[run]; k++) {
        int64_t i = place[k] / SPT_STRIP;
        if (t->seen[i] == s) {
          continue;
        }
        t->seen[i] = s;
        if (fill) {
          t->base[blocks] = t->columns[i];
        }
        blocks++;
        t->columns[i] += rows.rows;
        for (int j = 0; j < rows.count; j++) {
          bool extends = t->end[i] == rows.start[j];
          t->end[i] = rows.start[j] + rows.len[j];
          t->runs[i] += !extends;
          if (fill) {
            int64_t at = t->runs[i] - 1;
            t->run_start[at] = extends ? t->run_start[at] : (int32_t)rows.start[j];
            t->run_len[at] = (extends ? t->run_len[at] : 0) + rows.len[j];
          }
        }
      }
    }
  }
  t->first[w->n_strips] = blocks;
  return blocks;
}

/* 16 neighbouring columns of w that are the 16 lanes of a block. */
static bool is_whole(const int32_t *place, int32_t left) {
  return left >= SPT_STRIP && place[0] % SPT_STRIP == 0 &&
         place[SPT_STRIP - 1] == place[0] + SPT_STRIP - 1;
}

static void fill_blocks(void *context, int64_t s, int worker) {
  (void)worker;
  const transposition *t = context;
  const spt_strips *w = t->w;
  const float *from = w->values + w->value_ptr[s] * SPT_STRIP;
  int rows[SPT_STRIP], n_rows = 0;
  for (int r = 0; r < SPT_STRIP; r++) {
    if (spt_strip_row(w, s, r) >= 0) {
      rows[n_rows++] = r;
    }
  }
  int64_t block = t->first[s] - 1, last = -1;
  for (int64_t run = w->run_ptr[s]; run < w->run_ptr[s + 1]; run++) {
    const int32_t *place = t->place + w->run_start[run];
    for (int32_t k = 0; k < w->run_len[run];) {
      bool begins = place[k] / SPT_STRIP != last;
      block += begins;
      last = place[k] / SPT_STRIP;
      float *to = t->values + t->base[block] * SPT_STRIP;
      if (n_rows == SPT_STRIP && is_whole(place + k, w->run_len[run] - k)) {
        spt_matrix tile = {(void *)from, SPT_F32, SPT_STRIP, SPT_STRIP, SPT_STRIP, 1};
        spt_cpu_tier_in_use()->panel_pack(to, &tile, 0);
        from += SPT_STRIP * SPT_STRIP;
        k += SPT_STRIP;
        continue;
      }
      if (begins) {
        memset(to, 0, (size_t)n_rows * SPT_STRIP * sizeof *to);
      }
      for (int r = 0; r < n_rows; r++) {
        to[r * SPT_STRIP + place[k] % SPT_STRIP] = from[rows[r]];
      }
      from += SPT_STRIP;
      k++;
    }
  }
}

/* The result's index arrays, in one piece of memory. Counts become places to fill. */
static spt_status make_index(const char *op, transposition *t, bool same, spt_weight_strips *to,
                             spt_error *err) {
  spt_status status = SPT_OK;
  int64_t n = t->n_strips, n_runs = 0, n_columns = 0;
  for (int64_t i = 0; i < n; i++) {
    n_runs += t->runs[i];
  }
  int64_t *run_ptr =
      spt_scratch(op, 2 * (n + 1) + n_runs + n * SPT_STRIP / 2, sizeof(int64_t), &status, err);
  if (status != SPT_OK) {
    return status;
  }
  int64_t *value_ptr = run_ptr + n + 1;
  t->run_start = (int32_t *)(value_ptr + n + 1);
  t->run_len = t->run_start + n_runs;
  int32_t *rows = t->run_len + n_runs;
  n_runs = 0;
  for (int64_t i = 0; i < n; i++) {
    int64_t runs = t->runs[i], columns = t->columns[i];
    run_ptr[i] = t->runs[i] = n_runs;
    value_ptr[i] = t->columns[i] = n_columns;
    n_runs += runs;
    n_columns += columns;
  }
  run_ptr[n] = n_runs;
  value_ptr[n] = n_columns;
  for (int64_t i = 0; i < n * SPT_STRIP; i++) {
    rows[i] = -1;
  }
  for (int64_t c = 0; c < t->w->in; c++) {
    rows[t->place[c]] = (int32_t)c;
  }
  to->index = run_ptr;
  to->strips = (spt_strips){.out = t->w->in,
                            .in = t->w->out,
                            .n_strips = n,
                            .n_columns = n_columns,
                            .run_ptr = run_ptr,
                            .value_ptr = value_ptr,
                            .run_start = t->run_start,
                            .run_len = t->run_len,
                            .rows = same ? NULL : rows};
  return SPT_OK;
}

static spt_status transpose(const char *op, transposition *t, spt_weight_strips *to,
                            spt_error *err) {
  spt_status status = SPT_OK;
  bool same = place_columns(t->w, t->place);
  for (int64_t i = 0; i < t->n_strips; i++) {
    t->columns[i] = t->runs[i] = 0;
  }
  int64_t blocks = walk_blocks(t, false);
  SPT_TRY(make_index(op, t, same, to, err));
  t->values = spt_scratch(op, to->strips.n_columns, SPT_STRIP * sizeof(float), &status, err);
  t->base = spt_scratch(op, blocks, sizeof(int64_t), &status, err);
  to->values = t->values;
  to->strips.values = t->values;
  if (status == SPT_OK) {
    walk_blocks(t, true);
    spt_parallel_for(t->w->n_strips, fill_blocks, t);
  } else {
    spt_free_weight_strips(to);
  }
  spt_scratch_free(t->base);
  return status;
}

spt_status spt_transpose_strips(const char *op, const spt_strips *w, spt_weight_strips *to,
                                spt_error *err) {
  spt_status status = SPT_OK;
  *to = (spt_weight_strips){0};
  transposition t = {.w = w, .n_strips = spt_ceil_div(w->in, SPT_STRIP)};
  t.place = spt_scratch(op, w->in, sizeof *t.place, &status, err);
  t.first = spt_scratch(op, w->n_strips + 1, sizeof *t.first, &status, err);
  t.columns = spt_scratch(op, t.n_strips, 4 * sizeof *t.columns, &status, err);
  if (status == SPT_OK) {
    t.runs = t.columns + t.n_strips;
    t.end = t.runs + t.n_strips;
    t.seen = t.end + t.n_strips;
    status = transpose(op, &t, to, err);
  }
  spt_scratch_free(t.place);
  spt_scratch_free(t.first);
  spt_scratch_free(t.columns);
  return status;
}
