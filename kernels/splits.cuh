// The results of the splits of some heads together, by the block that finished last.
#pragma once
#include "gpu.cuh"

constexpr int WARPS = 4, MAX_SPLITS = 128;

// Of G heads, of which `group` exist, the first of them being `first_head`, from `part` [splits, G, hd], sums that belong to the
// highest logit of their split, and `stats` [splits, G, 2], those logits and the sums of powers: `out` [heads, hd], and `tops`
// [heads, 2] unless it is null. V divides hd.
template <int G, int V>
__device__ __forceinline__ void add_splits(const float *part, const float *stats, unsigned first_head, unsigned group, unsigned hd,
                                           unsigned splits, float *tops, float *out) {
  SHARED(float, s_weight, [G][MAX_SPLITS]);
  SHARED(float, s_part, [32 * WARPS * V]);
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, units = G * hd / V;
  // A warp to a head: what each split's part weighs, so that the weighted sum is the result.
  for (unsigned g = warp; g < G; g += WARPS) {
    float of_split[MAX_SPLITS / 32], higher = -INFINITY, all = 0;
#pragma unroll
    for (int i = 0; i < MAX_SPLITS / 32; ++i) {
      of_split[i] = lane + 32 * i < splits ? fresh(stats + ((lane + 32 * i) * G + g) * 2) : -INFINITY;
      higher = fmaxf(higher, of_split[i]);
    }
#pragma unroll
    for (int m = 16; m > 0; m /= 2) higher = fmaxf(higher, __shfl_xor_sync(0xffffffffu, higher, m));
#pragma unroll
    for (int i = 0; i < MAX_SPLITS / 32; ++i) {
      of_split[i] = of_split[i] == -INFINITY ? 0.0f : exp2f(of_split[i] - higher);
      if (lane + 32 * i < splits) all += fresh(stats + ((lane + 32 * i) * G + g) * 2 + 1) * of_split[i];
    }
    all = lanes_sum(all, 32);
#pragma unroll
    for (int i = 0; i < MAX_SPLITS / 32; ++i)
      if (lane + 32 * i < splits) s_weight[g][lane + 32 * i] = of_split[i] / all;
    if (tops && lane == 0 && g < group) {
      tops[2 * (first_head + g)] = higher;
      tops[2 * (first_head + g) + 1] = all;
    }
  }
  __syncthreads();
  // Where there are more threads than numbers to add up, they share the splits.
  const unsigned shares = max(1u, 32 * WARPS / units);
  const auto put = [&](unsigned unit, const float(&x)[V]) {
    const unsigned g = unit / (hd / V), d = unit % (hd / V) * V;
    if (g < group) store(out + size_t(first_head + g) * hd + d, x);
  };
  for (unsigned i = threadIdx.x; i < units * shares; i += 32 * WARPS) {
    const unsigned unit = i % units, g = unit / (hd / V), d = unit % (hd / V) * V;
    float x[V] = {};
#pragma unroll 8
    for (unsigned s = i / units; s < splits; s += shares) {
      float of_split[V];
      load_fresh(part + (size_t(s) * G + g) * hd + d, of_split);
#pragma unroll
      for (int e = 0; e < V; ++e) x[e] += of_split[e] * s_weight[g][s];
    }
    if (shares == 1) put(unit, x);
    else store(s_part + i * V, x);
  }
  if (shares == 1) return;
  __syncthreads();
  if (threadIdx.x < units) {
    float x[V] = {};
    for (unsigned share_of = 0; share_of < shares; ++share_of) {
      float of_share[V];
      load_constants(s_part + (share_of * units + threadIdx.x) * V, of_share);
#pragma unroll
      for (int e = 0; e < V; ++e) x[e] += of_share[e];
    }
    put(threadIdx.x, x);
  }
}
