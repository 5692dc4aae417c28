/* stream.h: where work goes that is given to a stream, and what is captured of it. */
#ifndef SPT_EMULATED_STREAM_H
#define SPT_EMULATED_STREAM_H

#include <functional>
#include <vector>

#include "cuda_runtime.h"

namespace emulated {

typedef std::vector<std::function<cudaError_t()>> Work;

/* Does it at once, or records it where the stream is being captured. */
cudaError_t enqueue(cudaStream_t, std::function<cudaError_t()> work);

/* graph.cc */
cudaGraph_t graph_of(Work);

}  // namespace emulated

#endif
