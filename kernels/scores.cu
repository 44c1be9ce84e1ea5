// What a compaction needs to know of all layers: the attention that each slot gets from some queries.
#include "chunk.cuh"

// A layer to be scored. Its words lie behind the layers, in the same memory.
struct ScoredLayer {
  const void *queries;     // [heads, capacity, head_dim], not rotated: its query ring
  const void *keys;        // T *, [kv_heads, budget, head_dim], before rotation; of q8 [kv_heads, budget, row]
  const float *cos, *sin;  // [rows, head_dim / 2] each
  uint32_t count, len;     // queries, the first `count` of each head; slots in use
  uint32_t ranks;          // where they begin, in words from the first layer on: [budget] for each kept set
  uint32_t positions;      // likewise, of the queries: [count]
};

// What both score kernels take.
struct Scores {
  const ScoredLayer *layers;
  uint32_t query_type, capacity, rank_stride, row_stride, group, head_dim, budget;
  float scale;

  template <typename T, int CAP> __device__ __forceinline__ Tile<T, CAP> tile(unsigned layer, unsigned kv) const {
    const ScoredLayer of = layers[layer];
    const uint32_t *words = reinterpret_cast<const uint32_t *>(layers);
    return {{static_cast<const T *>(of.keys), words + of.ranks, of.cos, of.sin, rank_stride, 0, row_stride, budget, head_dim, of.len},
            {of.queries, words + of.positions, query_type, capacity, of.count, group, scale},
            kv};
  }
};

// score_tops_T_CAP: of each query of each layer the highest logit and the sum of the others' powers. CAP: 64, 128, 256.
//   layers       const ScoredLayer *, [layers]: 48 bytes each, in memory of the device, and behind them their words
//   query_type   uint32: 0 f32, 1 f16, 2 bf16
//   capacity     uint32, of the query rings
//   rank_stride  uint32: from one KV head's ranks to the next, in elements; 0: all share one set
//   row_stride   uint32: from one KV head's rotary table to the next, in rows; 0: all share one
//   group        uint32: query heads of a KV head
//   head_dim     uint32: even, at most CAP
//   budget       uint32
//   scale        float: 1 / sqrt(head_dim)
//   tops         float *, [layers, heads, capacity, 2]: highest (times log2(e)), and sum of 2^(each - the highest)
// Grid: (ceil(group * largest count / N), kv_heads, layers), N = 32, for CAP 256 16; block: 128 threads.
template <typename T, int CAP> __device__ __forceinline__ void score_tops(const Scores &scores, float *tops) {
  using Shape = Tile<T, CAP>;
  constexpr int N = Shape::N, R = Shape::R, S = Shape::S;
  SHARED(float, s_q, [N][Shape::PITCH]);
  SHARED(float, s_k, [N][Shape::PITCH]);
  SHARED(uint32_t, s_positions, [N]);
  SHARED(uint32_t, s_ranks, [N]);
  wait_for_producer();
  let_consumer_start();
  const Shape tile = scores.tile<T, CAP>(blockIdx.z, blockIdx.y);
  const unsigned first_row = blockIdx.x * N;
  if (first_row >= tile.rows()) return;
  tile.take_queries(first_row, s_q, s_positions);
  float top[R], sum[R];
#pragma unroll
  for (int r = 0; r < R; ++r) {
    top[r] = -INFINITY;
    sum[r] = 0;
  }
  for (unsigned first = 0; first < tile.keys.len; first += N) {
    __syncthreads();
    tile.take_keys(first, s_k, s_ranks);
    __syncthreads();
    float logit[R][S];
    tile.logits(s_q, s_positions, s_k, s_ranks, logit);
#pragma unroll
    for (int r = 0; r < R; ++r) take_logits(logit[r], top[r], sum[r]);
  }
  if (threadIdx.x % 8 != 0) return;
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const unsigned row = first_row + tile.row_of_thread(r);
    if (row >= tile.rows()) continue;
    const size_t heads = size_t(gridDim.y) * scores.group;
    const size_t query = (blockIdx.z * heads + tile.head(row)) * scores.capacity + row % tile.queries.count;
    tops[2 * query] = top[r];
    tops[2 * query + 1] = sum[r];
  }
}

