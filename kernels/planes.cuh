// Products of matrices of small integers with one vector: the Products (layer.cuh) of planes.cu.
//
// A matrix [rows, width], width a multiple of 32, is stored in planes, one behind the other, each from a multiple of 16 bytes on and
// row after row. A group is 32 weights of a row, a super-group 256.
//   quants  of each group 16 bytes. Of 4 to 6 bits: byte i holds the low four bits of weight i and above them those of weight i + 16.
//           Of 8 bits: weights 0 to 15.
//   more    of 5 bits 4 bytes: bit 8 b + k is the fifth of weight 4 k + b. Of 6 bits 8 bytes: bits 8 b + 2 k and the next of the first
//           word are the upper two of weight 4 k + b, of the second word those of weight 16 + 4 k + b. Of 8 bits 16: weights 16 to 31.
//   scales  of each group, by kind, see Scales
//   supers  of each super-group, by kind; what is behind the last is padded to 16 bytes
// So a lane reads what it needs of a group in aligned words, and neighbouring lanes read neighbouring words.
//
// The input is rounded to 8 bits: 32 numbers share a scale, which is their largest magnitude / 127. Products of integers are summed in
// integers over half a group, then in f32.
#pragma once
#include "gpu.cuh"

// How groups are scaled; q is the integer of a weight, of 8 bits with a sign, else without. Two letters are a byte.
enum Scales : uint32_t {
  SCALES_ONE = 0,    // scales: d, f16. Weight: d (q - offset), the offset half of the integers' range, of 8 bits 0
  SCALES_PAIR = 1,   // scales: d and m, f16. Weight: d q + m
  SCALES_SUPER = 2,  // scales: the low four bits of s and above them those of m. supers: d and e, f16, and a word in which bits 4 i and
                     // 4 i + 1 are the upper two of s of group i, 4 i + 2 and 4 i + 3 those of m. Weight: d s q - e m
  SCALES_HALVES = 3  // scales: s of weights 0 to 15 and of 16 to 31, int8. supers: d, f16. Weight: d s (q - 32)
};

// What a kernel is told of a matrix in planes, as two arguments: where it begins, and bits of a weight + 16 * Scales.
struct PlaneMatrix {
  const uint8_t *planes;
  uint32_t format;
  uint32_t rows;

  __device__ __forceinline__ uint32_t bits() const { return format & 15u; }
  __device__ __forceinline__ uint32_t scales() const { return format >> 4; }
  __device__ __forceinline__ int offset() const {
    const bool one = scales() == SCALES_ONE && bits() < 8;
    return one || scales() == SCALES_HALVES ? 1 << (bits() - 1) : 0;
  }
};

__device__ __forceinline__ size_t whole_16(size_t bytes) { return (bytes + 15) / 16 * 16; }

// Where the planes of a matrix begin.
struct Planes {
  const uint8_t *quants, *more, *scales, *supers;
  uint32_t scale_bytes;

  __device__ __forceinline__ Planes(const PlaneMatrix &matrix, unsigned groups_of_row) {
    const size_t groups = size_t(matrix.rows) * groups_of_row;
    const uint32_t kind = matrix.scales();
    scale_bytes = kind == SCALES_PAIR ? 4 : kind == SCALES_SUPER ? 1 : 2;
    quants = matrix.planes;
    more = quants + 16 * groups;
    scales = more + whole_16(4 * (matrix.bits() - 4) * groups);
    supers = scales + whole_16(scale_bytes * groups);
  }
};

// A group as it is stored.
struct Group {
  uint4 quants, more;
  uint32_t scales;  // the word that they are in
  uint2 supers;     // the eight bytes that they are in

  __device__ __forceinline__ void clear() {
    quants = more = {0, 0, 0, 0};
    scales = 0;
    supers = {0, 0};
  }
  // Group `at` of all. Nothing is loaded to where another load may be under way, for which it would have to wait.
  __device__ __forceinline__ void load(const Planes &planes, const PlaneMatrix &matrix, uint32_t at) {
    quants = load_weights(planes.quants + size_t(at) * 16);
    switch (matrix.bits()) {
      case 5: more.x = load_word(planes.more + size_t(at) * 4); break;
      case 6: {
        const uint2 two = load_weights_8(planes.more + size_t(at) * 8);
        more.x = two.x; more.y = two.y;
        break;
      }
      case 8: more = load_weights(planes.more + size_t(at) * 16); break;
      default: break;
    }
    scales = load_word(planes.scales + (size_t(at) * planes.scale_bytes & ~size_t(3)));
    if (matrix.scales() >= SCALES_SUPER)
      supers = load_weights_8(planes.supers + (size_t(at / 8) * (matrix.scales() == SCALES_SUPER ? 8 : 2) & ~size_t(7)));
  }
};

__device__ __forceinline__ uint32_t word_of(const uint4 &v, int w) { return w == 0 ? v.x : w == 1 ? v.y : w == 2 ? v.z : v.w; }
// To the left by so many bits, or to the right by as many as are missing.
__device__ __forceinline__ uint32_t shifted(uint32_t x, int left) { return left >= 0 ? x << left : x >> -left; }

