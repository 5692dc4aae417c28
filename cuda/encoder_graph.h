/* encoder_graph.h: runs of shapes that were seen before, as CUDA graphs. */
#ifndef SPATILE_CUDA_ENCODER_GRAPH_H
#define SPATILE_CUDA_ENCODER_GRAPH_H

#include "encoder.h"

/* A captured run, and all that its kernels have the addresses of but the model. One call at a time may
 * replay it. */
typedef struct spt_gpu_graph {
  cudaGraphExec_t exec;
  spt_cuda_queue queue; /* its pool is the graph's own; the stream is there while it is captured */
  size_t bytes;         /* of the device */
  spt_gpu_upload up;    /* `host` is pinned */
  spt_gpu_pass pass;    /* as the captured run left it: where its results are */
  struct spt_gpu_graph *next; /* among those that go */
} spt_gpu_graph;

/* The run is captured, not done. */
SPT_WARN_UNUSED spt_status spt_gpu_graph_capture(const spt_gpu_pass *, spt_gpu_graph **,
                                                 spt_error *);
/* A run of the captured one's shape; waits for its results. Where it could not be launched `done` is false, and
 * nothing of it is under way. */
SPT_WARN_UNUSED spt_status spt_gpu_graph_replay(const spt_gpu_graph *, const spt_gpu_pass *,
                                                bool *done, spt_error *);
/* NULL too. */
void spt_gpu_graph_free(spt_gpu_graph *);

/* The shapes of an encoder's runs, and the graphs of those that came again. A shape is all that decides
 * which kernels a run launches and with which arguments but where its memory is: the lengths of
 * sequences, how many tokens each layer keeps of them, first_only, and what is given besides the ids. */
typedef struct spt_gpu_graphs spt_gpu_graphs;
typedef struct spt_gpu_shape spt_gpu_shape;

/* NULL where the environment's SPATILE_CUDA_GRAPHS is "none". */
SPT_WARN_UNUSED spt_status spt_gpu_graphs_create(const spt_cuda_device *, spt_gpu_graphs **,
                                                 spt_error *);
void spt_gpu_graphs_free(spt_gpu_graphs *);
/* Gives up the graphs that are not in use; whether there were any. */
bool spt_gpu_graphs_drop(spt_gpu_graphs *);

/* The run's shape, the caller's alone until it is released. NULL, which run and release take too, where
 * another call has it or a graph is out of the question. */
spt_gpu_shape *spt_gpu_shape_claim(spt_gpu_graphs *, const spt_gpu_pass *);
/* Does the run by a graph, where the shape has been run before and can be captured; else `done` is false. */
SPT_WARN_UNUSED spt_status spt_gpu_shape_run(spt_gpu_shape *, const spt_gpu_pass *, bool *done,
                                             spt_error *);
void spt_gpu_shape_release(spt_gpu_graphs *, spt_gpu_shape *, bool succeeded);

#endif
