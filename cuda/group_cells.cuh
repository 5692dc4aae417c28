/* group_cells.cuh: one cell of a matrix that is cut into groups: sums of squares, what they become, and
 * scaling by it. Device code of groups.cu and group_elements.cu; what it all is for is said there. */
#ifndef SPATILE_CUDA_GROUP_CELLS_CUH
#define SPATILE_CUDA_GROUP_CELLS_CUH

#include "groups.cuh"
#include "warp.cuh"

#define THREADS SPT_GROUP_THREADS
#define BATCH 4       /* loads of a thread in flight */
#define SCALE_BATCH 2 /* of two arrays */

/* Sums between these are right: a square that float32 loses is 2^46 times smaller than the sum. */
#define LEAST_SUM 0x1p-80
#define MOST_SUM 0x1p126
/* Factors between these round once in float32, and so does what they multiply. */
#define LEAST_FACTOR 0x1p-100
#define MOST_FACTOR 0x1p100

enum group_rule {
  GROUP_NORM,   /* norm */
  GROUP_BETA,   /* 1 / (norm + amount) */
  GROUP_GRAD,   /* amount * beta / norm, 0 for a zero group */
  GROUP_SHRINK, /* max(0, 1 - amount * beta / norm) */
};

/* An array in a kernel: strides in elements. */
struct group_array {
  char *data;
  int64_t row, col;
  int32_t dtype;
};

struct group_job {
  spt_patch patch;
  group_array w, beta, values, scaled; /* data NULL where absent; values are float32 */
  group_rule rule;
  bool add, mean, packed_values;
  double amount;
  double *
      partial; /* (down, across, parts): sums, then factors at each first part. NULL: whole groups */
  double *penalties; /* one a block, or NULL */
};

/* What a thread has of a group's squares; later the group's value lies in the place of its first. */
struct alignas(8) group_sum {
  float sum;  /* of squares */
  float peak; /* the largest size, which tells a zero group from squares that vanish */
};

/* group_elements.cu: groups of one weight. `packed`: w and scaled may be moved by packs. */
SPT_WARN_UNUSED spt_status spt_cuda_group_elements(spt_cuda_queue *, const char *op,
                                                   const group_job &, bool packed, int64_t blocks,
                                                   spt_error *);

static __device__ __forceinline__ float load_any(const group_array &a, int64_t row, int64_t col) {
  int64_t size = a.dtype == SPT_F32 ? 4 : 2;
  return spt_load_any(a.data + (row * a.row + col * a.col) * size, a.dtype);
}

/* The cell's first element. */
template <typename T>
static __device__ __forceinline__ T *cell_of(const group_array &a, const spt_place &at) {
  return reinterpret_cast<T *>(a.data) + at.first_row * a.row + at.first_col * a.col;
}

/* A pack as it lies in memory: 16-bit elements stay two to a register until they are wanted. */
typedef spt_pack<uint32_t> spt_raw;

static __device__ __forceinline__ float raw_element(const float *, const spt_raw &x, int e) {
  return __uint_as_float(x.element[e]);
}
template <typename T> /* of 16 bits */
static __device__ __forceinline__ float raw_element(const T *, const spt_raw &x, int e) {
  T half = {(uint16_t)(x.element[e / 2] >> 16 * (e % 2))};
  return spt_to_float(half);
}
static __device__ __forceinline__ void set_raw_element(float value, spt_raw *x, int e) {
  x->element[e] = __float_as_uint(value);
}
template <typename T> /* into bits that are 0 */
static __device__ __forceinline__ void set_raw_element(T value, spt_raw *x, int e) {
  x->element[e / 2] |= (uint32_t)value.bits << 16 * (e % 2);
}

/* Zero outside the cell. */
template <typename T, bool PACKED>
static __device__ __forceinline__ spt_raw load_raw(const T *cell, const group_array &a,
                                                   const spt_place &at, const spt_cursor &c) {
  spt_raw x = {};
  const T *from = cell + c.row * a.row;
  if (PACKED) {
    if (c.inside(at)) {
      x = *reinterpret_cast<const spt_raw *>(from + c.col);
    }
  } else {
#pragma unroll
    for (int e = 0; e < spt_pack<T>::N; e++) {
      if (c.inside(at, e)) {
        set_raw_element(from[(c.col + e) * a.col], &x, e);
      }
    }
  }
  return x;
}

