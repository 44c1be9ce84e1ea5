// Causal attention of a chunk of queries over a bounded cache that holds their keys already.
#include "chunk.cuh"

// attend_chunk_T_CAP: a query sees the slots in use whose rank is not above its position. CAP: 64, 128, 256.
//   q            const void *, [heads, tokens, head_dim], not rotated
//   q_type       uint32, of q and out: 0 f32, 1 f16, 2 bf16
//   positions    const uint32 *, [tokens]
//   tokens       uint32
//   keys values  const T *, [kv_heads, budget, head_dim] each, keys before rotation; of q8 [kv_heads, budget, row]
//   ranks        const uint32 *, [budget] for each kept set
//   rank_stride  uint32: from one KV head's ranks to the next, in elements; 0: all share one set
//   cos sin      const float *, [rows, head_dim / 2]; rank or position r of KV head h: row first_row + h * row_stride + r
//   first_row    uint32
//   row_stride   uint32
//   group        uint32: query heads of a KV head
//   head_dim     uint32: even, at most CAP
//   budget       uint32
//   len          uint32: slots in use
//   scale        float: 1 / sqrt(head_dim)
//   tops         float *, [heads, tokens, 2], as score_sums takes it; or null
//   partial      float *, [kv_heads * tiles * splits * N * (head_dim + 2)], scratch; null if splits is 1
//   arrived      uint32 *, [kv_heads * tiles], zeros, and zeros again afterwards; null if splits is 1
//   out          void *, [heads, tokens, head_dim]
// Grid: (tiles = ceil(group * tokens / N), kv_heads, splits), N = 32, for CAP 256 16; block: 128 threads. splits: any number; bits
// depend on it. A query that sees nothing gets zeros.
template <typename T, int CAP>
__device__ __forceinline__ void attend_chunk(const Tile<T, CAP> &tile, const T *values, float *tops, float *partial, uint32_t *arrived,
                                             void *out) {
  using Shape = Tile<T, CAP>;
  constexpr int N = Shape::N, R = Shape::R, S = Shape::S, DIMS = CAP / 32;
  SHARED(float, s_q, [N][Shape::PITCH]);
  SHARED(float, s_kv, [N][Shape::PITCH]);
  SHARED(float, s_p, [N][N + 1]);
  SHARED(uint32_t, s_positions, [N]);
  SHARED(uint32_t, s_ranks, [N]);
  SHARED(unsigned, s_last, [1]);
  const unsigned hd = tile.keys.head_dim, len = tile.keys.len, first_row = blockIdx.x * N, splits = gridDim.z, split = blockIdx.z;
  const unsigned column = threadIdx.x % 8 * 4;  // the thread's elements of the result: four from column + 32 * c on
  wait_for_producer();
  let_consumer_start();
  tile.take_queries(first_row, s_q, s_positions);

  float top[R], sum[R], acc[R][DIMS][4];
#pragma unroll
  for (int r = 0; r < R; ++r) {
    top[r] = -INFINITY;
    sum[r] = 0;
#pragma unroll
    for (int c = 0; c < DIMS; ++c)
#pragma unroll
      for (int i = 0; i < 4; ++i) acc[r][c][i] = 0;
  }
  const unsigned blocks = (len + N - 1) / N, per = (blocks + splits - 1) / splits * N;
  const unsigned end = min(len, (split + 1) * per);
  for (unsigned first = split * per; first < end; first += N) {
    __syncthreads();
    tile.take_keys(first, s_kv, s_ranks);
    __syncthreads();
    float logit[R][S];
    tile.logits(s_q, s_positions, s_kv, s_ranks, logit);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const float keep = take_logits(logit[r], top[r], sum[r]);
#pragma unroll
      for (int c = 0; c < DIMS; ++c)
#pragma unroll
        for (int i = 0; i < 4; ++i) acc[r][c][i] *= keep;
#pragma unroll
      for (int s = 0; s < S; ++s) s_p[tile.row_of_thread(r)][tile.slot_of_thread(s)] = logit[r][s];
    }
    __syncthreads();
    tile.take_values(values, first, s_kv);
    __syncthreads();
#pragma unroll 4
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int c = 0; c < DIMS; ++c) {
        if (column + 32 * c >= hd) continue;
        const float4 v = *reinterpret_cast<const float4 *>(&s_kv[n][column + 32 * c]);
#pragma unroll
        for (int r = 0; r < R; ++r) {
          const float p = s_p[tile.row_of_thread(r)][n];
          acc[r][c][0] += p * v.x;
          acc[r][c][1] += p * v.y;
          acc[r][c][2] += p * v.z;
          acc[r][c][3] += p * v.w;
        }
      }
    }
  }

  if (splits > 1) {
    // Sums [N, head_dim] of each split, then tops and sums [N, 2] of each.
    const unsigned at = tile.kv * gridDim.x + blockIdx.x, all_tiles = gridDim.x * gridDim.y;
    float *part = partial + size_t(at) * splits * N * hd, *stats = partial + (size_t(all_tiles) * hd + size_t(at) * 2) * splits * N;
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const unsigned row = split * N + tile.row_of_thread(r);
#pragma unroll
      for (int c = 0; c < DIMS; ++c)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (column + 32 * c + i < hd) part[size_t(row) * hd + column + 32 * c + i] = acc[r][c][i];
      if (threadIdx.x % 8 == 0) {
        stats[2 * row] = top[r];
        stats[2 * row + 1] = sum[r];
      }
    }
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) s_last[0] = atomicInc(&arrived[at], splits - 1) == splits - 1;
    __syncthreads();
    if (!s_last[0]) return;
    __threadfence();
