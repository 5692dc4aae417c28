/* Sums of squares of groups, and what scales their weights. */
#include "../group_loops.h"
#include "vec.h"

typedef double vec_double __attribute__((vector_size(VEC_BYTES)));
typedef int64_t vec_double_mask __attribute__((vector_size(VEC_BYTES)));
typedef double vec_double_unaligned __attribute__((vector_size(VEC_BYTES), aligned(8), may_alias));
typedef float half_vec_unaligned __attribute__((vector_size(VEC_BYTES / 2), aligned(4), may_alias));

#define DOUBLES (VEC_WIDTH / 2)

static inline vec_double widen(const float *p) {
  return __builtin_convertvector(*(const half_vec_unaligned *)p, vec_double);
}
static inline vec_double load_double(const double *p) { return *(const vec_double_unaligned *)p; }

/* Storage as floats. */
static inline __attribute__((always_inline)) vec load_storage(const void *x, const spt_dtype dtype,
                                                              int64_t at) {
  const uint16_t *half = (const uint16_t *)x + at;
  return dtype == SPT_F16    ? vec_load_f16(half)
         : dtype == SPT_BF16 ? vec_load_bf16(half)
                             : vec_load((const float *)x + at);
}

/* The first n <= VEC_WIDTH elements, the rest zero. */
static inline __attribute__((always_inline)) vec load_part(const void *x, const spt_dtype dtype,
                                                           int64_t at, int64_t n) {
  if (n == VEC_WIDTH) {
    return load_storage(x, dtype, at);
  }
  if (dtype == SPT_F32) {
    return vec_load_part((const float *)x + at, n);
  }
  uint16_t padded[VEC_WIDTH] = {0};
  memcpy(padded, (const uint16_t *)x + at, (size_t)n * sizeof *padded);
  return load_storage(padded, dtype, 0);
}

static inline __attribute__((always_inline)) void store_storage(void *y, const spt_dtype dtype,
                                                                int64_t at, vec v) {
  uint16_t *half = (uint16_t *)y + at;
  if (dtype == SPT_F16) {
    vec_store_f16(half, v);
  } else if (dtype == SPT_BF16) {
    vec_store_bf16(half, v);
  } else {
    vec_store((float *)y + at, v);
  }
}

static inline __attribute__((always_inline)) void store_part(void *y, const spt_dtype dtype,
                                                             int64_t at, vec v, int64_t n) {
  if (n == VEC_WIDTH) {
    store_storage(y, dtype, at, v);
  } else if (dtype == SPT_F32) {
    vec_store_part((float *)y + at, v, n);
  } else {
    uint16_t padded[VEC_WIDTH];
    store_storage(padded, dtype, 0, v);
    memcpy((uint16_t *)y + at, padded, (size_t)n * sizeof *padded);
  }
}

/* A register, so that the compiler does not load again for a second use. */
static inline vec once(vec a) {
  __asm__("" : "+v"(a));
  return a;
}

/* Elements up to the first that begins a register's worth of memory: NumPy's large arrays begin 16
 * bytes into a cache line, and registers that cross lines take twice the time. */
static inline __attribute__((always_inline)) int64_t head_of(const void *x, const spt_dtype dtype,
                                                             int64_t n) {
  int64_t head = dtype == SPT_F32 ? (int64_t)(-(uintptr_t)x / sizeof(float) % VEC_WIDTH) : 0;
  return head < n ? head : n;
}

/* More rows at a time are more streams than the hardware's own prefetching follows. */
#define SQUARE_ROWS 8

static inline
    __attribute__((always_inline)) void square_at(float *sums, uint32_t *bits, const void *x,
                                                  const spt_dtype dtype, int64_t stride,
                                                  const int rows, int64_t c, int64_t n, bool add) {
  vec sum[2] = {{0}, {0}};
  vec_int any = {0};
#pragma GCC unroll 8
  for (int r = 0; r < rows; r++) {
    vec value = once(load_part(x, dtype, r * stride + c, n));
    sum[r % 2] += value * value;
    any |= (vec_int)value;
  }
  vec all = sum[0] + sum[1];
  store_part(sums, SPT_F32, c, add ? load_part(sums, SPT_F32, c, n) + all : all, n);
  store_part(bits, SPT_F32, c, (vec)((vec_int)load_part(bits, SPT_F32, c, n) | any), n);
}

