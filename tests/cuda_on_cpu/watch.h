/* watch.h: hooks for the build that watches every access (watch.cc); nothing in other builds. */
#ifndef SPT_EMULATED_WATCH_H
#define SPT_EMULATED_WATCH_H

#include <stddef.h>

namespace emulated {

#if defined(SPT_EMULATED_WATCH)
void watch_block(void *shared, size_t bytes); /* a block begins */
void watch_barrier();
void watch_warp(unsigned warp, unsigned mask);
void watch_range(const void *data, size_t bytes, bool write);
void watch_warp_read(const void *data, size_t bytes);
void let_host_touch_device(bool may);
#else
inline void watch_block(void *, size_t) {}
inline void watch_barrier() {}
inline void watch_warp(unsigned, unsigned) {}
inline void watch_range(const void *, size_t, bool) {}
inline void watch_warp_read(const void *, size_t) {}
inline void let_host_touch_device(bool) {}
#endif

}  // namespace emulated

#endif
