/* A run of the encoder as a CUDA graph: its kernels go to the device in one launch instead of a hundred.
 *
 * The capture is of kernels alone. The upload before and the results after it are calls of each run: their
 * addresses on the host are the run's. Everything on the device that a node names lies in a pool of the
 * graph's own, activations and the scratch memory of every kernel: queue->pool would hand such pieces to other
 * runs while the graph is still to write to them. */
#include "encoder_graph.h"

#include <pthread.h>
#include <stdlib.h>

#include "cublas.h"
#include "memory.h"

/* Relaxed: the kernels' scratch memory is allocated meanwhile, and other threads allocate too. A stream of
 * its own: the queue's may be the legacy one, which cannot be captured, and other threads use it. */
static spt_status record(spt_gpu_graph *g, spt_error *err) {
  cudaStream_t stream;
  cudaGraph_t graph = NULL;
  spt_status status = SPT_OK;
  SPT_CUDA_TRY("encoder", "making a stream to capture",
               cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  g->queue.stream = stream;
  pthread_mutex_t *capturing = spt_cuda_capturing(g->pass.encoder->queue);
  pthread_mutex_lock(capturing);
  cudaError_t code = cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed);
  if (code == cudaSuccess) {
    status = spt_gpu_run_layers(&g->pass, err);
    code = cudaStreamEndCapture(stream, &graph); /* ends one that failed, too */
  }
  pthread_mutex_unlock(capturing);
  if (status == SPT_OK && code == cudaSuccess) {
    code = cudaGraphInstantiate(&g->exec, graph, 0);
    g->exec = code == cudaSuccess ? g->exec : NULL;
  }
  if (graph != NULL) {
    (void)cudaGraphDestroy(graph);
  }
  (void)cudaStreamDestroy(stream);
  g->queue.stream = NULL;
  if (status != SPT_OK) {
    (void)cudaGetLastError(); /* the end's own */
    return status;
  }
  SPT_CUDA_TRY("encoder", "capturing a run", code);
  return SPT_OK;
}

static spt_status capture(spt_gpu_graph *g, spt_error *err) {
  spt_gpu_pass *p = &g->pass;
  SPT_TRY(spt_cuda_pool_create_lasting(p->encoder->queue, "encoder", &g->queue.pool, err));
  spt_scratch scratch(&g->queue, "encoder");
  spt_gpu_lay_out_upload(p, &g->up); /* counts */
  SPT_CUDA_TRY("encoder", "allocating pinned memory",
               cudaMallocHost((void **)&g->up.host, g->up.bytes + 1));
  SPT_TRY(scratch.take(&g->up.device, (int64_t)g->up.bytes, err));
  spt_gpu_lay_out_upload(p, &g->up);
  SPT_TRY(spt_gpu_take_activations(&scratch, p, err));
  return record(g, err);
}

spt_status spt_gpu_graph_capture(const spt_gpu_pass *p, spt_gpu_graph **out, spt_error *err) {
  *out = NULL;
  spt_gpu_graph *g = (spt_gpu_graph *)calloc(1, sizeof *g);
  if (g == NULL) {
    return spt_fail(err, SPT_OUT_OF_MEMORY, "encoder: no memory");
  }
  g->queue.device = p->queue->device;
  g->pass = *p;
  g->pass.queue = &g->queue;
  spt_status status = capture(g, err);
  if (status != SPT_OK) {
    spt_gpu_graph_free(g);
    return status;
  }
  g->bytes = spt_cuda_pool_kept(g->queue.pool);
  *out = g;
  return SPT_OK;
}

spt_status spt_gpu_graph_replay(const spt_gpu_graph *g, const spt_gpu_pass *of, bool *done,
                                spt_error *err) {
  cudaStream_t stream = of->queue->stream;
  spt_gpu_upload up = g->up;
  spt_gpu_pass p = g->pass;
  p.queue = of->queue;
  p.run = of->run;
  spt_gpu_lay_out_upload(&p, &up);
  cudaError_t code = cudaMemcpyAsync(up.device, up.host, up.bytes, cudaMemcpyHostToDevice, stream);
  if (code == cudaSuccess) {
    code = cudaGraphLaunch(g->exec, stream);
  }
  *done = code == cudaSuccess;
  spt_status status = *done ? spt_gpu_take_down(&p, err) : SPT_OK;
  if (!*done || status == SPT_DEVICE_ERROR) { /* the copy may be on its way from pinned memory */
    (void)cudaStreamSynchronize(stream);
    (void)cudaGetLastError();
  }
  return status;
}

void spt_gpu_graph_free(spt_gpu_graph *g) {
  if (g == NULL) {
    return;
  }
  if (g->exec != NULL && cudaGraphExecDestroy(g->exec) != cudaSuccess) {
    (void)cudaGetLastError();
  }
  if (g->up.host != NULL && cudaFreeHost(g->up.host) != cudaSuccess) {
    (void)cudaGetLastError();
  }
  spt_cublas_free(g->queue.cublas);
  if (g->queue.pool != NULL) {
    spt_cuda_pool_free(g->queue.pool);
  }
  free(g);
}
