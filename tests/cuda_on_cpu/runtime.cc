/* runtime.cc: errors, the device's attributes, and launches. */
#include <map>
#include <mutex>

#include "emulator.h"
#include "stream.h"
#include "watch.h"

namespace emulated {

static thread_local cudaError_t last_error = cudaSuccess;
static thread_local cudaError_t explained = cudaSuccess;
static thread_local std::string explanation;
static thread_local int current_device;

static std::mutex mutex;
static std::map<const void *, int> most_shared; /* of kernels that asked for more than 48 KB */

cudaError_t failed(cudaError_t code, const std::string &text) {
  last_error = code;
  explained = text.empty() ? cudaSuccess : code;
  explanation = text;
  return code;
}

/* What a block may ask for, by compute capability. */
static int shared_per_block() {
  switch (capability()) {
    case 75:
      return 64 * 1024;
    case 80:
      return 163 * 1024;
    case 86:
    case 89:
      return 99 * 1024;
    default:
      return 227 * 1024;
  }
}

/* Few processors, so that loops over a grid's stride are taken. */
static const int PROCESSORS = 4;

static cudaError_t check_config(const spt_emulated_config &c) {
  uint64_t threads = (uint64_t)c.block.x * c.block.y * c.block.z;
  if (threads == 0 || threads > 1024 || c.block.z > 64 || c.grid.x == 0 || c.grid.y == 0 ||
      c.grid.z == 0 || c.grid.x > 0x7fffffffu || c.grid.y > 65535 || c.grid.z > 65535) {
    return failed(cudaErrorInvalidConfiguration,
                  say("invalid configuration argument: grid (%u,%u,%u), block (%u,%u,%u)", c.grid.x,
                      c.grid.y, c.grid.z, c.block.x, c.block.y, c.block.z));
  }
  std::lock_guard<std::mutex> lock(mutex);
  auto asked = most_shared.find(c.kernel);
  size_t allowed = asked == most_shared.end() ? 48 * 1024 : (size_t)asked->second;
  if (c.shared > allowed) {
    return failed(cudaErrorInvalidValue,
                  say("invalid argument: %zu bytes of shared memory, where %zu are allowed (%s)",
                      c.shared, allowed, c.name));
  }
  return cudaSuccess;
}

static cudaError_t launch(const spt_emulated_config &config, const void *closure,
                          void (*thread)(const void *)) {
  cudaError_t code =
      check_config(config); /* the kernel's limit may be another than when captured */
  if (code != cudaSuccess) {
    return code;
  }
  if (fault("launch")) {
    return failed(cudaErrorLaunchFailure, "unspecified launch failure (injected)");
  }
  std::string wrong = run_grid(config, closure, thread);
  return wrong.empty() ? cudaSuccess
                       : failed(cudaErrorLaunchFailure, "unspecified launch failure: " + wrong);
}

}  // namespace emulated

using emulated::failed;

void spt_emulated_launch(const spt_emulated_config &config, cudaStream_t stream,
                         std::shared_ptr<const void> closure, void (*thread)(const void *)) {
  if (emulated::usable_device() != cudaSuccess || emulated::check_config(config) != cudaSuccess) {
    return;
  }
  emulated::count(emulated::LAUNCHES, 1);
  emulated::enqueue(stream, [=] { return emulated::launch(config, closure.get(), thread); });
}

cudaError_t spt_emulated_enqueue(cudaStream_t stream, std::function<void()> work) {
  return emulated::enqueue(stream, [=] {
    emulated::let_host_touch_device(true);
    work();
    emulated::let_host_touch_device(false);
    std::string wrong = emulated::check_guards();
    return wrong.empty()
               ? cudaSuccess
               : failed(cudaErrorLaunchFailure, "unspecified launch failure: a library " + wrong);
  });
}

cudaError_t cudaGetLastError(void) {
  cudaError_t code = emulated::last_error;
  emulated::last_error = cudaSuccess;
  return code;
}
cudaError_t cudaPeekAtLastError(void) { return emulated::last_error; }

struct error_text {
  cudaError_t code;
  const char *name, *text;
};
#define SPT_ERROR(name, text) {name, #name, text}
static const error_text error_texts[] = {
    SPT_ERROR(cudaSuccess, "no error"),
    SPT_ERROR(cudaErrorInvalidValue, "invalid argument"),
    SPT_ERROR(cudaErrorMemoryAllocation, "out of memory"),
    SPT_ERROR(cudaErrorInitializationError, "initialization error"),
    SPT_ERROR(cudaErrorInvalidConfiguration, "invalid configuration argument"),
    SPT_ERROR(cudaErrorInvalidMemcpyDirection, "invalid copy direction for memcpy"),
    SPT_ERROR(cudaErrorInsufficientDriver,
              "CUDA driver version is insufficient for CUDA runtime version"),
    SPT_ERROR(cudaErrorInvalidDeviceFunction, "invalid device function"),
    SPT_ERROR(cudaErrorNoDevice, "no CUDA-capable device is detected"),
    SPT_ERROR(cudaErrorInvalidDevice, "invalid device ordinal"),
    SPT_ERROR(cudaErrorNoKernelImageForDevice,
              "no kernel image is available for execution on the device"),
    SPT_ERROR(cudaErrorInvalidResourceHandle, "invalid resource handle"),
    SPT_ERROR(cudaErrorNotReady, "device not ready"),
    SPT_ERROR(cudaErrorIllegalAddress, "an illegal memory access was encountered"),
    SPT_ERROR(cudaErrorLaunchOutOfResources, "too many resources requested for launch"),
    SPT_ERROR(cudaErrorMisalignedAddress, "misaligned address"),
    SPT_ERROR(cudaErrorLaunchFailure, "unspecified launch failure"),
    SPT_ERROR(cudaErrorNotSupported, "operation not supported"),
    SPT_ERROR(cudaErrorStreamCaptureUnsupported,
              "operation not permitted when stream is capturing"),
    SPT_ERROR(cudaErrorStreamCaptureInvalidated,
              "operation failed due to a previous error during capture"),
    SPT_ERROR(cudaErrorStreamCaptureUnmatched,
              "capture was not ended in the same stream as it began"),
    SPT_ERROR(cudaErrorStreamCaptureUnjoined, "capturing stream has unjoined work"),
    SPT_ERROR(cudaErrorStreamCaptureImplicit,
              "operation would make the legacy stream depend on a capturing blocking stream"),
    SPT_ERROR(cudaErrorCapturedEvent,
              "operation not permitted on an event last recorded in a capturing stream"),
    SPT_ERROR(cudaErrorStreamCaptureWrongThread,
              "attempt to terminate a thread-local capture sequence from another thread"),
};
#undef SPT_ERROR

