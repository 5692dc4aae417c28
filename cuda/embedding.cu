/* embedding and gather_tokens: rows of a table at ids, copied bit by bit. Bound by memory: a row is read
 * and written once, 16 bytes at a time where rows allow it. Each id is checked by the threads that would
 * read its row; the first position of a wrong one is what the host waits for at the end. */
#include <stdio.h>

#include "context.h"
#include "pack.cuh"
#include "slots.h"

#define EMBEDDING_THREADS 256

struct embedding_job {
  spt_view<const char> ids; /* strides in elements of `wide` or 32-bit ids */
  bool wide;                /* int64 */
  spt_view<char> rows;      /* the axes before the last, in elements */
  int64_t row_step;
  const void *table;
  int64_t table_rows, table_row, table_col; /* strides in elements */
  int64_t count, width;
  unsigned long long *wrong; /* the least position of a wrong id */
};

static __device__ __forceinline__ int64_t id_of(const embedding_job &job, int64_t position) {
  int64_t at = job.ids.at(position) - job.ids.data;
  return job.wide ? reinterpret_cast<const int64_t *>(job.ids.data)[at]
                  : reinterpret_cast<const int32_t *>(job.ids.data)[at];
}

/* E: an element, or a pack of them where all strides are whole packs and width counts packs. Threads of a
 * block share `along` neighbours of a row, a power of two: so no division is needed. */
template <typename E>
__global__ void embedding_kernel(embedding_job job, int along_bits) {
  int along = 1 << along_bits, column = (int)threadIdx.x & (along - 1);
  int64_t per_block = blockDim.x >> along_bits, step = per_block * gridDim.x;
  for (int64_t i = blockIdx.x * per_block + (threadIdx.x >> along_bits); i < job.count; i += step) {
    int64_t id = id_of(job, i);
    if (id < 0 || id >= job.table_rows) {
      if (column == 0) {
        atomicMin(job.wrong, (unsigned long long)i);
      }
      continue;
    }
    const E *from = static_cast<const E *>(job.table) + id * job.table_row;
    E *to = reinterpret_cast<E *>(job.rows.data) + (job.rows.at(i) - job.rows.data);
    for (int64_t c = column; c < job.width; c += along) {
      to[c * job.row_step] = from[c * job.table_col];
    }
  }
}

/* An axis along which there is one row counts nothing. */
static bool are_packs(const spt_embedding_problem *p, int64_t per_pack) {
  const spt_matrix *t = &p->table;
  int last = p->rows.ndim - 1;
  if (t->cols % per_pack != 0 || t->col != 1 || p->rows.stride[last] != 1 ||
      (t->rows > 1 && t->row % per_pack != 0) || (uintptr_t)t->data % SPT_PACK_BYTES != 0 ||
      (uintptr_t)p->rows.data % SPT_PACK_BYTES != 0) {
    return false;
  }
  for (int i = 0; i < last; i++) {
    if (p->rows.shape[i] > 1 && p->rows.stride[i] % per_pack != 0) {
      return false;
    }
  }
  return true;
}

static spt_status refuse_id(spt_cuda_queue *queue, const spt_embedding_problem *p, int64_t position,
                            spt_error *err) {
  char index[SPT_MAX_NDIM * 22 + 4] = "";
  int64_t rest = position, offset = 0, at[SPT_MAX_NDIM];
  for (int i = p->ids.ndim - 1; i >= 0; i--) {
    at[i] = rest % p->ids.shape[i];
    rest /= p->ids.shape[i];
    offset += at[i] * p->ids.stride[i];
  }
  size_t used = 0;
  for (int i = 0; i < p->ids.ndim; i++) {
    used += (size_t)snprintf(index + used, sizeof index - used, "%s%lld", i == 0 ? "[" : ", ",
                             (long long)at[i]);
  }
  int32_t narrow = 0;
  int64_t id = 0;
  if (p->ids.dtype == SPT_I32) {
    SPT_TRY(spt_cuda_to_host(queue, p->op, &narrow, static_cast<int32_t *>(p->ids.data) + offset,
                             sizeof narrow, err));
    id = narrow;
  } else {
    SPT_TRY(spt_cuda_to_host(queue, p->op, &id, static_cast<int64_t *>(p->ids.data) + offset,
                             sizeof id, err));
  }
  return spt_fail(err, SPT_INVALID_VALUE, "%s: %s%s%s is %lld, expected 0 to %lld", p->op, p->arg,
                  index, used > 0 ? "]" : "", (long long)id, (long long)p->table.rows - 1);
}

template <typename E>
static spt_status copy_rows(const spt_cuda_queue *queue, const char *op, const embedding_job &job,
                            spt_error *err) {
  int along_bits = 0;
  while (along_bits < 8 && (int64_t)1 << along_bits < job.width) {
    along_bits++;
  }
  int64_t blocks = spt_blocks(job.count, EMBEDDING_THREADS >> along_bits);
  blocks = spt_least(blocks, 64 * (int64_t)queue->device->sm_count);
  SPT_LAUNCH(op, embedding_kernel<E>, (unsigned)blocks, EMBEDDING_THREADS, 0, queue->stream, job,
             along_bits);
  return SPT_OK;
}

spt_status spt_cuda_embedding(void *state, const spt_embedding_problem *p, spt_error *err) {
  spt_cuda_queue *queue = spt_queue_of(state);
  spt_scratch scratch(queue, p->op);
  int last = p->rows.ndim - 1;
  int64_t size = spt_storage_bytes(p->table.dtype), per_pack = SPT_PACK_BYTES / size;
  const unsigned long long none = UINT64_MAX;
  unsigned long long wrong = none;
  embedding_job job = {spt_view<const char>(p->ids),
                       p->ids.dtype == SPT_I64,
                       spt_view<char>(p->rows),
                       p->rows.stride[last],
                       p->table.data,
                       p->table.rows,
                       p->table.row,
                       p->table.col,
                       spt_view_elements(&p->ids),
                       p->table.cols,
                       NULL};
  job.rows.ndim = last;
  if (job.count == 0) {
    return SPT_OK;
  }
  SPT_TRY(scratch.take(&job.wrong, 1, err));
  SPT_CUDA_TRY(p->op, "clearing a flag",
               cudaMemsetAsync(job.wrong, 0xff, sizeof *job.wrong, queue->stream));
  if (are_packs(p, per_pack)) {
    job.width /= per_pack;
    job.table_row /= per_pack;
    for (int i = 0; i < last; i++) {
      job.rows.stride[i] /= per_pack;
    }
    SPT_TRY(copy_rows<uint4>(queue, p->op, job, err));
  } else if (size == 4) {
    SPT_TRY(copy_rows<uint32_t>(queue, p->op, job, err));
  } else {
    SPT_TRY(copy_rows<uint16_t>(queue, p->op, job, err));
  }
  SPT_TRY(spt_cuda_to_host(queue, p->op, &wrong, job.wrong, sizeof wrong, err));
  return wrong == none ? SPT_OK : refuse_id(queue, p, (int64_t)wrong, err);
}