static inline __attribute__((always_inline)) void square_some(float *sums, uint32_t *bits,
                                                              const void *x, const spt_dtype dtype,
                                                              int64_t stride, const int rows,
                                                              int64_t n, bool add) {
  int64_t c = head_of(x, dtype, n);
  if (c > 0) {
    square_at(sums, bits, x, dtype, stride, rows, 0, c, add);
  }
  for (; c + VEC_WIDTH <= n; c += VEC_WIDTH) {
    square_at(sums, bits, x, dtype, stride, rows, c, VEC_WIDTH, add);
  }
  if (c < n) {
    square_at(sums, bits, x, dtype, stride, rows, c, n - c, add);
  }
}

static inline __attribute__((always_inline)) void square_all(float *sums, uint32_t *bits,
                                                             const void *x, const spt_dtype dtype,
                                                             int64_t stride, int64_t rows,
                                                             int64_t n) {
  const char *at = x;
  int64_t r = 0, step = stride * (int64_t)(dtype == SPT_F32 ? sizeof(float) : sizeof(uint16_t));
  for (; r + SQUARE_ROWS <= rows; r += SQUARE_ROWS) {
    square_some(sums, bits, at + r * step, dtype, stride, SQUARE_ROWS, n, r > 0);
  }
  for (; r + 2 <= rows; r += 2) {
    square_some(sums, bits, at + r * step, dtype, stride, 2, n, r > 0);
  }
  if (r < rows) {
    square_some(sums, bits, at + r * step, dtype, stride, 1, n, r > 0);
  }
}

static void square_columns(float *sums, uint32_t *bits, const void *x, spt_dtype dtype,
                           int64_t stride, int64_t rows, int64_t n) {
  if (dtype == SPT_F32) {
    square_all(sums, bits, x, SPT_F32, stride, rows, n);
  } else if (dtype == SPT_F16) {
    square_all(sums, bits, x, SPT_F16, stride, rows, n);
  } else {
    square_all(sums, bits, x, SPT_BF16, stride, rows, n);
  }
}

#define ROW_CHAINS 4
#define ROW_BLOCK (16 * ROW_CHAINS * VEC_WIDTH) /* summed in float32 */

static inline __attribute__((always_inline)) double square_row(uint32_t *bits, const void *x,
                                                               const spt_dtype dtype, int64_t begin,
                                                               int64_t n) {
  double total = 0.0;
  vec_int any[2] = {{0}, {0}};
  for (int64_t block = 0; block < n; block += ROW_BLOCK) {
    int64_t end = n - block < ROW_BLOCK ? n : block + ROW_BLOCK, c = block;
    vec sum[ROW_CHAINS] = {{0}, {0}, {0}, {0}};
    for (; c + ROW_CHAINS * VEC_WIDTH <= end; c += ROW_CHAINS * VEC_WIDTH) {
#pragma GCC unroll 4
      for (int k = 0; k < ROW_CHAINS; k++) {
        vec value = once(load_storage(x, dtype, begin + c + k * VEC_WIDTH));
        sum[k] += value * value;
        any[k % 2] |= (vec_int)value;
      }
    }
    for (; c < end; c += VEC_WIDTH) {
      vec value = load_part(x, dtype, begin + c, end - c < VEC_WIDTH ? end - c : VEC_WIDTH);
      sum[0] += value * value;
      any[0] |= (vec_int)value;
    }
    total += vec_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
  }
  *bits |= vec_or(any[0] | any[1]);
  return total;
}

