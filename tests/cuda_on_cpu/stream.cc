/* stream.cc: streams, events, copies, and captures of streams.
 *
 * A stream does at once what it is given. While it is captured it keeps that as closures instead, which a
 * graph replays in their order. The rules of capture are CUDA's: nothing that waits or allocates meanwhile, work of
 * other streams only behind an event of the captured one, and all of it joined at the end. */
#include "stream.h"

#include <chrono>
#include <memory>
#include <mutex>
#include <set>
#include <thread>

#include "emulator.h"

/* One capture: the stream it began on, and those that joined. */
struct Capture {
  cudaStream_t origin;
  cudaStreamCaptureMode mode;
  std::thread::id thread;
  bool invalid = false;
  emulated::Work work;
  std::set<cudaStream_t> joined;
};

struct spt_emulated_stream {
  std::shared_ptr<Capture> capture;
  size_t captured = 0,
         seen = 0; /* pieces of work of this stream, and those that the origin waits for */
  bool blocking = true;
};
struct spt_emulated_event {
  std::shared_ptr<Capture> capture;
  cudaStream_t stream = NULL;
  size_t captured = 0;
  bool timed = true, recorded = false;
  std::chrono::steady_clock::time_point when;
};

namespace emulated {

static std::recursive_mutex mutex;
static std::set<cudaStream_t> streams;
static std::set<cudaEvent_t> events;
static std::set<std::shared_ptr<Capture>> captures;
static spt_emulated_stream legacy;
static thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

typedef std::lock_guard<std::recursive_mutex> Lock;

static spt_emulated_stream *find(cudaStream_t stream) {
  if (stream == NULL || stream == cudaStreamLegacy || stream == cudaStreamPerThread) {
    return &legacy;
  }
  return streams.count(stream) ? stream : NULL;
}

static cudaError_t bad_stream() {
  return failed(cudaErrorInvalidResourceHandle,
                "invalid resource handle: a stream that was not created or was destroyed");
}

cudaError_t unsafe_in_capture() {
  Lock lock(mutex);
  for (const std::shared_ptr<Capture> &capture : captures) {
    bool own = capture->thread == std::this_thread::get_id();
    if (thread_mode != cudaStreamCaptureModeRelaxed &&
        ((own && capture->mode != cudaStreamCaptureModeRelaxed) ||
         (capture->mode == cudaStreamCaptureModeGlobal &&
          thread_mode == cudaStreamCaptureModeGlobal))) {
      capture->invalid = true;
      return failed(cudaErrorStreamCaptureUnsupported);
    }
  }
  return cudaSuccess;
}

/* The legacy stream waits for all blocking streams, and so may not be used while one is captured. */
static cudaError_t implicit_in_capture() {
  for (const std::shared_ptr<Capture> &capture : captures) {
    spt_emulated_stream *origin = find(capture->origin);
    if (origin != NULL && origin->blocking) {
      capture->invalid = true;
      return failed(cudaErrorStreamCaptureImplicit);
    }
  }
  return cudaSuccess;
}

cudaError_t enqueue(cudaStream_t name, std::function<cudaError_t()> work) {
  {
    Lock lock(mutex);
    spt_emulated_stream *stream = find(name);
    if (stream == NULL) {
      return bad_stream();
    }
    if (stream->capture != NULL) {
      if (stream->capture->invalid) {
        return failed(cudaErrorStreamCaptureInvalidated);
      }
      stream->captured++;
      stream->capture->work.push_back(std::move(work));
      return cudaSuccess;
    }
    cudaError_t code = stream == &legacy ? implicit_in_capture() : cudaSuccess;
    if (code != cudaSuccess) {
      return code;
    }
  }
  return work();
}

/* A device's captured streams cannot be waited for, and so the device cannot, in whatever mode. */
static cudaError_t device_in_capture() {
  Lock lock(mutex);
  for (const std::shared_ptr<Capture> &capture : captures) {
    capture->invalid = true;
  }
  return captures.empty() ? cudaSuccess : failed(cudaErrorStreamCaptureUnsupported);
}

static cudaError_t wait_for(cudaStream_t name) {
  Lock lock(mutex);
  spt_emulated_stream *stream = find(name);
  if (stream == NULL) {
    return bad_stream();
  }
  if (stream->capture != NULL) {
    stream->capture->invalid = true;
    return failed(cudaErrorStreamCaptureUnsupported);
  }
  cudaError_t code = stream == &legacy ? implicit_in_capture() : cudaSuccess;
  if (code != cudaSuccess) {
    return code;
  }
  std::string wrong = check_guards();
  return wrong.empty() ? cudaSuccess : failed(cudaErrorIllegalAddress, "something " + wrong);
}

/* ---- copies ---- */

static const char *wrong_place(Holder holder, bool device, const void *data, std::string *text) {
  if (holder == OUTSIDE) {
    *text = "past an allocation's end or before its start: " + describe_address(data);
  } else if (device && holder != DEVICE) {
    *text = say("the device's memory is expected, and %p is the host's", data);
  } else if (!device && holder == DEVICE) {
    *text = "the host's memory is expected, and this is the device's: " + describe_address(data);
  }
  return text->empty() ? NULL : text->c_str();
}

static cudaError_t check_copy(const void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
  std::string text;
  if (bytes == 0 || kind == cudaMemcpyDefault) {
    Holder a = bytes == 0 ? UNKNOWN : holder(to, bytes),
           b = bytes == 0 ? UNKNOWN : holder(from, bytes);
    return a == OUTSIDE || b == OUTSIDE
               ? failed(cudaErrorInvalidValue, "invalid argument: a copy past an allocation")
               : cudaSuccess;
  }
  bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  if (wrong_place(holder(to, bytes), to_device, to, &text) ||
      wrong_place(holder(from, bytes), from_device, from, &text)) {
    return failed(cudaErrorInvalidValue,
                  say("invalid argument: a copy of %zu bytes: ", bytes) + text);
  }
  return cudaSuccess;
}

static cudaError_t copy(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                        size_t width, size_t height, cudaMemcpyKind kind) {
  if (width == 0 || height == 0) {
    return cudaSuccess;
  }
  cudaError_t code = check_copy(to, from, width, kind);
  if (code == cudaSuccess) {
    code = check_copy((char *)to + (height - 1) * to_pitch,
                      (const char *)from + (height - 1) * from_pitch, width, kind);
  }
  if (code != cudaSuccess) {
    return code;
  }
  for (size_t row = 0; row < height; row++) {
    memmove((char *)to + row * to_pitch, (const char *)from + row * from_pitch, width);
  }
  return cudaSuccess;
}

static cudaError_t set(void *data, int value, size_t bytes) {
  if (bytes == 0) {
    return cudaSuccess;
  }
  if (holder(data, bytes) != DEVICE) {
    return failed(cudaErrorInvalidValue,
                  say("invalid argument: %zu bytes set at ", bytes) + describe_address(data));
  }
  memset(data, value, bytes);
  return cudaSuccess;
}

/* A synchronous call on the legacy stream. */
static cudaError_t at_once(std::function<cudaError_t()> work) {
  cudaError_t code = unsafe_in_capture();
  return code == cudaSuccess ? enqueue(NULL, std::move(work)) : code;
}

}  // namespace emulated

