/* The one thread pool of the CPU backend.
 *
 * spt_parallel_for runs fn(context, task, worker) for task in [0, n_tasks), each exactly once, on the
 * caller and the pool's workers, and returns when all are done. `worker` is at
 * least 0 and no two tasks run under one worker number at the same time, so it can
 * index scratch memory. Tasks are handed out in order; which worker gets one is not fixed, so a task
 * must own what it writes. A call made while the pool is busy (another Python thread, or a task)
 * runs its tasks inline: never nested, never blocked. */
#ifndef SPATILE_CPU_POOL_H
#define SPATILE_CPU_POOL_H

#include <stdint.h>

typedef void (*spt_task_fn)(void *context, int64_t task, int worker);

/* Call it before the first fork: a child must not use what its parent's threads left behind. */
void spt_pool_prepare(void);

int spt_pool_width(void);
void spt_pool_resize(int width);
void spt_parallel_for(int64_t n_tasks, spt_task_fn fn, void *context);

/* The same with worker numbers below `workers`: for tasks with scratch memory of so many pieces. The
 * pool may have grown, in another thread, since spt_pool_width() gave the number. */
void spt_parallel_for_workers(int64_t n_tasks, int workers, spt_task_fn fn, void *context);

#endif
