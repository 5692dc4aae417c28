/* A strip's kept columns become granules: pairs of columns, or what the tier's instructions take at
 * once. A granule with any kept column is kept whole, with zeros where nothing was. */
#include "bf16.h"

#include <string.h>

#include "../integer.h"
#include "half.h"
#include "pool.h"
#include "scratch.h"

#define BLOCK_PAIRS 16 /* of a tier with bf16_by_rows */

struct owned_strips {
  spt_strips_bf16 strips;
  int64_t *run_ptr, *value_ptr;
  int32_t *run_start, *run_len, *rows;
  uint16_t *values;
};

void spt_clear_pair_padding(uint16_t *panels, int64_t features, int64_t n_panels) {
  int64_t room = spt_pair_panel_features(features), whole = features / 2 * 2;
  for (int64_t p = 0; whole < room && p < n_panels; p++) {
    uint16_t *from = panels + (p * room + whole) * SPT_LANES;
    if (features == whole) {
      memset(from, 0, (size_t)((room - whole) * SPT_LANES) * sizeof *from);
      continue;
    }
    for (int l = 0; l < SPT_LANES; l++) { /* the even half of this pair is a feature */
      from[2 * l + 1] = 0;
    }
    memset(from + 2 * SPT_LANES, 0, (size_t)((room - whole - 2) * SPT_LANES) * sizeof *from);
  }
}

void spt_strips_bf16_free(spt_strips_bf16 *strips) {
  if (strips == NULL) {
    return;
  }
  struct owned_strips *o = (struct owned_strips *)strips;
  free(o->run_ptr);
  free(o->value_ptr);
  free(o->run_start);
  free(o->run_len);
  free(o->rows);
  free(o->values);
  free(o);
}

/* The runs of granules of a strip. They ascend and none touches the next, but for strips of a
 * transposed weight whose rows were moved together: there dropped rows come behind kept ones, and a
 * granule that is begun anew holds other columns than before. */
struct granule_runs {
  const spt_strips *w;
  int64_t run, last, width; /* columns of a granule */
};

static bool next_run(struct granule_runs *g, int64_t *first, int64_t *end) {
  if (g->run == g->last) {
    return false;
  }
  const int32_t *start = g->w->run_start, *len = g->w->run_len;
  *first = start[g->run] / g->width;
  *end = ((int64_t)start[g->run] + len[g->run] - 1) / g->width + 1;
  for (g->run++; g->run < g->last; g->run++) {
    int64_t next = start[g->run] / g->width;
    if (next > *end || next < *end - 1) {
      break;
    }
    *end = ((int64_t)start[g->run] + len[g->run] - 1) / g->width + 1;
  }
  return true;
}

static struct granule_runs runs_of(const spt_strips *w, int64_t strip, const spt_cpu_tier *tier) {
  return (struct granule_runs){w, w->run_ptr[strip], w->run_ptr[strip + 1],
                               2 * (int64_t)tier->bf16_granule};
}

static void count_runs(struct owned_strips *o, const spt_strips *from) {
  const spt_cpu_tier *tier = o->strips.tier;
  o->run_ptr[0] = o->value_ptr[0] = 0;
  for (int64_t s = 0; s < from->n_strips; s++) {
    struct granule_runs g = runs_of(from, s, tier);
    int64_t runs = 0, granules = 0, first, end;
    while (next_run(&g, &first, &end)) {
      runs++;
      granules += end - first;
    }
    o->run_ptr[s + 1] = o->run_ptr[s] + runs;
    o->value_ptr[s + 1] = o->value_ptr[s] + granules * tier->bf16_granule;
  }
}

/* Where row 0 of pair k of a run of n pairs lies, counted from the run's first value, and how far
 * apart its rows are. */
static int64_t pair_place(bool by_rows, int64_t k, int64_t n, int64_t *row_stride) {
  if (!by_rows) {
    *row_stride = 2;
    return k * SPT_STRIP * 2;
  }
  int64_t block = k / BLOCK_PAIRS * BLOCK_PAIRS;
  *row_stride = 2 * spt_min(BLOCK_PAIRS, n - block);
  return block * SPT_STRIP * 2 + (k - block) * 2;
}

