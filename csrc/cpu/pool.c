/* Workers spin briefly before they sleep: the layers of an encoder follow one another within
 * microseconds, and a futex wake-up costs more than a small layer.
 *
 * Other libraries' workers spin too. PyTorch's run on an OpenMP runtime whose threads wait on the
 * processor for milliseconds after each operation, and a second pool would have to share the cores
 * with them: so where such a runtime is loaded, its team runs our tasks. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "pool.h"

#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MAX_WIDTH 256
#define SPIN_ROUNDS 2000
#define OPEN 0x80000000u

static struct {
  pthread_mutex_t busy; /* held by the caller that uses the workers */
  pthread_mutex_t sleep;
  pthread_cond_t wake;
  pthread_t threads[MAX_WIDTH];
  int started; /* worker threads alive (the caller is worker 0 and not one of them) */
  atomic_int width;
  atomic_bool stop;
  atomic_uint generation; /* one job, one generation */
  atomic_uint gate;       /* OPEN while a job may be joined, plus the number of workers inside */
  spt_task_fn fn;
  void *context;
  int64_t n_tasks;
  int workers; /* that may join the job */
  atomic_llong next;
} pool = {.busy = PTHREAD_MUTEX_INITIALIZER,
          .sleep = PTHREAD_MUTEX_INITIALIZER,
          .wake = PTHREAD_COND_INITIALIZER};

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

/* Whether there was a task left. */
static bool drain(int worker) {
  for (bool any = false;; any = true) {
    long long task = atomic_fetch_add_explicit(&pool.next, 1, memory_order_relaxed);
    if (task >= pool.n_tasks) {
      return any;
    }
    pool.fn(pool.context, task, worker);
  }
}

static unsigned await_generation(unsigned seen) {
  for (int i = 0; i < SPIN_ROUNDS; i++) {
    unsigned now = atomic_load_explicit(&pool.generation, memory_order_acquire);
    if (now != seen) {
      return now;
    }
    relax();
  }
  pthread_mutex_lock(&pool.sleep);
  unsigned now;
  while ((now = atomic_load_explicit(&pool.generation, memory_order_acquire)) == seen) {
    pthread_cond_wait(&pool.wake, &pool.sleep);
  }
  pthread_mutex_unlock(&pool.sleep);
  return now;
}

/* A worker that wakes late finds the gate closed: nobody waits for it. */
static bool enter(void) {
  unsigned gate = atomic_load_explicit(&pool.gate, memory_order_relaxed);
  while (gate & OPEN) {
    if (atomic_compare_exchange_weak_explicit(&pool.gate, &gate, gate + 1, memory_order_acquire,
                                              memory_order_relaxed)) {
      return true;
    }
  }
  return false;
}

struct worker_start {
  int worker;
  unsigned generation;
};

static void *worker_main(void *argument) {
  struct worker_start start = *(struct worker_start *)argument;
  free(argument);
  unsigned seen = start.generation;
  for (;;) {
    seen = await_generation(seen);
    if (atomic_load(&pool.stop)) {
      return NULL;
    }
    if (enter()) {
      if (start.worker < pool.workers) {
        drain(start.worker);
      }
      atomic_fetch_sub_explicit(&pool.gate, 1, memory_order_release);
    }
  }
}

/* ---- the team of an OpenMP runtime in the process ---------------------------------------------- */

/* What compilers make of `#pragma omp parallel`, in GNU's runtime and, for compatibility, in LLVM's and
 * Intel's: runs a function on so many threads, the caller among them, and waits for all. */
typedef void (*team_fn)(void (*)(void *), void *, unsigned threads, unsigned flags);

#define LOOKS_EVERY 64 /* jobs, while no such runtime is loaded: looking takes a microsecond */

