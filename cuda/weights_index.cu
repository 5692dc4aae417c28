/* weights_index: which tiles packed weights have, which way round, and who computes what of their gradient.
 * Runs on the host, once for each matrix that is prepared: a few passes over its runs and tiles. */
#include <stdlib.h>
#include <string.h>

#include "view.cuh"
#include "weights.h"

static const int TILE = SPT_TILE;

static int64_t tiles_for(int64_t n) { return spt_blocks(n, TILE); }

/* Pieces of one allocation: first all sizes are added up, then the pieces are handed out. */
struct carver {
  char *memory;
  size_t used;
  template <typename T>
  void take(const T **piece, int64_t n) {
    *piece = memory == NULL ? NULL : reinterpret_cast<const T *>(memory + used);
    used += ((size_t)n * sizeof(T) + 15) / 16 * 16;
  }
};

/* Writes into what is const for everyone else. */
template <typename T>
static T *fill(const T *piece) {
  return const_cast<T *>(piece);
}

/* ---- columns ----------------------------------------------------------------------------------- */

struct indexing {
  const spt_strips *w;
  int32_t *place;       /* (in) where a column of w is among those of the gathered x */
  int64_t alive, width; /* kept columns; what x is wide, gathered or not */
  bool gathers;
};

/* Calls `seen(strip, block, mask, column)` for each tile: by strip, then by block. `column` is the first
 * of the tile's among all kept columns. Places rise along a strip, for its columns do. */
template <typename Seen>
static void walk_tiles(const indexing *x, bool gathers, Seen seen) {
  const spt_strips *w = x->w;
  for (int64_t s = 0; s < w->n_strips; s++) {
    int64_t block = -1, column = w->value_ptr[s] - w->value_ptr[0], first = column;
    uint32_t mask = 0;
    for (int64_t run = w->run_ptr[s]; run < w->run_ptr[s + 1]; run++) {
      int64_t at = gathers ? x->place[w->run_start[run]] : w->run_start[run];
      int64_t end = at + w->run_len[run];
      while (at < end) {
        int64_t here = at / TILE, stop = spt_least(end, (here + 1) * TILE);
        if (here != block) {
          if (block >= 0) {
            seen(s, block, mask, first);
          }
          block = here;
          first = column;
          mask = 0;
        }
        int64_t n = stop - at;
        mask |= ((1u << n) - 1) << at % TILE;
        column += n;
        at = stop;
      }
    }
    if (block >= 0) {
      seen(s, block, mask, first);
    }
  }
}

/* Columns that are kept anywhere go in front, in their order. Returns whether any is not. */
static bool place_columns(indexing *x) {
  const spt_strips *w = x->w;
  memset(x->place, 0, (size_t)w->in * sizeof *x->place);
  for (int64_t run = w->run_ptr[0]; run < w->run_ptr[w->n_strips]; run++) {
    for (int32_t k = 0; k < w->run_len[run]; k++) {
      x->place[w->run_start[run] + k] = 1;
    }
  }
  int32_t next = 0;
  for (int64_t c = 0; c < w->in; c++) {
    x->place[c] = x->place[c] ? next++ : -1;
  }
  x->alive = next;
  return next < w->in;
}

/* Gathering x is a pass over it on every call: not for less than a tenth of the tiles. */
static int64_t choose_columns(indexing *x) {
  int64_t plain = 0, gathered = 0;
  bool some_dropped = place_columns(x);
  walk_tiles(x, false, [&](int64_t, int64_t, uint32_t, int64_t) { plain++; });
  if (some_dropped) {
    walk_tiles(x, true, [&](int64_t, int64_t, uint32_t, int64_t) { gathered++; });
  }
  x->gathers = some_dropped && gathered < plain - plain / 10;
  x->width = x->gathers ? tiles_for(x->alive) * TILE : x->w->in;
  return x->gathers ? gathered : plain;
}

/* ---- tiles ------------------------------------------------------------------------------------- */

/* Numbers 0 to n - 1, the largest count first, equals in their order. `first` (n + 1) has counts' sums. */
static spt_status order_by_size(const char *op, const int32_t *first, int32_t n, int32_t *order,
                                spt_error *err) {
  int32_t most = 0;
  for (int32_t i = 0; i < n; i++) {
    most = (int32_t)spt_most(most, first[i + 1] - first[i]);
  }
  int32_t *start = static_cast<int32_t *>(calloc((size_t)most + 2, sizeof *start));
  if (start == NULL) {
    return spt_fail(err, SPT_OUT_OF_MEMORY, "%s: no memory", op);
  }
  for (int32_t i = 0; i < n; i++) {
    start[most - (first[i + 1] - first[i]) + 1]++;
  }
  for (int32_t c = 0; c <= most; c++) {
    start[c + 1] += start[c];
  }
  for (int32_t i = 0; i < n; i++) {
    order[start[most - (first[i + 1] - first[i])]++] = i;
  }
  free(start);
  return SPT_OK;
}

