#include "quick_select.h"

#include "../integer.h"

#define FEW 4096
#define MANY (1 << 16)

/* The k-th smallest of few keys: bit after bit, from the top. */
static spt_selection select_by_bits(const spt_cpu_tier *tier, const uint32_t *keys, int64_t n,
                                    int64_t k) {
  uint32_t key = 0;
  int64_t below = 0;
  for (int bit = 31; bit >= 0; bit--) {
    uint32_t pivot = key | 1u << bit;
    int64_t count = tier->count_below(keys, n, pivot);
    if (count < k) {
      key = pivot;
      below = count;
    }
  }
  return (spt_selection){.key = key, .ties = k - below};
}

/* A sample's keys around rank k of n: [*low, *high] holds it, but for bad luck. */
static void bracket(const spt_cpu_tier *tier, const uint32_t *keys, int64_t n, int64_t k,
                    uint32_t *sample, uint32_t *low, uint32_t *high) {
  int64_t size = n < MANY ? SPT_SELECT_SAMPLE / 4 : SPT_SELECT_SAMPLE;
  int64_t margin = n < MANY ? 24 : 48; /* three standard deviations of the rank in the sample */
  for (int64_t i = 0; i < size; i++) {
    /* Not evenly spaced: a period of the keys would be the sample's own. */
    uint64_t within = (uint64_t)i * 0x9e3779b97f4a7c15u >> 40;
    sample[i] = keys[i * n / size + (int64_t)(within % (uint64_t)(n / size))];
  }
  int64_t rank = (int64_t)((double)k / (double)n * (double)size);
  int64_t first = spt_max(rank - margin, 1), last = spt_min(rank + margin, size);
  *low = rank <= margin ? 0 : select_by_bits(tier, sample, size, first).key;
  *high = rank + margin >= size ? UINT32_MAX : select_by_bits(tier, sample, size, last).key;
}

spt_selection spt_quick_select(const spt_cpu_tier *tier, const uint32_t *keys, int64_t n, int64_t k,
                               uint32_t *spare) {
  uint32_t *sample = spare + n, *half = spare + n / 2, *to = spare;
  while (n > FEW) {
    uint32_t low, high;
    bracket(tier, keys, n, k, sample, &low, &high);
    int64_t below = n < INT32_MAX ? tier->count_below(keys, n, low) : n;
    int64_t inside = below < k ? tier->keys_between(to, keys, n, low, high) : 0;
    /* The sample misled: the k-th key is below `low` or above `high`, or little was set apart. */
    if (below >= k || k - below > inside || inside > n / 2) {
      return spt_select_smallest(keys, n, k);
    }
    keys = to;
    to = to == spare ? half : spare; /* a round that fails still needs the keys it began with */
    n = inside;
    k -= below;
  }
  return select_by_bits(tier, keys, n, k);
}
