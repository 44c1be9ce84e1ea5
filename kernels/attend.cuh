// Attention of one token to a bounded cache, which takes the token in: for attend_f32.cu, attend_f16.cu, attend_bf16.cu and attend_q8.cu.
#pragma once
#include "q8.cuh"
#include "splits.cuh"

// What attend takes, see there.
template <typename T> struct Attention {
  Step *step;
  const LayerState *layer;
  const float *qkv, *q_gain, *k_gain;
  float eps;
  T *keys, *values;
  const uint32_t *ranks;
  uint32_t rank_stride;
  const float *cos, *sin;
  uint32_t row_stride, group, head_dim, budget;
  float scale;
  void *ring, *undo;
  uint32_t ring_type, ring_capacity;
  float *logits, *tops, *partial;
  uint32_t *arrived;
  float *out;
};

// attend_T_CAP_G: appends a token's key and value at slot len of a layer's cache and attends to all len + 1 slots with its
// queries. Keys lie in the cache before rotation; a key turns by the row of its rank, the query by that of rank len. The new query
// goes into the ring, at the layer's cursor.
//
// CAP 32 is for head_dim up to 32, any even number; 64, 128 and 256 for multiples of 8 up to CAP. G heads of a group share what a
// block reads. There are G = 1, 2, 4 and 8, of CAP 256 only 1 and 4; any of them serves any group.
//   step         Step *; a full cache (len >= budget) sets fault to FAULT_CACHE_FULL and writes nothing
//   layer        const LayerState *
//   qkv          const float *, [heads + 2 * kv_heads, head_dim]: queries, keys, values, not rotated
//   q_gain       const float *, [head_dim]: RMSNorm of each query head (Qwen3), or null
//   k_gain       const float *, [head_dim]: of each key head, or null
//   eps          float, of both norms
//   keys values  T *, [kv_heads, budget, head_dim] each; of q8 [kv_heads, budget, row]
//   ranks        const uint32 *, [budget] for each kept set, written by the host: rank of each slot; that of slot len is len
//   rank_stride  uint32: from one KV head's ranks to the next, in elements; 0: all share one set
//   cos sin      const float *, [rows, head_dim / 2] (halves layout); rank r of KV head h: row first_row + h * row_stride + r
//   row_stride   uint32: from one KV head's table to the next, in rows; 0: all share one
//   group        uint32: query heads of a KV head
//   head_dim     uint32
//   budget       uint32
//   scale        float: 1 / sqrt(head_dim), of the logits
//   ring         void *, [heads, ring_capacity, head_dim]: queries after their norm, before rotation; not touched if window is 0
//   undo         void *, [heads, head_dim]: what the ring held where the new query goes; or null
//   ring_type    uint32, of ring and undo: 0 f32, 1 f16, 2 bf16
//   ring_capacity uint32
//   logits       float *, [heads, budget]: scaled logits times log2(e), for remember; or null
//   tops         float *, [heads, 2]: the highest of a head's, and the sum of 2^(each - the highest); or null
//   partial      float *, [kv_heads * tiles * splits * G * (head_dim + 2)]: scratch
//   arrived      uint32 *, [kv_heads * tiles]: zeros, and zeros again afterwards
//   out          float *, [heads, head_dim]
// Buffers begin at multiples of 16 bytes.
// Grid: (kv_heads, splits, tiles = ceil(group / G)), block: 128 threads. splits: 1 to 128, fixed for all lengths; as many as make
// some blocks for each multiprocessor, the fewer the larger G * tiles: the last block of a head adds up all splits. The bits of the
// result depend on their number as soon as there are more slots than a block takes at a time (1024 / CAP), since each split adds
// up its own.
template <typename T, int CAP, int G> __device__ __forceinline__ void attend(const Attention<T> &a) {
  // A key is read by LANES lanes, four elements of each half by each; a warp reads KEYS keys at a time, U times in a row.
  constexpr int LANES = CAP / 8, KEYS = 32 / LANES, HALF_CAP = CAP / 2, TAKEN = WARPS * KEYS;
  constexpr int U = sizeof(T) == 4 || G == 8 ? 2 : 4;
  // Whether a row's halves can be read four elements at a time.
  constexpr bool ALIGNED = CAP > 32;
  constexpr int V = ALIGNED ? 4 : 1;
  const unsigned hd = a.head_dim, half = hd / 2;
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, j = 4 * (lane % LANES), sub = lane / LANES;
  const unsigned kv = blockIdx.x, kv_heads = gridDim.x, split = blockIdx.y, splits = gridDim.y, g0 = blockIdx.z * G;
  const int count = min(4, int(half) - int(j));  // elements of each half that the lane has; none if not above 0
  // Queries are rotated and scaled; the halves of a row begin at 0 and HALF_CAP, zeros fill up.
  SHARED(float, s_q, [G][CAP]);
  SHARED(float, s_key, [CAP]);
  SHARED(float, s_value, [CAP]);
  SHARED(float, s_acc, [WARPS][G][CAP]);
  SHARED(float, s_top, [WARPS][G]);
  SHARED(float, s_sum, [WARPS][G]);
  SHARED(unsigned, s_last, [1]);

  wait_for_producer();
  let_consumer_start();
  if (ended(a.step)) return;
  const unsigned len = fresh(&a.layer->len), n = len + 1;
#ifndef PLANT_NO_CHECK_OF_ROOM
  if (len >= a.budget) {
    // A block that sees this already does not even look at the length: it returns all the same.
    if (threadIdx.x == 0 && kv == 0 && split == 0 && g0 == 0) {
      a.step->fault_token = len;
      a.step->fault = FAULT_CACHE_FULL;
    }
    return;
  }
#endif
  const unsigned share = (n + splits - 1) / splits, per = (share + TAKEN - 1) / TAKEN * TAKEN;
  const unsigned start = min(n, split * per), end = min(n, start + per);
  const size_t first_row = size_t(fresh(&a.layer->first_row)) + size_t(kv) * a.row_stride;
  const float *cos = a.cos + first_row * half, *sin = a.sin + first_row * half;
  const uint32_t *ranks = a.ranks + size_t(kv) * a.rank_stride;
  const unsigned row_size = row_elements<T>(hd);
  T *keys = a.keys + size_t(kv) * a.budget * row_size, *values = a.values + size_t(kv) * a.budget * row_size;
  const bool appends = start <= len && len < end && g0 == 0;

  // The new rows, a warp to each: the queries, the key, the value.
  for (unsigned row = warp; row < G + 2; row += WARPS) {
    const bool is_query = row < G, is_key = row == G;
    const unsigned head = kv * a.group + g0 + row, heads = kv_heads * a.group;
    const bool there = !is_query || g0 + row < a.group;
    const float *from = a.qkv + size_t(is_query ? head : is_key ? heads + kv : heads + kv_heads + kv) * hd;
    const float *gain = is_query ? a.q_gain : is_key ? a.k_gain : nullptr;
    constexpr int PAIRS = (HALF_CAP + 31) / 32;
    float x[PAIRS], y[PAIRS], squares = 0;
#pragma unroll
    for (int i = 0; i < PAIRS; ++i) {
      const unsigned e = lane + 32 * i;
      x[i] = there && e < half ? fresh(from + e) : 0.0f;
      y[i] = there && e < half ? fresh(from + half + e) : 0.0f;
      squares += x[i] * x[i] + y[i] * y[i];
    }
    squares = lanes_sum(squares, 32);
    const float by = gain ? 1.0f / sqrtf(squares / float(hd) + a.eps) : 1.0f;
    const unsigned window = fresh(&a.layer->window), cursor = fresh(&a.layer->cursor);
    const size_t ring_row = (size_t(head) * a.ring_capacity + cursor) * hd, undo_row = size_t(head) * hd;
#pragma unroll
    for (int i = 0; i < PAIRS; ++i) {
      const unsigned e = lane + 32 * i;
      if (e >= HALF_CAP) continue;
      const bool within = there && e < half;
      float low = x[i], high = y[i];
      if (gain && within) {
        low *= by * gain[e];
        high *= by * gain[half + e];
      }
      if (is_query) {
        if (within && split == 0 && window > 0) {
          if (a.undo) {
            copy_element(a.undo, undo_row + e, a.ring, ring_row + e, a.ring_type);
            copy_element(a.undo, undo_row + half + e, a.ring, ring_row + half + e, a.ring_type);
          }
          store_element(a.ring, ring_row + e, low, a.ring_type);
          store_element(a.ring, ring_row + half + e, high, a.ring_type);
        }
        const float c = within ? cos[size_t(len) * half + e] : 0.0f, s = within ? sin[size_t(len) * half + e] : 0.0f;
        s_q[row][e] = (low * c - high * s) * (a.scale * LOG2_E);
        s_q[row][HALF_CAP + e] = (high * c + low * s) * (a.scale * LOG2_E);
      } else {
        float *to = is_key ? s_key : s_value;
        if constexpr (quantised<T>) {
          to[e] = low;
          to[HALF_CAP + e] = high;
        } else {
          to[e] = rounded<T>(low);
          to[HALF_CAP + e] = rounded<T>(high);
          if (within && appends) {
            T *cached = (is_key ? keys : values) + size_t(len) * row_size + e;
            from_float(low, cached[0]);
            from_float(high, cached[half]);
          }
        }
      }
    }
    if constexpr (quantised<T>) {
      if (is_query) continue;
      float *to = is_key ? s_key : s_value;
      T *cached = appends ? (is_key ? keys : values) + size_t(len) * row_size : nullptr;
      __syncwarp();
      for (unsigned first = 0; first < hd; first += 32) {
        const unsigned d = first + lane, at = d < half ? d : HALF_CAP + d - half;
        const float stored = pack_32(d < hd ? to[at] : 0.0f, d, hd, cached);
        if (d < hd) to[at] = stored;
      }
    }
  }
  __syncthreads();

  float top[G], sum[G], acc[G][8];
#pragma unroll
  for (int g = 0; g < G; ++g) {
    top[g] = -INFINITY;
    sum[g] = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) acc[g][i] = 0;
  }
  for (unsigned base = start + warp * KEYS; base < end; base += TAKEN * U) {
    const unsigned first = base + sub, cached = min(end, len);
    Four<T> k[U][2], v[U][2];
    unsigned rank[U];
#pragma unroll
    for (int u = 0; u < U; ++u) rank[u] = first + u * TAKEN < cached ? fresh(ranks + first + u * TAKEN) : len;
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (first + u * TAKEN >= cached || count <= 0) continue;
      const size_t row = size_t(first + u * TAKEN) * row_size;
      if constexpr (ALIGNED) {
        k[u][0].load(keys + row, j, hd);
        k[u][1].load(keys + row, half + j, hd);
        v[u][0].load(values + row, j, hd);
        v[u][1].load(values + row, half + j, hd);
      } else {
        k[u][0].load_some(keys + row, j, count, hd);
        k[u][1].load_some(keys + row, half + j, count, hd);
        v[u][0].load_some(values + row, j, count, hd);
        v[u][1].load_some(values + row, half + j, count, hd);
      }
    }
    float dot[U][G];