/* ---- sums of squares ---------------------------------------------------------------------------- */

/* high + low, exactly, of pairs of floats. An overflow leaves NaN in low: the sum is then done again. */
static __device__ __forceinline__ void add_to_pair(float *high, float *low, float x) {
  float sum = *high + x, part = sum - *high;
  *low += (*high - (sum - part)) + (x - part);
  *high = sum;
}

/* Of the thread's packs, one sum or one for each column of the packs. */
template <typename T, bool PACKED, bool SINGLE, bool HELD>
static __device__ __forceinline__ void sum_squares(const group_job &job, const spt_place &at,
                                                   group_sum *sums, spt_raw *held) {
  constexpr int N = spt_pack<T>::N, SUMS = SINGLE ? 1 : N;
  float high[SUMS] = {}, low[SUMS] = {}, peak[SUMS] = {};
  const T *w = cell_of<const T>(job.w, at);
  spt_cursor c(at);
#pragma unroll 1
  for (int i = 0; i < job.patch.packs; i += BATCH) {
    spt_raw x[BATCH];
#pragma unroll
    for (int u = 0; u < BATCH; u++) {
      x[u] = load_raw<T, PACKED>(w, job.w, at, c);
      c.advance(job.patch, at);
    }
    float part[SUMS] = {};
#pragma unroll
    for (int u = 0; u < BATCH; u++) {
      if (HELD && i + u < job.patch.packs) {
        held[(i + u) * THREADS + threadIdx.x] = x[u];
      }
#pragma unroll
      for (int e = 0; e < N; e++) {
        float value = raw_element(w, x[u], e);
        part[e % SUMS] = fmaf(value, value, part[e % SUMS]);
        peak[e % SUMS] = fmaxf(peak[e % SUMS], fabsf(value));
      }
    }
#pragma unroll
    for (int s = 0; s < SUMS; s++) {
      add_to_pair(&high[s], &low[s], part[s]);
    }
  }
#pragma unroll
  for (int s = 0; s < SUMS; s++) {
    sums[threadIdx.x * SUMS + s] = {high[s] + low[s], peak[s]};
  }
}

/* A lane's share of a group's sum in the cell, in double. `row`, `col`: the group's first there. */
template <typename T>
static __device__ double exact_sum(const group_job &job, int64_t row, int64_t col, int rows,
                                   int cols, int lane) {
  const T *x = reinterpret_cast<const T *>(job.w.data) + row * job.w.row + col * job.w.col;
  double sum = 0.0;
#pragma unroll 1
  for (int i = lane; i < rows * cols; i += job.patch.team) {
    double value = (double)spt_load(x + i / cols * job.w.row + i % cols * job.w.col);
    sum += value * value;
  }
  return sum;
}

/* What a complete sum becomes. */
static __device__ double finish(const group_job &job, double sum, int64_t band, int64_t group,
                                double *penalty) {
  const spt_patch &p = job.patch;
  if (job.mean) {
    int64_t rows = spt_least(p.group_rows, p.rows - band * p.group_rows);
    int64_t cols = spt_least(p.group_cols, p.cols - group * p.group_cols);
    sum /= (double)(rows * cols);
  }
  double norm = sqrt(sum), value = norm;
  double beta = job.beta.data != NULL ? (double)load_any(job.beta, band, group) : 1.0;
  if (job.penalties != NULL) {
    *penalty += beta * norm;
  } else if (job.rule == GROUP_BETA) {
    value = 1.0 / (norm + job.amount);
  } else if (job.rule != GROUP_NORM) {
    double rate = norm == 0.0 ? 0.0 : job.amount * beta / norm; /* NaN and infinity pass */
    double kept = 1.0 - rate;
    value = job.rule == GROUP_GRAD ? rate : kept < 0.0 ? 0.0 : kept;
  }
  if (job.values.data != NULL) {
    reinterpret_cast<float *>(job.values.data)[band * job.values.row + group * job.values.col] =
        (float)value;
  }
  return value;
}

