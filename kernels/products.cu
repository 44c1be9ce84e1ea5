// The products of a layer with one token: queries, keys and values; output and down projection; the gated unit.
//
// Block: any multiple of 32 up to 256 threads; fewer make more blocks, for matrices of few rows. Grid: (blocks), of w = block / 32
// warps ceil(rows / (2 * w)), for norm_gate_up ceil(inner / w), or fewer, which then take several turns. Dynamic shared memory: 4
// bytes for each element of the input (above 48 KiB the function has to be told). No bit of a result depends on grid or block.
//
// Matrices are row-major; where their width is a multiple of 8 and they begin at multiples of 16 bytes they are read 16 bytes at
// a time. Sums are in f32.
#include "products.cuh"

// norm_qkv_T: out = [wq; wk; wv] rms_norm(x) + [bq; bk; bv]. Two rows to a warp.
//   step      const Step *
//   x         const float *, [hidden]
//   gain      const float *, [hidden], of the norm
//   eps       float
//   wq wk wv  const T *, [rows_q, hidden], [rows_k, hidden], [rows_v, hidden]
//   bq bk bv  const float *, [rows_q], [rows_k], [rows_v], each may be null
//   rows_q rows_k rows_v  uint32
//   hidden    uint32
//   out       float *, [rows_q + rows_k + rows_v]
template <typename T>
__device__ __forceinline__ void norm_qkv(const Step *step, const float *x, const float *gain, float eps, const T *wq, const T *wk,
                                         const T *wv, const float *bq, const float *bk, const float *bv, uint32_t rows_q, uint32_t rows_k,
                                         uint32_t rows_v, uint32_t hidden, float *out) {
  constexpr int R = 2;
  DYNAMIC_SHARED(float, s_x);
  RowProducts<T, R, 4> products;
  products.width = hidden;
  products.wide = products.readable_wide(wq, hidden) && products.readable_wide(wk, hidden) && products.readable_wide(wv, hidden);
  const int lane = threadIdx.x % 32;
  const unsigned warps = blockDim.x / 32, rows = rows_q + rows_k + rows_v;
  const auto turn_to = [&](unsigned row0) {
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const unsigned row = row0 + r;
      const T *matrix = row < rows_q ? wq + size_t(row) * hidden : row < rows_q + rows_k ? wk + size_t(row - rows_q) * hidden
                                                                                       : wv + size_t(row - rows_q - rows_k) * hidden;
      products.row[r] = row < rows ? matrix : nullptr;
    }
    products.prefetch();
  };
  unsigned row0 = (blockIdx.x * warps + threadIdx.x / 32) * R;
  turn_to(row0);
  wait_for_producer();
  let_consumer_start();
  if (ended(step)) return;
  take_input(x, gain, eps, hidden, products.wide, s_x);
  while (row0 < rows) {
    float sum[R];
    products.sums(s_x, sum);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const unsigned row = row0 + r;
      if (lane != r || row >= rows) continue;
      const float *bias = row < rows_q ? bq : row < rows_q + rows_k ? bk : bv;
      const unsigned at = row < rows_q ? row : row < rows_q + rows_k ? row - rows_q : row - rows_q - rows_k;
      out[row] = sum[r] + (bias ? bias[at] : 0.0f);
    }
    row0 += gridDim.x * warps * R;
    turn_to(row0);
  }
}