#pragma unroll
    for (int u = 0; u < U; ++u) {
      float x[8], c[4] = {0, 0, 0, 0}, s[4] = {0, 0, 0, 0};
      const float *cos_row = cos + size_t(rank[u]) * half + j, *sin_row = sin + size_t(rank[u]) * half + j;
      if constexpr (ALIGNED) {
        if (count > 0) {
          load_constants(cos_row, c);
          load_constants(sin_row, s);
        }
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          c[i] = i < count ? cos_row[i] : 0.0f;
          s[i] = i < count ? sin_row[i] : 0.0f;
        }
      }
      k[u][0].unpack(x);
      k[u][1].unpack(x + 4);
      if (first + u * TAKEN == len) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          x[i] = s_key[j + i];
          x[4 + i] = s_key[HALF_CAP + j + i];
        }
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float low = x[i], high = x[4 + i];
        x[i] = low * c[i] - high * s[i];
        x[4 + i] = high * c[i] + low * s[i];
      }
#pragma unroll
      for (int g = 0; g < G; ++g) {
        float low[4], high[4];
        load_constants(&s_q[g][j], low);
        load_constants(&s_q[g][HALF_CAP + j], high);
        dot[u][g] = 0;
#pragma unroll
        for (int i = 0; i < 4; ++i) dot[u][g] += low[i] * x[i] + high[i] * x[4 + i];
      }
    }
