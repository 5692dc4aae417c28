/* graph.cc: graphs of what was captured (stream.cc), and their replay. */
#include <memory>
#include <mutex>
#include <set>

#include "emulator.h"
#include "stream.h"

struct spt_emulated_graph {
  std::shared_ptr<const emulated::Work> work;
};
struct spt_emulated_graph_exec {
  std::shared_ptr<const emulated::Work> work;
};

namespace emulated {

static std::mutex mutex;
static std::set<cudaGraph_t> graphs;
static std::set<cudaGraphExec_t> execs;

typedef std::lock_guard<std::mutex> Lock;

cudaGraph_t graph_of(Work work) {
  Lock lock(mutex);
  cudaGraph_t graph = new spt_emulated_graph{std::make_shared<const Work>(std::move(work))};
  graphs.insert(graph);
  count(GRAPHS, 1);
  return graph;
}

static cudaError_t bad_graph() {
  return failed(cudaErrorInvalidValue,
                "invalid argument: a graph that was not made or was destroyed");
}

static cudaError_t replay(const Work &work) {
  for (const std::function<cudaError_t()> &piece : work) {
    cudaError_t code = piece();
    if (code != cudaSuccess) {
      return code;
    }
  }
  return cudaSuccess;
}

}  // namespace emulated

using emulated::bad_graph;
using emulated::Lock;

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *exec, cudaGraph_t graph,
                                          unsigned long long) {
  Lock lock(emulated::mutex);
  *exec = NULL;
  if (emulated::graphs.count(graph) == 0) {
    return bad_graph();
  }
  if (emulated::fault("instantiate")) {
    return emulated::failed(cudaErrorMemoryAllocation);
  }
  *exec = new spt_emulated_graph_exec{graph->work};
  emulated::execs.insert(*exec);
  emulated::count(emulated::GRAPHS, 1);
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph,
                                 unsigned long long flags) {
  return cudaGraphInstantiateWithFlags(exec, graph, flags);
}
cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  std::shared_ptr<const emulated::Work> work;
  {
    Lock lock(emulated::mutex);
    if (emulated::execs.count(exec) == 0) {
      return bad_graph();
    }
    work = exec->work;
  }
  if (emulated::fault("replay")) {
    return emulated::failed(cudaErrorMemoryAllocation);
  }
  emulated::count(emulated::REPLAYS, 1);
  return emulated::enqueue(stream, [=] { return emulated::replay(*work); });
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, void *, size_t *count) {
  Lock lock(emulated::mutex);
  if (emulated::graphs.count(graph) == 0) {
    return bad_graph();
  }
  *count = graph->work->size();
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  Lock lock(emulated::mutex);
  if (emulated::execs.erase(exec) == 0) {
    return bad_graph();
  }
  delete exec;
  emulated::count(emulated::GRAPHS, -1);
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  Lock lock(emulated::mutex);
  if (emulated::graphs.erase(graph) == 0) {
    return bad_graph();
  }
  delete graph;
  emulated::count(emulated::GRAPHS, -1);
  return cudaSuccess;
}
