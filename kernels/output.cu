// The ends of a step: the embedding of its token, the logits of the next one, the choice.
#include "output.cuh"
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
    norm_lm_head<RowProducts<T, 4, 2>>(step, x, gain, eps, w, banned, vocab, hidden, logits, best);                                                     \
  }                                                                                                                                   \
  EXPORT(norm_lm_head_##suffix)
// Blocks that fit on a multiprocessor beside one another, by their registers: of f32 fewer, whose weights take twice as many.
OUTPUT(f32, float, 2)
OUTPUT(f16, f16, 3)
OUTPUT(bf16, bf16, 3)
