/* counts.cc: what tests ask of the runtime that no call of CUDA's tells. */
#include <string.h>

#include <atomic>

#include "emulator.h"

namespace emulated {

static const char *const names[COUNTED] = {"launches", "captures",     "replays",     "graphs",
                                           "streams",  "device bytes", "pinned bytes"};
static std::atomic<long> counts[COUNTED];

void count(Counted what, long by) { counts[what] += by; }

}  // namespace emulated

/* -1: nothing is counted by this name. */
extern "C" __attribute__((visibility("default"))) long spt_emulated_count(const char *what) {
  for (int i = 0; i < emulated::COUNTED; i++) {
    if (strcmp(what, emulated::names[i]) == 0) {
      return emulated::counts[i];
    }
  }
  return -1;
}