/* By block, then by strip: each block's tiles are a strip of w transposed. */
static void turn_tiles(const spt_gpu_weights *w) {
  int32_t *first = fill(w->transposed.first), n = w->transposed.n_strips;
  memset(first, 0, (size_t)(n + 1) * sizeof *first);
  for (int32_t i = 0; i < w->forward.n_tiles; i++) {
    first[w->forward.at[i].block + 1]++;
  }
  for (int32_t b = 0; b < n; b++) {
    first[b + 1] += first[b];
  }
  for (int32_t i = 0; i < w->forward.n_tiles; i++) {
    int32_t to = first[w->forward.at[i].block]++;
    fill(w->transposed.at)[to] = {w->strip[i], SPT_WHOLE_TILE};
    fill(w->source)[to] = i;
  }
  for (int32_t b = n; b > 0; b--) { /* each was moved to its end */
    first[b] = first[b - 1];
  }
  first[0] = 0;
}

static void fill_tiles(const indexing *x, spt_gpu_weights *w) {
  spt_gpu_strips *f = &w->forward;
  int32_t *first = fill(f->first), next = 0, strip = -1;
  int64_t columns = x->gathers ? x->alive : x->width;
  walk_tiles(x, x->gathers, [&](int64_t s, int64_t block, uint32_t mask, int64_t column) {
    while (strip < s) {
      first[++strip] = next;
    }
    int64_t n = spt_least(columns - block * TILE, TILE);
    uint32_t whole = (1u << n) - 1; /* beyond the last column there are zeros */
    fill(f->at)[next] = {(int32_t)block, mask == whole ? SPT_WHOLE_TILE : mask};
    fill(w->strip)[next] = (int32_t)s;
    fill(w->column)[next] = column;
    next++;
  });
  while (strip < f->n_strips) {
    first[++strip] = next;
  }
  if (f->rows != NULL) {
    memcpy(fill(f->rows), x->w->rows, (size_t)f->n_strips * TILE * sizeof *f->rows);
    memcpy(fill(w->transposed.columns), x->w->rows, (size_t)f->n_strips * TILE * sizeof *f->rows);
  }
  if (!x->gathers) {
    return;
  }
  int32_t *rows = fill(w->transposed.rows);
  for (int64_t i = 0; i < (int64_t)w->transposed.n_strips * TILE; i++) {
    rows[i] = -1;
  }
  int64_t dead = x->width;
  for (int64_t c = 0; c < x->w->in; c++) {
    rows[x->place[c] >= 0 ? x->place[c] : dead++] = (int32_t)c;
  }
  memcpy(fill(f->columns), rows, (size_t)x->width * sizeof *rows);
}

/* ---- the weights' gradient ---------------------------------------------------------------------- */

/* Cuts 16 strips' tiles by blocks; counts, and notes where `jobs` is given. */
static int32_t cut_jobs(const spt_gpu_strips *f, int32_t strip, spt_gradient_job *jobs) {
  int32_t at[SPT_JOB_STRIPS], end[SPT_JOB_STRIPS], n = 0;
  for (int32_t i = 0; i < SPT_JOB_STRIPS; i++) {
    int32_t s = (int32_t)spt_least(strip + i, f->n_strips);
    at[i] = f->first[s];
    end[i] = f->first[spt_least(s + 1, f->n_strips)];
  }
  for (;;) {
    int32_t begin = INT32_MAX, stop;
    for (int32_t i = 0; i < SPT_JOB_STRIPS; i++) {
      begin = at[i] < end[i] ? (int32_t)spt_least(begin, f->at[at[i]].block) : begin;
    }
    if (begin == INT32_MAX) {
      return n;
    }
    stop = (int32_t)spt_least((int64_t)begin + SPT_JOB_BLOCKS, INT32_MAX);
    for (int32_t i = 0; i < SPT_JOB_STRIPS; i++) {
      if (end[i] - at[i] > SPT_JOB_TILES) {
        stop = (int32_t)spt_least(stop, f->at[at[i] + SPT_JOB_TILES].block);
      }
    }
    spt_gradient_job job = {};
    job.strip = strip;
    job.begin = begin;
    job.end = begin;
    for (int32_t i = 0; i < SPT_JOB_STRIPS; i++) {
      job.first[i] = at[i];
      while (at[i] < end[i] && f->at[at[i]].block < stop) {
        job.end = (int32_t)spt_most(job.end, f->at[at[i]].block + 1);
        at[i]++;
      }
      job.count[i] = at[i] - job.first[i];
    }
    if (jobs != NULL) {
      jobs[n] = job;
    }
    n++;
  }
}

