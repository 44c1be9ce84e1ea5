// Tiles of queries by tiles of slots: what attention of a chunk and scores share.
//
// The rows of a KV head are the queries of all heads of its group: row r is query r % count of head r / count of the group.
#pragma once
#include "q8.cuh"

constexpr int CHUNK_THREADS = 128;

// Where the keys of a layer lie and what they and the queries turn by.
template <typename T> struct Keys {
  const T *keys;  // [kv_heads, budget, head_dim], before rotation; of q8 [kv_heads, budget, row]
  const uint32_t *ranks;
  const float *cos, *sin;
  uint32_t rank_stride, first_row, row_stride, budget, head_dim, len;
};

struct Queries {
  const void *queries;  // [heads, capacity, head_dim], before rotation
  const uint32_t *positions;
  uint32_t type, capacity, count, group;
  float scale;
};

// A tile has N rows and N slots; 8 threads share R rows, each has S slots of them: thread t has the rows t / 8 * R + r and the slots
// t % 8 + 8 * s.
template <typename T, int CAP> struct Tile {
  static constexpr int N = CAP <= 128 ? 32 : 16, R = N / 16, S = N / 8, PITCH = CAP + 4, HALF_CAP = CAP / 2;
  using Rows = float[N][PITCH];

  Keys<T> keys;
  Queries queries;
  unsigned kv;

  __device__ __forceinline__ unsigned rows() const { return queries.group * queries.count; }
  __device__ __forceinline__ unsigned row_of_thread(int r) const { return threadIdx.x / 8 * R + r; }
  __device__ __forceinline__ unsigned slot_of_thread(int s) const { return threadIdx.x % 8 + 8 * s; }
  // Elements of a row in shared memory: zeros behind head_dim up to a multiple of 4.
  __device__ __forceinline__ unsigned padded() const { return (keys.head_dim + 3) / 4 * 4; }

  // What a slot has of keys or values.
  __device__ __forceinline__ const T *row(const T *of, unsigned slot) const {
    return of + (size_t(kv) * keys.budget + slot) * row_elements<T>(keys.head_dim);
  }

  // The head of a row, among all, and its query.
  __device__ __forceinline__ size_t head(unsigned row) const { return kv * queries.group + row / queries.count; }

  // Puts two elements of a row where they belong, turned.
  __device__ __forceinline__ void put(float *row, unsigned e, float low, float high, uint32_t rank, float by) const {
    const unsigned half = keys.head_dim / 2;
    const size_t turn = (size_t(keys.first_row) + size_t(kv) * keys.row_stride + rank) * half + e;
    const float c = keys.cos[turn], s = keys.sin[turn];
    row[e] = (low * c - high * s) * by;
    row[half + e] = (high * c + low * s) * by;
    if (e == 0)
      for (unsigned d = keys.head_dim; d < padded(); ++d) row[d] = 0.0f;
  }

  // Rotated and scaled queries of the rows from `first` on, and their positions.
  __device__ __forceinline__ void take_queries(unsigned first, Rows &to, uint32_t (&positions)[N]) const {
    const unsigned half = keys.head_dim / 2;
    for (unsigned i = threadIdx.x; i < N * HALF_CAP; i += CHUNK_THREADS) {
      const unsigned n = i / HALF_CAP, e = i % HALF_CAP, row = first + n;
      if (e >= half) continue;
      const bool there = row < rows();
      const unsigned query = there ? row % queries.count : 0;
      const size_t from = there ? (head(row) * queries.capacity + query) * keys.head_dim + e : 0;
      const float low = there ? load_element(queries.queries, from, queries.type) : 0.0f;
      const float high = there ? load_element(queries.queries, from + half, queries.type) : 0.0f;
      const uint32_t position = queries.positions[query];
      put(to[n], e, low, high, position, queries.scale * LOG2_E);
      if (e == 0) positions[n] = position;
    }
  }

  // Rotated keys of the slots from `first` on, and their ranks; a slot that is not in use is behind every position.
  __device__ __forceinline__ void take_keys(unsigned first, Rows &to, uint32_t (&ranks)[N]) const {
    const unsigned half = keys.head_dim / 2;
    for (unsigned i = threadIdx.x; i < N * HALF_CAP; i += CHUNK_THREADS) {
      const unsigned n = i / HALF_CAP, e = i % HALF_CAP, slot = first + n;
      if (e >= half) continue;
      const bool there = slot < keys.len;
      const T *from = row(keys.keys, there ? slot : 0);
      const uint32_t rank = there ? keys.ranks[size_t(kv) * keys.rank_stride + slot] : 0;
      const float low = there ? number(from, e, keys.head_dim) : 0.0f, high = there ? number(from, half + e, keys.head_dim) : 0.0f;
      put(to[n], e, low, high, rank, 1.0f);
      if (e == 0) ranks[n] = there ? rank : 0xffffffffu;
    }
  }

  __device__ __forceinline__ void take_values(const T *values, unsigned first, Rows &to) const {
    for (unsigned i = threadIdx.x; i < N * CAP; i += CHUNK_THREADS) {
      const unsigned n = i / CAP, d = i % CAP, slot = first + n;
      if (d >= padded()) continue;
      const bool there = slot < keys.len && d < keys.head_dim;
      to[n][d] = there ? number(row(values, slot), d, keys.head_dim) : 0.0f;
    }
  }

  // The thread's logits, times log2(e); minus infinity where a row does not see a slot: its rank is above the row's position.
  __device__ __forceinline__ void logits(const Rows &q, const uint32_t (&positions)[N], const Rows &k, const uint32_t (&ranks)[N],
                                         float (&logit)[R][S]) const {
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int s = 0; s < S; ++s) logit[r][s] = 0;
#pragma unroll 4
    for (unsigned d = 0; d < padded(); d += 4) {
      float4 x[R], y[S];
#pragma unroll
      for (int r = 0; r < R; ++r) x[r] = *reinterpret_cast<const float4 *>(&q[row_of_thread(r)][d]);
#pragma unroll
      for (int s = 0; s < S; ++s) y[s] = *reinterpret_cast<const float4 *>(&k[slot_of_thread(s)][d]);
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int s = 0; s < S; ++s) logit[r][s] += x[r].x * y[s].x + x[r].y * y[s].y + x[r].z * y[s].z + x[r].w * y[s].w;
    }
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int s = 0; s < S; ++s)
        if (ranks[slot_of_thread(s)] > positions[row_of_thread(r)]) logit[r][s] = -INFINITY;
  }
};

// Over the 8 threads that share rows, the same in each.
__device__ __forceinline__ float highest_of_8(float x) {
#pragma unroll
  for (int m = 4; m > 0; m /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, m));
  return x;
}

// Takes logits into a running maximum and sum of 2^(each - the maximum), of one row; leaves those powers in their place. Returns
// what older sums are to be multiplied by.
template <int S> __device__ __forceinline__ float take_logits(float (&logit)[S], float &top, float &sum) {
  float higher = top;
#pragma unroll
  for (int s = 0; s < S; ++s) higher = fmaxf(higher, logit[s]);
  higher = highest_of_8(higher);
  const float keep = top == higher ? 1.0f : exp2f(top - higher);
  float more = 0;
#pragma unroll
  for (int s = 0; s < S; ++s) {
    logit[s] = logit[s] == -INFINITY ? 0.0f : exp2f(logit[s] - higher);
    more += logit[s];
  }
  top = higher;
  sum = sum * keep + lanes_sum(more, 8);
  return keep;
}
