/* stream.h: where work goes that is given to a stream. */
#ifndef SPT_EMULATED_STREAM_H
#define SPT_EMULATED_STREAM_H

#include <functional>

#include "cuda_runtime.h"

namespace emulated {

/* Does it at once, or records it where the stream is being captured. */
cudaError_t enqueue(cudaStream_t, std::function<cudaError_t()> work);

}  // namespace emulated

#endif