// matvec_add_T: x += w a + bias. Two rows to a warp.
//   step   const Step *
//   a      const float *, [width]
//   w      const T *, [rows, width]
//   bias   const float *, [rows], or null
//   rows   uint32
//   width  uint32
//   x      float *, [rows]
template <typename T>
__device__ __forceinline__ void matvec_add(const Step *step, const float *a, const T *w, const float *bias, uint32_t rows, uint32_t width,
                                           float *x) {
  constexpr int R = 2;
  DYNAMIC_SHARED(float, s_a);
  RowProducts<T, R, 4> products;
  products.width = width;
  products.wide = products.readable_wide(w, width);
  const int lane = threadIdx.x % 32;
  const unsigned warps = blockDim.x / 32;
  const auto turn_to = [&](unsigned row0) {
#pragma unroll
    for (int r = 0; r < R; ++r) products.row[r] = row0 + r < rows ? w + size_t(row0 + r) * width : nullptr;
    products.prefetch();
  };
  unsigned row0 = (blockIdx.x * warps + threadIdx.x / 32) * R;
  turn_to(row0);
  wait_for_producer();
  let_consumer_start();
  if (ended(step)) return;
  take_input(a, nullptr, 0.0f, width, products.wide, s_a);
  while (row0 < rows) {
    float sum[R];
    products.sums(s_a, sum);
#pragma unroll
    for (int r = 0; r < R; ++r) {
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
//   wg wu  const T *, [inner, hidden] each
//   bg bu  const float *, [inner], each may be null
//   inner  uint32
//   hidden uint32
//   h      float *, [inner]
template <typename T>
__device__ __forceinline__ void norm_gate_up(const Step *step, const float *x, const float *gain, float eps, const T *wg, const T *wu,
                                             const float *bg, const float *bu, uint32_t inner, uint32_t hidden, float *h) {
  DYNAMIC_SHARED(float, s_x);
  RowProducts<T, 2, 4> products;
  products.width = hidden;
  products.wide = products.readable_wide(wg, hidden) && products.readable_wide(wu, hidden);
  const int lane = threadIdx.x % 32;
  const unsigned warps = blockDim.x / 32;
  const auto turn_to = [&](unsigned row) {
    products.row[0] = row < inner ? wg + size_t(row) * hidden : nullptr;
    products.row[1] = row < inner ? wu + size_t(row) * hidden : nullptr;
    products.prefetch();
  };
  unsigned row = blockIdx.x * warps + threadIdx.x / 32;
  turn_to(row);
  wait_for_producer();
  let_consumer_start();
  if (ended(step)) return;
  take_input(x, gain, eps, hidden, products.wide, s_x);
  while (row < inner) {
    float sum[2];
    products.sums(s_x, sum);
    if (lane == 0) {
      const float gate = sum[0] + (bg ? bg[row] : 0.0f), up = sum[1] + (bu ? bu[row] : 0.0f);
      h[row] = gate / (1.0f + expf(-gate)) * up;
    }
    row += gridDim.x * warps;
    turn_to(row);
  }
}

#define PRODUCTS(suffix, T, blocks)                                                                                                          \
  KERNEL(PRODUCT_THREADS, blocks) norm_qkv_##suffix(const Step *step, const float *x, const float *gain, float eps, const T *wq,         \
                                               const T *wk, const T *wv, const float *bq, const float *bk, const float *bv,         \
                                               uint32_t rows_q, uint32_t rows_k, uint32_t rows_v, uint32_t hidden, float *out) {    \
    norm_qkv<T>(step, x, gain, eps, wq, wk, wv, bq, bk, bv, rows_q, rows_k, rows_v, hidden, out);                                   \
  }                                                                                                                                  \
  EXPORT(norm_qkv_##suffix)                                                                                                          \
  KERNEL(PRODUCT_THREADS, blocks) matvec_add_##suffix(const Step *step, const float *a, const T *w, const float *bias, uint32_t rows,    \
                                                 uint32_t width, float *x) {                                                        \
    matvec_add<T>(step, a, w, bias, rows, width, x);                                                                                \
  }                                                                                                                                  \
  EXPORT(matvec_add_##suffix)                                                                                                        \
  KERNEL(PRODUCT_THREADS, blocks) norm_gate_up_##suffix(const Step *step, const float *x, const float *gain, float eps, const T *wg,     \
                                                   const T *wu, const float *bg, const float *bu, uint32_t inner, uint32_t hidden,  \
                                                   float *h) {                                                                      \
    norm_gate_up<T>(step, x, gain, eps, wg, wu, bg, bu, inner, hidden, h);                                                          \
  }                                                                                                                                  \
  EXPORT(norm_gate_up_##suffix)
// Blocks of so many registers that they fit on a multiprocessor beside one another; of f32 one less, whose weights take twice as many.
PRODUCTS(f32, float, 2)
PRODUCTS(f16, f16, 3)
PRODUCTS(bf16, bf16, 3)
