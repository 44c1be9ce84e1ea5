// The history of what attention each slot got, for policies that ask for it.
#include "gpu.cuh"

// remember: history = history * decay + the probabilities of this step, mean over the query heads of each KV head. The new slot's
// history begins at 0. After attend of the same layer and before choose. There are two histories, of which that of number len % 2
// is read and the other written: a step that ends in a fault leaves the one behind that it began with.
//   step     const Step *
//   layer    const LayerState *
//   logits   const float *, [kv_heads * group, budget], of attend
//   tops     const float *, [kv_heads * group, 2], of attend
//   group    uint32
//   budget   uint32
//   decay    float
//   history  float *, [2, kv_heads, budget]
// Grid: (ceil(budget / 256) or fewer, kv_heads), block: 256 threads or fewer.
KERNEL(256, 1) remember(const Step *step, const LayerState *layer, const float *logits, const float *tops, uint32_t group, uint32_t budget,
                        float decay, float *history) {
  wait_for_producer();
  let_consumer_start();
  if (ended(step)) return;
  const unsigned len = fresh(&layer->len), kv = blockIdx.y, kv_heads = gridDim.y;
  const float *before = history + (size_t(len % 2) * kv_heads + kv) * budget;
  float *after = history + (size_t((len + 1) % 2) * kv_heads + kv) * budget;
  for (unsigned slot = blockIdx.x * blockDim.x + threadIdx.x; slot <= len && slot < budget; slot += gridDim.x * blockDim.x) {
    float sum = 0;
    for (unsigned g = 0; g < group; ++g) {
      const size_t head = kv * group + g;
      sum += exp2f(fresh(logits + head * budget + slot) - fresh(tops + 2 * head)) / fresh(tops + 2 * head + 1);
    }
    after[slot] = (slot == len ? 0.0f : fresh(before + slot) * decay) + sum / float(group);
  }
}
EXPORT(remember)

// remember_chunk: the same for a chunk, whose sums score_sums gives: history = history * decay + sums; the slots from start on are
// new, their history begins at 0. The history of number start % 2 is read, that of number len % 2 is written.
//   sums     const float *, [kv_heads, budget]
//   start    uint32
//   len      uint32: slots in use, the chunk's among them
//   budget   uint32
//   decay    float
//   history  float *, [2, kv_heads, budget]
// Grid: (ceil(budget / 256) or fewer, kv_heads), block: 256 threads or fewer.
KERNEL(256, 1) remember_chunk(const float *sums, uint32_t start, uint32_t len, uint32_t budget, float decay, float *history) {
  wait_for_producer();
  let_consumer_start();
  const unsigned kv = blockIdx.y, kv_heads = gridDim.y;
  const float *before = history + (size_t(start % 2) * kv_heads + kv) * budget;
  float *after = history + (size_t(len % 2) * kv_heads + kv) * budget;
  for (unsigned slot = blockIdx.x * blockDim.x + threadIdx.x; slot < len; slot += gridDim.x * blockDim.x)
    after[slot] = (slot >= start ? 0.0f : fresh(before + slot) * decay) + fresh(sums + size_t(kv) * budget + slot);
}
EXPORT(remember_chunk)
