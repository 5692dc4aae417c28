#include "backend.h"

spt_device *spt_cpu_device(void) {
  static spt_device device = {.backend = &spt_cpu_backend, .state = NULL};
  return &device;
}
