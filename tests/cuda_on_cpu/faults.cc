/* faults.cc: what the environment makes of the emulated device, and the failures it injects.
 *
 * SPT_EMULATED_FAULTS is a list of what shall go wrong, separated by commas; counting starts when the
 * variable changes:
 *   alloc:N    the N-th allocation from now fails, as for lack of memory
 *   launch:N   the N-th launch from now fails
 *   capture:N  the N-th capture of a stream is invalid from its start
 *   instantiate:N, replay:N   the N-th graph that is made executable, or launched, lacks memory
 *   memory:B   the device has B bytes
 *   devices:N  there are N devices (0: none)
 *   driver:V   the driver's version is V, as cudaDriverGetVersion gives it; below 12000 it is too old */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <map>
#include <mutex>

#include "emulator.h"

namespace emulated {

static std::mutex mutex;
static std::string seen;
static std::map<std::string, long> counts; /* of what may fail */

/* The number behind `what:` in the list, or `otherwise`. */
static long asked(const char *what, long otherwise) {
  const char *list = getenv("SPT_EMULATED_FAULTS");
  list = list == NULL ? "" : list;
  if (seen != list) {
    seen = list;
    counts.clear();
  }
  size_t length = strlen(what);
  for (const char *at = list; at != NULL; at = strchr(at, ',')) {
    at += *at == ',';
    if (strncmp(at, what, length) == 0 && at[length] == ':') {
      return atol(at + length + 1);
    }
  }
  return otherwise;
}

int device_count() {
  std::lock_guard<std::mutex> lock(mutex);
  return (int)asked("devices", 1);
}
int driver_version() {
  std::lock_guard<std::mutex> lock(mutex);
  return (int)asked("driver", 13000);
}
size_t memory_limit() {
  std::lock_guard<std::mutex> lock(mutex);
  return (size_t)asked("memory", 16L << 30);
}
bool fault(const char *what) {
  std::lock_guard<std::mutex> lock(mutex);
  long n = asked(what, 0);
  return ++counts[what] == n;
}

int capability() {
  const char *text = getenv("SPT_EMULATED_CAPABILITY");
  return text == NULL || *text == 0 ? 80 : atoi(text);
}

bool order(bool *reverse, unsigned *seed) {
  const char *text = getenv("SPT_EMULATED_ORDER");
  if (text == NULL || *text == 0 || strcmp(text, "forward") == 0) {
    return false;
  }
  *reverse = strcmp(text, "reverse") == 0;
  *seed = *reverse ? 0 : (unsigned)atoi(text) * 2 + 1;
  return true;
}

cudaError_t usable_device() {
  if (driver_version() < 12000) {
    return failed(cudaErrorInsufficientDriver);
  }
  return device_count() < 1 ? failed(cudaErrorNoDevice) : cudaSuccess;
}

}  // namespace emulated
