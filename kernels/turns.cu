// Rows of rotary tables on three axes, put together from those of positions on one (src/cache/turns.rs).
#include "gpu.cuh"

// A row that is written, and the rows of the angles that time, height and width turn by.
struct TurnRow { uint32_t to, at[3]; };

constexpr unsigned TURN_ROWS = 8;

// write_turns
//   rows       const TurnRow *, [count]: no row is written twice
//   count      uint32
//   angle_cos angle_sin  const float *, [positions, half] each
//   axes       const uint32 *, [half]: the axis that each pair of a head turns by
//   half       uint32: head_dim / 2
//   cos sin    float *, [.., half] each
// Grid: ceil(count / TURN_ROWS), block: any.
KERNEL(128, 1) write_turns(const TurnRow *rows, uint32_t count, const float *angle_cos, const float *angle_sin, const uint32_t *axes,
                           uint32_t half, float *cos, float *sin) {
  wait_for_producer();
  let_consumer_start();
  for (unsigned i = threadIdx.x; i < TURN_ROWS * half; i += blockDim.x) {
    const unsigned n = blockIdx.x * TURN_ROWS + i / half, pair = i % half;
    if (n >= count) break;
    const size_t from = size_t(rows[n].at[axes[pair]]) * half + pair, to = size_t(rows[n].to) * half + pair;
    cos[to] = angle_cos[from];
    sin[to] = angle_sin[from];
  }
}
EXPORT(write_turns)