static uint16_t stored_bf16(const spt_strips *w, int64_t i) {
  if (w->values != NULL) {
    return spt_bf16_of_float(w->values[i]);
  }
  return w->half_dtype == SPT_BF16 ? w->half[i] : spt_bf16_of_float(spt_float_of_f16(w->half[i]));
}

struct fill_job {
  struct owned_strips *o;
  const spt_strips *from;
};

static void fill_strip(void *context, int64_t strip, int worker) {
  (void)worker;
  const struct fill_job *job = context;
  const spt_strips *from = job->from;
  const spt_cpu_tier *tier = job->o->strips.tier;
  int64_t at = job->o->run_ptr[strip], pairs = job->o->value_ptr[strip], first, end;
  int64_t run = from->run_ptr[strip];
  int64_t weight = from->value_ptr[strip] * SPT_STRIP;
  struct granule_runs g = runs_of(from, strip, tier);
  for (; next_run(&g, &first, &end); at++) {
    int64_t start = first * tier->bf16_granule, n = (end - first) * tier->bf16_granule;
    job->o->run_start[at] = (int32_t)start;
    job->o->run_len[at] = (int32_t)n;
    uint16_t *to = job->o->values + pairs * SPT_STRIP * 2;
    memset(to, 0, (size_t)(n * SPT_STRIP * 2) * sizeof *to);
    for (; run < g.run; run++) {
      for (int32_t k = 0; k < from->run_len[run]; k++, weight += SPT_STRIP) {
        int64_t column = from->run_start[run] + k, row_stride;
        int64_t place = pair_place(tier->bf16_by_rows, column / 2 - start, n, &row_stride);
        for (int r = 0; r < SPT_STRIP; r++) {
          to[place + r * row_stride + column % 2] = stored_bf16(from, weight + r);
        }
      }
    }
    pairs += n;
  }
}

spt_status spt_strips_bf16_create(const char *op, const spt_strips *from, const spt_cpu_tier *tier,
                                  spt_strips_bf16 **out, spt_error *err) {
  spt_status status = SPT_OK;
  int64_t n = from->n_strips;
  struct owned_strips *o = calloc(1, sizeof *o);
  if (o == NULL) {
    return spt_fail(err, SPT_OUT_OF_MEMORY, "%s: no memory", op);
  }
  o->strips.tier = tier;
  o->run_ptr = spt_scratch(op, n + 1, sizeof(int64_t), &status, err);
  o->value_ptr = spt_scratch(op, n + 1, sizeof(int64_t), &status, err);
  if (status == SPT_OK) {
    count_runs(o, from);
    o->run_start = spt_scratch(op, o->run_ptr[n], sizeof(int32_t), &status, err);
    o->run_len = spt_scratch(op, o->run_ptr[n], sizeof(int32_t), &status, err);
    o->values = spt_scratch(op, o->value_ptr[n] * 2, SPT_STRIP * sizeof(uint16_t), &status, err);
  }
  if (status == SPT_OK && from->rows != NULL) {
    o->rows = spt_scratch(op, n * SPT_STRIP, sizeof(int32_t), &status, err);
  }
  if (status != SPT_OK) {
    spt_strips_bf16_free(&o->strips);
    return status;
  }
  if (o->rows != NULL) {
    memcpy(o->rows, from->rows, (size_t)(n * SPT_STRIP) * sizeof *o->rows);
  }
  spt_parallel_for(n, fill_strip, &(struct fill_job){o, from});
  o->strips.shape = (spt_strips){.out = from->out,
                                 .in = from->in,
                                 .n_strips = n,
                                 .n_columns = o->value_ptr[n],
                                 .run_ptr = o->run_ptr,
                                 .value_ptr = o->value_ptr,
                                 .run_start = o->run_start,
                                 .run_len = o->run_len,
                                 .rows = o->rows};
  o->strips.values = o->values;
  *out = &o->strips;
  return SPT_OK;
}
