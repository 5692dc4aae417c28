/* attention_backward_tiles.cuh: float16 and bfloat16 tiles on tensor cores, as attention_backward_halves.cu
 * multiplies them: their place in shared memory, the way in and out, two kinds of products.
 *
 * Fragments are those of mma.m16n8k16: lane l holds rows l / 4 and l / 4 + 8, columns 2 (l % 4) and the
 * next one, of each 16 x 8 result. */
#ifndef SPATILE_CUDA_ATTENTION_BACKWARD_TILES_CUH
#define SPATILE_CUDA_ATTENTION_BACKWARD_TILES_CUH

#include <type_traits>

#include "attention_backward.cuh"
#include "attention_mma.cuh"

template <int WIDTH_, bool KEYS_>
struct half_tiles {
  static const int WIDTH = WIDTH_, OWN = SPT_BACKWARD_OWN, OTHER = WIDTH > 64 ? 16 : 32;
  static const bool KEYS = KEYS_;
  static const int THREADS = 128, WARP_ROWS = 16;
  static const int QUERIES = KEYS ? OTHER : OWN;
  static const int PITCH = WIDTH + 8; /* 16 bytes past a row: 8 rows meet 32 banks */
  static const int STEPS = WIDTH / 16, COLUMNS = WIDTH / 8;             /* of the width */
  static const int OTHER_STEPS = OTHER / 16, OTHER_COLUMNS = OTHER / 8; /* of a tile's others */
  /* Own rows stay in registers, where these suffice for them and both sums. */
  static const bool KEEP_OWN = WIDTH <= (KEYS ? 32 : 64);
  static const int KEPT_STEPS = KEEP_OWN ? STEPS : 1;

  /* Shared memory, in bytes: own rows, then two stages of others, stats and dropout. */
  static const int OWN_BYTES = 2 * OWN * PITCH, OTHER_BYTES = 2 * OTHER * PITCH;
  static const int STATS_BYTES = 4 * QUERIES, KEPT_BYTES = OWN * OTHER / 4;
  static const int STAGE_BYTES = 2 * OTHER_BYTES + 2 * STATS_BYTES + KEPT_BYTES;
  static const int BYTES = 2 * OWN_BYTES + 2 * STAGE_BYTES;
  /* And where there is a mask or a bias, by other and own. Lanes of a fragment meet 32 banks. */
  static const int ADDED_PITCH = OWN + 4, ADDED_BYTES = 4 * OTHER * ADDED_PITCH;
  static const int BYTES_WITH_ADDED = BYTES + 2 * ADDED_BYTES;
};

/* Where a stage's things are. */
template <typename T, class SHAPE>
struct half_tiles_stage {
  T *first, *second;
  float *lse, *delta;
  uint8_t *kept;
  float *added;

  __device__ __forceinline__ half_tiles_stage(unsigned char *memory, int stage) {
    added = reinterpret_cast<float *>(memory + SHAPE::BYTES + stage * SHAPE::ADDED_BYTES);
    memory += 2 * SHAPE::OWN_BYTES + stage * SHAPE::STAGE_BYTES;
    first = reinterpret_cast<T *>(memory);
    second = reinterpret_cast<T *>(memory + SHAPE::OTHER_BYTES);
    lse = reinterpret_cast<float *>(memory + 2 * SHAPE::OTHER_BYTES);
    delta = lse + SHAPE::QUERIES;
    kept = reinterpret_cast<uint8_t *>(delta + SHAPE::QUERIES);
  }
};

/* What a warp holds all the time: its own rows as first operands, and the sums of both products. */
template <class SHAPE>
struct half_tiles_registers {
  uint32_t own[2][SHAPE::KEPT_STEPS][4];
  float first[SHAPE::COLUMNS][4] = {}, second[SHAPE::KEYS ? SHAPE::COLUMNS : 1][4] = {};
  /* Of the lane's two own rows: the others that are seen, from the first tile's first on. */
  int low[2], high[2];
};

/* ---- in and out ---------------------------------------------------------------------------------- */

/* `rows` of the block's head from `token` on, to (ROWS, WIDTH), zeros around them; to be waited for. */
template <typename T, class SHAPE, int ROWS>
static __device__ __forceinline__ void load_half_tile(T *to, const spt_heads &x, int64_t sequence,
                                                      int64_t token, int64_t head, int rows,
                                                      int64_t width, bool wide) {
  const int width_full = SHAPE::WIDTH, packs = width_full / 8;
  const T *from = spt_token_row<T>(x, sequence, token, head);
  if (wide) {
#pragma unroll
    for (int begin = 0; begin < ROWS * packs; begin += SHAPE::THREADS) {
      int i = begin + threadIdx.x, row = i / packs, c = i % packs * 8;
      bool inside = row < rows && c < width;
      if (ROWS * packs % SHAPE::THREADS == 0 || i < ROWS * packs) {
        spt_cp_async_16(to + row * SHAPE::PITCH + c, inside ? from + row * x.token + c : from,
                        inside ? 16 : 0);
      }
    }
    return;
  }
#pragma unroll 1
  for (int i = threadIdx.x; i < ROWS * width_full; i += SHAPE::THREADS) {
    int row = i / width_full, c = i % width_full;
    bool inside = row < rows && c < width;
    to[row * SHAPE::PITCH + c] = inside ? from[row * x.token + c * x.feature] : T{0};
  }
}

