// The output layer, for weights of any kind, and the best token that it finds for choose.
#pragma once
#include "gpu.cuh"

constexpr uint32_t NO_TOKEN = 0xffffffffu;

// The best of some tokens: those that are not banned, with finite logits.
struct Best {
  float logit;       // the highest; minus infinity if there is none
  uint32_t token;    // the first that has it; NO_TOKEN
  float sum;         // of exp(logit of each - the highest)
  uint32_t invalid;  // the first token, banned or not, whose logit is no finite number; NO_TOKEN
};

__device__ __forceinline__ Best no_best() { return {-INFINITY, NO_TOKEN, 0.0f, NO_TOKEN}; }

// Of one token more, which comes behind the others.
__device__ __forceinline__ void take(Best &best, uint32_t token, float logit, bool banned) {
  if (!isfinite(logit)) best.invalid = min(best.invalid, token);
  else if (!banned) {
    if (logit > best.logit) {
      best.sum = best.sum * expf(best.logit - logit) + 1.0f;
      best.logit = logit;
      best.token = token;
    } else best.sum += expf(logit - best.logit);
  }
}

// Of both; the order does not matter.
__device__ __forceinline__ Best both(Best a, Best b) {
  Best all;
  all.invalid = min(a.invalid, b.invalid);
  const bool first = a.logit > b.logit || (a.logit == b.logit && a.token <= b.token);
  all.logit = first ? a.logit : b.logit;
  all.token = first ? a.token : b.token;
  const float of_a = a.token == NO_TOKEN ? 0.0f : a.sum * expf(a.logit - all.logit);
  const float of_b = b.token == NO_TOKEN ? 0.0f : b.sum * expf(b.logit - all.logit);
  all.sum = of_a + of_b;
  return all;
}

// Of all threads of a block, in thread 0; `to` has room for as many as there are threads (a power of two).
__device__ __forceinline__ Best best_of_block(Best best, Best *to, unsigned threads) {
  to[threadIdx.x] = best;
  __syncthreads();
  for (unsigned m = threads / 2; m > 0; m /= 2) {
    if (threadIdx.x < m) to[threadIdx.x] = both(to[threadIdx.x], to[threadIdx.x + m]);
    __syncthreads();
  }
  return to[0];
}

// norm_lm_head_T: logits = w rms_norm(x), and the best of those that each block computed. Four rows to a warp. Does nothing when
// the step's token is the answer's last (left = 1): nothing follows it.
//   step    const Step *
//   x       const float *, [hidden]
//   gain    const float *, [hidden], of the norm
//   eps     float
//   w       const T *, [vocab, hidden]; for planes pointer and format, see planes.cuh
//   banned  const uint32 *, [ceil(vocab / 32)], bit token % 32 of word token / 32: never chosen; or null
//   vocab   uint32
//   hidden  uint32
//   logits  float *, [vocab]
//   best    Best *, [blocks of the grid], 16 bytes each: what choose takes
// Grid: (blocks), ceil(vocab / 32) for one turn of 256 threads; fewer (some per multiprocessor) make fewer bests. Block: 256 threads
// or another power of two from 32. Dynamic shared memory: 4 * hidden bytes, for planes 3 * hidden / 2. Logits do not depend on
// either, sums in their last bits.
template <typename Products>
__device__ __forceinline__ void norm_lm_head(const Step *step, const float *x, const float *gain, float eps, typename Products::Matrix w,
                                             const uint32_t *banned, uint32_t vocab, uint32_t hidden, float *logits, Best *best) {
  constexpr int R = Products::ROWS;
  SHARED(Best, s_best, [PRODUCT_THREADS]);
  Products products(hidden, w);
  const int lane = threadIdx.x % 32;
  const unsigned warps = blockDim.x / 32;
  const auto turn_to = [&](unsigned row0) {
#pragma unroll
    for (int r = 0; r < R; ++r) products.set(r, w, row0 + r, vocab);
    products.prefetch();
  };
  unsigned row0 = (blockIdx.x * warps + threadIdx.x / 32) * R;
  turn_to(row0);
  wait_for_producer();
  let_consumer_start();
  if (ended(step) || fresh(&step->left) == 1) return;
  products.take(x, gain, eps);
  Best mine = no_best();
  while (row0 < vocab) {
    float sum[R];
    products.sums(sum);
    // Lane r takes row r.
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const unsigned row = row0 + r;
      if (lane != r || row >= vocab) continue;
      logits[row] = sum[r];
      take(mine, row, sum[r], banned && (banned[row / 32] >> row % 32 & 1));
    }
    row0 += gridDim.x * warps * R;
    turn_to(row0);
  }
  const Best all = best_of_block(mine, s_best, blockDim.x);
  if (threadIdx.x == 0) best[blockIdx.x] = all;
}
