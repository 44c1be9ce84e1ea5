// The products of a layer with one token (layer.cuh) for matrices of floats, row-major: where their width is a multiple of 8 and they
// begin at multiples of 16 bytes they are read 16 bytes at a time.
#include "layer.cuh"
#include "products.cuh"

#define PRODUCTS(suffix, T, blocks)                                                                                                           \
  KERNEL(PRODUCT_THREADS, blocks) norm_qkv_##suffix(const Step *step, const float *x, const float *gain, float eps, const T *wq,           \
                                               const T *wk, const T *wv, const float *bq, const float *bk, const float *bv,           \
                                               uint32_t rows_q, uint32_t rows_k, uint32_t rows_v, uint32_t hidden, float *out) {      \
    norm_qkv<RowProducts<T, 2, 4>>(step, x, gain, eps, wq, wk, wv, bq, bk, bv, rows_q, rows_k, rows_v, hidden, out);                  \
  }                                                                                                                                   \
  EXPORT(norm_qkv_##suffix)                                                                                                           \
  KERNEL(PRODUCT_THREADS, blocks) matvec_add_##suffix(const Step *step, const float *a, const T *w, const float *bias, uint32_t rows,      \
                                                 uint32_t width, float *x) {                                                          \
    matvec_add<RowProducts<T, 2, 4>>(step, a, w, bias, rows, width, x);                                                               \
  }                                                                                                                                   \
  EXPORT(matvec_add_##suffix)                                                                                                         \
  KERNEL(PRODUCT_THREADS, blocks) norm_gate_up_##suffix(const Step *step, const float *x, const float *gain, float eps, const T *wg,       \
                                                   const T *wu, const float *bg, const float *bu, uint32_t inner, uint32_t hidden,    \
                                                   float *h) {                                                                        \
    norm_gate_up<RowProducts<T, 2, 4>>(step, x, gain, eps, wg, wu, bg, bu, inner, hidden, h);                                         \
  }                                                                                                                                   \
  EXPORT(norm_gate_up_##suffix)
// Blocks that fit on a multiprocessor beside one another, by their registers: of f32 fewer, whose weights take twice as many.
PRODUCTS(f32, float, 2)
PRODUCTS(f16, f16, 3)
PRODUCTS(bf16, bf16, 3)