#pragma unroll
    for (int u = 0; u < U; ++u)
#pragma unroll
      for (int g = 0; g < G; ++g) {
        const float logit = lanes_sum(dot[u][g], LANES);
        dot[u][g] = first + u * TAKEN < end ? logit : -INFINITY;
      }
    if (a.logits && j == 0) {
#pragma unroll
      for (int g = 0; g < G; ++g)
        if (g0 + g < a.group) {
          float *to = a.logits + size_t(kv * a.group + g0 + g) * a.budget + first;
#pragma unroll
          for (int u = 0; u < U; ++u)
            if (first + u * TAKEN < end) to[u * TAKEN] = dot[u][g];
        }
    }
#pragma unroll
    for (int g = 0; g < G; ++g) {
      float higher = top[g];
#pragma unroll
      for (int u = 0; u < U; ++u) higher = fmaxf(higher, dot[u][g]);
      const float keep = top[g] == higher ? 1.0f : exp2f(top[g] - higher);
      top[g] = higher;
      sum[g] *= keep;
#pragma unroll
      for (int i = 0; i < 8; ++i) acc[g][i] *= keep;
#pragma unroll
      for (int u = 0; u < U; ++u) {
        dot[u][g] = dot[u][g] == -INFINITY ? 0.0f : exp2f(dot[u][g] - higher);
        sum[g] += dot[u][g];
      }
    }