/* The sums of the cell's groups: a team of lanes for each. All threads of the block come here. */
template <typename T, bool SINGLE>
static __device__ __forceinline__ void fold(const group_job &job, const spt_place &at,
                                            group_sum *sums, double *penalty) {
  const spt_patch &p = job.patch;
  int width = p.tx * (SINGLE ? 1 : p.pack), team = p.team, teams = THREADS / team;
  int own = p.per_chunk == 1 ? width : (int)p.group_cols / (SINGLE ? p.pack : 1);
  int lane = (int)threadIdx.x % team, n = p.bands * p.per_chunk;
  int64_t piece_row = at.first_row - at.band * p.group_rows;
  for (int first = 0; first < n; first += teams) { /* all lanes, for the shuffles */
    int g = first + (int)threadIdx.x / team, b = g / p.per_chunk, place = g % p.per_chunk;
    int64_t band = at.stack * p.bands + b, group = at.first_group + place;
    bool there = g < n && band < p.down && group < p.across;
    group_sum *of_group = sums + b * p.ty * width + place * own;
    double sum = 0.0;
    float peak = 0.0f;
    for (int i = lane; there && i < own * p.ty; i += team) {
      group_sum some = of_group[i / own * width + i % own];
      sum += (double)some.sum;
      peak = fmaxf(peak, some.peak);
    }
    for (int offset = team / 2; offset > 0; offset /= 2) {
      sum += __shfl_xor_sync(SPT_ALL_LANES, sum, offset);
      peak = fmaxf(peak, __shfl_xor_sync(SPT_ALL_LANES, peak, offset));
    }
    bool right = (sum >= LEAST_SUM && sum <= MOST_SUM) || (sum == 0.0 && peak == 0.0f);
    if (__any_sync(SPT_ALL_LANES, there && !right)) {
      double exact = 0.0;
      if (there && !right) {
        int64_t row = band * p.group_rows + piece_row, from = place * p.group_cols;
        int64_t row_end = spt_least((band + 1) * p.group_rows, p.rows);
        int rows = (int)spt_least(p.piece_rows, row_end - row);
        int cols = (int)spt_least(p.group_cols, at.cols - from);
        exact = exact_sum<T>(job, row, at.first_col + from, rows, cols, lane);
      }
      for (int offset = team / 2; offset > 0; offset /= 2) {
        exact += __shfl_xor_sync(SPT_ALL_LANES, exact, offset);
      }
      sum = right ? sum : exact;
    }
    __syncwarp(); /* all lanes of the team have read its sums */
    if (there && lane == 0 && job.partial != NULL) {
      job.partial[(band * p.across + group) * spt_parts(p) + at.part] = sum;
    } else if (there && lane == 0) {
      *reinterpret_cast<double *>(of_group) = finish(job, sum, band, group, penalty);
    }
  }
}

/* ---- scaling ------------------------------------------------------------------------------------ */

/* The factor of column e of the thread: that of group g of its band in the cell is at g * step. */
static __device__ __forceinline__ double factor_at(const spt_patch &p, const spt_place &at, int e,
                                                   const double *factors, int64_t step) {
  return factors[(p.per_chunk == 1 ? 0 : (at.col + e) / (int)p.group_cols) * step];
}

/* Factors that leave float32, or would leave it where they multiply: an element at a time, in double. */
template <typename T>
static __device__ void scale_exactly(const group_job &job, const spt_place &at,
                                     const double *factors, int64_t step) {
  const group_array &y = job.scaled;
  const T *w = cell_of<const T>(job.w, at);
  spt_cursor c(at);
#pragma unroll 1
  for (int i = 0; i < job.patch.packs; i++) {
#pragma unroll 1
    for (int e = 0; e < spt_pack<T>::N && c.inside(at, e); e++) {
      double value = (double)spt_load(w + c.row * job.w.row + (c.col + e) * job.w.col);
      value *= factor_at(job.patch, at, e, factors, step);
      int64_t place = (at.first_row + c.row) * y.row + (at.first_col + c.col + e) * y.col;
      char *to = y.data + place * (y.dtype == SPT_F32 ? 4 : 2);
      spt_store_any(to, y.dtype,
                    (float)(value + (job.add ? (double)spt_load_any(to, y.dtype) : 0.0)));
    }
    c.advance(job.patch, at);
  }
}

