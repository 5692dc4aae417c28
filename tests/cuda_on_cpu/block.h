/* block.h: the running block, as the other files of the emulation see it. */
#ifndef SPT_EMULATED_BLOCK_H
#define SPT_EMULATED_BLOCK_H

#include <stddef.h>
#include <stdint.h>

#include <string>
#include <vector>

#include "async_ops.h"

namespace emulated {

bool in_kernel();
unsigned running_thread();
AsyncCopies &running_copies();
std::string thread_name(unsigned thread);
size_t shared_bytes();
/* Whether `data` is on a thread's stack, and which addresses are. */
bool fiber_range(const void *data, uintptr_t *low, uintptr_t *high);
[[noreturn]] void refuse(const std::string &text);

}  // namespace emulated

#endif