// The integers of weights 4 w to 4 w + 3 and of 16 + 4 w to 16 + 4 w + 3, a byte each.
template <int BITS> __device__ __forceinline__ void unpack_quants(const Group &group, int w, uint32_t &low, uint32_t &high) {
  low = word_of(group.quants, w);
  if constexpr (BITS == 8) high = word_of(group.more, w);
  else {
    high = low >> 4 & 0x0f0f0f0fu;
    low &= 0x0f0f0f0fu;
    if constexpr (BITS == 5) {
      low |= group.more.x << (4 - w) & 0x10101010u;
      high |= group.more.x >> w & 0x10101010u;
    }
    if constexpr (BITS == 6) {
      low |= shifted(group.more.x, 4 - 2 * w) & 0x30303030u;
      high |= shifted(group.more.y, 4 - 2 * w) & 0x30303030u;
    }
  }
}

// A weight of the two halves of a group is factor * (q - offset) + added: what is stored, exactly, but for the rounding of the sum.
struct Factors {
  float factor[2], added;
};
__device__ __forceinline__ Factors factors_of(const Group &group, const PlaneMatrix &matrix, uint32_t at) {
  switch (matrix.scales()) {
    case SCALES_ONE: {
      const float d = half_bits_to_float(group.scales >> at % 2 * 16 & 0xffffu);
      return {{d, d}, 0.0f};
    }
    case SCALES_PAIR: {
      const float d = half_bits_to_float(group.scales & 0xffffu);
      return {{d, d}, half_bits_to_float(group.scales >> 16)};
    }
    case SCALES_SUPER: {
      const uint32_t low = group.scales >> at % 4 * 8, high = group.supers.y >> at % 8 * 4;
      const float s = float((low & 15u) | (high & 3u) << 4), m = float((low >> 4 & 15u) | (high >> 2 & 3u) << 4);
      const float factor = half_bits_to_float(group.supers.x & 0xffffu) * s;
      return {{factor, factor}, -(half_bits_to_float(group.supers.x >> 16) * m)};
    }
    default: {
      const uint32_t both = group.scales >> at % 2 * 16;
      const uint32_t two = at / 16 % 2 ? group.supers.y : group.supers.x;
      const float d = half_bits_to_float(two >> at / 8 % 2 * 16 & 0xffffu);
      return {{d * float(int8_t(both & 0xffu)), d * float(int8_t(both >> 8 & 0xffu))}, 0.0f};
    }
  }
}

// What an input has become in shared memory, for each group of 32 numbers: words of the first half of each group, of the second half of
// each, and scale, scale times the sum of the first half's integers, of the second half's.
struct RoundedInput {
  uint4 *first, *second;
  float4 *sums;
  __device__ __forceinline__ RoundedInput(uint4 *memory, unsigned groups)
      : first(memory), second(memory + groups), sums(reinterpret_cast<float4 *>(memory + 2 * groups)) {}
};

// Magnitudes below which 127 / magnitude has no f32; a group of such is 0.
constexpr float NOTHING = 1e-35f;

// Brings an input of `width` numbers into shared memory, times a gain if there is one. Returns what products are to be multiplied with:
// with a gain the factor of the norm (RMSNorm, arXiv 1910.07467), else 1. A number that is not finite makes every product so.
//
// The squares are added up as if by 256 threads, so that the bits do not depend on how many there are.
__device__ __forceinline__ float take_rounded(const float *x, const float *gain, float eps, unsigned width, const RoundedInput &to) {
  SHARED(float, s_squares, [PRODUCT_THREADS]);
  const unsigned lane = threadIdx.x % 32, fours = width / 4;
  for (unsigned first = threadIdx.x; first < PRODUCT_THREADS; first += blockDim.x) {
    float squares = 0;
    // All lanes of a warp go round as often.
    for (unsigned four = first; four - lane < fours; four += PRODUCT_THREADS) {
      float v[4] = {0, 0, 0, 0};
      if (four < fours) {
        load_fresh(x + 4 * four, v);
        squares += v[0] * v[0] + v[1] * v[1] + v[2] * v[2] + v[3] * v[3];
        if (gain) {
          float g[4];
          load_constants(gain + 4 * four, g);
#pragma unroll
          for (int i = 0; i < 4; ++i) v[i] *= g[i];
        }
      }
      // By their bits, of which those of what is not finite are the largest.
      uint32_t bits = 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) bits = max(bits, bits_of(v[i]) & 0x7fffffffu);
      const float most = __uint_as_float(lanes_max(bits, 8)), by = most > NOTHING ? 127.0f / most : 0.0f;
      uint32_t word = 0;
      int sum = 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int q = by > 0.0f ? __float2int_rn(v[i] * by) : 0;
        word |= (uint32_t(q) & 0xffu) << 8 * i;
        sum += q;
      }
      const float half = lanes_sum(float(sum), 4);
      if (four >= fours) continue;
      const unsigned group = four / 8, place = four % 8;
      reinterpret_cast<uint32_t *>(place < 4 ? to.first : to.second)[4 * group + place % 4] = word;
      const float scale = most / 127.0f;
      float *sums = reinterpret_cast<float *>(to.sums + group);
      if (place == 0) {
        sums[0] = scale;
        sums[1] = scale * half;
      }
      if (place == 4) sums[2] = scale * half;
    }
    s_squares[first] = squares;
  }
