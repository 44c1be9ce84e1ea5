// The history of what attention each slot got, for policies that ask for it.
#include "gpu.cuh"

// remember: history = history * decay + the probabilities of this step, mean over the query heads of each KV head. The new slot's
// history begins at 0. After attend of the same layer and before choose.
//   step     const Step *
//   layer    const LayerState *
//   logits   const float *, [kv_heads * group, budget], of attend
//   tops     const float *, [kv_heads * group, 2], of attend
//   group    uint32
//   budget   uint32
//   decay    float
//   history  float *, [kv_heads, budget]
// Grid: (ceil(budget / 256) or fewer, kv_heads), block: 256 threads or fewer.
KERNEL(256, 1) remember(const Step *step, const LayerState *layer, const float *logits, const float *tops, uint32_t group, uint32_t budget,
                        float decay, float *history) {
  wait_for_producer();
  let_consumer_start();
  if (ended(step)) return;
  const unsigned len = fresh(&layer->len), kv = blockIdx.y;
  for (unsigned slot = blockIdx.x * blockDim.x + threadIdx.x; slot <= len && slot < budget; slot += gridDim.x * blockDim.x) {
    float sum = 0;
    for (unsigned g = 0; g < group; ++g) {
      const size_t head = kv * group + g;
      sum += exp2f(fresh(logits + head * budget + slot) - fresh(tops + 2 * head)) / fresh(tops + 2 * head + 1);
    }
    float *to = history + size_t(kv) * budget + slot;
    *to = (slot == len ? 0.0f : fresh(to) * decay) + sum / float(group);
  }
}
EXPORT(remember)

// remember_chunk: the same for a chunk, whose sums score_sums gives: history = history * decay + sums; the slots from start on are
// new, their history begins at 0.
//   sums     const float *, [kv_heads, budget]
//   start    uint32
//   len      uint32: slots in use, the chunk's among them
//   budget   uint32
//   decay    float
//   history  float *, [kv_heads, budget]
// Grid: (ceil(budget / 256) or fewer, kv_heads), block: 256 threads or fewer.
KERNEL(256, 1) remember_chunk(const float *sums, uint32_t start, uint32_t len, uint32_t budget, float decay, float *history) {
  wait_for_producer();
  let_consumer_start();
  for (unsigned slot = blockIdx.x * blockDim.x + threadIdx.x; slot < len; slot += gridDim.x * blockDim.x) {
    const size_t at = size_t(blockIdx.y) * budget + slot;
    history[at] = (slot >= start ? 0.0f : fresh(history + at) * decay) + fresh(sums + at);
  }
}
EXPORT(remember_chunk)
