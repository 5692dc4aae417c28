/* attention_backward's first pass: of every query and head lse and delta = grad . out, one after the other
 * in memory, and for float16 the greatest |grad| of each sequence and kv head. Bound by memory: it reads
 * grad and out once.
 *
 * delta is summed in the order in which the kernels that follow sum grad . v. A query that sees one key
 * has out = v, and its dS is then exactly 0. */
#include "attention_backward_tiles.cuh"
#include "attention_backward_stats.cuh"

static __device__ __forceinline__ void take_peak(const spt_backward_stats &to,
                                                 const spt_attention_view &v, const spt_span &s,
                                                 int64_t head, float peak) {
  peak = spt_warp_max(peak);
  if (threadIdx.x % SPT_WARP == 0) { /* maxima are the same in any order */
    int64_t at = s.number * v.kv_heads + head / (v.heads / v.kv_heads);
    atomicMax(to.peaks + at, __float_as_uint(peak));
  }
}

/* Any width and type, feature by feature: a warp to 32 rows, which pass through shared memory 32 features
 * at a time. Grid: spt_side_blocks of 128 queries. */
static const int PLAIN_ROWS = 128, PLAIN_PITCH = SPT_WARP + 1;

template <typename T>
__global__ void plain_stats_kernel(spt_backward p, spt_backward_stats to) {
  SPT_SHARED(float, memory);
  const spt_attention_view &v = p.view;
  spt_span s;
  int64_t head, own;
  if (!spt_find_side<false>(v, PLAIN_ROWS, &s, &head, &own)) {
    return;
  }
  int lane = threadIdx.x % SPT_WARP, warp = threadIdx.x / SPT_WARP;
  float *grad = memory + warp * 2 * SPT_WARP * PLAIN_PITCH, *out = grad + SPT_WARP * PLAIN_PITCH;
  own += warp * SPT_WARP;
  int rows = (int)spt_most(0, spt_least(SPT_WARP, s.queries - own));
  const T *grad_rows = spt_token_row<T>(p.grad, s.number, s.q_start + own, head);
  const T *out_rows = spt_token_row<T>(to.out, s.number, s.q_start + own, head);
  float sum = 0.0f, peak = 0.0f;
  for (int64_t c = 0; c < v.dv && rows > 0; c += SPT_WARP) {
    for (int row = 0; row < rows; row++) {
      bool inside = c + lane < v.dv;
      float x = inside ? spt_load(grad_rows + row * p.grad.token + (c + lane) * p.grad.feature) : 0;
      float y = inside ? spt_load(out_rows + row * to.out.token + (c + lane) * to.out.feature) : 0;
      grad[row * PLAIN_PITCH + lane] = x;
      out[row * PLAIN_PITCH + lane] = y;
      peak = fmaxf(peak, fabsf(x));
    }
    __syncwarp();
    for (int i = 0; i < SPT_WARP && lane < rows; i++) {
      sum = fmaf(grad[lane * PLAIN_PITCH + i], out[lane * PLAIN_PITCH + i], sum);
    }
    __syncwarp();
  }
  if (lane < rows) {
    int64_t at = spt_stats_row(v, s, head) + own + lane;
    to.delta[at] = sum;
    to.lse[at] = *spt_token_row<float>(to.lse_from, s.number, s.q_start + own + lane, head);
  }
  if (to.peaks != NULL && rows > 0) {
    take_peak(to, v, s, head, peak);
  }
}

/* On tensor cores: the diagonals of grad out^T, 16 rows to a warp. Grid: spt_side_blocks of OWN. */
template <typename T, class SHAPE>
__global__ void half_stats_kernel(spt_backward p, spt_backward_stats to) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  if (std::is_same<T, spt_bfloat>::value) {
    return; /* never launched: see spt_backward_halves_fits */
  }
