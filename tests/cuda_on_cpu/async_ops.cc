/* async_ops.cc: copies into shared memory that wait for their wait. */
#include "async_ops.h"

#include <string.h>

#include "block.h"
#include "emulator.h"
#include "watch.h"

using emulated::AsyncCopies;
using emulated::AsyncCopy;

static void complete(const AsyncCopy &copy) {
  emulated::watch_range(copy.to, copy.bytes, true);
  memcpy(copy.to, copy.from, copy.used);
  memset((char *)copy.to + copy.used, 0, copy.bytes - copy.used);
}

void spt_emulated_check_shared(const char *what, int lane, const void *data, unsigned bytes) {
  uintptr_t at = (uintptr_t)data, memory = (uintptr_t)spt_emulated_shared_memory;
  if (at < memory || at + bytes > memory + emulated::shared_bytes()) {
    emulated::refuse(emulated::say("%s: lane %d names byte %td of %zu in shared memory", what, lane,
                                   (ptrdiff_t)(at - memory), emulated::shared_bytes()));
  }
  if (at % bytes != 0) {
    emulated::refuse(
        emulated::say("%s: lane %d names an address that is no multiple of %u", what, lane, bytes));
  }
}

void spt_emulated_read_row(void *to, const void *row) {
  emulated::watch_warp_read(row, 16);
  memcpy(to, row, 16);
}

void spt_emulated_copy_async(void *shared, const void *global, unsigned bytes, unsigned used) {
  spt_emulated_check_shared("cp.async", spt_emulated_lane(), shared, bytes);
  if ((uintptr_t)global % bytes != 0) {
    emulated::refuse(
        emulated::say("cp.async of %u bytes from %p, which is no multiple of that", bytes, global));
  }
  if (used > bytes) {
    emulated::refuse(emulated::say("cp.async of %u bytes reads %u", bytes, used));
  }
  emulated::watch_range(global, used, false);
  emulated::watch_range(shared, bytes, true); /* it may come as soon as now */
  AsyncCopies &mine = emulated::running_copies();
  mine.copies.push_back({shared, global, bytes, used, mine.committed});
}

void spt_emulated_copy_commit() { emulated::running_copies().committed++; }

void spt_emulated_copy_wait(unsigned pending) {
  AsyncCopies &mine = emulated::running_copies();
  size_t n = 0;
  for (; n < mine.copies.size() && mine.copies[n].group + pending < mine.committed; n++) {
    complete(mine.copies[n]);
  }
  mine.copies.erase(mine.copies.begin(), mine.copies.begin() + (ptrdiff_t)n);
}

void spt_emulated_copy_wait_all() {
  spt_emulated_copy_commit();
  spt_emulated_copy_wait(0);
}
