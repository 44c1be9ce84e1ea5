// Rows of 8-bit numbers: src/cache/quantised.rs says how they lie, and gives the same bits.
#pragma once
#include "gpu.cuh"

// A byte of a row of head_dim numbers: signed bytes, then a scale (bf16) for each 32 of them, then zeros up to a multiple of 4 bytes.
struct q8 { int8_t byte; };

template <typename T> constexpr bool quantised = false;
template <> constexpr bool quantised<q8> = true;

// Elements of a row of hd numbers in memory.
template <typename T> __device__ __forceinline__ unsigned row_elements(unsigned hd) { return hd; }
template <> __device__ __forceinline__ unsigned row_elements<q8>(unsigned hd) { return (hd + (hd + 31) / 32 * 2 + 3) / 4 * 4; }

__device__ __forceinline__ bf16 *scale_of(q8 *row, unsigned d, unsigned hd) { return reinterpret_cast<bf16 *>(row + hd) + d / 32; }
__device__ __forceinline__ const bf16 *scale_of(const q8 *row, unsigned d, unsigned hd) {
  return reinterpret_cast<const bf16 *>(row + hd) + d / 32;
}

// Number d of a row of hd.
template <typename T> __device__ __forceinline__ float number(const T *row, unsigned d, unsigned) { return to_float(row[d]); }
__device__ __forceinline__ float number(const q8 *row, unsigned d, unsigned hd) {
  return float(row[d].byte) * to_float(*scale_of(row, d, hd));
}

// Stores 32 numbers of a row, by a whole warp: the lane's is x, its place d, which is its lane beyond a multiple of 32; nothing from hd on.
// Returns what the lane's is stored as. A row that is null is not written to.
__device__ __forceinline__ float pack_32(float x, unsigned d, unsigned hd, q8 *row) {
  const bool there = d < hd;
  float most = there ? fabsf(x) : 0.0f;
#pragma unroll
  for (int m = 16; m > 0; m /= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, m));
  bf16 scale;
  from_float(most * (1.0f / 127.0f), scale);
  // Below the smallest normal number.
  if (to_float(scale) < 1.17549435e-38f) from_float(0.0f, scale);
  const float wide = to_float(scale), by = wide > 0.0f ? reciprocal(wide) : 0.0f;
  const float level = fminf(fmaxf(rintf(x * by), -127.0f), 127.0f);
  if (row && there) {
    row[d].byte = int8_t(level);
    if (d % 32 == 0) *scale_of(row, d, hd) = scale;
  }
  return level * wide;
}

// Four numbers as they are stored: 4 bytes and the scale that they share.
template <> struct Four<q8> {
  uint32_t bits = 0, scale = 0;
  // d is a multiple of 4, and so is hd.
  __device__ __forceinline__ void load(const q8 *row, unsigned d, unsigned hd) {
    bits = load_4_bytes(row + d);
    scale = load_2_bytes(scale_of(row, d, hd));
  }
  // The first `count` of them, within one group, zeros for the rest.
  __device__ __forceinline__ void load_some(const q8 *row, unsigned d, int count, unsigned hd) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (i < count) bits |= uint32_t(uint8_t(row[d + i].byte)) << 8 * i;
    scale = bits_of(*scale_of(row, d, hd));
  }
  __device__ __forceinline__ void unpack(float *x) const {
    const float by = __uint_as_float(scale << 16);
    // Bytes from 0 to 255 as the lowest of 2^23: no conversion, of which a multiprocessor has few.
    const uint32_t raised = bits ^ 0x80808080u;
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = (__uint_as_float(__byte_perm(raised, 0x4b000000u, 0x7650u + i)) - 8388736.0f) * by;
  }
};
