// The kernels of a step for matrices of small integers in planes (planes.cuh), and such matrices as floats for products with many rows.
#include "layer.cuh"
#include "output.cuh"
#include "planes.cuh"

// norm_qkv_planes, matvec_add_planes, norm_gate_up_planes, norm_lm_head_planes: as layer.cuh and output.cuh say, where each matrix is two
// arguments, const uint8 * and uint32 (PlaneMatrix). Widths are multiples of 32, with super-groups of 256; inputs and gains begin at
// multiples of 16 bytes.
KERNEL(PRODUCT_THREADS, 2) norm_qkv_planes(const Step *step, const float *x, const float *gain, float eps, const uint8_t *wq, uint32_t of_q,
                                           const uint8_t *wk, uint32_t of_k, const uint8_t *wv, uint32_t of_v, const float *bq,
                                           const float *bk, const float *bv, uint32_t rows_q, uint32_t rows_k, uint32_t rows_v,
                                           uint32_t hidden, float *out) {
  const PlaneMatrix q{wq, of_q, rows_q}, k{wk, of_k, rows_k}, v{wv, of_v, rows_v};
  norm_qkv<PlaneProducts<2, 2, 1>>(step, x, gain, eps, q, k, v, bq, bk, bv, rows_q, rows_k, rows_v, hidden, out);
}
EXPORT(norm_qkv_planes)

KERNEL(PRODUCT_THREADS, 2) matvec_add_planes(const Step *step, const float *a, const uint8_t *w, uint32_t of_w, const float *bias,
                                             uint32_t rows, uint32_t width, float *x) {
  matvec_add<PlaneProducts<2, 2, 1>>(step, a, PlaneMatrix{w, of_w, rows}, bias, rows, width, x);
}
EXPORT(matvec_add_planes)

KERNEL(PRODUCT_THREADS, 2) norm_gate_up_planes(const Step *step, const float *x, const float *gain, float eps, const uint8_t *wg,
                                               uint32_t of_g, const uint8_t *wu, uint32_t of_u, const float *bg, const float *bu,
                                               uint32_t inner, uint32_t hidden, float *h) {
  const PlaneMatrix gate{wg, of_g, inner}, up{wu, of_u, inner};
  norm_gate_up<PlaneProducts<2, 2, 2>>(step, x, gain, eps, gate, up, bg, bu, inner, hidden, h);
}
EXPORT(norm_gate_up_planes)

KERNEL(PRODUCT_THREADS, 2) norm_lm_head_planes(const Step *step, const float *x, const float *gain, float eps, const uint8_t *w,
                                               uint32_t of_w, const uint32_t *banned, uint32_t vocab, uint32_t hidden, float *logits,
                                               Best *best) {
  norm_lm_head<PlaneProducts<4, 1, 1>>(step, x, gain, eps, PlaneMatrix{w, of_w, vocab}, banned, vocab, hidden, logits, best);
}
EXPORT(norm_lm_head_planes)

// Weights 4 w to 4 w + 3 and 16 + 4 w to 16 + 4 w + 3 of group `at`, as numbers.
template <int BITS>
__device__ __forceinline__ void numbers_of(const Group &group, const PlaneMatrix &matrix, uint32_t at, int w, float (&low)[4],
                                           float (&high)[4]) {
  const Factors f = factors_of(group, matrix, at);
  const bool adds = matrix.scales() == SCALES_PAIR || matrix.scales() == SCALES_SUPER;
  uint32_t words[2] = {0, 0};
#pragma unroll
  for (int of = 0; of < 4; ++of)
    if (of == w) unpack_quants<BITS>(group, of, words[0], words[1]);
  const auto number = [&](int half, int i) {
    const uint32_t byte = words[half] >> 8 * i & 0xffu;
    const int q = (BITS == 8 ? int(int8_t(byte)) : int(byte)) - matrix.offset();
    const float product = f.factor[half] * float(q);
    return adds ? product + f.added : product;
  };
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    low[i] = number(0, i);
    high[i] = number(1, i);
  }
}
__device__ __forceinline__ void numbers_of(const PlaneMatrix &matrix, unsigned groups, uint32_t at, int w, float (&low)[4],
                                           float (&high)[4]) {
  Group group;
  group.clear();
  group.load(Planes(matrix, groups), matrix, at);
  switch (matrix.bits()) {
    case 4: return numbers_of<4>(group, matrix, at, w, low, high);
    case 5: return numbers_of<5>(group, matrix, at, w, low, high);
    case 6: return numbers_of<6>(group, matrix, at, w, low, high);
    default: return numbers_of<8>(group, matrix, at, w, low, high);
  }
}

// embed_planes: x = row step->token of the table.
//   step          const Step *; the token is below vocab
//   table of_table  PlaneMatrix [vocab, hidden]
//   vocab         uint32
//   hidden        uint32
//   x             float *, [hidden]
// Grid: (blocks), any number, ceil(hidden / 2048) for one turn; block: 256 threads or fewer.
KERNEL(PRODUCT_THREADS, 1) embed_planes(const Step *step, const uint8_t *table, uint32_t of_table, uint32_t vocab, uint32_t hidden,
                                        float *x) {
  wait_for_producer();
  let_consumer_start();
  if (ended(step)) return;
  const PlaneMatrix matrix{table, of_table, vocab};
  const unsigned groups = hidden / 32;
  const uint32_t row = fresh(&step->token);
  for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < 4 * groups; i += gridDim.x * blockDim.x) {
    float low[4], high[4];
    numbers_of(matrix, groups, row * groups + i / 4, int(i % 4), low, high);
    store(x + i / 4 * 32 + i % 4 * 4, low);
    store(x + i / 4 * 32 + 16 + i % 4 * 4, high);
  }
}
EXPORT(embed_planes)

// widen_planes: some rows of a matrix as floats.
//   w of_w    PlaneMatrix [rows, width]
//   rows      uint32
//   width     uint32
//   ids       const uint32 *, [count]: which rows, all below `rows`; or null: `count` rows from `first` on
//   first     uint32
//   count     uint32
//   type      uint32, an ElementType
//   out       of that type, [count, width]
// Grid: (blocks), any number, ceil(count * width / 2048) for one turn; block: 256 threads or fewer.
KERNEL(PRODUCT_THREADS, 1) widen_planes(const uint8_t *w, uint32_t of_w, uint32_t rows, uint32_t width, const uint32_t *ids, uint32_t first,
                                        uint32_t count, uint32_t type, void *out) {
  wait_for_producer();
  let_consumer_start();
  const PlaneMatrix matrix{w, of_w, rows};
  const unsigned groups = width / 32;
  for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < size_t(count) * groups * 4; i += size_t(gridDim.x) * blockDim.x) {
    const unsigned part = unsigned(i % 4), at = unsigned(i / 4 / groups), group = unsigned(i / 4 % groups);
    const uint32_t row = ids ? ids[at] : first + at;
    float low[4], high[4];
    numbers_of(matrix, groups, row * groups + group, int(part), low, high);
    const size_t to = size_t(at) * width + group * 32 + part * 4;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      store_element(out, to + j, low[j], type);
      store_element(out, to + 16 + j, high[j], type);
    }
  }
}
EXPORT(widen_planes)
