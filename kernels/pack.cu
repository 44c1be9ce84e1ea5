// Rows of numbers into quantised ones, and back.
#include "q8.cuh"

// pack_rows: a row for each row of numbers.
//   numbers    const void *, [count, head_dim]
//   type       uint32, of numbers: 0 f32, 1 f16, 2 bf16
//   count      uint32
//   head_dim   uint32: even
//   rows       q8 *, [count, row]; bytes behind the scales are left alone
// Grid: (ceil(count / warps of a block)), block: a multiple of 32 threads, at most 256.
KERNEL(256, 1) pack_rows(const void *numbers, uint32_t type, uint32_t count, uint32_t head_dim, q8 *rows) {
  wait_for_producer();
  let_consumer_start();
  const unsigned lane = threadIdx.x % 32, row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  if (row >= count) return;
  q8 *to = rows + size_t(row) * row_elements<q8>(head_dim);
  for (unsigned first = 0; first < head_dim; first += 32) {
    const unsigned d = first + lane;
    pack_32(d < head_dim ? load_element(numbers, size_t(row) * head_dim + d, type) : 0.0f, d, head_dim, to);
  }
}
EXPORT(pack_rows)

// unpack_rows: the way back.
//   rows       const q8 *, [count, row]
//   count      uint32
//   head_dim   uint32: even
//   numbers    float *, [count, head_dim]
// Grid and block as for pack_rows.
KERNEL(256, 1) unpack_rows(const q8 *rows, uint32_t count, uint32_t head_dim, float *numbers) {
  wait_for_producer();
  let_consumer_start();
  const unsigned lane = threadIdx.x % 32, row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  if (row >= count) return;
  const q8 *from = rows + size_t(row) * row_elements<q8>(head_dim);
  for (unsigned d = lane; d < head_dim; d += 32) numbers[size_t(row) * head_dim + d] = number(from, d, head_dim);
}
EXPORT(unpack_rows)