template <typename T, bool PACKED, int SUMS>
static __device__ __forceinline__ void scale_pack(const group_job &job, const spt_place &at,
                                                  const spt_cursor &c, const spt_raw &x,
                                                  const spt_raw &old, const float *factors) {
  const T *type = nullptr;
  const group_array &y = job.scaled;
  if (PACKED) {
    spt_raw to = {};
#pragma unroll
    for (int e = 0; e < spt_pack<T>::N; e++) {
      float value = factors[e % SUMS] * raw_element(type, x, e);
      value = job.add ? raw_element(type, old, e) + value : value;
      set_raw_element(spt_round_to((T *)nullptr, value), &to, e);
    }
    if (c.inside(at)) {
      *reinterpret_cast<spt_raw *>(cell_of<T>(y, at) + c.row * y.row + c.col) = to;
    }
  } else {
#pragma unroll
    for (int e = 0; e < spt_pack<T>::N; e++) {
      if (c.inside(at, e)) {
        int64_t place = (at.first_row + c.row) * y.row + (at.first_col + c.col + e) * y.col;
        char *to = y.data + place * (y.dtype == SPT_F32 ? 4 : 2);
        float value = factors[e % SUMS] * raw_element(type, x, e);
        spt_store_any(to, y.dtype, job.add ? spt_load_any(to, y.dtype) + value : value);
      }
    }
  }
}

/* The thread's packs, as held or as loaded again. */
template <typename T, bool PACKED, bool SINGLE, bool HELD>
static __device__ __forceinline__ void scale(const group_job &job, const spt_place &at,
                                             const double *factors, int64_t step,
                                             const spt_raw *held) {
  constexpr int SUMS = SINGLE ? 1 : spt_pack<T>::N;
  const spt_patch &p = job.patch;
  float narrow[SUMS] = {};
  bool fits = true;
#pragma unroll
  for (int s = 0; s < SUMS; s++) {
    if (at.row < at.rows && at.col + s < at.cols) {
      double value = factor_at(p, at, s, factors, step), size = fabs(value);
      narrow[s] = (float)value;
      fits = fits && ((size >= LEAST_FACTOR && size <= MOST_FACTOR) || size == 0.0);
    }
  }
  if (!fits) {
    scale_exactly<T>(job, at, factors, step);
    return;
  }
  const T *w = cell_of<const T>(job.w, at), *y = cell_of<const T>(job.scaled, at);
  spt_cursor c(at);
#pragma unroll 1
  for (int i = 0; i < p.packs; i += SCALE_BATCH) {
    spt_raw x[SCALE_BATCH] = {}, old[SCALE_BATCH] = {};
    spt_cursor from = c;
#pragma unroll
    for (int u = 0; u < SCALE_BATCH; u++) {
      if (!HELD) {
        x[u] = load_raw<T, PACKED>(w, job.w, at, c);
      } else if (i + u < p.packs) {
        x[u] = held[(i + u) * THREADS + threadIdx.x];
      }
      if (PACKED && job.add) {
        old[u] = load_raw<T, PACKED>(y, job.scaled, at, c);
      }
      c.advance(p, at);
    }
#pragma unroll
    for (int u = 0; u < SCALE_BATCH; u++) {
      scale_pack<T, PACKED, SUMS>(job, at, from, x[u], old[u], narrow);
      from.advance(p, at);
    }
  }
}

/* The block's sum of `value` to its place in `sums`: always in the same order. `shared`: one double a
 * thread. */
static __device__ void store_block_sum(double value, double *shared, double *sums) {
  __syncthreads();
  shared[threadIdx.x] = value;
  __syncthreads();
  if (threadIdx.x < SPT_WARP) {
    double sum = 0.0;
    for (unsigned i = threadIdx.x; i < blockDim.x; i += SPT_WARP) {
      sum += shared[i];
    }
    sum = spt_warp_sum(sum);
    if (threadIdx.x == 0) {
      sums[blockIdx.x] = sum;
    }
  }
}

#endif
