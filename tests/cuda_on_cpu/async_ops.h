/* async_ops.h: cp.async as late as it may be: what a thread copies is in shared memory when that thread
 * has waited for the copy's group, and not before. A wait that was forgotten shows as poison. */
#ifndef SPT_EMULATED_ASYNC_OPS_H
#define SPT_EMULATED_ASYNC_OPS_H

#include <stddef.h>

#include <vector>

/* Copies `bytes` (4, 8 or 16) of which the first `used` are read and the others are zero. */
void spt_emulated_copy_async(void *shared, const void *global, unsigned bytes, unsigned used);
void spt_emulated_copy_commit();
/* Returns when at most `pending` of the newest groups are not complete. */
void spt_emulated_copy_wait(unsigned pending);
void spt_emulated_copy_wait_all(); /* groups that were not committed, too */

namespace emulated {

struct AsyncCopy {
  void *to;
  const void *from;
  unsigned bytes, used, group;
};
struct AsyncCopies {
  std::vector<AsyncCopy> copies;
  unsigned committed = 0; /* groups so far */
  void clear() {
    if (!copies.empty()) {
      copies.clear();
    }
    committed = 0;
  }
};

}  // namespace emulated

#endif