using emulated::bad_stream;
using emulated::captures;
using emulated::failed;
using emulated::Lock;

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind) {
  return emulated::at_once([=] { return emulated::copy(to, bytes, from, bytes, bytes, 1, kind); });
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return emulated::enqueue(stream,
                           [=] { return emulated::copy(to, bytes, from, bytes, bytes, 1, kind); });
}
cudaError_t cudaMemcpy2D(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                         size_t width, size_t height, enum cudaMemcpyKind kind) {
  return emulated::at_once(
      [=] { return emulated::copy(to, to_pitch, from, from_pitch, width, height, kind); });
}
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                              size_t width, size_t height, enum cudaMemcpyKind kind,
                              cudaStream_t stream) {
  return emulated::enqueue(
      stream, [=] { return emulated::copy(to, to_pitch, from, from_pitch, width, height, kind); });
}
cudaError_t cudaMemset(void *data, int value, size_t bytes) {
  return emulated::at_once([=] { return emulated::set(data, value, bytes); });
}
cudaError_t cudaMemsetAsync(void *data, int value, size_t bytes, cudaStream_t stream) {
  return emulated::enqueue(stream, [=] { return emulated::set(data, value, bytes); });
}

/* Memory from CUDA's own stream-ordered pool: here as cudaMalloc's, but it may be asked for in a capture. */
cudaError_t cudaMallocAsync(void **data, size_t bytes, cudaStream_t) {
  enum cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  cudaThreadExchangeStreamCaptureMode(&mode);
  cudaError_t code = cudaMalloc(data, bytes);
  cudaThreadExchangeStreamCaptureMode(&mode);
  return code;
}
cudaError_t cudaFreeAsync(void *data, cudaStream_t stream) {
  return emulated::enqueue(stream, [=] { return cudaFree(data); });
}

