/* memory.cc: device memory, a guard at each end of every allocation, and copies. */
#include <stdarg.h>
#include <stdio.h>

#include <deque>
#include <map>
#include <mutex>

#include "emulator.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define SPT_CLOSE(data, bytes) __asan_poison_memory_region(data, bytes)
#define SPT_OPEN(data, bytes) __asan_unpoison_memory_region(data, bytes)
#else
#define SPT_CLOSE(data, bytes) ((void)(data), (void)(bytes))
#define SPT_OPEN(data, bytes) ((void)(data), (void)(bytes))
#endif

namespace emulated {

void poison(void *data, size_t bytes, uint16_t pattern) {
  unsigned char *at = (unsigned char *)data;
  uint64_t wide = pattern * 0x0001000100010001ull;
  size_t i = 0;
  for (; i + 8 <= bytes; i += 8) {
    memcpy(at + i, &wide, 8);
  }
  memcpy(at + i, &wide, bytes - i);
}

size_t first_changed(const void *data, size_t bytes, uint16_t pattern) {
  const unsigned char *at = (const unsigned char *)data;
  uint64_t wide = pattern * 0x0001000100010001ull;
  size_t i = 0;
  while (i + 8 <= bytes && memcmp(at + i, &wide, 8) == 0) {
    i += 8;
  }
  for (; i < bytes; i++) {
    if (at[i] != ((const unsigned char *)&wide)[i % 8]) {
      return i;
    }
  }
  return bytes;
}

std::string say(const char *format, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  return text;
}

struct Allocation {
  unsigned char *block; /* guard, memory, guard up to `whole` bytes */
  size_t bytes, whole;
  int number; /* of its kind, from 1 */
  bool pinned, freed;
};

static const size_t BEFORE = 256, AFTER = 256, KEPT_FREED = 32 << 20;

static std::mutex mutex;
static std::map<uintptr_t, Allocation> allocations; /* by address of the memory */
static std::deque<uintptr_t> freed_first;           /* addresses, the longest freed before others */
static size_t in_use, kept_freed;
static int numbers[2];

static std::string describe(const Allocation &a) {
  return say("%s %d of %zu bytes", a.pinned ? "cudaMallocHost" : "cudaMalloc", a.number, a.bytes);
}

static void guard(const Allocation &a) {
  SPT_OPEN(a.block, a.whole);
  poison(a.block, BEFORE, GUARD);
  poison(a.block + BEFORE + a.bytes, a.whole - BEFORE - a.bytes, GUARD);
  SPT_CLOSE(a.block, BEFORE);
  SPT_CLOSE(a.block + BEFORE + a.bytes, a.whole - BEFORE - a.bytes);
}

static std::string check(const Allocation &a) {
  size_t behind = a.whole - BEFORE - a.bytes;
  SPT_OPEN(a.block, a.whole);
  size_t before = first_changed(a.block, BEFORE, GUARD);
  size_t after = first_changed(a.block + BEFORE + a.bytes, behind, GUARD);
  std::string wrong;
  if (before < BEFORE) {
    wrong = say("wrote %zu bytes before ", BEFORE - before) + describe(a);
  } else if (after < behind) {
    wrong = say("wrote at byte %zu of ", a.bytes + after) + describe(a);
  } else if (a.freed) {
    size_t changed = first_changed(a.block + BEFORE, a.bytes, FREED);
    if (changed < a.bytes) {
      wrong = say("wrote after it was freed at byte %zu of ", changed) + describe(a);
      poison(a.block + BEFORE, a.bytes, FREED);
    }
  }
  if (!wrong.empty()) {
    guard(a);
  }
  SPT_CLOSE(a.block, BEFORE);
  SPT_CLOSE(a.block + BEFORE + a.bytes, behind);
  if (a.freed) {
    SPT_CLOSE(a.block, a.whole);
  }
  return wrong;
}

std::string check_guards() {
  std::lock_guard<std::mutex> lock(mutex);
  std::string wrong;
  for (const auto &entry : allocations) {
    if (!entry.second.freed && !entry.second.pinned) {
      std::string here = check(entry.second);
      wrong = wrong.empty() ? here : wrong;
    }
  }
  return wrong;
}

/* The allocation that `data` is in, or the last before it. */
static const Allocation *nearest(const void *data) {
  auto after = allocations.upper_bound((uintptr_t)data);
  return after == allocations.begin() ? NULL : &(--after)->second;
}

Holder holder(const void *data, size_t bytes, uintptr_t *low, uintptr_t *high) {
  std::lock_guard<std::mutex> lock(mutex);
  const Allocation *a = nearest(data);
  size_t offset = a == NULL ? 0 : (size_t)((const unsigned char *)data - a->block);
  if (a == NULL || offset >= a->whole) {
    a = NULL;
    auto next = allocations.lower_bound((uintptr_t)data);
    return next != allocations.end() && (uintptr_t)data + bytes > next->first - BEFORE ? OUTSIDE
                                                                                       : UNKNOWN;
  }
  if (a->freed || offset < BEFORE || offset - BEFORE + bytes > a->bytes) {
    return OUTSIDE;
  }
  if (low != NULL) {
    *low = (uintptr_t)a->block + BEFORE;
    *high = *low + a->bytes;
  }
  return a->pinned ? PINNED : DEVICE;
}

std::string describe_address(const void *data) {
  std::lock_guard<std::mutex> lock(mutex);
  const Allocation *a = nearest(data);
  if (a == NULL || (size_t)((const unsigned char *)data - a->block) >= a->whole) {
    auto next = allocations.upper_bound((uintptr_t)data);
    if (next == allocations.end() || next->first - (uintptr_t)data > BEFORE) {
      return say("%p", data);
    }
    a = &next->second;
  }
  ptrdiff_t at = (const unsigned char *)data - a->block - (ptrdiff_t)BEFORE;
  return say("byte %td of ", at) + describe(*a) + (a->freed ? ", which was freed" : "");
}

static std::string evict(size_t most) {
  std::string wrong;
  while (kept_freed > most && !freed_first.empty()) {
    auto entry = allocations.find(freed_first.front());
    freed_first.pop_front();
    std::string here = check(entry->second);
    wrong = wrong.empty() ? here : wrong;
    kept_freed -= entry->second.whole;
    SPT_OPEN(entry->second.block, entry->second.whole);
    free(entry->second.block);
    allocations.erase(entry);
  }
  return wrong;
}

static cudaError_t take(void **data, size_t bytes, bool pinned) {
  if (data == NULL) {
    return failed(cudaErrorInvalidValue);
  }
  *data = NULL;
  cudaError_t usable = usable_device();
  usable = usable == cudaSuccess ? unsafe_in_capture() : usable;
  if (usable != cudaSuccess || bytes == 0) {
    return usable;
  }
  std::lock_guard<std::mutex> lock(mutex);
  size_t whole = BEFORE + (bytes + 255) / 256 * 256 + AFTER;
  if (whole < bytes || bytes > memory_limit() || in_use > memory_limit() - bytes ||
      fault("alloc")) {
    return failed(cudaErrorMemoryAllocation);
  }
  unsigned char *block = (unsigned char *)aligned_alloc(256, whole);
  if (block == NULL) {
    return failed(cudaErrorMemoryAllocation);
  }
  Allocation a = {block, bytes, whole, ++numbers[pinned], pinned, false};
  poison(block + BEFORE, bytes, FRESH);
  guard(a);
  in_use += pinned ? 0 : bytes;
  count(pinned ? PINNED_BYTES : DEVICE_BYTES, (long)bytes);
  *data = block + BEFORE;
  allocations[(uintptr_t)*data] = a;
  return cudaSuccess;
}

static cudaError_t give(void *data, bool pinned) {
  if (data == NULL) {
    return cudaSuccess;
  }
  cudaError_t safe = unsafe_in_capture();
  if (safe != cudaSuccess) {
    return safe;
  }
  std::lock_guard<std::mutex> lock(mutex);
  auto found = allocations.find((uintptr_t)data);
  if (found == allocations.end() || found->second.freed || found->second.pinned != pinned) {
    return failed(cudaErrorInvalidValue,
                  say("invalid argument: %s of %p, which it did not allocate or which was freed",
                      pinned ? "cudaFreeHost" : "cudaFree", data));
  }
  Allocation &a = found->second;
  std::string wrong = check(a);
  in_use -= pinned ? 0 : a.bytes;
  count(pinned ? PINNED_BYTES : DEVICE_BYTES, -(long)a.bytes);
  a.freed = true;
  kept_freed += a.whole;
  freed_first.push_back((uintptr_t)data);
  poison(data, a.bytes, FREED);
  SPT_CLOSE(a.block, a.whole);
  std::string later = evict(KEPT_FREED);
  wrong = wrong.empty() ? later : wrong;
  return wrong.empty()
             ? cudaSuccess
             : failed(cudaErrorIllegalAddress, "found when memory was freed: something " + wrong);
}

}  // namespace emulated

using emulated::failed;

cudaError_t cudaMalloc(void **data, size_t bytes) { return emulated::take(data, bytes, false); }
cudaError_t cudaFree(void *data) { return emulated::give(data, false); }
cudaError_t cudaMallocHost(void **data, size_t bytes) { return emulated::take(data, bytes, true); }
cudaError_t cudaHostAlloc(void **data, size_t bytes, unsigned) {
  return emulated::take(data, bytes, true);
}
cudaError_t cudaFreeHost(void *data) { return emulated::give(data, true); }

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) {
  std::lock_guard<std::mutex> lock(emulated::mutex);
  size_t limit = emulated::memory_limit();
  *total = limit;
  *free_bytes = limit - (emulated::in_use < limit ? emulated::in_use : limit);
  return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *data) {
  emulated::Holder holder = emulated::holder(data, 1);
  *attributes = cudaPointerAttributes();
  attributes->device = -1;
  if (holder == emulated::DEVICE || holder == emulated::PINNED) {
    bool pinned = holder == emulated::PINNED;
    attributes->type = pinned ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
    attributes->device = 0;
    attributes->devicePointer = (void *)data;
    attributes->hostPointer = pinned ? (void *)data : NULL;
  }
  return cudaSuccess;
}