#endif
  SPT_SHARED(T, grad);
  T *out = grad + SHAPE::OWN * SHAPE::PITCH;
  const spt_attention_view &v = p.view;
  spt_span s;
  int64_t head, own;
  bool found = spt_find_side<false>(v, SHAPE::OWN, &s, &head, &own);
  int rows = found ? (int)spt_most(0, spt_least(SHAPE::OWN, s.queries - own)) : 0;
  if (rows == 0) {
    return;
  }
  load_half_tile<T, SHAPE, SHAPE::OWN>(grad, p.grad, s.number, s.q_start + own, head, rows, v.dv,
                                       p.wide);
  load_half_tile<T, SHAPE, SHAPE::OWN>(out, to.out, s.number, s.q_start + own, head, rows, v.dv,
                                       to.wide_out);
  spt_cp_async_commit();
  spt_cp_async_wait<0>();
  __syncthreads();
  int lane = threadIdx.x % SPT_WARP, warp_row = threadIdx.x / SPT_WARP * SHAPE::WARP_ROWS;
  float left[4] = {0.0f, 0.0f, 0.0f, 0.0f}, right[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  const T *grad_rows = spt_lane_rows(grad + warp_row * SHAPE::PITCH, SHAPE::PITCH);
  const T *out_rows = spt_lane_keys(out + warp_row * SHAPE::PITCH, SHAPE::PITCH);
#pragma unroll
  for (int step = 0; step < SHAPE::STEPS; step++) {
    uint32_t a[4];
    spt_ldmatrix_x4(a, grad_rows + step * 16);
    spt_add_scores(left, right, a, out_rows + step * 16);
  }
  int row = warp_row + lane / 4, odd = lane / 4 % 2;
  int64_t at = spt_stats_row(v, s, head) + own;
  if (lane / 8 == lane % 4 && row < rows) { /* this lane has column lane / 4 of its rows */
    to.delta[at + row] = odd ? left[1] : left[0];
  }
  if (lane / 8 == lane % 4 && row + 8 < rows) {
    to.delta[at + row + 8] = odd ? right[3] : right[2];
  }
  if ((int)threadIdx.x < rows) {
    int64_t token = s.q_start + own + threadIdx.x;
    to.lse[at + threadIdx.x] = *spt_token_row<float>(to.lse_from, s.number, token, head);
  }
  if (to.peaks != NULL) {
    float peak = 0.0f;
    for (int i = lane; i < SHAPE::WARP_ROWS * SHAPE::WIDTH; i += SPT_WARP) {
      int x = warp_row + i / SHAPE::WIDTH;
      peak = fmaxf(peak, fabsf(spt_load(grad + x * SHAPE::PITCH + i % SHAPE::WIDTH)));
    }
    take_peak(to, v, s, head, peak);
  }
}

/* ---- launchers ----------------------------------------------------------------------------------- */

template <typename T, int WIDTH>
static spt_status launch_half_stats(spt_cuda_queue *queue, const spt_backward *p,
                                    const spt_backward_stats *to, spt_error *err) {
  using shape = half_tiles<WIDTH, false>;
  unsigned grid = (unsigned)spt_side_blocks(p->view, false, shape::OWN);
  SPT_LAUNCH("attention_backward", (half_stats_kernel<T, shape>), grid, shape::THREADS,
             2 * shape::OWN_BYTES, queue->stream, *p, *to);
  return SPT_OK;
}

template <typename T>
static spt_status launch_width(spt_cuda_queue *queue, const spt_backward *p,
                               const spt_backward_stats *to, spt_error *err) {
  int64_t width = spt_most(p->view.d, p->view.dv);
  if (width <= 32) {
    return launch_half_stats<T, 32>(queue, p, to, err);
  }
  if (width <= 64) {
    return launch_half_stats<T, 64>(queue, p, to, err);
  }
  return width <= 96 ? launch_half_stats<T, 96>(queue, p, to, err)
                     : launch_half_stats<T, 128>(queue, p, to, err);
}

spt_status spt_backward_find_stats(spt_cuda_queue *queue, const spt_backward *p,
                                   const spt_backward_stats *to, spt_dtype dtype, spt_error *err) {
  if (spt_stats_rows(p->view) == 0) {
    return SPT_OK;
  }
  if (dtype != SPT_F32 && spt_backward_halves_fits(queue, p, dtype)) {
    return dtype == SPT_F16 ? launch_width<spt_half>(queue, p, to, err)
                            : launch_width<spt_bfloat>(queue, p, to, err);
  }
  unsigned grid = (unsigned)spt_side_blocks(p->view, false, PLAIN_ROWS);
  const size_t shared = 2 * PLAIN_ROWS * PLAIN_PITCH * sizeof(float);
  SPT_WITH_STORAGE(dtype, T, {
    SPT_LAUNCH("attention_backward", plain_stats_kernel<T>, grid, PLAIN_ROWS, shared, queue->stream,
               *p, *to);
  });
  return SPT_OK;
}