/* ---- streams ---- */

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
  cudaError_t usable = emulated::usable_device();
  if (usable != cudaSuccess) {
    return usable;
  }
  Lock lock(emulated::mutex);
  *stream = new spt_emulated_stream;
  (*stream)->blocking = (flags & cudaStreamNonBlocking) == 0;
  emulated::streams.insert(*stream);
  emulated::count(emulated::STREAMS, 1);
  return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t *stream) { return cudaStreamCreateWithFlags(stream, 0); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int) {
  return cudaStreamCreateWithFlags(stream, flags);
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  Lock lock(emulated::mutex);
  if (emulated::streams.erase(stream) == 0) {
    return bad_stream();
  }
  if (stream->capture != NULL) {
    stream->capture->invalid = true;
  }
  delete stream;
  emulated::count(emulated::STREAMS, -1);
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return emulated::wait_for(stream); }
cudaError_t cudaStreamQuery(cudaStream_t stream) { return emulated::wait_for(stream); }
cudaError_t cudaDeviceSynchronize(void) {
  cudaError_t code = emulated::device_in_capture();
  return code == cudaSuccess ? emulated::wait_for(NULL) : code;
}

/* ---- events ---- */

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
  cudaError_t usable = emulated::usable_device();
  if (usable != cudaSuccess) {
    return usable;
  }
  Lock lock(emulated::mutex);
  *event = new spt_emulated_event;
  (*event)->timed = (flags & cudaEventDisableTiming) == 0;
  emulated::events.insert(*event);
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, 0); }

static cudaError_t check_event(cudaEvent_t event) {
  return emulated::events.count(event)
             ? cudaSuccess
             : failed(cudaErrorInvalidResourceHandle,
                      "invalid resource handle: an event that was not created or was destroyed");
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  Lock lock(emulated::mutex);
  cudaError_t code = check_event(event);
  if (code == cudaSuccess) {
    emulated::events.erase(event);
    delete event;
  }
  return code;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t name) {
  Lock lock(emulated::mutex);
  spt_emulated_stream *stream = emulated::find(name);
  cudaError_t code = stream == NULL ? bad_stream() : check_event(event);
  if (code != cudaSuccess) {
    return code;
  }
  event->capture = stream->capture;
  event->stream = name;
  event->captured = stream->captured;
  event->recorded = true;
  event->when = std::chrono::steady_clock::now();
  return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t name, cudaEvent_t event, unsigned) {
  Lock lock(emulated::mutex);
  spt_emulated_stream *stream = emulated::find(name);
  cudaError_t code = stream == NULL ? bad_stream() : check_event(event);
  if (code != cudaSuccess || event->capture == NULL) {
    return code;
  }
  std::shared_ptr<Capture> capture = event->capture;
  if (captures.count(capture) == 0 || (stream->capture != NULL && stream->capture != capture)) {
    return failed(cudaErrorStreamCaptureUnsupported);
  }
  if (stream->capture == NULL) {
    stream->capture = capture;
    stream->captured = 1;
    stream->seen = 0;
    capture->joined.insert(name);
  } else if (name == capture->origin) {
    spt_emulated_stream *other = emulated::find(event->stream);
    if (other != NULL) {
      other->seen = event->captured > other->seen ? event->captured : other->seen;
    }
  }
  return cudaSuccess;
}

