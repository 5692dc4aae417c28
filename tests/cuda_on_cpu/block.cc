/* block.cc: runs a grid, block after block, each block's threads as coroutines.
 *
 * A thread runs until it waits (at a barrier, or for the other lanes of a warp's collective) or exits.
 * When none can go on and not all have exited, they wait for threads that never come: that, and not a
 * hang, is what becomes of a divergent barrier. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <memory>
#include <mutex>
#include <vector>

#include "block.h"
#include "coroutine.h"
#include "emulator.h"
#include "watch.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;
unsigned char *spt_emulated_shared_memory;

namespace emulated {

enum State { READY, AT_WARP, AT_BLOCK, EXITED };

struct Thread {
  uint3 index;
  State state;
  Coroutine *fiber; /* NULL before it starts and after it exits */
  spt_emulated_site site;
  void *brought;
  AsyncCopies copies;
};

/* Lanes that came to one collective; others of their warp may be at another, with another mask. */
struct Meeting {
  spt_emulated_site site;
  unsigned mask, came;
  spt_emulated_combine combine;
};

struct Warp {
  unsigned lanes, ready;
  std::vector<Meeting> meetings;
};

#if defined(__SANITIZE_ADDRESS__) || !defined(__OPTIMIZE__)
static const size_t STACK_BYTES = 1 << 20;
#else
static const size_t STACK_BYTES = 1 << 18;
#endif
static const size_t SHARED_GUARD = 1024, MOST_SHARED = 256 * 1024;

static struct Machine {
  std::mutex mutex;
  const spt_emulated_config *config;
  const void *closure;
  void (*body)(const void *closure);
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  unsigned running; /* index of the thread that runs */
  size_t exited;

  /* The barrier that threads wait at, if any has come. */
  size_t barrier_came;
  int barrier_count, barrier_result;
  spt_emulated_site barrier_site;
  unsigned barrier_first;

  std::vector<std::unique_ptr<Coroutine>> fibers;
  std::vector<Coroutine *> idle;
  Coroutine scheduler;
  std::string failure;
  bool reverse;
  unsigned seed;
  unsigned char *shared; /* guard, memory, guard */
} machine;

static bool same(const spt_emulated_site &a, const spt_emulated_site &b) {
  return a.line == b.line && strcmp(a.what, b.what) == 0 && strcmp(a.file, b.file) == 0;
}

static std::string place(const spt_emulated_site &site) {
  return say("%s (%s:%d)", site.what, site.file, site.line);
}

static std::string name(const uint3 &i) { return say("(%u,%u,%u)", i.x, i.y, i.z); }

static std::string where() {
  return say("kernel %s, block %s", machine.config->name, name(blockIdx).c_str());
}

static std::string doing(const Thread &thread) {
  const char *verb = thread.state == EXITED ? "has exited" : "waits at ";
  std::string at = thread.state == EXITED ? "" : place(thread.site);
  return "thread " + name(thread.index) + " " + verb + at;
}

/* ---- called by the threads ---- */

static void yield() {
  Thread &self = machine.threads[machine.running];
  Coroutine::change(self.fiber, &machine.scheduler);
}

static void fiber_main() {
  arrived();
  for (;;) {
    machine.body(machine.closure);
    machine.threads[machine.running].state = EXITED;
    yield();
  }
}

[[noreturn]] void refuse(const std::string &text) {
  machine.failure = where() + ", thread " + name(threadIdx) + ": " + text;
  yield();
  abort(); /* it is never resumed */
}

/* Another thread of the process may be on the host while this one is in a kernel. */
static thread_local bool runs_a_grid;

bool in_kernel() {
  return runs_a_grid && machine.config != NULL && machine.running < machine.threads.size();
}
unsigned running_thread() { return machine.running; }
AsyncCopies &running_copies() { return machine.threads[machine.running].copies; }
std::string thread_name(unsigned thread) { return name(machine.threads[thread].index); }
size_t shared_bytes() { return machine.config->shared; }
bool fiber_range(const void *data, uintptr_t *low, uintptr_t *high) {
  for (const std::unique_ptr<Coroutine> &fiber : machine.fibers) {
    if (fiber->holds(data, low, high)) {
      return true;
    }
  }
  return false;
}

