/* launch: errors as statuses, and shared memory for launches. */
#include "launch.h"

spt_status spt_cuda_fail(spt_error *err, const char *op, const char *doing, cudaError_t code,
                         size_t bytes) {
  (void)cudaGetLastError();
  bool lost = cudaGetLastError() != cudaSuccess; /* it comes back: the context is gone */
  if (code == cudaErrorMemoryAllocation) {
    size_t free_bytes = 0, total = 0;
    if (cudaMemGetInfo(&free_bytes, &total) != cudaSuccess) {
      (void)cudaGetLastError();
    }
    return spt_fail(err, SPT_OUT_OF_MEMORY,
                    "%s: %s: %zu bytes wanted of the device, which has %zu free of %zu (%s: %s)",
                    op, doing, bytes, free_bytes, total, cudaGetErrorName(code),
                    cudaGetErrorString(code));
  }
  return spt_fail(err, SPT_DEVICE_ERROR, "%s: %s: %s (%s)%s", op, doing, cudaGetErrorString(code),
                  cudaGetErrorName(code),
                  lost ? "; it may come of an earlier launch, and the driver refuses this process "
                         "any more work on the device"
                       : "");
}

cudaError_t spt_cuda_allow_shared(const void *kernel, size_t bytes) {
  int device, most = 0;
  cudaError_t code = cudaGetDevice(&device);
  if (code == cudaSuccess) {
    code = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  }
  if (code == cudaSuccess) {
    int wanted = bytes > (size_t)most ? (int)bytes : most;
    code = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, wanted);
  }
  return code;
}
