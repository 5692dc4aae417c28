/* Which runs of an encoder have a graph. The first of a shape goes kernel by kernel, so that what the
 * driver and libraries make at a first launch is not made in a capture; the second is captured. Shapes that
 * never come again thus cost no more than their key. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "encoder_graph.h"

/* A server's usual shapes, and those among them for which a graph is kept. */
enum { SHAPES = 64, GRAPHS = 16 };
/* Graphs hold no more of the device's memory: their runs are large enough to hide the launches. */
static const size_t MEMORY_FRACTION = 16;

struct spt_gpu_shape {
  int64_t *key; /* NULL: a free place */
  int64_t numbers;
  uint64_t used; /* the number of the run that used it last */
  bool busy;     /* all below is one call's meanwhile */
  bool seen;     /* run once, and well */
  bool refused;  /* not to be captured again */
  spt_gpu_graph *graph;
};

struct spt_gpu_graphs {
  pthread_mutex_t lock;
  size_t most_bytes;
  uint64_t runs;
  spt_gpu_shape shapes[SHAPES];
};

/* ---- keys ------------------------------------------------------------------------------------- */

static int64_t *key_of(const spt_gpu_pass *p, int64_t *numbers) {
  const spt_encoder_run *run = p->run;
  const spt_encoder_pruning *pruning = run->pruning;
  int64_t kept = pruning != NULL ? p->model->n_layers * p->n : 0;
  *numbers = 2 + p->n + kept;
  int64_t *key = (int64_t *)malloc((size_t)*numbers * sizeof *key);
  if (key == NULL) {
    return NULL;
  }
  key[0] = p->n;
  key[1] = run->first_only | (run->types != NULL) << 1 | (pruning != NULL) << 2;
  if (pruning != NULL) {
    key[1] |= (pruning->heads != NULL) << 3 | (pruning->protect != NULL) << 4;
    memcpy(key + 2 + p->n, pruning->tokens, (size_t)kept * sizeof *key);
  }
  for (int64_t s = 0; s < p->n; s++) {
    key[2 + s] = run->offsets[s + 1] - run->offsets[s];
  }
  return key;
}

static bool has_key(const spt_gpu_shape *shape, const int64_t *key, int64_t numbers) {
  return shape->key != NULL && shape->numbers == numbers &&
         memcmp(shape->key, key, (size_t)numbers * sizeof *key) == 0;
}

/* ---- what goes -------------------------------------------------------------------------------- */

/* The graph joins those that go. */
static void drop_graph(spt_gpu_shape *shape, spt_gpu_graph **going) {
  shape->graph->next = *going;
  *going = shape->graph;
  shape->graph = NULL;
}

/* Frees the place. */
static void forget(spt_gpu_shape *shape, spt_gpu_graph **going) {
  if (shape->graph != NULL) {
    drop_graph(shape, going);
  }
  free(shape->key);
  *shape = spt_gpu_shape();
}

/* Not under the lock: this waits for the device. */
static void free_all(spt_gpu_graph *going) {
  while (going != NULL) {
    spt_gpu_graph *next = going->next;
    spt_gpu_graph_free(going);
    going = next;
  }
}

/* The least recently used graphs go until the others are few and small enough. Those in use are left alone;
 * they come by here themselves when they are released. */
static void keep_within_bounds(spt_gpu_graphs *g, spt_gpu_graph **going) {
  for (;;) {
    int n = 0;
    size_t bytes = 0;
    spt_gpu_shape *oldest = NULL;
    for (spt_gpu_shape &shape : g->shapes) {
      if (!shape.busy && shape.graph != NULL) {
        n++;
        bytes += shape.graph->bytes;
        oldest = oldest == NULL || shape.used < oldest->used ? &shape : oldest;
      }
    }
    if (n <= GRAPHS && bytes <= g->most_bytes) {
      return;
    }
    forget(oldest, going);
  }
}

/* ---- claims ----------------------------------------------------------------------------------- */

/* A place for another shape, or NULL where all are in use. */
static spt_gpu_shape *place_for(spt_gpu_graphs *g, spt_gpu_graph **going) {
  spt_gpu_shape *found = NULL;
  for (spt_gpu_shape &shape : g->shapes) {
    if (shape.key == NULL) {
      return &shape;
    }
    if (!shape.busy && (found == NULL || shape.used < found->used)) {
      found = &shape;
    }
  }
  if (found != NULL) {
    forget(found, going);
  }
  return found;
}