static Meeting &meeting_of(Warp &warp, const spt_emulated_site &site, unsigned mask,
                           spt_emulated_combine combine) {
  for (Meeting &meeting : warp.meetings) {
    if (meeting.mask == mask && meeting.combine == combine && same(meeting.site, site)) {
      return meeting;
    }
  }
  warp.meetings.push_back({site, mask, 0, combine});
  return warp.meetings.back();
}

static void meet(const spt_emulated_site &site, unsigned mask, void *brought,
                 spt_emulated_combine combine) {
  unsigned index = machine.running, lane = index % 32, first = index - lane;
  Thread &self = machine.threads[index];
  Warp &warp = machine.warps[index / 32];
  if ((mask >> lane & 1) == 0) {
    refuse(say("calls %s with mask %#x, which does not name its own lane %u", place(site).c_str(),
               mask, lane));
  }
  if ((mask & ~warp.lanes) != 0) {
    refuse(say("calls %s with mask %#x, but its warp has only lanes %#x", place(site).c_str(), mask,
               warp.lanes));
  }
  self.site = site;
  self.brought = brought;
  Meeting &meeting = meeting_of(warp, site, mask, combine);
  meeting.came |= 1u << lane;
  if (meeting.came != mask) {
    self.state = AT_WARP;
    yield();
    return;
  }
  void *all[32] = {};
  for (unsigned i = 0; i < 32; i++) {
    if (mask >> i & 1) {
      all[i] = machine.threads[first + i].brought;
      machine.threads[first + i].state = READY;
    }
  }
  warp.meetings.erase(warp.meetings.begin() + (&meeting - warp.meetings.data()));
  combine(all, mask);
  warp.ready |= mask & ~(1u << lane);
}

static int barrier(const spt_emulated_site &site, bool predicate) {
  Thread &self = machine.threads[machine.running];
  if (machine.barrier_came == 0) {
    machine.barrier_site = site;
    machine.barrier_first = machine.running;
    machine.barrier_count = 0;
  } else if (!same(site, machine.barrier_site)) {
    refuse(say("calls %s while %s", place(site).c_str(),
               doing(machine.threads[machine.barrier_first]).c_str()));
  }
  self.site = site;
  machine.barrier_count += predicate;
  if (++machine.barrier_came < machine.threads.size()) {
    self.state = AT_BLOCK;
    yield();
    return machine.barrier_result;
  }
  machine.barrier_came = 0;
  machine.barrier_result = machine.barrier_count;
  for (Thread &thread : machine.threads) {
    thread.state = READY;
  }
  for (Warp &warp : machine.warps) {
    warp.ready = warp.lanes;
  }
  machine.warps[machine.running / 32].ready &= ~(1u << machine.running % 32);
  watch_barrier();
  return machine.barrier_result;
}

/* ---- the scheduler ---- */

static unsigned pseudorandom() {
  machine.seed = machine.seed * 1664525u + 1013904223u;
  return machine.seed >> 8;
}

/* The lane of `ready` that runs next. */
static unsigned next_lane(unsigned ready) {
  if (!machine.reverse && machine.seed == 0) {
    return (unsigned)__builtin_ctz(ready);
  }
  if (machine.reverse) {
    return 31u - (unsigned)__builtin_clz(ready);
  }
  unsigned skipped = pseudorandom() % (unsigned)__builtin_popcount(ready);
  for (; skipped > 0; skipped--) {
    ready &= ready - 1;
  }
  return (unsigned)__builtin_ctz(ready);
}

static Coroutine *idle_fiber() {
  if (machine.idle.empty()) {
    std::unique_ptr<Coroutine> fiber(new Coroutine);
    size_t number = machine.fibers.size();
    if (!fiber->create(STACK_BYTES, number % 61 * 64)) {
      fprintf(stderr, "cuda_on_cpu: no memory for the stack of thread %zu\n", number);
      abort();
    }
    fiber->start(fiber_main);
    machine.idle.push_back(fiber.get());
    machine.fibers.push_back(std::move(fiber));
  }
  Coroutine *fiber = machine.idle.back();
  machine.idle.pop_back();
  return fiber;
}

static void resume(unsigned index) {
  Thread &thread = machine.threads[index];
  if (thread.fiber == NULL) {
    thread.fiber = idle_fiber();
  }
  machine.running = index;
  threadIdx = thread.index;
  Coroutine::change(&machine.scheduler, thread.fiber);
  machine.running = (unsigned)-1;
  if (thread.state == EXITED) {
    machine.idle.push_back(thread.fiber);
    thread.fiber = NULL;
    machine.exited++;
  }
}