static int32_t cut_all_jobs(const spt_gpu_strips *f, spt_gradient_job *jobs) {
  int32_t n = 0;
  for (int32_t strip = 0; strip < f->n_strips; strip += SPT_JOB_STRIPS) {
    n += cut_jobs(f, strip, jobs == NULL ? NULL : jobs + n);
  }
  return n;
}

/* ---- the whole --------------------------------------------------------------------------------- */

static void carve_strips(carver *c, const indexing *x, spt_gpu_weights *w) {
  spt_gpu_strips *f = &w->forward, *t = &w->transposed;
  spt_gpu_strips *both[] = {f, t};
  for (spt_gpu_strips *s : both) {
    c->take(&s->at, s->n_tiles);
    c->take(&s->first, s->n_strips + 1);
    c->take(&s->order, s->n_strips);
  }
  c->take(&w->column, f->n_tiles);
  c->take(&w->source, f->n_tiles);
  c->take(&w->strip, f->n_tiles);
  if (x->w->rows != NULL) {
    c->take(&f->rows, (int64_t)f->n_strips * TILE);
    c->take(&t->columns, (int64_t)f->n_strips * TILE);
  }
  if (x->gathers) {
    c->take(&f->columns, x->width);
    c->take(&t->rows, (int64_t)t->n_strips * TILE);
  }
}

static spt_status allocate(const char *op, size_t bytes, spt_host_index *index, spt_error *err) {
  index->bytes = bytes;
  index->memory = calloc(1, bytes + 16);
  if (index->memory == NULL) {
    return spt_fail(err, SPT_OUT_OF_MEMORY, "%s: no memory", op);
  }
  return SPT_OK;
}

static void set_shapes(const indexing *x, int64_t n_tiles, spt_gpu_weights *w) {
  const spt_strips *s = x->w;
  spt_gpu_strips *f = &w->forward, *t = &w->transposed;
  f->out = t->in = s->out;
  f->in = t->out = s->in;
  f->n_strips = (int32_t)s->n_strips;
  f->n_tiles = t->n_tiles = (int32_t)n_tiles;
  f->width = x->width;
  t->width = s->rows != NULL ? s->n_strips * TILE : s->out;
  t->n_strips = (int32_t)tiles_for(x->gathers ? x->width + s->in - x->alive : s->in);
}

static spt_status index_strips(const char *op, indexing *x, spt_gpu_weights *w,
                               spt_host_index *index, spt_error *err) {
  int64_t n_tiles = choose_columns(x);
  if (n_tiles > INT32_MAX / 2) {
    return spt_fail(err, SPT_UNSUPPORTED, "%s: w has %lld tiles, expected up to %d", op,
                    (long long)n_tiles, INT32_MAX / 2);
  }
  set_shapes(x, n_tiles, w);
  carver sizes = {}, pieces = {};
  carve_strips(&sizes, x, w);
  SPT_TRY(allocate(op, sizes.used, index, err));
  pieces.memory = static_cast<char *>(index->memory);
  carve_strips(&pieces, x, w);
  fill_tiles(x, w);
  turn_tiles(w);
  SPT_TRY(order_by_size(op, w->forward.first, w->forward.n_strips, fill(w->forward.order), err));
  SPT_TRY(order_by_size(op, w->transposed.first, w->transposed.n_strips, fill(w->transposed.order),
                        err));
  /* How many jobs there are shows only when the tiles are known. */
  w->n_jobs = cut_all_jobs(&w->forward, NULL);
  size_t jobs = (size_t)w->n_jobs * sizeof *w->jobs;
  spt_host_index grown;
  SPT_TRY(allocate(op, index->bytes + jobs, &grown, err));
  memcpy(grown.memory, index->memory, index->bytes);
  spt_move_index(w, index, grown.memory);
  w->jobs = reinterpret_cast<spt_gradient_job *>(static_cast<char *>(grown.memory) + index->bytes);
  free(index->memory);
  *index = grown;
  cut_all_jobs(&w->forward, fill(w->jobs));
  return SPT_OK;
}