static spt_gpu_shape *claim_locked(spt_gpu_graphs *g, int64_t **key, int64_t numbers,
                                   spt_gpu_graph **going) {
  spt_gpu_shape *shape = NULL;
  for (spt_gpu_shape &candidate : g->shapes) {
    if (has_key(&candidate, *key, numbers)) {
      shape = &candidate;
    }
  }
  if (shape == NULL) {
    shape = place_for(g, going);
    if (shape != NULL) {
      shape->key = *key;
      shape->numbers = numbers;
      *key = NULL;
    }
  }
  if (shape == NULL || shape->busy) {
    return NULL;
  }
  shape->used = ++g->runs;
  shape->busy = !shape->refused;
  return shape->busy ? shape : NULL;
}

spt_gpu_shape *spt_gpu_shape_claim(spt_gpu_graphs *g, const spt_gpu_pass *p) {
  if (g == NULL || p->run->offsets[p->n] == 0) { /* no tokens: nothing to launch */
    return NULL;
  }
  int64_t numbers;
  int64_t *key = key_of(p, &numbers);
  if (key == NULL) {
    return NULL;
  }
  spt_gpu_graph *going = NULL;
  pthread_mutex_lock(&g->lock);
  spt_gpu_shape *shape = claim_locked(g, &key, numbers, &going);
  pthread_mutex_unlock(&g->lock);
  free(key);
  free_all(going);
  return shape;
}

spt_status spt_gpu_shape_run(spt_gpu_shape *shape, const spt_gpu_pass *p, bool *done,
                             spt_error *err) {
  *done = false;
  if (shape == NULL || !shape->seen) {
    return SPT_OK;
  }
  if (shape->graph == NULL) {
    spt_error why; /* nobody's: the run goes on without */
    if (spt_gpu_graph_capture(p, &shape->graph, &why) != SPT_OK) {
      shape->refused = true;
      return SPT_OK;
    }
  }
  spt_status status = spt_gpu_graph_replay(shape->graph, p, done, err);
  if (!*done || status == SPT_DEVICE_ERROR) {
    spt_gpu_graph_free(shape->graph);
    shape->graph = NULL;
    shape->refused = true;
  }
  return status;
}

void spt_gpu_shape_release(spt_gpu_graphs *g, spt_gpu_shape *shape, bool succeeded) {
  if (shape == NULL) {
    return;
  }
  spt_gpu_graph *going = NULL;
  pthread_mutex_lock(&g->lock);
  shape->seen |= succeeded;
  shape->busy = false;
  if (shape->graph != NULL && shape->graph->bytes > g->most_bytes) {
    shape->refused = true; /* rather than all others go for it */
    drop_graph(shape, &going);
  }
  keep_within_bounds(g, &going);
  pthread_mutex_unlock(&g->lock);
  free_all(going);
}

/* ---- an encoder's ----------------------------------------------------------------------------- */

spt_status spt_gpu_graphs_create(const spt_cuda_device *device, spt_gpu_graphs **out,
                                 spt_error *err) {
  const char *asked = getenv("SPATILE_CUDA_GRAPHS");
  *out = NULL;
  if (asked != NULL && strcmp(asked, "none") == 0) {
    return SPT_OK;
  }
  spt_gpu_graphs *g = (spt_gpu_graphs *)calloc(1, sizeof *g);
  if (g == NULL) {
    return spt_fail(err, SPT_OUT_OF_MEMORY, "encoder: no memory");
  }
  pthread_mutex_init(&g->lock, NULL);
  g->most_bytes = (size_t)device->memory / MEMORY_FRACTION;
  *out = g;
  return SPT_OK;
}

bool spt_gpu_graphs_drop(spt_gpu_graphs *g) {
  if (g == NULL) {
    return false;
  }
  spt_gpu_graph *going = NULL;
  pthread_mutex_lock(&g->lock);
  for (spt_gpu_shape &shape : g->shapes) {
    if (!shape.busy && shape.graph != NULL) {
      forget(&shape, &going);
    }
  }
  pthread_mutex_unlock(&g->lock);
  bool any = going != NULL;
  free_all(going);
  return any;
}

void spt_gpu_graphs_free(spt_gpu_graphs *g) {
  if (g == NULL) {
    return;
  }
  (void)spt_gpu_graphs_drop(g);
  for (spt_gpu_shape &shape : g->shapes) {
    free(shape.key);
  }
  pthread_mutex_destroy(&g->lock);
  free(g);
}