static cudaError_t wait_for_event(cudaEvent_t event) {
  cudaError_t code = emulated::unsafe_in_capture();
  if (code != cudaSuccess) {
    return code;
  }
  Lock lock(emulated::mutex);
  code = check_event(event);
  if (code == cudaSuccess && event->capture != NULL) {
    code = failed(cudaErrorCapturedEvent);
  }
  return code;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) { return wait_for_event(event); }
cudaError_t cudaEventQuery(cudaEvent_t event) { return wait_for_event(event); }

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end) {
  Lock lock(emulated::mutex);
  cudaError_t code = check_event(start);
  code = code == cudaSuccess ? check_event(end) : code;
  if (code == cudaSuccess && !(start->recorded && end->recorded && start->timed && end->timed)) {
    code = failed(cudaErrorInvalidResourceHandle);
  }
  if (code == cudaSuccess) {
    *milliseconds = std::chrono::duration<float, std::milli>(end->when - start->when).count();
  }
  return code;
}

/* ---- captures ---- */

cudaError_t cudaStreamBeginCapture(cudaStream_t name, enum cudaStreamCaptureMode mode) {
  Lock lock(emulated::mutex);
  spt_emulated_stream *stream = emulated::find(name);
  if (stream == NULL) {
    return bad_stream();
  }
  if (stream == &emulated::legacy || stream->capture != NULL) {
    return failed(cudaErrorStreamCaptureUnsupported);
  }
  stream->capture = std::make_shared<Capture>();
  stream->capture->origin = name;
  stream->capture->mode = mode;
  stream->capture->thread = std::this_thread::get_id();
  stream->capture->invalid = emulated::fault("capture");
  captures.insert(stream->capture);
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t name, cudaGraph_t *graph) {
  Lock lock(emulated::mutex);
  spt_emulated_stream *stream = emulated::find(name);
  *graph = NULL;
  if (stream == NULL) {
    return bad_stream();
  }
  std::shared_ptr<Capture> capture = stream->capture;
  if (capture == NULL) {
    return failed(cudaErrorInvalidValue);
  }
  if (capture->origin != name) {
    return failed(cudaErrorStreamCaptureUnmatched);
  }
  if (capture->mode != cudaStreamCaptureModeRelaxed &&
      capture->thread != std::this_thread::get_id()) {
    return failed(cudaErrorStreamCaptureWrongThread);
  }
  bool unjoined = false;
  for (cudaStream_t other : capture->joined) {
    spt_emulated_stream *joined = emulated::find(other);
    if (joined != NULL) {
      unjoined |= joined->seen < joined->captured;
      joined->capture = NULL;
    }
  }
  stream->capture = NULL;
  captures.erase(capture);
  if (capture->invalid || unjoined) {
    return failed(unjoined ? cudaErrorStreamCaptureUnjoined : cudaErrorStreamCaptureInvalidated);
  }
  emulated::count(emulated::CAPTURES, 1);
  *graph = emulated::graph_of(std::move(capture->work));
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t name, enum cudaStreamCaptureStatus *status) {
  Lock lock(emulated::mutex);
  spt_emulated_stream *stream = emulated::find(name);
  if (stream == NULL) {
    return bad_stream();
  }
  *status = stream->capture == NULL    ? cudaStreamCaptureStatusNone
            : stream->capture->invalid ? cudaStreamCaptureStatusInvalidated
                                       : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}

cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) {
  std::swap(*mode, emulated::thread_mode);
  return cudaSuccess;
}
