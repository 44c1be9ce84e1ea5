// The products of a layer with one token, for weights of any kind: queries, keys and values; output and down projection; the gated
// unit. What multiplies is a class, RowProducts (products.cuh) for floats or PlaneProducts (planes.cuh):
//   Products::Matrix       what a kernel is told of a matrix
//   Products::ROWS         rows that a warp takes at a time
//   Products(width, ...)   of all the matrices that are multiplied with an input of `width`
//   set(r, matrix, row, rows)  the warp's r-th row is `row` of a matrix that has `rows`; none, if it is beyond
//   prefetch()             begins to read the rows that were set; before the wait for the input
//   take(x, gain, eps)     brings the input into shared memory, with a gain normalised
//   sums(sum)              of the rows that were set, the same in every lane
//
// Block: any multiple of 32 up to 256 threads; fewer make more blocks, for matrices of few rows. Grid: (blocks), of w = block / 32
// warps ceil(rows / (2 * w)), for norm_gate_up ceil(inner / w), or fewer, which then take several turns. Dynamic shared memory: 4
// bytes for each element of the input, for planes 3 bytes for each two (above 48 KiB the function has to be told). No bit of a
// result depends on grid or block. Sums are in f32.
#pragma once
#include "gpu.cuh"

// norm_qkv_T: out = [wq; wk; wv] rms_norm(x) + [bq; bk; bv]. Two rows of one matrix to a warp.
//   step      const Step *
//   x         const float *, [hidden]
//   gain      const float *, [hidden], of the norm
//   eps       float
//   wq wk wv  const T *, [rows_q, hidden], [rows_k, hidden], [rows_v, hidden]; for planes pointer and format of each
//   bq bk bv  const float *, [rows_q], [rows_k], [rows_v], each may be null
//   rows_q rows_k rows_v  uint32
//   hidden    uint32
//   out       float *, [rows_q + rows_k + rows_v]
template <typename Products>
__device__ __forceinline__ void norm_qkv(const Step *step, const float *x, const float *gain, float eps, typename Products::Matrix wq,
                                         typename Products::Matrix wk, typename Products::Matrix wv, const float *bq, const float *bk,
                                         const float *bv, uint32_t rows_q, uint32_t rows_k, uint32_t rows_v, uint32_t hidden, float *out) {
  constexpr unsigned R = Products::ROWS;
  Products products(hidden, wq, wk, wv);
  const unsigned lane = threadIdx.x % 32;
  // Each matrix has turns of its own.
  const unsigned keys = (rows_q + R - 1) / R, values = keys + (rows_k + R - 1) / R, turns = values + (rows_v + R - 1) / R;
  const unsigned step_of_turns = gridDim.x * (blockDim.x / 32);
  const auto turn_to = [&](unsigned turn) {
    const bool q = turn < keys, k = !q && turn < values;
    const auto matrix = q ? wq : k ? wk : wv;
    const unsigned row0 = (turn - (q ? 0 : k ? keys : values)) * R, rows = turn >= turns ? 0 : q ? rows_q : k ? rows_k : rows_v;
#pragma unroll
    for (unsigned r = 0; r < R; ++r) products.set(r, matrix, row0 + r, rows);
    products.prefetch();
  };
  unsigned turn = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  turn_to(turn);
  wait_for_producer();
  let_consumer_start();
  if (ended(step)) return;
  products.take(x, gain, eps);
  while (turn < turns) {
    float sum[R];
    products.sums(sum);
    const bool q = turn < keys, k = !q && turn < values;
    const unsigned row0 = (turn - (q ? 0 : k ? keys : values)) * R, rows = q ? rows_q : k ? rows_k : rows_v;
    const unsigned before = q ? 0 : k ? rows_q : rows_q + rows_k;
    const float *bias = q ? bq : k ? bk : bv;
#pragma unroll
    for (unsigned r = 0; r < R; ++r)
      if (lane == r && row0 + r < rows) out[before + row0 + r] = sum[r] + (bias ? bias[row0 + r] : 0.0f);
    turn += step_of_turns;
    turn_to(turn);
  }
}

// matvec_add_T: x += w a + bias. Two rows to a warp.
//   step   const Step *, or null: there is none that could have ended
//   a      const float *, [width]
//   w      const T *, [rows, width]; for planes pointer and format
//   bias   const float *, [rows], or null
//   rows   uint32
//   width  uint32
//   x      float *, [rows]
template <typename Products>
__device__ __forceinline__ void matvec_add(const Step *step, const float *a, typename Products::Matrix w, const float *bias, uint32_t rows,
                                           uint32_t width, float *x) {
  constexpr unsigned R = Products::ROWS;
  Products products(width, w);
  const unsigned lane = threadIdx.x % 32, warps = blockDim.x / 32;
  const auto turn_to = [&](unsigned row0) {
#pragma unroll
    for (unsigned r = 0; r < R; ++r) products.set(r, w, row0 + r, rows);
    products.prefetch();
  };
  unsigned row0 = (blockIdx.x * warps + threadIdx.x / 32) * R;
  turn_to(row0);
  wait_for_producer();
  let_consumer_start();
  if (step && ended(step)) return;
  products.take(a, nullptr, 0.0f);
  while (row0 < rows) {
    float sum[R];
    products.sums(sum);
#pragma unroll
    for (unsigned r = 0; r < R; ++r) {
      const unsigned row = row0 + r;
      if (lane == r && row < rows) x[row] = fresh(x + row) + (sum[r] + (bias ? bias[row] : 0.0f));
    }
    row0 += gridDim.x * warps * R;
    turn_to(row0);
  }
}

// norm_gate_up_T: h = silu(n wg + bg) * (n wu + bu), n = rms_norm(x). One element of h, so two rows of weights, to a warp.
//   step   const Step *
//   x      const float *, [hidden]
//   gain   const float *, [hidden], of the norm
//   eps    float
//   wg wu  const T *, [inner, hidden] each; for planes pointer and format of each
//   bg bu  const float *, [inner], each may be null
//   inner  uint32
//   hidden uint32
//   h      float *, [inner]
template <typename Products>
__device__ __forceinline__ void norm_gate_up(const Step *step, const float *x, const float *gain, float eps, typename Products::Matrix wg,
                                             typename Products::Matrix wu, const float *bg, const float *bu, uint32_t inner,
                                             uint32_t hidden, float *h) {
  static_assert(Products::ROWS == 2);
  Products products(hidden, wg, wu);
  const unsigned lane = threadIdx.x % 32, warps = blockDim.x / 32;
  const auto turn_to = [&](unsigned row) {
    products.set(0, wg, row, inner);
    products.set(1, wu, row, inner);
    products.prefetch();
  };
  unsigned row = blockIdx.x * warps + threadIdx.x / 32;
  turn_to(row);
  wait_for_producer();
  let_consumer_start();
  if (ended(step)) return;
  products.take(x, gain, eps);
  while (row < inner) {
    float sum[2];
    products.sums(sum);
    if (lane == 0) {
      const float gate = sum[0] + (bg ? bg[row] : 0.0f), up = sum[1] + (bu ? bu[row] : 0.0f);
      h[row] = gate / (1.0f + expf(-gate)) * up;
    }
    row += gridDim.x * warps;
    turn_to(row);
  }
}