/* What mask and bias add to a tile's scores, -inf where they hide; 0 where there is no row. */
template <class SHAPE>
static __device__ __forceinline__ void gather_added(float *to, const spt_attention_view &v,
                                                    const spt_span &s, int64_t head, int64_t own,
                                                    int64_t other) {
  const bool keys = SHAPE::KEYS;
#pragma unroll 1
  for (int i = threadIdx.x; i < SHAPE::OWN * SHAPE::OTHER; i += SHAPE::THREADS) {
    int x = keys ? i % SHAPE::OWN : i / SHAPE::OTHER; /* neighbouring threads, neighbouring keys */
    int y = keys ? i / SHAPE::OWN : i % SHAPE::OTHER;
    int64_t query = keys ? other + y : own + x, key = keys ? own + x : other + y;
    bool there = query < s.queries && key < s.keys;
    to[y * SHAPE::ADDED_PITCH + x] =
        there ? spt_pair_score(v, s.number, head, query, key, 0.0f) : 0.0f;
  }
}

/* A warp's 16 rows of sums, through the warp's rows of `tile`, to memory. */
template <typename T, class SHAPE>
static __device__ __forceinline__ void store_half_sums(T *tile, const spt_heads &x,
                                                       int64_t sequence, int64_t token,
                                                       int64_t head, int rows, int64_t width,
                                                       bool wide, float factor,
                                                       const float (&sums)[SHAPE::COLUMNS][4]) {
  int lane = threadIdx.x % 32;
  if (x.data == NULL || rows <= 0) {
    return;
  }
  __syncwarp();
#pragma unroll
  for (int n = 0; n < SHAPE::COLUMNS; n++) {
    T *to = tile + lane / 4 * SHAPE::PITCH + n * 8 + lane % 4 * 2;
    *reinterpret_cast<uint32_t *>(to) = spt_pack_pair<T>(sums[n][0] * factor, sums[n][1] * factor);
    *reinterpret_cast<uint32_t *>(to + 8 * SHAPE::PITCH) =
        spt_pack_pair<T>(sums[n][2] * factor, sums[n][3] * factor);
  }
  __syncwarp();
  const int width_full = SHAPE::WIDTH, packs = width_full / 8;
  T *to = spt_token_row<T>(x, sequence, token, head);
#pragma unroll 1
  for (int i = lane; wide && i < SHAPE::WARP_ROWS * packs; i += 32) {
    int row = i / packs, c = i % packs * 8;
    if (row < rows && c < width) {
      *reinterpret_cast<uint4 *>(to + row * x.token + c) =
          *reinterpret_cast<const uint4 *>(tile + row * SHAPE::PITCH + c);
    }
  }
#pragma unroll 1
  for (int i = lane; !wide && i < SHAPE::WARP_ROWS * width_full; i += 32) {
    int row = i / width_full, c = i % width_full;
    if (row < rows && c < width) {
      to[row * x.token + c * x.feature] = tile[row * SHAPE::PITCH + c];
    }
  }
}

/* ---- products ------------------------------------------------------------------------------------ */

/* product (16 own x OTHER) = own rows . other rows. `own` is the warp's rows, unless they are kept. */
template <typename T, class SHAPE>
static __device__ __forceinline__ void multiply_sides(float (&product)[SHAPE::OTHER_COLUMNS][4],
                                                      const uint32_t (&kept)[SHAPE::KEPT_STEPS][4],
                                                      const T *own, const T *other) {
  own = spt_lane_rows(own, SHAPE::PITCH);
  other = spt_lane_keys(other, SHAPE::PITCH);
#pragma unroll
  for (int n = 0; n < SHAPE::OTHER_COLUMNS; n++) {
    product[n][0] = product[n][1] = product[n][2] = product[n][3] = 0.0f;
  }
#pragma unroll
  for (int step = 0; step < SHAPE::STEPS; step++) {
    uint32_t a[4];
    if constexpr (SHAPE::KEEP_OWN) {
      a[0] = kept[step][0], a[1] = kept[step][1], a[2] = kept[step][2], a[3] = kept[step][3];
    } else {
      spt_ldmatrix_x4(a, own + step * 16);
    }
#pragma unroll
    for (int pair = 0; pair < SHAPE::OTHER_STEPS; pair++) {
      spt_add_scores(product[2 * pair], product[2 * pair + 1], a,
                     other + pair * 16 * SHAPE::PITCH + step * 16);
    }
  }
}

/* sums (16 own x WIDTH) += weights (16 own x OTHER) . other rows */
template <typename T, class SHAPE>
static __device__ __forceinline__ void add_products(float (&sums)[SHAPE::COLUMNS][4],
                                                    const float (&weights)[SHAPE::OTHER_COLUMNS][4],
                                                    const T *other) {
  other = spt_lane_rows(other, SHAPE::PITCH);
#pragma unroll
  for (int step = 0; step < SHAPE::OTHER_STEPS; step++) {
    uint32_t a[4];
    spt_as_operand<T>(a, weights[2 * step], weights[2 * step + 1]);
#pragma unroll
    for (int pair = 0; pair < SHAPE::STEPS; pair++) {
      spt_add_values(sums[2 * pair], sums[2 * pair + 1], a,
                     other + step * 16 * SHAPE::PITCH + pair * 16);
    }
  }
}

#endif