static struct {
  _Atomic(team_fn) parallel;
  atomic_uint jobs;
  atomic_bool forked; /* into this process, and nothing executed since: no runtime survives that */
  /* They keep a team for every thread that calls them, each with workers that wait on the processor:
   * so one thread alone calls from here, the first, which is the one that also calls PyTorch. */
  atomic_bool owned;
  pthread_t owner;
  int shunned;            /* jobs for which it is left alone */
  int next_shunned;       /* the same, should it come late again */
  atomic_llong last_task; /* when it ended, in nanoseconds */
} team;

/* A team ends together. Where other processes hold the cores, its last member may come a time slice
 * late, though nothing is left to do: our own workers are not waited for then. */
#define TOO_LATE 300000 /* ns */
#define SHUNNED_FIRST 4 /* jobs; twice as many each time that it comes late again */
#define SHUNNED_MOST 256

static long long nanoseconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (long long)now.tv_sec * 1000000000 + now.tv_nsec;
}

static team_fn find_team(void) {
  if (atomic_load_explicit(&team.forked, memory_order_relaxed)) {
    return NULL;
  }
  team_fn parallel = atomic_load_explicit(&team.parallel, memory_order_relaxed);
  if (atomic_load_explicit(&team.owned, memory_order_acquire)) {
    if (!pthread_equal(team.owner, pthread_self())) {
      return NULL;
    }
    team.shunned -= team.shunned > 0;
    return team.shunned > 0 ? NULL : parallel;
  }
  if (atomic_fetch_add_explicit(&team.jobs, 1, memory_order_relaxed) % LOOKS_EVERY == 0) {
    *(void **)&parallel = dlsym(RTLD_DEFAULT, "GOMP_parallel");
    if (parallel != NULL) { /* one caller at a time: the pool is ours */
      atomic_store_explicit(&team.parallel, parallel, memory_order_relaxed);
      team.owner = pthread_self();
      atomic_store_explicit(&team.owned, true, memory_order_release);
    }
  }
  return parallel;
}

static void run_team_member(void *argument) {
  atomic_int *members = argument;
  int worker = atomic_fetch_add_explicit(members, 1, memory_order_relaxed);
  if (worker < pool.workers && drain(worker)) {
    atomic_store_explicit(&team.last_task, nanoseconds(), memory_order_relaxed);
  }
}

static void run_on_team(team_fn parallel, int width) {
  atomic_int members = 0;
  parallel(run_team_member, &members, (unsigned)width, 0);
  if (nanoseconds() - atomic_load_explicit(&team.last_task, memory_order_relaxed) > TOO_LATE) {
    team.shunned = team.next_shunned < SHUNNED_FIRST ? SHUNNED_FIRST : team.next_shunned;
    team.next_shunned = team.shunned < SHUNNED_MOST ? 2 * team.shunned : SHUNNED_MOST;
  } else {
    team.next_shunned = SHUNNED_FIRST;
  }
}

/* ---- our own workers ---------------------------------------------------------------------------- */

static void publish(void) {
  pthread_mutex_lock(&pool.sleep);
  atomic_fetch_add_explicit(&pool.generation, 1, memory_order_release);
  pthread_cond_broadcast(&pool.wake);
  pthread_mutex_unlock(&pool.sleep);
}

static void stop_workers(void) {
  atomic_store(&pool.stop, true);
  publish();
  for (int i = 0; i < pool.started; i++) {
    pthread_join(pool.threads[i], NULL);
  }
  pool.started = 0;
  atomic_store(&pool.stop, false);
}

/* Only the forking thread lives on in the child: forget the workers, and start new ones on demand. */
static void after_fork_in_child(void) {
  pthread_mutex_init(&pool.busy, NULL);
  pthread_mutex_init(&pool.sleep, NULL);
  pthread_cond_init(&pool.wake, NULL);
  pool.started = 0;
  atomic_store(&team.forked, true);
  atomic_store(&pool.stop, false); /* the fork may have come while another thread resized */
  atomic_store(&pool.gate, 0);
}

static int default_width(void) {
  const char *text = getenv("OMP_NUM_THREADS");
  if (text != NULL) {
    char *end;
    long n = strtol(text, &end, 10); /* "4,2" asks for 4 at the outermost level */
    if (end != text && n > 0) {
      return n < MAX_WIDTH ? (int)n : MAX_WIDTH;
    }
  }
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) {
    int n = CPU_COUNT(&set);
    return n < MAX_WIDTH ? n : MAX_WIDTH;
  }