const char *cudaGetErrorName(cudaError_t code) {
  for (const error_text &entry : error_texts) {
    if (entry.code == code) {
      return entry.name;
    }
  }
  return "cudaErrorUnknown";
}

const char *cudaGetErrorString(cudaError_t code) {
  if (code != cudaSuccess && code == emulated::explained) {
    return emulated::explanation.c_str();
  }
  for (const error_text &entry : error_texts) {
    if (entry.code == code) {
      return entry.text;
    }
  }
  return "unknown error";
}

/* ---- devices ---- */

cudaError_t cudaGetDeviceCount(int *count) {
  *count = 0;
  cudaError_t usable = emulated::usable_device();
  if (usable == cudaSuccess) {
    *count = emulated::device_count();
  }
  return usable;
}

static cudaError_t check_device(int device) {
  cudaError_t usable = emulated::usable_device();
  if (usable != cudaSuccess) {
    return usable;
  }
  return device < 0 || device >= emulated::device_count() ? failed(cudaErrorInvalidDevice)
                                                          : cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  cudaError_t code = check_device(device);
  if (code == cudaSuccess) {
    emulated::current_device = device;
  }
  return code;
}

cudaError_t cudaGetDevice(int *device) {
  *device = emulated::current_device;
  return emulated::usable_device();
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
  cudaError_t code = check_device(device);
  if (code != cudaSuccess) {
    return code;
  }
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      *value = 1024;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = 48 * 1024;
      break;
    case cudaDevAttrWarpSize:
      *value = 32;
      break;
    case cudaDevAttrMultiProcessorCount:
      *value = emulated::PROCESSORS;
      break;
    case cudaDevAttrL2CacheSize:
      *value = 4 << 20;
      break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = emulated::capability() == 75 ? 1024 : emulated::capability() % 10 ? 1536 : 2048;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = emulated::capability() / 10;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = emulated::capability() % 10;
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = emulated::shared_per_block() + 1024;
      break;
    case cudaDevAttrMaxRegistersPerMultiprocessor:
      *value = 65536;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = emulated::shared_per_block();
      break;
    case cudaDevAttrMaxBlocksPerMultiprocessor:
      *value = 16;
      break;
    case cudaDevAttrReservedSharedMemoryPerBlock:
      *value = 1024;
      break;
    case cudaDevAttrClockRate:
    case cudaDevAttrMemoryClockRate:
      *value = 1000000;
      break;
    case cudaDevAttrGlobalMemoryBusWidth:
      *value = 64;
      break;
    case cudaDevAttrPageableMemoryAccessUsesHostPageTables:
      *value = 0;
      break;
    case cudaDevAttrConcurrentKernels:
    case cudaDevAttrMemoryPoolsSupported:
      *value = 1;
      break;
    default:
      *value = 0;
  }
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, int device) {
  cudaError_t code = check_device(device);
  if (code != cudaSuccess) {
    return code;
  }
  *properties = cudaDeviceProp();
  strcpy(properties->name, "emulated on the CPU");
  properties->totalGlobalMem = emulated::memory_limit();
  properties->sharedMemPerBlock = 48 * 1024;
  properties->sharedMemPerBlockOptin = (size_t)emulated::shared_per_block();
  properties->major = emulated::capability() / 10;
  properties->minor = emulated::capability() % 10;
  properties->multiProcessorCount = emulated::PROCESSORS;
  properties->warpSize = 32;
  properties->maxThreadsPerBlock = 1024;
  properties->l2CacheSize = 4 << 20;
  return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version) {
  *version = emulated::device_count() < 1 ? 0 : emulated::driver_version();
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaDeviceReset(void) { return cudaSuccess; }

/* ---- kernels ---- */

cudaError_t cudaFuncSetAttribute(const void *kernel, enum cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) {
    return cudaSuccess;
  }
  if (value < 0 || value > emulated::shared_per_block()) {
    return failed(
        cudaErrorInvalidValue,
        emulated::say("invalid argument: %d bytes of shared memory, where a block of this "
                      "device can have %d",
                      value, emulated::shared_per_block()));
  }
  std::lock_guard<std::mutex> lock(emulated::mutex);
  emulated::most_shared[kernel] = value;
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *, int threads,
                                                          size_t shared) {
  size_t by_shared = shared == 0 ? 16 : (size_t)emulated::shared_per_block() / shared;
  int by_threads = threads < 1 ? 0 : 2048 / threads;
  *blocks = by_threads < (int)by_shared ? by_threads : (int)by_shared;
  return cudaSuccess;
}
