/* watch.cc: every access of the .cu files, seen (build.py --watch). The compiler calls __tsan_read4 and the
 * like for them; in place of the thread sanitizer's library those are here, and find
 *  - races in shared memory: two threads, one of them writing, with no barrier (or, in a warp,
 *    __syncwarp) in between, where not both are atomic; cp.async writes from its start to its wait,
 *  - reads and writes outside allocations and outside shared memory,
 *  - the host's memory touched by kernels, and the device's by the host.
 *
 * Of each byte of shared memory the last write and two reads by different threads are kept, so some
 * races are missed, and none is made up. */
#include "watch.h"

#if defined(SPT_EMULATED_WATCH)

#include <dlfcn.h>
#include <stdio.h>

#include <vector>

#include "block.h"
#include "emulator.h"

namespace emulated {

/* An access: by whom, and between which barriers. A whole warp's (ldmatrix) has thread = its first lane. */
struct Access {
  uint32_t epoch = 0, warp_epoch = 0;
  uint16_t thread = 0;
  bool atomic = false, whole_warp = false;
  const void *from = NULL; /* the instruction */
};
struct Byte {
  Access write, read, other_read;
};

static std::vector<Byte> bytes;
static unsigned char *shared;
static size_t shared_size;
static uint32_t epoch, warp_epochs[32];
static thread_local bool atomic, host_may;
static struct {
  uintptr_t low, high;
} recent[4];
static unsigned next_recent;

void watch_block(void *memory, size_t size) {
  shared = (unsigned char *)memory;
  shared_size = size;
  atomic = false; /* where a launch was given up in the middle of one */
  if (bytes.size() < size) {
    bytes.resize(size);
  }
  watch_barrier();
  for (auto &range : recent) {
    range.low = range.high = 0;
  }
}

void watch_barrier() {
  epoch++;
  for (uint32_t &warp : warp_epochs) {
    warp = 0;
  }
}
void watch_warp(unsigned warp, unsigned) { warp_epochs[warp]++; }
void let_host_touch_device(bool may) { host_may = may; }

/* The source line of an instruction, as addr2line says. */
static std::string line_of(const void *instruction) {
  Dl_info where;
  if (instruction == NULL || dladdr(instruction, &where) == 0) {
    return "";
  }
  size_t offset = (size_t)((const char *)instruction - (const char *)where.dli_fbase) - 1;
  FILE *pipe = popen(say("addr2line -e '%s' %#zx", where.dli_fname, offset).c_str(), "r");
  char line[512] = "";
  if (pipe != NULL) {
    if (fgets(line, sizeof line, pipe) == NULL) {
      line[0] = 0;
    }
    pclose(pipe);
  }
  line[strcspn(line, "\n")] = 0;
  return say(" (%s)", line);
}

static bool ordered(const Access &before, const Access &now) {
  if (before.epoch != now.epoch || before.thread == now.thread) {
    return true;
  }
  bool same_warp = before.thread / 32 == now.thread / 32;
  return (same_warp && (before.whole_warp || before.warp_epoch != now.warp_epoch)) ||
         (before.atomic && now.atomic);
}

[[noreturn]] static void race(const Access &before, const char *did, const Access &now,
                              const char *does, size_t at) {
  refuse(
      say("race on byte %zu of shared memory: it %s%s what ", at, does, line_of(now.from).c_str()) +
      "thread " + thread_name(before.thread) + " " + did + line_of(before.from) +
      ", with no barrier in between");
}

static void touch_shared(size_t at, size_t size, bool write, Access now) {
  now.epoch = epoch;
  now.warp_epoch = warp_epochs[now.thread / 32];
  now.atomic = atomic;
  for (size_t i = at; i < at + size; i++) {
    Byte &byte = bytes[i];
    if (!ordered(byte.write, now)) {
      race(byte.write, "wrote", now, write ? "writes" : "reads", i);
    }
    if (write) {
      if (!ordered(byte.read, now)) {
        race(byte.read, "read", now, "writes", i);
      }
      if (!ordered(byte.other_read, now)) {
        race(byte.other_read, "read", now, "writes", i);
      }
      byte.write = now;
    } else if (byte.read.thread != now.thread || byte.read.epoch != now.epoch) {
      /* The two that are kept are of different warps where possible. */
      if (byte.read.thread / 32 != now.thread / 32 || byte.other_read.epoch != now.epoch) {
        byte.other_read = byte.read;
      }
      byte.read = now;
    } else {
      byte.read = now;
    }
  }
}

static bool recently(uintptr_t at, size_t size) {
  for (const auto &range : recent) {
    if (at >= range.low && at + size <= range.high) {
      return true;
    }
  }
  return false;
}

static void remember(uintptr_t low, uintptr_t high) {
  recent[next_recent % 4].low = low;
  recent[next_recent % 4].high = high;
  next_recent++;
}

static void touch_other(const void *data, size_t size, bool write, const void *from) {
  uintptr_t at = (uintptr_t)data, low, high;
  if (recently(at, size)) {
    return;
  }
  Holder found = holder(data, size, &low, &high);
  if (found == DEVICE) {
    remember(low, high);
  } else if (found != UNKNOWN) {
    refuse(say("%s %zu bytes%s at ", write ? "writes" : "reads", size, line_of(from).c_str()) +
           describe_address(data));
  } else if (fiber_range(data, &low, &high)) {
    remember(low, high);
  } else {
    Dl_info constant; /* of the library itself */
    if (dladdr(data, &constant) == 0) {
      refuse(say("%s %zu bytes of the host's memory%s at %p", write ? "writes" : "reads", size,
                 line_of(from).c_str(), data));
    }
  }
}

static void touch_from_host(const void *data, bool write, const void *from) {
  if (!host_may && holder(data, 1) == DEVICE) {
    std::string text =
        say("the host %s device memory%s: ", write ? "writes" : "reads", line_of(from).c_str()) +
        describe_address(data);
    failed(cudaErrorIllegalAddress, text);
  }
}

static void touch(const void *data, size_t size, bool write, const void *from,
                  bool whole_warp = false) {
  if (!in_kernel()) {
    touch_from_host(data, write, from);
    return;
  }
  size_t at = (size_t)((const unsigned char *)data - shared);
  if (at < shared_size && size <= shared_size - at) {
    Access now;
    now.thread = (uint16_t)running_thread();
    now.whole_warp = whole_warp;
    now.from = from;
    if (whole_warp) {
      now.thread = (uint16_t)(now.thread & ~31);
    }
    touch_shared(at, size, write, now);
  } else if (at + 1024 < shared_size + 2048) {
    refuse(say("%s byte %td of %zu in shared memory%s", write ? "writes" : "reads", (ptrdiff_t)at,
               shared_size, line_of(from).c_str()));
  } else {
    touch_other(data, size, write, from);
  }
}

void watch_range(const void *data, size_t size, bool write) {
  if (size > 0) {
    touch(data, size, write, NULL);
  }
}
void watch_warp_read(const void *data, size_t size) { touch(data, size, false, NULL, true); }

}  // namespace emulated