#endif
  long n = sysconf(_SC_NPROCESSORS_ONLN);
  return n < 1 ? 1 : n < MAX_WIDTH ? (int)n : MAX_WIDTH;
}

static pthread_once_t once = PTHREAD_ONCE_INIT;

/* Whether this process was forked before this library was loaded into it, as Linux tells: the ninth
 * field of its status, after a name that may hold anything but ends with the last parenthesis. */
static bool is_forked_process(void) {
  char text[512] = {0};
  FILE *file = fopen("/proc/self/stat", "r");
  if (file == NULL) {
    return false;
  }
  size_t n = fread(text, 1, sizeof text - 1, file);
  fclose(file);
  const char *fields = n > 0 ? strrchr(text, ')') : NULL;
  unsigned long flags = 0;
  const unsigned long forked_no_exec = 0x40; /* PF_FORKNOEXEC */
  return fields != NULL && sscanf(fields, ") %*c %*d %*d %*d %*d %*d %lu", &flags) == 1 &&
         (flags & forked_no_exec) != 0;
}

static void initialise(void) {
  pthread_atfork(NULL, NULL, after_fork_in_child);
  if (is_forked_process()) {
    atomic_store(&team.forked, true);
  }
  atomic_store(&pool.width, default_width());
}

void spt_pool_prepare(void) { pthread_once(&once, initialise); }

int spt_pool_width(void) {
  pthread_once(&once, initialise);
  return atomic_load(&pool.width);
}

void spt_pool_resize(int width) {
  pthread_once(&once, initialise);
  pthread_mutex_lock(&pool.busy);
  stop_workers();
  atomic_store(&pool.width, width < 1 ? 1 : width > MAX_WIDTH ? MAX_WIDTH : width);
  pthread_mutex_unlock(&pool.busy);
}

/* Fewer workers than asked for is a slower pool, not an error. */
static void start_workers(int wanted) {
  while (pool.started < wanted) {
    struct worker_start *start = malloc(sizeof *start);
    if (start == NULL) {
      return;
    }
    *start = (struct worker_start){pool.started + 1, atomic_load(&pool.generation)};
    if (pthread_create(&pool.threads[pool.started], NULL, worker_main, start) != 0) {
      free(start);
      return;
    }
    pool.started++;
  }
}

void spt_parallel_for(int64_t n_tasks, spt_task_fn fn, void *context) {
  spt_parallel_for_workers(n_tasks, MAX_WIDTH, fn, context);
}

void spt_parallel_for_workers(int64_t n_tasks, int workers, spt_task_fn fn, void *context) {
  int width = spt_pool_width();
  if (n_tasks <= 1 || width == 1 || pthread_mutex_trylock(&pool.busy) != 0) {
    for (int64_t task = 0; task < n_tasks; task++) {
      fn(context, task, 0);
    }
    return;
  }
  pool.fn = fn;
  pool.context = context;
  pool.n_tasks = n_tasks;
  pool.workers = workers;
  atomic_store_explicit(&pool.next, 0, memory_order_relaxed);
  team_fn parallel = find_team();
  if (parallel != NULL) {
    run_on_team(parallel, width);
    pthread_mutex_unlock(&pool.busy);
    return;
  }
  start_workers(width - 1);
  atomic_store_explicit(&pool.gate, OPEN, memory_order_release);
  publish();
  drain(0);
  atomic_fetch_and_explicit(&pool.gate, ~OPEN, memory_order_relaxed);
  for (int round = 0; atomic_load_explicit(&pool.gate, memory_order_acquire) > 0; round++) {
    if (round < SPIN_ROUNDS) {
      relax();
    } else {
      sched_yield(); /* more threads than cores: let the last worker have this one */
    }
  }
  pthread_mutex_unlock(&pool.busy);
}
