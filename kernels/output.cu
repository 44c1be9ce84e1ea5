// The ends of a step: the embedding of its token, the logits of the next one, the choice.
#include "products.cuh"

// embed_T: x = row step->token of the table.
//   step    const Step *; the token is below vocab
//   table   const T *, [vocab, hidden]
//   hidden  uint32
//   x       float *, [hidden]
// Grid: (blocks), any number, ceil(hidden / 256) for one turn; block: 256 threads or fewer.
template <typename T> __device__ __forceinline__ void embed(const Step *step, const T *table, uint32_t hidden, float *x) {
  wait_for_producer();
  let_consumer_start();
  if (ended(step)) return;
  const T *row = table + size_t(fresh(&step->token)) * hidden;
  for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < hidden; i += gridDim.x * blockDim.x) x[i] = to_float(row[i]);
}

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
//   w       const T *, [vocab, hidden]
//   banned  const uint32 *, [ceil(vocab / 32)], bit token % 32 of word token / 32: never chosen; or null
//   vocab   uint32
//   hidden  uint32
//   logits  float *, [vocab]
//   best    Best *, [blocks of the grid], 16 bytes each: what choose takes
// Grid: (blocks), ceil(vocab / 32) for one turn of 256 threads; fewer (some per multiprocessor) make fewer bests. Block: 256 threads
// or another power of two from 32. Dynamic shared memory: 4 * hidden bytes. Logits do not depend on either, sums in their last bits.
template <typename T>
__device__ __forceinline__ void norm_lm_head(const Step *step, const float *x, const float *gain, float eps, const T *w,
                                             const uint32_t *banned, uint32_t vocab, uint32_t hidden, float *logits, Best *best) {
  constexpr int R = 4;
  DYNAMIC_SHARED(float, s_x);
  SHARED(Best, s_best, [PRODUCT_THREADS]);
  RowProducts<T, R, 2> products;
  products.width = hidden;
  products.wide = products.readable_wide(w, hidden);
  const int lane = threadIdx.x % 32;
  const unsigned warps = blockDim.x / 32;
  const auto turn_to = [&](unsigned row0) {
#pragma unroll
    for (int r = 0; r < R; ++r) products.row[r] = row0 + r < vocab ? w + size_t(row0 + r) * hidden : nullptr;
    products.prefetch();
  };
  unsigned row0 = (blockIdx.x * warps + threadIdx.x / 32) * R;
  turn_to(row0);
  wait_for_producer();
  let_consumer_start();
  if (ended(step) || fresh(&step->left) == 1) return;
  take_input(x, gain, eps, hidden, products.wide, s_x);
  Best mine = no_best();
  while (row0 < vocab) {
    float sum[R];
    products.sums(s_x, sum);
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

// choose: ends a step. Its token counts as appended: every layer's len and cursor move on, left falls by one. Then the highest
// logit's token (of equals the first) is written to the rings with the natural logarithm of its probability among those that are
// not banned, and becomes step->token; if it is one of `ends`, stop becomes STOP_END. If left has run out, nothing is chosen and
// stop becomes STOP_LENGTH. A logit that is no finite number, or nothing to choose from, sets fault and changes nothing else.
//   step      Step *
//   best      const Best *, [bests], of norm_lm_head
//   bests     uint32, the blocks of norm_lm_head's grid
//   ends      const uint32 *, [end_count]: tokens that end an answer
//   end_count uint32
//   tokens    uint32 *, [capacity]: ring, may be mapped memory of the host
//   logprobs  float *, [capacity]: ring, may be mapped
//   capacity  uint32, of the rings, at least 1
//   status    uint32 *, [4], mapped like tokens: count, stop, fault and fault_token as they are after the step, all at once, behind
//             the token and its logprob (with a fence for the system between); also when the step did nothing
//   layers    LayerState *, [layer_count]
//   layer_count uint32
// Grid: (1), block: 256 threads or another power of two from 32.
KERNEL(PRODUCT_THREADS, 1) choose(Step *step, const Best *best, uint32_t bests, const uint32_t *ends, uint32_t end_count, uint32_t *tokens,
                               float *logprobs, uint32_t capacity, uint32_t *status, LayerState *layers, uint32_t layer_count) {
  SHARED(Best, s_best, [PRODUCT_THREADS]);
  const auto report = [&] { publish(status, {fresh(&step->count), fresh(&step->stop), fresh(&step->fault), fresh(&step->fault_token)}); };
  wait_for_producer();
  let_consumer_start();
  if (ended(step)) {
    if (threadIdx.x == 0) report();
    return;
  }
  const uint32_t left = fresh(&step->left);
  Best all = no_best();
  if (left > 1) {
    for (unsigned i = threadIdx.x; i < bests; i += blockDim.x) {
      const uint4 words = fresh(reinterpret_cast<const uint4 *>(best) + i);
      all = both(all, {__uint_as_float(words.x), words.y, __uint_as_float(words.z), words.w});
    }
    all = best_of_block(all, s_best, blockDim.x);
    const uint32_t fault = all.invalid != NO_TOKEN ? FAULT_LOGIT_NOT_FINITE : all.token == NO_TOKEN ? FAULT_NOTHING_TO_CHOOSE : FAULT_NONE;
    if (fault != FAULT_NONE) {
      if (threadIdx.x == 0) {
        step->fault = fault;
        step->fault_token = all.invalid;
        report();
      }
      return;
    }
  }
  for (unsigned i = threadIdx.x; i < layer_count; i += blockDim.x) {
    const uint32_t window = fresh(&layers[i].window);
    layers[i].len = fresh(&layers[i].len) + 1;
    if (window > 0) layers[i].cursor = (fresh(&layers[i].cursor) + 1) % window;
  }
  // The others have read what thread 0 writes.
  __syncthreads();
  if (threadIdx.x != 0) return;
  step->left = left - 1;
  if (left == 1) {
    step->stop = STOP_LENGTH;
    report();
    return;
  }
  const uint32_t count = fresh(&step->count), place = count % capacity;
  logprobs[place] = -logf(all.sum);
  tokens[place] = all.token;
  step->token = all.token;
  step->count = count + 1;
  for (uint32_t i = 0; i < end_count; ++i)
    if (ends[i] == all.token) step->stop = STOP_END;
  __threadfence_system();
  report();
}
EXPORT(choose)

#define OUTPUT(suffix, T, blocks)                                                                                                             \
  KERNEL(PRODUCT_THREADS, 1) embed_##suffix(const Step *step, const T *table, uint32_t hidden, float *x) {                           \
    embed<T>(step, table, hidden, x);                                                                                                \
  }                                                                                                                                   \
  EXPORT(embed_##suffix)                                                                                                              \
  KERNEL(PRODUCT_THREADS, blocks) norm_lm_head_##suffix(const Step *step, const float *x, const float *gain, float eps, const T *w,       \
                                                   const uint32_t *banned, uint32_t vocab, uint32_t hidden, float *logits,           \
                                                   Best *best) {                                                                     \
    norm_lm_head<T>(step, x, gain, eps, w, banned, vocab, hidden, logits, best);                                                     \
  }                                                                                                                                   \
  EXPORT(norm_lm_head_##suffix)
// Blocks of so many registers that they fit on a multiprocessor beside one another; of f32 one less, whose weights take twice as many.
OUTPUT(f32, float, 2)
OUTPUT(f16, f16, 3)
OUTPUT(bf16, bf16, 3)
