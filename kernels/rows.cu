// Rows of buffers of all layers: moved into the gaps that a compaction leaves, and copied before they are overwritten.
//
// A buffer has a row for each slot of each KV head: [kv_heads, budget] rows. What is done to a kept set is done in all its heads and
// in all buffers of its layer.
#include "gpu.cuh"

// A buffer of a layer.
struct RowBuffer {
  unsigned char *rows;
  uint32_t row_bytes;  // even
  uint32_t unused;
};

// A row of a kept set of a layer.
struct Row { uint32_t layer, set, slot, to; };

// Where a row of the KV head `head` of a set begins.
__device__ __forceinline__ unsigned char *row_at(const RowBuffer &buffer, size_t head, uint32_t budget, uint32_t slot) {
  return buffer.rows + (head * budget + slot) * buffer.row_bytes;
}

__device__ __forceinline__ void copy_row(const unsigned char *from, unsigned char *to, uint32_t bytes) {
  const bool wide = (reinterpret_cast<uintptr_t>(from) | reinterpret_cast<uintptr_t>(to) | bytes) % 16 == 0;
  if (wide)
    for (unsigned i = threadIdx.x; i < bytes / 16; i += blockDim.x) reinterpret_cast<uint4 *>(to)[i] = reinterpret_cast<const uint4 *>(from)[i];
  else
    for (unsigned i = threadIdx.x; i < bytes / 2; i += blockDim.x)
      reinterpret_cast<unsigned short *>(to)[i] = reinterpret_cast<const unsigned short *>(from)[i];
}

// move_rows: each row goes to the slot `to` of its set. No slot of a set is both a source and a target.
//   rows     const Row *, [rows]: 16 bytes each, in memory of the device
//   buffers  const RowBuffer *, [layers, buffers]: 16 bytes each, in memory of the device
//   heads    uint32: KV heads of a set; set s has those from s * heads on
//   budget   uint32
// Grid: (rows, heads, buffers), block: any.
KERNEL(256, 1) move_rows(const Row *rows, const RowBuffer *buffers, uint32_t heads, uint32_t budget) {
  wait_for_producer();
  let_consumer_start();
  const Row row = rows[blockIdx.x];
  const RowBuffer buffer = buffers[size_t(row.layer) * gridDim.z + blockIdx.z];
  const size_t head = size_t(row.set) * heads + blockIdx.y;
  copy_row(row_at(buffer, head, budget, row.slot), row_at(buffer, head, budget, row.to), buffer.row_bytes);
}
EXPORT(move_rows)

// take_rows: copies rows, without changing any: that of slot `slot` of number n in the list to copies[b][n][head] for each buffer b.
// Arguments as move_rows, then
//   copies   unsigned char *const *, [buffers], in memory of the device: [rows, heads] rows each
KERNEL(256, 1) take_rows(const Row *rows, const RowBuffer *buffers, uint32_t heads, uint32_t budget, unsigned char *const *copies) {
  wait_for_producer();
  let_consumer_start();
  const Row row = rows[blockIdx.x];
  const RowBuffer buffer = buffers[size_t(row.layer) * gridDim.z + blockIdx.z];
  const size_t head = size_t(row.set) * heads + blockIdx.y, copy = size_t(blockIdx.x) * heads + blockIdx.y;
  copy_row(row_at(buffer, head, budget, row.slot), copies[blockIdx.z] + copy * buffer.row_bytes, buffer.row_bytes);
}
EXPORT(take_rows)