#pragma unroll
    for (int u = 0; u < U; ++u) {
      float x[8];
      v[u][0].unpack(x);
      v[u][1].unpack(x + 4);
      if (first + u * TAKEN == len) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          x[i] = s_value[j + i];
          x[4 + i] = s_value[HALF_CAP + j + i];
        }
      }
#pragma unroll
      for (int g = 0; g < G; ++g)
#pragma unroll
        for (int i = 0; i < 8; ++i) acc[g][i] += dot[u][g] * x[i];
    }
  }

  // The keys of a warp together, then the warps of the block, then the splits.
#pragma unroll
  for (int g = 0; g < G; ++g) {
    float higher = top[g];
#pragma unroll
    for (int m = LANES; m < 32; m *= 2) higher = fmaxf(higher, __shfl_xor_sync(0xffffffffu, higher, m));
    const float keep = top[g] == -INFINITY ? 0.0f : exp2f(top[g] - higher);
    float all = sum[g] * keep, low[4], high[4];
#pragma unroll
    for (int m = LANES; m < 32; m *= 2) all += __shfl_xor_sync(0xffffffffu, all, m);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      float x = acc[g][i] * keep;
#pragma unroll
      for (int m = LANES; m < 32; m *= 2) x += __shfl_xor_sync(0xffffffffu, x, m);
      if (i < 4) low[i] = x;
      else high[i - 4] = x;
    }
    if (sub == 0) {
      store(&s_acc[warp][g][j], low);
      store(&s_acc[warp][g][HALF_CAP + j], high);
    }
    if (lane == 0) {
      s_top[warp][g] = higher;
      s_sum[warp][g] = all;
    }
  }