spt_status spt_index_strips(const char *op, const spt_strips *strips, spt_gpu_weights *w,
                            spt_host_index *index, spt_error *err) {
  indexing x = {};
  x.w = strips;
  x.place = static_cast<int32_t *>(malloc(((size_t)strips->in + 1) * sizeof *x.place));
  if (x.place == NULL) {
    return spt_fail(err, SPT_OUT_OF_MEMORY, "%s: no memory", op);
  }
  spt_status status = index_strips(op, &x, w, index, err);
  free(x.place);
  if (status != SPT_OK) {
    free(index->memory);
    index->memory = NULL;
  }
  return status;
}

static void carve_csr(carver *c, int64_t out, int64_t nnz, spt_gpu_csr *to) {
  c->take(&to->row_ptr, out + 1);
  c->take(&to->col, nnz);
  c->take(&to->values, nnz);
}

/* Row by row, so that each column's entries come in the order of rows. */
static void turn_csr(const spt_gpu_csr *w, const spt_gpu_csr *t) {
  int64_t *first = fill(t->row_ptr);
  memset(first, 0, (size_t)(t->out + 1) * sizeof *first);
  for (int64_t i = 0; i < w->nnz; i++) {
    first[w->col[i] + 1]++;
  }
  for (int64_t c = 0; c < t->out; c++) {
    first[c + 1] += first[c];
  }
  for (int64_t r = 0; r < w->out; r++) {
    for (int64_t i = w->row_ptr[r]; i < w->row_ptr[r + 1]; i++) {
      int64_t to = first[w->col[i]]++;
      fill(t->col)[to] = (int32_t)r;
      fill(t->values)[to] = w->values[i];
    }
  }
  for (int64_t c = t->out; c > 0; c--) {
    first[c] = first[c - 1];
  }
  first[0] = 0;
}

spt_status spt_index_csr(const char *op, const spt_csr *csr, spt_gpu_weights *w,
                         spt_host_index *index, spt_error *err) {
  int64_t base = csr->row_ptr[0],
          nnz = csr->row_ptr[csr->out] - base; /* some rows of a larger matrix */
  carver sizes = {}, pieces = {};
  w->csr.out = w->csr_transposed.in = csr->out;
  w->csr.in = w->csr_transposed.out = csr->in;
  w->csr.nnz = w->csr_transposed.nnz = nnz;
  carve_csr(&sizes, csr->out, nnz, &w->csr);
  carve_csr(&sizes, csr->in, nnz, &w->csr_transposed);
  SPT_TRY(allocate(op, sizes.used, index, err));
  pieces.memory = static_cast<char *>(index->memory);
  carve_csr(&pieces, csr->out, nnz, &w->csr);
  carve_csr(&pieces, csr->in, nnz, &w->csr_transposed);
  for (int64_t r = 0; r <= csr->out; r++) {
    fill(w->csr.row_ptr)[r] = csr->row_ptr[r] - base;
  }
  memcpy(fill(w->csr.col), csr->col + base, (size_t)nnz * sizeof *csr->col);
  memcpy(fill(w->csr.values), csr->values + base, (size_t)nnz * sizeof *csr->values);
  turn_csr(&w->csr, &w->csr_transposed);
  return SPT_OK;
}

template <typename T>
static void move(const T **pointer, const spt_host_index *index, void *copy) {
  if (*pointer != NULL) {
    size_t offset = (size_t)(reinterpret_cast<const char *>(*pointer) -
                             static_cast<const char *>(index->memory));
    *pointer = reinterpret_cast<const T *>(static_cast<char *>(copy) + offset);
  }
}

void spt_move_index(spt_gpu_weights *w, const spt_host_index *index, void *copy) {
  spt_gpu_strips *both[] = {&w->forward, &w->transposed};
  for (spt_gpu_strips *s : both) {
    move(&s->first, index, copy);
    move(&s->at, index, copy);
    move(&s->order, index, copy);
    move(&s->rows, index, copy);
    move(&s->columns, index, copy);
  }
  move(&w->source, index, copy);
  move(&w->strip, index, copy);
  move(&w->column, index, copy);
  move(&w->jobs, index, copy);
  spt_gpu_csr *forms[] = {&w->csr, &w->csr_transposed};
  for (spt_gpu_csr *c : forms) {
    move(&c->row_ptr, index, copy);
    move(&c->col, index, copy);
    move(&c->values, index, copy);
  }
}