void spt_emulated_atomic_begin(const void *data, size_t size) {
  emulated::atomic = true;
  emulated::touch(data, size, true, __builtin_return_address(0));
  emulated::atomic = false;
}

/* ---- what the compiler calls ---- */

#define SPT_TOUCH(name, size, write)                                 \
  extern "C" void name(void *data) {                                 \
    emulated::touch(data, size, write, __builtin_return_address(0)); \
  }
SPT_TOUCH(__tsan_read1, 1, false)
SPT_TOUCH(__tsan_read2, 2, false)
SPT_TOUCH(__tsan_read4, 4, false)
SPT_TOUCH(__tsan_read8, 8, false)
SPT_TOUCH(__tsan_read16, 16, false)
SPT_TOUCH(__tsan_write1, 1, true)
SPT_TOUCH(__tsan_write2, 2, true)
SPT_TOUCH(__tsan_write4, 4, true)
SPT_TOUCH(__tsan_write8, 8, true)
SPT_TOUCH(__tsan_write16, 16, true)
SPT_TOUCH(__tsan_unaligned_read2, 2, false)
SPT_TOUCH(__tsan_unaligned_read4, 4, false)
SPT_TOUCH(__tsan_unaligned_read8, 8, false)
SPT_TOUCH(__tsan_unaligned_read16, 16, false)
SPT_TOUCH(__tsan_unaligned_write2, 2, true)
SPT_TOUCH(__tsan_unaligned_write4, 4, true)
SPT_TOUCH(__tsan_unaligned_write8, 8, true)
SPT_TOUCH(__tsan_unaligned_write16, 16, true)
extern "C" void __tsan_read_range(void *data, size_t size) {
  emulated::touch(data, size, false, __builtin_return_address(0));
}
extern "C" void __tsan_write_range(void *data, size_t size) {
  emulated::touch(data, size, true, __builtin_return_address(0));
}
/* Of the standard library, in launchers. */
#define SPT_HOST_ATOMICS(bits, T)                                                             \
  extern "C" T __tsan_atomic##bits##_fetch_add(volatile T *data, T value, int) {              \
    return __atomic_fetch_add(data, value, __ATOMIC_SEQ_CST);                                 \
  }                                                                                           \
  extern "C" T __tsan_atomic##bits##_load(const volatile T *data, int) {                      \
    return __atomic_load_n(data, __ATOMIC_SEQ_CST);                                           \
  }                                                                                           \
  extern "C" void __tsan_atomic##bits##_store(volatile T *data, T value, int) {               \
    __atomic_store_n(data, value, __ATOMIC_SEQ_CST);                                          \
  }                                                                                           \
  extern "C" T __tsan_atomic##bits##_exchange(volatile T *data, T value, int) {               \
    return __atomic_exchange_n(data, value, __ATOMIC_SEQ_CST);                                \
  }                                                                                           \
  extern "C" int __tsan_atomic##bits##_compare_exchange_strong(volatile T *data, T *expected, \
                                                               T value, int, int) {           \
    return __atomic_compare_exchange_n(data, expected, value, false, __ATOMIC_SEQ_CST,        \
                                       __ATOMIC_SEQ_CST);                                     \
  }
SPT_HOST_ATOMICS(8, unsigned char)
SPT_HOST_ATOMICS(32, unsigned)
SPT_HOST_ATOMICS(64, unsigned long)
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void *) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_vptr_update(void **, void *) {}
extern "C" void __tsan_vptr_read(void **) {}

#endif