static bool run_warp(unsigned number) {
  Warp &warp = machine.warps[number];
  while (warp.ready != 0) {
    unsigned lane = next_lane(warp.ready);
    warp.ready &= ~(1u << lane);
    resume(32 * number + lane);
    if (!machine.failure.empty()) {
      return false;
    }
  }
  return true;
}

/* Who waits for whom, when nobody can go on. A collective whose lanes are elsewhere explains more than
 * a barrier that therefore lacks some. */
static std::string stuck() {
  const Thread *waiting = NULL, *missing = NULL;
  for (size_t w = 0; w < machine.warps.size() && missing == NULL; w++) {
    for (const Meeting &meeting : machine.warps[w].meetings) {
      waiting = &machine.threads[32 * w + (size_t)__builtin_ctz(meeting.came)];
      missing = &machine.threads[32 * w + (size_t)__builtin_ctz(meeting.mask & ~meeting.came)];
      if (missing->state == AT_WARP && same(missing->site, meeting.site)) {
        return where() + ", " + doing(*waiting) + say(" with mask %#x, but ", meeting.mask) +
               doing(*missing) + " with another mask";
      }
      return where() + ", " + doing(*waiting) + say(" with mask %#x, but ", meeting.mask) +
             doing(*missing);
    }
  }
  for (const Thread &thread : machine.threads) {
    waiting = thread.state == AT_BLOCK && waiting == NULL ? &thread : waiting;
    missing = thread.state != AT_BLOCK && missing == NULL ? &thread : missing;
  }
  return where() + ", " + doing(*waiting) + ", but " + doing(*missing);
}

static void begin_block() {
  size_t n = machine.threads.size(), i = 0;
  for (unsigned z = 0; z < blockDim.z; z++) {
    for (unsigned y = 0; y < blockDim.y; y++) {
      for (unsigned x = 0; x < blockDim.x; x++, i++) {
        Thread &thread = machine.threads[i];
        thread.index = {x, y, z};
        thread.state = READY;
        thread.fiber = NULL;
        thread.copies.clear();
      }
    }
  }
  for (size_t w = 0; w < machine.warps.size(); w++) {
    size_t lanes = n - 32 * w < 32 ? n - 32 * w : 32;
    machine.warps[w].lanes = machine.warps[w].ready = (unsigned)((1ull << lanes) - 1);
    machine.warps[w].meetings.clear();
  }
  machine.exited = machine.barrier_came = 0;
  poison(machine.shared, SHARED_GUARD, GUARD);
  poison(spt_emulated_shared_memory, machine.config->shared, FRESH);
  poison(spt_emulated_shared_memory + machine.config->shared, SHARED_GUARD, GUARD);
  watch_block(spt_emulated_shared_memory, machine.config->shared);
}

static std::string check_shared() {
  size_t bytes = machine.config->shared;
  size_t before = first_changed(machine.shared, SHARED_GUARD, GUARD);
  size_t after = first_changed(spt_emulated_shared_memory + bytes, SHARED_GUARD, GUARD);
  if (before == SHARED_GUARD && after == SHARED_GUARD) {
    return "";
  }
  return where() + say(" wrote outside its %zu bytes of shared memory, at byte %td", bytes,
                       after < SHARED_GUARD ? (ptrdiff_t)(bytes + after)
                                            : (ptrdiff_t)before - (ptrdiff_t)SHARED_GUARD);
}

static void run_block() {
  begin_block();
  size_t n_warps = machine.warps.size();
  for (bool any = true; any && machine.failure.empty();) {
    any = false;
    size_t skip = machine.seed != 0 ? pseudorandom() % n_warps : 0;
    for (size_t i = 0; i < n_warps; i++) {
      size_t w = machine.reverse ? n_warps - 1 - i : (i + skip) % n_warps;
      any |= machine.warps[w].ready != 0;
      if (!run_warp((unsigned)w)) {
        break;
      }
    }
  }
  if (machine.failure.empty() && machine.exited < machine.threads.size()) {
    machine.failure = stuck();
  }
  if (machine.failure.empty()) {
    machine.failure = check_shared();
  }
  if (!machine.failure.empty()) { /* the threads' frames are given up */
    machine.idle.clear();
    for (std::unique_ptr<Coroutine> &fiber : machine.fibers) {
      fiber->start(fiber_main);
      machine.idle.push_back(fiber.get());
    }
  }
}

