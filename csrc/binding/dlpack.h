/* The DLPack ABI: unversioned capsules, and those of version 1. */
#ifndef SPATILE_BINDING_DLPACK_H
#define SPATILE_BINDING_DLPACK_H

#include <stdint.h>

enum { DL_INT = 0, DL_UINT = 1, DL_FLOAT = 2, DL_BFLOAT = 4, DL_BOOL = 6 };
enum { DL_CPU = 1, DL_CUDA = 2, DL_CUDA_HOST = 3, DL_CUDA_MANAGED = 13 };
enum { DL_MAJOR = 1, DL_MINOR = 1 };
#define DL_READ_ONLY ((uint64_t)1)

/* A capsule's name, and the one that whoever consumes it gives it. */
#define DL_NAME "dltensor"
#define DL_NAME_VERSIONED "dltensor_versioned"
#define DL_USED "used_dltensor"
#define DL_USED_VERSIONED "used_dltensor_versioned"

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

typedef struct dl_managed_tensor_versioned {
  struct {
    uint32_t major, minor;
  } version;
  void *manager;
  void (*deleter)(struct dl_managed_tensor_versioned *);
  uint64_t flags;
  dl_tensor tensor;
} dl_managed_tensor_versioned;

#endif
