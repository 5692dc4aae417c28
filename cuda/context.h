/* context.h: what a slot's `state` points to, and the memory that launchers take.
 *
 * A queue is one stream of one device. Everything a slot does is enqueued on its stream, and slots do
 * not wait unless they return a value to the host (or must refuse one: NaN, an id outside a table). */
#ifndef SPATILE_CUDA_CONTEXT_H
#define SPATILE_CUDA_CONTEXT_H

#include "launch.h"

typedef struct spt_cuda_device {
  int ordinal;
  int sm_count;
  int capability;       /* 10 * major + minor */
  int shared_per_block; /* bytes that a block may ask for */
  int l2_bytes;
  int shares_page_tables; /* with the host (Grace Hopper): pageable memory may be read in place */
  int64_t memory;         /* bytes in all */
} spt_cuda_device;

typedef struct spt_cuda_queue {
  spt_cuda_device *device;
  cudaStream_t stream;
  struct spt_cuda_pool *pool; /* memory.cu */
  struct spt_cublas *cublas;  /* cublas.cu: NULL until a product first wants it */
} spt_cuda_queue;

static inline spt_cuda_queue *spt_queue_of(void *state) { return (spt_cuda_queue *)state; }

/* The calling thread works on this device until the end of the scope, then on the one it had. entry.cu
 * does so around every slot. */
class spt_on_device {
 public:
  explicit spt_on_device(int ordinal) : before_(ordinal) {
    code_ = cudaGetDevice(&before_);
    changed_ = code_ == cudaSuccess && before_ != ordinal;
    if (changed_) {
      code_ = cudaSetDevice(ordinal);
    }
  }
  ~spt_on_device() {
    if (changed_) {
      (void)cudaSetDevice(before_);
    }
  }
  spt_on_device(const spt_on_device &) = delete;
  spt_on_device &operator=(const spt_on_device &) = delete;
  SPT_WARN_UNUSED spt_status entered(const char *op, spt_error *err) const {
    SPT_CUDA_TRY(op, "choosing the device", code_);
    return SPT_OK;
  }

 private:
  int before_;
  bool changed_;
  cudaError_t code_;
};

/* Device memory that is given back at the end of the scope. Stream order makes that safe: whoever gets
 * the piece next on this stream runs later. Pieces are aligned to 256 bytes. */
class spt_scratch {
 public:
  spt_scratch(spt_cuda_queue *queue, const char *op) : queue_(queue), op_(op), count_(0) {}
  ~spt_scratch();
  spt_scratch(const spt_scratch &) = delete;
  spt_scratch &operator=(const spt_scratch &) = delete;

  template <typename T>
  SPT_WARN_UNUSED spt_status take(T **piece, int64_t n, spt_error *err) {
    void *data = NULL;
    SPT_TRY(take_bytes(&data, (size_t)(n > 0 ? n : 1) * sizeof(T), err));
    *piece = static_cast<T *>(data);
    return SPT_OK;
  }

 private:
  SPT_WARN_UNUSED spt_status take_bytes(void **piece, size_t bytes, spt_error *err);
  static const int MOST = 32;
  spt_cuda_queue *queue_;
  const char *op_;
  int count_;
  void *pieces_[MOST];
};

/* Host to device on the queue's stream. The host's memory is read before the call returns. */
SPT_WARN_UNUSED spt_status spt_cuda_to_device(spt_cuda_queue *, const char *op, void *device,
                                              const void *host, size_t bytes, spt_error *);
/* Device to host; waits for the stream. */
SPT_WARN_UNUSED spt_status spt_cuda_to_host(spt_cuda_queue *, const char *op, void *host,
                                            const void *device, size_t bytes, spt_error *);

/* copy.cu: y = x, element by element, converted where the dtypes differ among float32, float16 and
 * bfloat16 (or equal ones of any dtype). Same shape, any strides. */
SPT_WARN_UNUSED spt_status spt_cuda_copy(spt_cuda_queue *, const char *op, const spt_tensor *x,
                                         const spt_tensor *y, spt_error *);
/* m itself where its columns are neighbours, its dtype is `dtype`, and data and row stride are multiples
 * of 16 bytes; else a copy that is so, in scratch memory. Columns are padded to that, not written. */
SPT_WARN_UNUSED spt_status spt_cuda_aligned_rows(spt_cuda_queue *, spt_scratch *, const char *op,
                                                 const spt_matrix *m, spt_dtype dtype,
                                                 spt_matrix *aligned, spt_error *);

#endif