static void prepare(const spt_emulated_config &config) {
  if (machine.shared == NULL) {
    machine.shared = (unsigned char *)aligned_alloc(1024, MOST_SHARED + 2 * SHARED_GUARD);
    spt_emulated_shared_memory = machine.shared + SHARED_GUARD;
  }
  machine.config = &config;
  machine.failure.clear();
  machine.reverse = false;
  machine.seed = 0;
  order(&machine.reverse, &machine.seed);
  gridDim = config.grid;
  blockDim = config.block;
  size_t n = (size_t)blockDim.x * blockDim.y * blockDim.z;
  machine.threads.resize(n);
  machine.warps.resize((n + 31) / 32);
  machine.running = (unsigned)-1;
}

std::string run_grid(const spt_emulated_config &config, const void *closure,
                     void (*thread)(const void *)) {
  std::lock_guard<std::mutex> lock(machine.mutex);
  prepare(config);
  machine.closure = closure;
  machine.body = thread;
  runs_a_grid = true;
  uint64_t n = (uint64_t)gridDim.x * gridDim.y * gridDim.z;
  uint64_t start = machine.seed != 0 ? pseudorandom() % n : 0;
  for (uint64_t i = 0; i < n && machine.failure.empty(); i++) {
    uint64_t block = machine.reverse ? n - 1 - i : (i + start) % n;
    blockIdx.x = (unsigned)(block % gridDim.x);
    blockIdx.y = (unsigned)(block / gridDim.x % gridDim.y);
    blockIdx.z = (unsigned)(block / gridDim.x / gridDim.y);
    run_block();
  }
  std::string failure = machine.failure;
  if (failure.empty()) {
    failure = check_guards();
    if (!failure.empty()) {
      failure = say("kernel %s ", config.name) + failure;
    }
  }
  machine.config = NULL;
  runs_a_grid = false;
  return failure;
}

}  // namespace emulated

/* ---- what warp_ops.h declares ---- */

using emulated::machine;

void spt_emulated_meet(const spt_emulated_site &site, unsigned mask, void *brought,
                       spt_emulated_combine combine) {
  emulated::meet(site, mask, brought, combine);
}
int spt_emulated_barrier(const spt_emulated_site &site, bool predicate) {
  return emulated::barrier(site, predicate);
}
int spt_emulated_lane() { return (int)(machine.running % 32); }

unsigned spt_emulated_live_lanes() {
  unsigned first = machine.running - machine.running % 32, live = 0;
  for (unsigned i = 0; i < 32 && first + i < machine.threads.size(); i++) {
    live |= (unsigned)(machine.threads[first + i].state != emulated::EXITED) << i;
  }
  return live;
}

void spt_emulated_refuse(const char *format, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  emulated::refuse(text);
}

void spt_emulated_combine_syncwarp(void *const *, unsigned mask) {
  emulated::watch_warp(machine.running / 32, mask);
}

void spt_emulated_combine_shuffle(void *const brought[32], unsigned mask) {
  for (int lane = 0; lane < 32; lane++) {
    if ((mask >> lane & 1) == 0) {
      continue;
    }
    spt_emulated_shuffled *mine = (spt_emulated_shuffled *)brought[lane];
    if (mine->source < 0 || mine->source > 31 || (mask >> mine->source & 1) == 0) {
      unsigned first = machine.running - machine.running % 32;
      emulated::refuse(
          emulated::say("%s: lane %d reads lane %d, which mask %#x does not name",
                        emulated::place(machine.threads[first + (unsigned)lane].site).c_str(), lane,
                        mine->source, mask));
    }
    mine->result = ((const spt_emulated_shuffled *)brought[mine->source])->value;
  }
}

void spt_emulated_combine_vote(void *const brought[32], unsigned mask) {
  unsigned votes = 0;
  for (int lane = 0; lane < 32; lane++) {
    if (mask >> lane & 1) {
      votes |= (unsigned)(((const spt_emulated_vote *)brought[lane])->value != 0) << lane;
    }
  }
  for (int lane = 0; lane < 32; lane++) {
    if ((mask >> lane & 1) == 0) {
      continue;
    }
    spt_emulated_vote *mine = (spt_emulated_vote *)brought[lane];
    mine->votes = votes;
    for (int other = 0; other < 32; other++) {
      if ((mask >> other & 1) &&
          ((const spt_emulated_vote *)brought[other])->value == mine->value) {
        mine->equal |= 1u << other;
      }
    }
  }
}
