/* warp_ops.h: where threads wait for one another. Each takes the source line it is called from: threads
 * that meet must have come to the same one. A mask names the lanes that must all come; lanes that have
 * exited, or that the block does not have, may not be named (CUDA tolerates some of that; code that
 * needs the tolerance reads undefined values sooner or later). */
#ifndef SPT_EMULATED_WARP_OPS_H
#define SPT_EMULATED_WARP_OPS_H

#include <stdint.h>
#include <string.h>

#include <type_traits>

struct spt_emulated_site {
  const char *what, *file;
  int line;
};

/* Waits until all lanes of `mask` have come with the same site, mask and `combine`; then the last of them
 * runs `combine` on what each brought (by lane; NULL for lanes that take no part), and all go on. */
typedef void (*spt_emulated_combine)(void *const brought[32], unsigned mask);
void spt_emulated_meet(const spt_emulated_site &, unsigned mask, void *brought,
                       spt_emulated_combine);
/* Waits for the whole block; returns how many threads came with `predicate`. */
int spt_emulated_barrier(const spt_emulated_site &, bool predicate);
int spt_emulated_lane();
unsigned spt_emulated_live_lanes();
/* Refuses what a lane names to be read or written, unless it is aligned and in shared memory. */
void spt_emulated_check_shared(const char *what, int lane, const void *data, unsigned bytes);
/* Ends the launch as failed; what follows the kernel's, block's and thread's names is the text. */
[[noreturn]] void spt_emulated_refuse(const char *format, ...)
    __attribute__((format(printf, 1, 2)));

/* 16 bytes of shared memory that a whole warp reads. */
void spt_emulated_read_row(void *to, const void *row);
/* What mma.cuh's products are on the CPU: c (16, 8) += a (16, depth) b (depth, 8). */
void spt_emulated_multiply(float (*c)[8], const float *a, const float (*b)[8], int depth);

#define SPT_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

static inline void __syncthreads(SPT_SITE) {
  spt_emulated_barrier({"__syncthreads", file, line}, false);
}
static inline int __syncthreads_count(int predicate, SPT_SITE) {
  return spt_emulated_barrier({"__syncthreads_count", file, line}, predicate != 0);
}
static inline int __syncthreads_or(int predicate, SPT_SITE) {
  return spt_emulated_barrier({"__syncthreads_or", file, line}, predicate != 0) != 0;
}
static inline int __syncthreads_and(int predicate, SPT_SITE) {
  return spt_emulated_barrier({"__syncthreads_and", file, line}, predicate == 0) == 0;
}

static inline void spt_emulated_combine_nothing(void *const[32], unsigned) {}
void spt_emulated_combine_syncwarp(void *const brought[32], unsigned mask);

static inline void __syncwarp(unsigned mask = 0xffffffffu, SPT_SITE) {
  spt_emulated_meet({"__syncwarp", file, line}, mask, NULL, spt_emulated_combine_syncwarp);
}
static inline unsigned __activemask() { return spt_emulated_live_lanes(); }

/* ---- shuffles ---- */

struct spt_emulated_shuffled {
  uint64_t value, result;
  int source; /* a lane */
};
void spt_emulated_combine_shuffle(void *const brought[32], unsigned mask);

template <typename T>
static inline T spt_emulated_shuffle(const spt_emulated_site &site, unsigned mask, T value,
                                     int source) {
  static_assert(std::is_arithmetic<T>::value && (sizeof(T) == 4 || sizeof(T) == 8),
                "shuffles move 4 or 8 bytes");
  spt_emulated_shuffled mine = {0, 0, source};
  memcpy(&mine.value, &value, sizeof value);
  spt_emulated_meet(site, mask, &mine, spt_emulated_combine_shuffle);
  memcpy(&value, &mine.result, sizeof value);
  return value;
}
static inline int spt_emulated_segment(int lane, int width) {
  if (width < 1 || width > 32 || (width & (width - 1)) != 0) {
    spt_emulated_refuse("a shuffle's width is %d, expected a power of two up to 32", width);
  }
  return lane & ~(width - 1);
}
template <typename T>
static inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, SPT_SITE) {
  int first = spt_emulated_segment(spt_emulated_lane(), width);
  return spt_emulated_shuffle({"__shfl_sync", file, line}, mask, value,
                              first + (source & (width - 1)));
}
template <typename T>
static inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, SPT_SITE) {
  int lane = spt_emulated_lane(), first = spt_emulated_segment(lane, width);
  int source = lane - (int)delta;
  return spt_emulated_shuffle({"__shfl_up_sync", file, line}, mask, value,
                              source < first ? lane : source);
}
template <typename T>
static inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, SPT_SITE) {
  int lane = spt_emulated_lane(), first = spt_emulated_segment(lane, width);
  int source = lane + (int)delta;
  return spt_emulated_shuffle({"__shfl_down_sync", file, line}, mask, value,
                              source >= first + width ? lane : source);
}
template <typename T>
static inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, SPT_SITE) {
  int lane = spt_emulated_lane(), first = spt_emulated_segment(lane, width);
  int source = lane ^ lanes;
  return spt_emulated_shuffle({"__shfl_xor_sync", file, line}, mask, value,
                              source >= first + width ? lane : source);
}

/* ---- votes ---- */

struct spt_emulated_vote {
  uint64_t value;
  unsigned equal; /* lanes whose value is this one's */
  unsigned votes; /* lanes whose value is not 0 */
};
void spt_emulated_combine_vote(void *const brought[32], unsigned mask);

static inline spt_emulated_vote spt_emulated_voted(const spt_emulated_site &site, unsigned mask,
                                                   uint64_t value) {
  spt_emulated_vote mine = {value, 0, 0};
  spt_emulated_meet(site, mask, &mine, spt_emulated_combine_vote);
  return mine;
}
static inline unsigned __ballot_sync(unsigned mask, int predicate, SPT_SITE) {
  return spt_emulated_voted({"__ballot_sync", file, line}, mask, predicate != 0).votes;
}
static inline int __any_sync(unsigned mask, int predicate, SPT_SITE) {
  return spt_emulated_voted({"__any_sync", file, line}, mask, predicate != 0).votes != 0;
}
static inline int __all_sync(unsigned mask, int predicate, SPT_SITE) {
  return spt_emulated_voted({"__all_sync", file, line}, mask, predicate != 0).votes == mask;
}
template <typename T>
static inline unsigned __match_any_sync(unsigned mask, T value, SPT_SITE) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "matches compare 4 or 8 bytes");
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  return spt_emulated_voted({"__match_any_sync", file, line}, mask, bits).equal;
}

#endif
