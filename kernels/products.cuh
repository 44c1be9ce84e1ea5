// Products of matrices of floats with one vector, a warp to a few rows at a time: the Products (layer.cuh) of products.cu and output.cu.
#pragma once
#include "gpu.cuh"

// Eight weights as they are stored.
template <typename T> struct Eight {
  uint4 bits;
  __device__ __forceinline__ void load(const T *p) { bits = load_weights(p); }
  __device__ __forceinline__ void clear() { bits = {0, 0, 0, 0}; }
  __device__ __forceinline__ void unpack(float *x) const {
    unpack_2(bits.x, x, T());
    unpack_2(bits.y, x + 2, T());
    unpack_2(bits.z, x + 4, T());
    unpack_2(bits.w, x + 6, T());
  }
};
template <> struct Eight<float> {
  uint4 low, high;
  __device__ __forceinline__ void load(const float *p) {
    low = load_weights(p);
    high = load_weights(p + 4);
  }
  __device__ __forceinline__ void clear() { low = high = {0, 0, 0, 0}; }
  __device__ __forceinline__ void unpack(float *x) const {
    x[0] = __uint_as_float(low.x); x[1] = __uint_as_float(low.y); x[2] = __uint_as_float(low.z); x[3] = __uint_as_float(low.w);
    x[4] = __uint_as_float(high.x); x[5] = __uint_as_float(high.y); x[6] = __uint_as_float(high.z); x[7] = __uint_as_float(high.w);
  }
};

// Brings an input of `width` numbers into shared memory, with a gain normalised (RMSNorm, arXiv 1910.07467). For wide rows in two
// planes, the first and the last four of each eight, so that neighbouring lanes read neighbouring words; both begin at multiples of
// 16 bytes then.
//
// The squares are added up as if by 256 threads, so that the bits do not depend on how many there are.
__device__ __forceinline__ void take_input(const float *x, const float *gain, float eps, unsigned width, bool wide, float *to) {
  SHARED(float, s_squares, [PRODUCT_THREADS]);
  // Fours that a thread reads before it uses the first of them: each is as far away as L2.
  constexpr unsigned BATCH = 2;
  float4 *planes = reinterpret_cast<float4 *>(to);
  const unsigned fours = width / 4;
  const auto place = [=](unsigned four) { return four % 2 * (fours / 2) + four / 2; };
  for (unsigned first = threadIdx.x; first < PRODUCT_THREADS; first += blockDim.x) {
    float squares = 0;
    if (wide)
      for (unsigned batch = first; batch < fours; batch += BATCH * PRODUCT_THREADS) {
        float4 v[BATCH], by[BATCH];
#pragma unroll
        for (unsigned i = 0; i < BATCH; ++i) {
          const unsigned four = batch + i * PRODUCT_THREADS;
          v[i] = four < fours ? fresh(reinterpret_cast<const float4 *>(x) + four) : float4{0, 0, 0, 0};
          by[i] = gain && four < fours ? reinterpret_cast<const float4 *>(gain)[four] : float4{1, 1, 1, 1};
        }
#pragma unroll
        for (unsigned i = 0; i < BATCH; ++i) {
          const unsigned four = batch + i * PRODUCT_THREADS;
          if (four >= fours) continue;
          squares += v[i].x * v[i].x + v[i].y * v[i].y + v[i].z * v[i].z + v[i].w * v[i].w;
          planes[place(four)] = {v[i].x * by[i].x, v[i].y * by[i].y, v[i].z * by[i].z, v[i].w * by[i].w};
        }
      }
    else
      for (unsigned i = first; i < width; i += PRODUCT_THREADS) {
        const float value = fresh(x + i);
        squares += value * value;
        to[i] = gain ? value * gain[i] : value;
      }
    s_squares[first] = squares;
  }
  if (gain) {
    __syncthreads();
    float squares = 0;
#pragma unroll
    for (unsigned i = 0; i < PRODUCT_THREADS; i += 32) squares += s_squares[threadIdx.x % 32 + i];
    const float by = 1.0f / sqrtf(lanes_sum(squares, 32) / float(width) + eps);
    if (wide)
      for (unsigned i = threadIdx.x; i < fours; i += blockDim.x) {
        const float4 v = planes[i];
        planes[i] = {v.x * by, v.y * by, v.z * by, v.w * by};
      }
    else
      for (unsigned i = threadIdx.x; i < width; i += blockDim.x) to[i] *= by;
  }
#ifndef PLANT_NO_BARRIER_BEHIND_INPUT
  __syncthreads();
#endif
}

// R rows of weights (null: none) times an input in shared memory, by one warp. U times 32 lanes times 8 weights of each row are
// on their way at once.
template <typename T, int R, int U> struct RowProducts {
  using Matrix = const T *;
  static constexpr int ROWS = R;
  unsigned width;
  bool wide;  // rows can be read 16 bytes at a time
  const T *row[R];
  Eight<T> first[R][U];

  template <typename... Matrices>
  __device__ __forceinline__ RowProducts(unsigned of_width, Matrices... matrices)
      : width(of_width), wide((readable_wide(matrices, of_width) && ...)) {}

  // `matrix`: where rows of `width` begin.
  static __device__ __forceinline__ bool readable_wide(const T *matrix, unsigned width) {
    return width % 8 == 0 && reinterpret_cast<uintptr_t>(matrix) % 16 == 0;
  }

  __device__ __forceinline__ void load(unsigned chunk) {
#pragma unroll
    for (int u = 0; u < U; ++u)
#pragma unroll
      for (int r = 0; r < R; ++r)
        if (row[r] && chunk + 32 * u < width / 8) first[r][u].load(row[r] + size_t(chunk + 32 * u) * 8);
        else first[r][u].clear();
  }

  __device__ __forceinline__ void set(int r, Matrix matrix, unsigned at, unsigned rows) {
    row[r] = at < rows ? matrix + size_t(at) * width : nullptr;
  }

  __device__ __forceinline__ void prefetch() {
    if (wide) load(threadIdx.x % 32);
  }

  __device__ __forceinline__ void take(const float *x, const float *gain, float eps) {
    DYNAMIC_SHARED(float, s_x);
    take_input(x, gain, eps, width, wide, s_x);
  }

  __device__ __forceinline__ void sums(float (&sum)[R]) {
    DYNAMIC_SHARED(float, x);
    const unsigned lane = threadIdx.x % 32;
#pragma unroll
    for (int r = 0; r < R; ++r) sum[r] = 0;
    if (wide) {
      const unsigned chunks = width / 8;
      for (unsigned chunk = lane; chunk < chunks; chunk += 32 * U) {
        if (chunk != lane) load(chunk);
#pragma unroll
        for (int u = 0; u < U; ++u) {
          const unsigned c = chunk + 32 * u;
          if (c >= chunks) break;
          const float4 a = reinterpret_cast<const float4 *>(x)[c], b = reinterpret_cast<const float4 *>(x)[chunks + c];
#pragma unroll
          for (int r = 0; r < R; ++r) {
            float w[8];
            first[r][u].unpack(w);
            sum[r] += w[0] * a.x + w[1] * a.y + w[2] * a.z + w[3] * a.w + w[4] * b.x + w[5] * b.y + w[6] * b.z + w[7] * b.w;
          }
        }
      }
    } else {
      for (unsigned i = lane; i < width; i += 32)
#pragma unroll
        for (int r = 0; r < R; ++r)
          if (row[r]) sum[r] += to_float(row[r][i]) * x[i];
    }
#pragma unroll
    for (int r = 0; r < R; ++r) sum[r] = lanes_sum(sum[r], 32);
  }
};