#ifndef PLANT_NO_BARRIER_BEHIND_INPUT
  __syncthreads();
#endif
  if (!gain) return 1.0f;
  float squares = 0;
#pragma unroll
  for (unsigned i = 0; i < PRODUCT_THREADS; i += 32) squares += s_squares[lane + i];
  return 1.0f / sqrtf(lanes_sum(squares, 32) / float(width) + eps);
}

// R rows of M matrices (the first R / M of the first) times an input in shared memory, by one warp. U times 32 groups of each row are
// on their way at once.
template <int R, int U, int M> struct PlaneProducts {
  using Matrix = PlaneMatrix;
  static constexpr int ROWS = R;
  static constexpr unsigned NONE = 0xffffffffu;
  unsigned groups;  // of a row
  Matrix matrix[M];
  unsigned row[R];
  float by;
  Group group[R][U];

  template <typename... Matrices> __device__ __forceinline__ PlaneProducts(unsigned width, Matrices...) : groups(width / 32), by(1.0f) {
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int u = 0; u < U; ++u) group[r][u].clear();
  }

  __device__ __forceinline__ void set(int r, Matrix of, unsigned at, unsigned rows) {
    matrix[r * M / R] = of;
    row[r] = at < rows ? at : NONE;
  }

  // A lane beyond the row's end reads its last group, so that all go the same way.
  __device__ __forceinline__ void load(unsigned c0) {
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (c0 - threadIdx.x % 32 + 32 * u >= groups) break;
#pragma unroll
      for (int r = 0; r < R; ++r) {
        if (row[r] == NONE) continue;
        const Matrix &of = matrix[r * M / R];
        group[r][u].load(Planes(of, groups), of, row[r] * groups + min(c0 + 32 * u, groups - 1));
      }
    }
  }

  __device__ __forceinline__ void prefetch() { load(threadIdx.x % 32); }

  __device__ __forceinline__ RoundedInput input() const {
    DYNAMIC_SHARED(uint4, memory);
    return RoundedInput(memory, groups);
  }

  __device__ __forceinline__ void take(const float *x, const float *gain, float eps) {
    by = take_rounded(x, gain, eps, groups * 32, input());
  }

  // Products of the integers of the two halves of a group.
  template <int BITS>
  static __device__ __forceinline__ void dots(const Group &group, const uint4 &first, const uint4 &second, int (&dot)[2]) {
    dot[0] = dot[1] = 0;
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      uint32_t low, high;
      unpack_quants<BITS>(group, w, low, high);
      dot[0] = __dp4a(int(low), int(word_of(first, w)), dot[0]);
      dot[1] = __dp4a(int(high), int(word_of(second, w)), dot[1]);
    }
  }

  __device__ __forceinline__ void sums(float (&sum)[R]) {
    const unsigned lane = threadIdx.x % 32;
    const RoundedInput x = input();
#pragma unroll
    for (int r = 0; r < R; ++r) sum[r] = 0;
    for (unsigned c0 = lane; c0 < groups; c0 += 32 * U) {
      if (c0 != lane) load(c0);
#pragma unroll
      for (int u = 0; u < U; ++u) {
        const unsigned c = c0 + 32 * u;
        if (c >= groups) break;
        const uint4 first = x.first[c], second = x.second[c];
        const float4 s = x.sums[c];
        int dot[R][2];
#pragma unroll
        for (int m = 0; m < M; ++m) {
          // The same way for all lanes.
          switch (matrix[m].bits()) {
            case 4: dots_of<4>(m, u, first, second, dot); break;
            case 5: dots_of<5>(m, u, first, second, dot); break;
            case 6: dots_of<6>(m, u, first, second, dot); break;
            default: dots_of<8>(m, u, first, second, dot); break;
          }
        }
#pragma unroll
        for (int r = 0; r < R; ++r) {
          const Matrix &of = matrix[r * M / R];
          const Factors f = factors_of(group[r][u], of, row[r] * groups + c);
          const float off = float(of.offset());
          const float low = s.x * float(dot[r][0]) - off * s.y, high = s.x * float(dot[r][1]) - off * s.z;
          sum[r] += f.factor[0] * low + f.factor[1] * high + f.added * (s.y + s.z);
        }
      }
    }
#pragma unroll
    for (int r = 0; r < R; ++r) sum[r] = by * lanes_sum(sum[r], 32);
  }

  // Of the rows of matrix m.
  template <int BITS>
  __device__ __forceinline__ void dots_of(int m, int u, const uint4 &first, const uint4 &second, int (&dot)[R][2]) const {
#pragma unroll
    for (int r = 0; r < R; ++r)
      if (r * M / R == m) dots<BITS>(group[r][u], first, second, dot[r]);
  }
};