// score_sums_T_CAP: the probability that each slot gets: the sum over the queries of the mean over the heads of each KV head. No
// bit depends on an order: a thread adds up its queries one after the other. Arguments as score_tops, then
//   sums         float *, [layers, kv_heads, budget]; of each row the first len are written
// Grid: (ceil(largest len / N), kv_heads, layers); block: 128 threads. With tops of attend_chunk and one layer, whose capacity and
// count are the chunk's tokens, it gives the sums of a chunk.
template <typename T, int CAP> __device__ __forceinline__ void score_sums(const Scores &scores, const float *tops, float *sums) {
  using Shape = Tile<T, CAP>;
  constexpr int N = Shape::N, R = Shape::R, S = Shape::S;
  SHARED(float, s_q, [N][Shape::PITCH]);
  SHARED(float, s_k, [N][Shape::PITCH]);
  SHARED(float, s_sums, [CHUNK_THREADS / 8][N]);
  SHARED(uint32_t, s_positions, [N]);
  SHARED(uint32_t, s_ranks, [N]);
  wait_for_producer();
  let_consumer_start();
  const Shape tile = scores.tile<T, CAP>(blockIdx.z, blockIdx.y);
  const unsigned first = blockIdx.x * N;
  if (first >= tile.keys.len) return;
  tile.take_keys(first, s_k, s_ranks);
  float sum[S];
#pragma unroll
  for (int s = 0; s < S; ++s) sum[s] = 0;
  const size_t heads = size_t(gridDim.y) * scores.group;
  for (unsigned first_row = 0; first_row < tile.rows(); first_row += N) {
    __syncthreads();
    tile.take_queries(first_row, s_q, s_positions);
    __syncthreads();
    float logit[R][S];
    tile.logits(s_q, s_positions, s_k, s_ranks, logit);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const unsigned row = first_row + tile.row_of_thread(r);
      if (row >= tile.rows()) continue;
      const size_t query = (blockIdx.z * heads + tile.head(row)) * scores.capacity + row % tile.queries.count;
      const float top = fresh(tops + 2 * query), all = fresh(tops + 2 * query + 1);
#pragma unroll
      for (int s = 0; s < S; ++s)
        if (logit[r][s] != -INFINITY) sum[s] += exp2f(logit[r][s] - top) / all;
    }
  }
#pragma unroll
  for (int s = 0; s < S; ++s) s_sums[threadIdx.x / 8][tile.slot_of_thread(s)] = sum[s];
  __syncthreads();
  for (unsigned n = threadIdx.x; n < N; n += CHUNK_THREADS) {
    if (first + n >= tile.keys.len) continue;
    float all = 0;
    for (int i = 0; i < CHUNK_THREADS / 8; ++i) all += s_sums[i][n];
    sums[(size_t(blockIdx.z) * gridDim.y + tile.kv) * scores.budget + first + n] = all / float(scores.group);
  }
}

#define SCORES(suffix, T, CAP)                                                                                                       \
  KERNEL(CHUNK_THREADS, 1) score_tops_##suffix##_##CAP(const ScoredLayer *layers, uint32_t query_type, uint32_t capacity,           \
                                                       uint32_t rank_stride, uint32_t row_stride, uint32_t group, \
                                                       uint32_t head_dim, uint32_t budget, float scale, float *tops) { \
    score_tops<T, CAP>({layers, query_type, capacity, rank_stride, row_stride, group, head_dim, budget, scale}, tops);    \
  }                                                                                                                                  \
  EXPORT(score_tops_##suffix##_##CAP)                                                                                                \
  KERNEL(CHUNK_THREADS, 1) score_sums_##suffix##_##CAP(const ScoredLayer *layers, uint32_t query_type, uint32_t capacity,           \
                                                       uint32_t rank_stride, uint32_t row_stride, uint32_t group, \
                                                       uint32_t head_dim, uint32_t budget, float scale,             \
                                                       const float *tops, float *sums) {                                            \
    score_sums<T, CAP>({layers, query_type, capacity, rank_stride, row_stride, group, head_dim, budget, scale}, tops, sums); \
  }                                                                                                                                  \
  EXPORT(score_sums_##suffix##_##CAP)
#define SCORE_SIZES(suffix, T) SCORES(suffix, T, 64) SCORES(suffix, T, 128) SCORES(suffix, T, 256)
SCORE_SIZES(f32, float)
SCORE_SIZES(f16, f16)
SCORE_SIZES(bf16, bf16)
SCORE_SIZES(q8, q8)
