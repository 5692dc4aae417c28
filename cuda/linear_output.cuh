/* linear_output.cuh: what every product ends with: y = act(sum + bias) + residual, from sums in registers to
 * rows of any storage type and strides. */
#ifndef SPATILE_CUDA_LINEAR_OUTPUT_CUH
#define SPATILE_CUDA_LINEAR_OUTPUT_CUH

#include "activation.cuh"
#include "opaque.cuh"
#include "pack.cuh"
#include "warp.cuh"

/* Strides in bytes. y (rows, cols), bias (cols) or NULL, residual (rows, cols) or NULL. `packed`: groups of
 * 4 columns that start at a multiple of 4 are whole and lie together, aligned as one, in y and residual. */
struct spt_linear_output {
  char *y;
  const char *bias, *residual;
  int64_t y_row, y_col, bias_step, residual_row, residual_col;
  int64_t rows, cols;
  int32_t y_dtype, bias_dtype, residual_dtype, activation;
  bool packed;
};

static inline bool spt_has_fours(const spt_matrix *m) {
  int64_t size = spt_storage_bytes(m->dtype);
  return (m->col == 1 || m->cols <= 1) && m->cols % 4 == 0 && (m->row % 4 == 0 || m->rows <= 1) &&
         (uintptr_t)m->data % (uintptr_t)(4 * size) == 0;
}

static inline spt_linear_output spt_linear_output_of(const spt_matrix *y, const spt_matrix *bias,
                                                     const spt_matrix *residual,
                                                     spt_activation activation) {
  spt_linear_output o = {};
  o.y = static_cast<char *>(y->data);
  o.y_dtype = y->dtype;
  o.y_row = y->row * spt_storage_bytes(y->dtype);
  o.y_col = y->col * spt_storage_bytes(y->dtype);
  o.rows = y->rows;
  o.cols = y->cols;
  o.activation = activation;
  o.packed = spt_has_fours(y);
  if (bias != NULL && bias->data != NULL) {
    o.bias = static_cast<const char *>(bias->data);
    o.bias_dtype = bias->dtype;
    o.bias_step = bias->col * spt_storage_bytes(bias->dtype);
  }
  if (residual != NULL && residual->data != NULL) {
    int64_t size = spt_storage_bytes(residual->dtype);
    o.residual = static_cast<const char *>(residual->data);
    o.residual_dtype = residual->dtype;
    o.residual_row = residual->row * size;
    o.residual_col = residual->col * size;
    o.packed = o.packed && spt_has_fours(residual);
  }
  return o;
}

/* For the body of a rolled loop (opaque.cuh). */
static __device__ __forceinline__ spt_linear_output spt_opaque_output(spt_linear_output o) {
  o.y_dtype = spt_opaque(o.y_dtype);
  o.bias_dtype = spt_opaque(o.bias_dtype);
  o.residual_dtype = spt_opaque(o.residual_dtype);
  o.activation = spt_opaque(o.activation);
  o.bias = spt_opaque(o.bias);
  o.residual = spt_opaque(o.residual);
  return o;
}

static __device__ __forceinline__ float spt_bias_at(const spt_linear_output &o, int64_t col) {
  return o.bias == NULL || col < 0 || col >= o.cols
             ? 0.0f
             : spt_load_any(o.bias + col * o.bias_step, o.bias_dtype);
}

/* One element, the bias added and the activation applied already. Nothing outside y. */
static __device__ __forceinline__ void spt_put(const spt_linear_output &o, int64_t row, int64_t col,
                                               float value) {
  if (row >= o.rows || col < 0 || col >= o.cols) {
    return;
  }
  if (o.residual != NULL) {
    value +=
        spt_load_any(o.residual + row * o.residual_row + col * o.residual_col, o.residual_dtype);
  }
  spt_store_any(o.y + row * o.y_row + col * o.y_col, o.y_dtype, value);
}

static __device__ __forceinline__ uint32_t spt_narrow_pair(int dtype, float low, float high) {
  if (dtype == SPT_F16) {
    return spt_round_to((spt_half *)nullptr, low).bits |
           (uint32_t)spt_round_to((spt_half *)nullptr, high).bits << 16;
  }
  return spt_round_to((spt_bfloat *)nullptr, low).bits |
         (uint32_t)spt_round_to((spt_bfloat *)nullptr, high).bits << 16;
}

static __device__ __forceinline__ float2 spt_widen_pair(int dtype, uint32_t pair) {
  uint16_t low = (uint16_t)pair, high = (uint16_t)(pair >> 16);
  return dtype == SPT_F16
             ? make_float2(spt_to_float(spt_half{low}), spt_to_float(spt_half{high}))
             : make_float2(spt_to_float(spt_bfloat{low}), spt_to_float(spt_bfloat{high}));
}