static void square_rows(double *sums, uint32_t *bits, const void *x, spt_dtype dtype,
                        int64_t stride, int64_t rows, int64_t n) {
  for (int64_t r = 0; r < rows; r++) {
    if (dtype == SPT_F32) {
      sums[r] += square_row(bits + r, x, SPT_F32, r * stride, n);
    } else if (dtype == SPT_F16) {
      sums[r] += square_row(bits + r, x, SPT_F16, r * stride, n);
    } else {
      sums[r] += square_row(bits + r, x, SPT_BF16, r * stride, n);
    }
  }
}

static void fold_columns(double *sums, const float *columns, int64_t n_groups, int64_t width) {
  if (width == 1) {
    for (int64_t g = 0; g < n_groups; g++) {
      sums[g] += columns[g];
    }
    return;
  }
  int64_t last = width % VEC_WIDTH == 0 ? VEC_WIDTH : width % VEC_WIDTH;
  for (int64_t g = 0; g < n_groups; g += VEC_WIDTH) {
    int64_t here = n_groups - g < VEC_WIDTH ? n_groups - g : VEC_WIDTH;
    float groups[VEC_WIDTH][VEC_WIDTH];
    bool direct = width == VEC_WIDTH && here == VEC_WIDTH;
    for (int64_t k = 0; !direct && k < here; k++) {
      const float *from = columns + (g + k) * width;
      vec sum = load_part(from, SPT_F32, width - last, last);
      for (int64_t c = 0; c < width - last; c += VEC_WIDTH) {
        sum += vec_load(from + c);
      }
      vec_store(groups[k], sum);
    }
    const float *from = direct ? columns + g * width : groups[0];
    float folded[VEC_WIDTH];
    vec_store(folded, vec_sums((const float (*)[VEC_WIDTH])from));
    for (int64_t k = 0; k < here; k++) {
      sums[g + k] += folded[k];
    }
  }
}

/* norm = amount * beta / norm, 0 for a zero group; NaN and infinity pass. */
static void pull_rates(double *norm, const float *beta, double amount, int64_t n) {
  int64_t g = 0;
  for (; g + DOUBLES <= n; g += DOUBLES) {
    vec_double own = load_double(norm + g), pull = {0};
    pull += amount;
    if (beta != NULL) {
      pull *= widen(beta + g);
    }
    vec_double_mask rate = (vec_double_mask)(pull / own) & ~(own == 0.0);
    *(vec_double_unaligned *)(norm + g) = (vec_double)rate;
  }
  for (; g < n; g++) {
    double pull = beta != NULL ? amount * beta[g] : amount;
    norm[g] = norm[g] == 0.0 ? 0.0 : pull / norm[g];
  }
}

static void group_values(double *norm, const float *beta, spt_group_rule rule, double amount,
                         int64_t n) {
  if (rule == SPT_GROUP_BETA) {
    for (int64_t g = 0; g < n; g++) {
      norm[g] = 1.0 / (norm[g] + amount);
    }
  } else if (rule != SPT_GROUP_NORM) {
    pull_rates(norm, beta, amount, n);
  }
  if (rule == SPT_GROUP_SHRINK) {
    for (int64_t g = 0; g < n; g++) {
      double kept = 1.0 - norm[g];
      norm[g] = kept < 0.0 ? 0.0 : kept;
    }
  }
}

static bool narrow_factors(float *y, const double *x, int64_t n) {
  vec_double_mask misfit = {0};
  int64_t g = 0;
  for (; g + DOUBLES <= n; g += DOUBLES) {
    vec_double value = load_double(x + g);
    vec_double size = (vec_double)((vec_double_mask)value & INT64_MAX);
    misfit |=
        ~((size >= (double)SPT_LEAST_FACTOR) & (size <= (double)SPT_MOST_FACTOR)) & ~(value == 0.0);
    *(half_vec_unaligned *)(y + g) = __builtin_convertvector(value, half_vec_unaligned);
  }
  bool fits = vec_or((vec_int)misfit) == 0;
  for (; g < n; g++) {
    double size = fabs(x[g]);
    fits &= (size >= SPT_LEAST_FACTOR && size <= SPT_MOST_FACTOR) || size == 0.0;
    y[g] = (float)x[g];
  }
  return fits;
}