#pragma unroll
    for (int r = 0; r < R; ++r) {
      float higher = -INFINITY, all = 0;
      for (unsigned s = 0; s < splits; ++s) higher = fmaxf(higher, fresh(stats + 2 * (s * N + tile.row_of_thread(r))));
#pragma unroll
      for (int c = 0; c < DIMS; ++c)
#pragma unroll
        for (int i = 0; i < 4; ++i) acc[r][c][i] = 0;
      for (unsigned s = 0; s < splits; ++s) {
        const unsigned row = s * N + tile.row_of_thread(r);
        const float of_split = fresh(stats + 2 * row), keep = of_split == -INFINITY ? 0.0f : exp2f(of_split - higher);
        all += fresh(stats + 2 * row + 1) * keep;
#pragma unroll
        for (int c = 0; c < DIMS; ++c)
#pragma unroll
          for (int i = 0; i < 4; ++i)
            if (column + 32 * c + i < hd) acc[r][c][i] += fresh(part + size_t(row) * hd + column + 32 * c + i) * keep;
      }
      top[r] = higher;
      sum[r] = all;
    }
  }
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const unsigned row = first_row + tile.row_of_thread(r);
    if (row >= tile.rows()) continue;
    const size_t query = tile.head(row) * tile.queries.capacity + row % tile.queries.count;
    const float by = sum[r] > 0.0f ? 1.0f / sum[r] : 0.0f;
#pragma unroll
    for (int c = 0; c < DIMS; ++c)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (column + 32 * c + i < hd) store_element(out, query * hd + column + 32 * c + i, acc[r][c][i] * by, tile.queries.type);
    if (tops && threadIdx.x % 8 == 0) {
      tops[2 * query] = top[r];
      tops[2 * query + 1] = sum[r];
    }
  }
}

#define ATTEND_CHUNK(suffix, T, CAP)                                                                                                    \
  KERNEL(CHUNK_THREADS, 1) attend_chunk_##suffix##_##CAP(                                                                              \
      const void *q, uint32_t q_type, const uint32_t *positions, uint32_t tokens, const T *keys, const T *values, const uint32_t *ranks, \
      uint32_t rank_stride, const float *cos, const float *sin, uint32_t first_row, uint32_t row_stride, uint32_t group,               \
      uint32_t head_dim, uint32_t budget, uint32_t len, float scale, float *tops, float *partial, uint32_t *arrived, void *out) {      \
    const Tile<T, CAP> tile = {{keys, ranks, cos, sin, rank_stride, first_row, row_stride, budget, head_dim, len},                     \
                               {q, positions, q_type, tokens, tokens, group, scale},                                                   \
                               blockIdx.y};                                                                                            \
    attend_chunk<T, CAP>(tile, values, tops, partial, arrived, out);                                                                   \
  }                                                                                                                                     \
  EXPORT(attend_chunk_##suffix##_##CAP)
#define ATTEND_CHUNK_SIZES(suffix, T) ATTEND_CHUNK(suffix, T, 64) ATTEND_CHUNK(suffix, T, 128) ATTEND_CHUNK(suffix, T, 256)
ATTEND_CHUNK_SIZES(f32, float)
ATTEND_CHUNK_SIZES(f16, f16)
ATTEND_CHUNK_SIZES(bf16, bf16)
ATTEND_CHUNK_SIZES(q8, q8)
