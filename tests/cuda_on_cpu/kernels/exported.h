/* exported.h: how the kernels of the emulation's own tests are launched from Python. */
#ifndef SPATILE_EMULATION_EXPORTED_H
#define SPATILE_EMULATION_EXPORTED_H

#include "launch.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

#define launched(kernel, grid, block, shared, stream, ...)                           \
  (SPT_LAUNCH_RAW(kernel, (grid), (block), (size_t)(shared), (stream), __VA_ARGS__), \
   (int)cudaGetLastError())

#endif