static void repeat_row(float *y, const float *x, int64_t n, int64_t times) {
  for (int64_t i = 0; i < n; i++, y += times) {
    vec all = vec_set(x[i]);
    for (int64_t c = 0; c < times; c += VEC_WIDTH) {
      vec_store(y + c, all);
    }
  }
}

static inline __attribute__((always_inline)) vec scaled_at(const void *y, const void *x,
                                                           const spt_dtype dtype,
                                                           const float *factor,
                                                           const bool each_column, const bool add,
                                                           int64_t c, int64_t n) {
  vec scaled = each_column ? load_part(factor, SPT_F32, c, n) : vec_set(*factor);
  scaled *= load_part(x, dtype, c, n);
  return add ? load_part(y, dtype, c, n) + scaled : scaled;
}

typedef enum scale_mode { SCALE_PLAIN, SCALE_ADD, SCALE_STREAM } scale_mode;

static inline __attribute__((always_inline)) void scale_row(
    void *y, const void *x, const spt_dtype dtype, const float *factor, const bool each_column,
    const scale_mode mode, int64_t n, const float *next) {
  const bool add = mode == SCALE_ADD;
  int64_t c = head_of(y, dtype, n);
  if (c > 0) {
    store_part(y, dtype, 0, scaled_at(y, x, dtype, factor, each_column, add, 0, c), c);
  }
  for (; c + 4 * VEC_WIDTH <= n; c += 4 * VEC_WIDTH) {
    vec scaled[4];
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
      scaled[k] = scaled_at(y, x, dtype, factor, each_column, add, c + k * VEC_WIDTH, VEC_WIDTH);
      if (mode == SCALE_STREAM) {
        __builtin_prefetch(next + c + k * VEC_WIDTH, 0, 2);
      }
    }
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
      if (mode == SCALE_STREAM) {
        vec_stream((float *)y + c + k * VEC_WIDTH, scaled[k]);
      } else {
        store_storage(y, dtype, c + k * VEC_WIDTH, scaled[k]);
      }
    }
  }
  for (; c < n; c += VEC_WIDTH) {
    int64_t here = n - c < VEC_WIDTH ? n - c : VEC_WIDTH;
    store_part(y, dtype, c, scaled_at(y, x, dtype, factor, each_column, add, c, here), here);
  }
}

static inline __attribute__((always_inline)) void scale_each(const spt_scaling *s,
                                                             const spt_dtype dtype,
                                                             const bool each_column,
                                                             const scale_mode mode) {
  int64_t size = dtype == SPT_F32 ? sizeof(float) : sizeof(uint16_t);
  int64_t n = s->cols, x_step = s->x_stride * size, y_step = s->y_stride * size;
  const char *x = s->x;
  char *y = s->y;
  const float *factor = s->factor;
  for (int64_t r = s->rows; r > 0; r--) {
    scale_row(y, x, dtype, factor, each_column, mode, n, (const float *)(x + s->rows * x_step));
    factor += s->row_step;
    x += x_step;
    y += y_step;
  }
}

static inline __attribute__((always_inline)) void scale_mode_of(const spt_scaling *s,
                                                                const spt_dtype dtype,
                                                                const scale_mode mode) {
  if (s->each_column) {
    scale_each(s, dtype, true, mode);
  } else {
    scale_each(s, dtype, false, mode);
  }
}

static inline __attribute__((always_inline)) void scale_all(const spt_scaling *s,
                                                            const spt_dtype dtype) {
  if (s->add) {
    scale_mode_of(s, dtype, SCALE_ADD);
  } else {
    scale_mode_of(s, dtype, SCALE_PLAIN);
  }
}

static void scale_rows(const spt_scaling *s) {
  if (s->stream) {
    scale_mode_of(s, SPT_F32, SCALE_STREAM);
    _mm_sfence(); /* before the task is reported done */
    return;
  }
  if (s->dtype == SPT_F32) {
    scale_all(s, SPT_F32);
  } else if (s->dtype == SPT_F16) {
    scale_all(s, SPT_F16);
  } else {
    scale_all(s, SPT_BF16);
  }
}