/* The residual of columns col and col + 1, where the output is packed and col is even. */
static __device__ __forceinline__ float2 spt_residual_pair(const spt_linear_output &o, int64_t row,
                                                           int64_t col) {
  const char *p = o.residual + row * o.residual_row + col * (o.residual_dtype == SPT_F32 ? 4 : 2);
  return o.residual_dtype == SPT_F32
             ? *reinterpret_cast<const float2 *>(p)
             : spt_widen_pair(o.residual_dtype, *reinterpret_cast<const uint32_t *>(p));
}

/* Columns col and col + 1 where the output is packed and col is even. */
static __device__ __forceinline__ void spt_put_pair(const spt_linear_output &o, int64_t row,
                                                    int64_t col, float2 value) {
  if (row >= o.rows || col >= o.cols) {
    return;
  }
  if (o.residual != NULL) {
    float2 r = spt_residual_pair(o, row, col);
    value.x += r.x;
    value.y += r.y;
  }
  char *p = o.y + row * o.y_row + col * (o.y_dtype == SPT_F32 ? 4 : 2);
  if (o.y_dtype == SPT_F32) {
    *reinterpret_cast<float2 *>(p) = value;
  } else {
    *reinterpret_cast<uint32_t *>(p) = spt_narrow_pair(o.y_dtype, value.x, value.y);
  }
}

/* Columns col to col + 3 where the output is packed and col is a multiple of 4. */
static __device__ __forceinline__ void spt_put_four(const spt_linear_output &o, int64_t row,
                                                    int64_t col, float4 value) {
  if (row >= o.rows || col >= o.cols) {
    return;
  }
  if (o.residual != NULL) {
    float2 low = spt_residual_pair(o, row, col), high = spt_residual_pair(o, row, col + 2);
    value = make_float4(value.x + low.x, value.y + low.y, value.z + high.x, value.w + high.y);
  }
  if (o.y_dtype == SPT_F32) {
    *reinterpret_cast<float4 *>(o.y + row * o.y_row + col * 4) = value;
  } else {
    *reinterpret_cast<uint2 *>(o.y + row * o.y_row + col * 2) = make_uint2(
        spt_narrow_pair(o.y_dtype, value.x, value.y), spt_narrow_pair(o.y_dtype, value.z, value.w));
  }
}

/* What an mma of 16 columns of y by 8 of its rows leaves: lane 4 g + t has columns g and g + 8 of rows 2 t
 * and 2 t + 1. `first`: the tile's first column. All lanes of the warp come here.
 *
 * Neighbouring lanes exchange so that each has neighbouring columns of one row, and a warp's store
 * touches whole sectors of 32 bytes: pairs do for float32, fours for 16 bits. */
static __device__ __forceinline__ void spt_put_fragment(const spt_linear_output &o, int64_t row,
                                                        int64_t first, const float (&c)[4]) {
  int lane = (int)(threadIdx.x % SPT_WARP), g = lane / 4, odd = g & 1, upper = g / 2 & 1;
  float low = __shfl_xor_sync(SPT_ALL_LANES, odd ? c[0] : c[1], 4);
  float high = __shfl_xor_sync(SPT_ALL_LANES, odd ? c[2] : c[3], 4);
  float2 p = odd ? make_float2(low, c[1]) : make_float2(c[0], low);
  float2 q = odd ? make_float2(high, c[3]) : make_float2(c[2], high);
  int64_t at = row + 2 * (lane % 4) + odd, col = first + (g & ~1);
  if (o.y_dtype == SPT_F32) {
    spt_put_pair(o, at, col, p);
    spt_put_pair(o, at, col + 8, q);
    return;
  }
  if (o.residual != NULL && at < o.rows) {
    if (col < o.cols) {
      float2 r = spt_residual_pair(o, at, col);
      p = make_float2(p.x + r.x, p.y + r.y);
    }
    if (col + 8 < o.cols) {
      float2 r = spt_residual_pair(o, at, col + 8);
      q = make_float2(q.x + r.x, q.y + r.y);
    }
  }
  uint32_t p_bits = spt_narrow_pair(o.y_dtype, p.x, p.y);
  uint32_t q_bits = spt_narrow_pair(o.y_dtype, q.x, q.y);
  uint32_t other = __shfl_xor_sync(SPT_ALL_LANES, upper ? p_bits : q_bits, 8);
  col = upper ? col + 6 : col;
  if (at < o.rows && col < o.cols) {
    *reinterpret_cast<uint2 *>(o.y + at * o.y_row + col * 2) =
        upper ? make_uint2(other, q_bits) : make_uint2(p_bits, other);
  }
}

#endif
