/* emulator.h: what the emulation's own files share. */
#ifndef SPT_EMULATED_EMULATOR_H
#define SPT_EMULATED_EMULATOR_H

#include <functional>
#include <string>

#include "cuda_runtime.h"

namespace emulated {

/* NaN as float16, bfloat16 and float32; far out as an index. */
const uint16_t FRESH = 0xfff5, FREED = 0xfff3, GUARD = 0xfff7;
void poison(void *data, size_t bytes, uint16_t pattern);
/* Where the first byte that no longer holds the pattern is; `bytes` if there is none. */
size_t first_changed(const void *data, size_t bytes, uint16_t pattern);

std::string say(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* The calling thread's last error; the text is what cudaGetErrorString then gives for it. */
cudaError_t failed(cudaError_t, const std::string &text = std::string());

/* block.cc: runs a launch; what went wrong, or an empty text. One at a time. */
std::string run_grid(const spt_emulated_config &, const void *closure,
                     void (*thread)(const void *closure));

/* memory.cc: what was written outside allocations, or an empty text; guards are made whole again. */
std::string check_guards();
/* 0 where no allocation, or only a part of one, holds [data, data + bytes). */
enum Holder { UNKNOWN, OUTSIDE, DEVICE, PINNED };
Holder holder(const void *data, size_t bytes, uintptr_t *low = NULL, uintptr_t *high = NULL);
std::string describe_address(const void *data);

/* counts.cc: kernels that were launched, but by no replay; captures that ended well; launches of graphs; and
 * what there is now of graphs (both kinds), streams and memory. */
enum Counted { LAUNCHES, CAPTURES, REPLAYS, GRAPHS, STREAMS, DEVICE_BYTES, PINNED_BYTES, COUNTED };
void count(Counted, long by);

/* faults.cc */
int device_count();
int driver_version();
bool fault(
    const char *what); /* whether this one, of those that SPT_EMULATED_FAULTS counts, fails */
size_t memory_limit();
int capability();
bool order(bool *reverse, unsigned *seed); /* false: forward */

/* runtime.cc: an error where the calling thread may not do what disturbs captures. */
cudaError_t unsafe_in_capture();
cudaError_t usable_device();

}  // namespace emulated

#endif