#ifndef PLANT_NO_BARRIER_BEFORE_SUMS
  __syncthreads();
#endif
  // Sums [splits, G, head_dim] of each tile, then tops and sums [splits, G, 2] of each.
  const unsigned tile = kv * gridDim.z + blockIdx.z, tiles = kv_heads * gridDim.z;
  float *part = a.partial + size_t(tile) * splits * G * hd, *stats = a.partial + (size_t(tiles) * hd + size_t(tile) * 2) * splits * G;
#ifdef PLANT_FLAG_BEFORE_DATA
  if (threadIdx.x == 0) s_last[0] = atomicInc(&a.arrived[tile], splits - 1) == splits - 1;
#endif
  for (unsigned i = threadIdx.x; i < G * hd / V; i += 32 * WARPS) {
    const unsigned g = i / (hd / V), d = i % (hd / V) * V, at = d < half ? d : HALF_CAP + d - half;
    float higher = -INFINITY, all = 0, x[V] = {};
#pragma unroll
    for (int w = 0; w < WARPS; ++w) higher = fmaxf(higher, s_top[w][g]);
#pragma unroll
    for (int w = 0; w < WARPS; ++w) {
      const float keep = s_top[w][g] == -INFINITY ? 0.0f : exp2f(s_top[w][g] - higher);
      float of_warp[V];
      load_constants(&s_acc[w][g][at], of_warp);
      all += s_sum[w][g] * keep;
#pragma unroll
      for (int e = 0; e < V; ++e) x[e] += of_warp[e] * keep;
    }
    store(part + (size_t(split) * G + g) * hd + d, x);
    if (d == 0) {
      stats[(split * G + g) * 2] = higher;
      stats[(split * G + g) * 2 + 1] = all;
    }
  }
  // Every thread's part is out before the block says that it has arrived.
  __threadfence();
  __syncthreads();
#ifndef PLANT_FLAG_BEFORE_DATA
  if (threadIdx.x == 0) s_last[0] = atomicInc(&a.arrived[tile], splits - 1) == splits - 1;
  __syncthreads();
#endif
  if (!s_last[0]) return;
  __threadfence();
  add_splits<G, V>(part, stats, kv * a.group + g0, a.group - g0, hd, splits, a.tops, a.out);
}

#define ATTEND(suffix, T, CAP, G)                                                                                                     \
  KERNEL(32 * WARPS, 1) attend_##suffix##_##CAP##_##G(                                                                               \
      Step *step, const LayerState *layer, const float *qkv, const float *q_gain, const float *k_gain, float eps, T *keys, T *values, \
      const uint32_t *ranks, uint32_t rank_stride, const float *cos, const float *sin, uint32_t row_stride, uint32_t group,          \
      uint32_t head_dim, uint32_t budget, float scale, void *ring, void *undo, uint32_t ring_type, uint32_t ring_capacity,            \
      float *logits, float *tops, float *partial, uint32_t *arrived, float *out) {                                                                  \
    attend<T, CAP, G>({step, layer, qkv, q_gain, k_gain, eps, keys, values, ranks, rank_stride, cos, sin, row_stride, group,         \
                       head_dim, budget, scale, ring, undo, ring_type, ring_capacity, logits, tops, partial, arrived, out});               \
  }                                                                                                                                   \
  EXPORT(attend_##suffix##_##CAP##_##G)
#define ATTEND_GROUPS(suffix, T, CAP) \
  ATTEND(suffix, T, CAP, 1) ATTEND(suffix, T, CAP, 2) ATTEND(suffix, T, CAP, 4) ATTEND(suffix, T, CAP, 8)
#define ATTEND_SIZES(suffix, T) \
  ATTEND_GROUPS(suffix, T, 32) ATTEND_GROUPS(suffix, T, 64) ATTEND_GROUPS(suffix, T, 128) ATTEND(suffix, T, 256, 1) ATTEND(suffix, T, 256, 4)
