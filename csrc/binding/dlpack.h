/* The parts of the DLPack ABI (version 0, unversioned capsules) that the extension reads. */
#ifndef SPATILE_BINDING_DLPACK_H
#define SPATILE_BINDING_DLPACK_H

#include <stdint.h>

enum { DL_INT = 0, DL_UINT = 1, DL_FLOAT = 2, DL_BFLOAT = 4, DL_BOOL = 6 };
enum { DL_CPU = 1, DL_CUDA = 2, DL_CUDA_HOST = 3 };

typedef struct dl_tensor {
  void *data;
  struct {
    int32_t type, id;
  } device;
  int32_t ndim;
  struct {
    uint8_t code, bits;
    uint16_t lanes;
  } dtype;
  int64_t *shape;
  int64_t *strides; /* in elements; NULL: compact, row-major */
  uint64_t byte_offset;
} dl_tensor;

typedef struct dl_managed_tensor {
  dl_tensor tensor;
  void *manager;
  void (*deleter)(struct dl_managed_tensor *);
} dl_managed_tensor;

#endif
