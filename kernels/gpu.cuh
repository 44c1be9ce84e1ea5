// What kernels may use, under nvcc and under g++ (host/host.hpp), and the state that they share.
#pragma once
#include <stdint.h>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define KERNEL(threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks)
#define EXPORT(name)
#define SHARED(type, name, dims) __shared__ __align__(16) type name dims
#define DYNAMIC_SHARED(type, name)                                        \
  extern __shared__ __align__(16) unsigned char dynamic_shared[];         \
  type *name = reinterpret_cast<type *>(dynamic_shared)

using f16 = __half;
using bf16 = __nv_bfloat16;

__device__ __forceinline__ float to_float(f16 x) { return __half2float(x); }
__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ uint16_t bits_of(f16 x) { return __half_as_ushort(x); }
__device__ __forceinline__ uint16_t bits_of(bf16 x) { return __bfloat16_as_ushort(x); }
__device__ __forceinline__ void from_float(float x, f16 &to) { to = __float2half_rn(x); }
__device__ __forceinline__ void from_float(float x, bf16 &to) { to = __float2bfloat16_rn(x); }
__device__ __forceinline__ float half_bits_to_float(uint32_t low16) { return __half2float(__ushort_as_half(uint16_t(low16))); }
// 1 / x, to the nearest.
__device__ __forceinline__ float reciprocal(float x) { return __frcp_rn(x); }

// The sum over the lanes of each group of `width` (a power of two), the same bits in every lane of the group.
__device__ __forceinline__ float lanes_sum(float x, int width) {
  for (int m = width / 2; m > 0; m >>= 1) x += __shfl_xor_sync(0xffffffffu, x, m);
  return x;
}

// The largest over the lanes of each group of `width`, likewise.
__device__ __forceinline__ uint32_t lanes_max(uint32_t x, int width) {
  for (int m = width / 2; m > 0; m >>= 1) x = max(x, __shfl_xor_sync(0xffffffffu, x, m));
  return x;
}

// Programmatic dependent launch, from sm_90 on; elsewhere the next kernel starts when this one has ended.
//
// Every kernel waits, before it reads what another kernel writes, before it writes anything and before it returns: only so does
// the end of a kernel mean that all before it have ended. What is read before the wait no kernel may ever write: weights.
__device__ __forceinline__ void wait_for_producer() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// Lets the blocks of the next kernel start beside this one, up to their wait. After this kernel's own wait, so that at most two
// kernels hold registers at a time.
__device__ __forceinline__ void let_consumer_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// 16 bytes of weights: read once, past L1; no kernel writes them.
__device__ __forceinline__ uint4 load_weights(const void *p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
  return v;
}
// Less of them.
__device__ __forceinline__ uint2 load_weights_8(const void *p) {
  uint2 v;
  asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
  return v;
}
__device__ __forceinline__ uint32_t load_word(const void *p) { return __ldg(static_cast<const uint32_t *>(p)); }
// What earlier kernels wrote and this one reads once: past L1, and not by the path for constants.
__device__ __forceinline__ uint4 load_16_bytes(const void *p) {
  uint4 v;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory");
  return v;
}
__device__ __forceinline__ uint2 load_8_bytes(const void *p) {
  uint2 v;
  asm volatile("ld.global.L1::no_allocate.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p) : "memory");
  return v;
}
// The same of less, which shares its lines with what is read next: by way of L1.
__device__ __forceinline__ uint32_t load_4_bytes(const void *p) {
  uint32_t v;
  asm volatile("ld.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
__device__ __forceinline__ uint32_t load_2_bytes(const void *p) {
  uint16_t v;
  asm volatile("ld.global.u16 %0, [%1];" : "=h"(v) : "l"(p) : "memory");
  return v;
}
// What an earlier kernel or another block wrote, as it stands in L2.
template <typename T> __device__ __forceinline__ T fresh(const T *p) { return __ldcg(p); }
// To what the host reads while kernels run (mapped memory, at a multiple of 16 bytes): all of it at once.
__device__ __forceinline__ void publish(uint32_t *to, uint4 v) {
  asm volatile("st.volatile.global.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}
#else
#include "host/host.hpp"
#endif

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ uint32_t bits_of(float x) { return __float_as_uint(x); }
__device__ __forceinline__ void from_float(float x, float &to) { to = x; }

// V numbers at once: from memory that this kernel does not write, from another block, from shared memory; and out.
template <int V> __device__ __forceinline__ void load_constants(const float *from, float (&x)[V]) {
  if constexpr (V == 4) {
    const float4 all = *reinterpret_cast<const float4 *>(from);
    x[0] = all.x; x[1] = all.y; x[2] = all.z; x[3] = all.w;
  } else x[0] = from[0];
}
template <int V> __device__ __forceinline__ void load_fresh(const float *from, float (&x)[V]) {
  if constexpr (V == 4) {
    const float4 all = fresh(reinterpret_cast<const float4 *>(from));
    x[0] = all.x; x[1] = all.y; x[2] = all.z; x[3] = all.w;
  } else x[0] = fresh(from);
}
template <int V> __device__ __forceinline__ void store(float *to, const float (&x)[V]) {
  if constexpr (V == 4) *reinterpret_cast<float4 *>(to) = {x[0], x[1], x[2], x[3]};
  else to[0] = x[0];
}

// Threads of a block of products, at most; blockDim.x is any multiple of 32 up to it.
constexpr int PRODUCT_THREADS = 256;

constexpr float LOG2_E = 1.4426950408889634f;

// A number as it is stored in a T.
template <typename T> __device__ __forceinline__ float rounded(float x) {
  T stored;
  from_float(x, stored);
  return to_float(stored);
}

// Two numbers of 16 bits out of a word.
__device__ __forceinline__ void unpack_2(uint32_t word, float *x, f16) {
  x[0] = half_bits_to_float(word & 0xffffu);
  x[1] = half_bits_to_float(word >> 16);
}
__device__ __forceinline__ void unpack_2(uint32_t word, float *x, bf16) {
  x[0] = __uint_as_float(word << 16);
  x[1] = __uint_as_float(word & 0xffff0000u);
}

// Four numbers as they are stored: of T = f16 and bf16 8 bytes, of f32 16.
template <typename T> struct Four {
  uint2 bits = {0, 0};
  // Those from d on of a row, aligned to 8 bytes.
  __device__ __forceinline__ void load(const T *row, unsigned d, unsigned) { bits = load_8_bytes(row + d); }
  // The first `count` of them from anywhere, zeros for the rest.
  __device__ __forceinline__ void load_some(const T *row, unsigned d, int count, unsigned) {
    const T *p = row + d;
    if (count > 0) bits.x = bits_of(p[0]);
    if (count > 1) bits.x |= uint32_t(bits_of(p[1])) << 16;
    if (count > 2) bits.y = bits_of(p[2]);
    if (count > 3) bits.y |= uint32_t(bits_of(p[3])) << 16;
  }
  __device__ __forceinline__ void unpack(float *x) const {
    unpack_2(bits.x, x, T());
    unpack_2(bits.y, x + 2, T());
  }
};
template <> struct Four<float> {
  uint4 bits = {0, 0, 0, 0};
  // Aligned to 16 bytes.
  __device__ __forceinline__ void load(const float *row, unsigned d, unsigned) { bits = load_16_bytes(row + d); }
  __device__ __forceinline__ void load_some(const float *row, unsigned d, int count, unsigned) {
    const float *p = row + d;
    if (count > 0) bits.x = bits_of(p[0]);
    if (count > 1) bits.y = bits_of(p[1]);
    if (count > 2) bits.z = bits_of(p[2]);
    if (count > 3) bits.w = bits_of(p[3]);
  }
  __device__ __forceinline__ void unpack(float *x) const {
    x[0] = __uint_as_float(bits.x);
    x[1] = __uint_as_float(bits.y);
    x[2] = __uint_as_float(bits.z);
    x[3] = __uint_as_float(bits.w);
  }
};

// What element a buffer holds whose type is known at run time only.
enum ElementType : uint32_t { ELEMENT_F32 = 0, ELEMENT_F16 = 1, ELEMENT_BF16 = 2 };

__device__ __forceinline__ void store_element(void *to, size_t index, float x, uint32_t type) {
  if (type == ELEMENT_F32) static_cast<float *>(to)[index] = x;
  else if (type == ELEMENT_F16) from_float(x, static_cast<f16 *>(to)[index]);
  else from_float(x, static_cast<bf16 *>(to)[index]);
}
__device__ __forceinline__ float load_element(const void *from, size_t index, uint32_t type) {
  if (type == ELEMENT_F32) return static_cast<const float *>(from)[index];
  if (type == ELEMENT_F16) return to_float(static_cast<const f16 *>(from)[index]);
  return to_float(static_cast<const bf16 *>(from)[index]);
}

__device__ __forceinline__ void copy_element(void *to, size_t to_index, const void *from, size_t index, uint32_t type) {
  if (type == ELEMENT_F32) static_cast<float *>(to)[to_index] = static_cast<const float *>(from)[index];
  else static_cast<uint16_t *>(to)[to_index] = static_cast<const uint16_t *>(from)[index];
}

// Why decoding stopped.
enum Stop : uint32_t { STOP_NOT = 0, STOP_LENGTH = 1, STOP_END = 2 };
// What went wrong; fault_token says more.
enum Fault : uint32_t {
  FAULT_NONE = 0,
  FAULT_CACHE_FULL = 1,        // fault_token: the slots in use, which are all there are
  FAULT_LOGIT_NOT_FINITE = 2,  // fault_token: the first token whose logit is no finite number
  FAULT_NOTHING_TO_CHOOSE = 3  // every token is banned
};

// Decoding of one session, in device memory: what changes from token to token, but for the layers' part. A step appends `token`
// to the cache and chooses what follows. While stop or fault is set, or left is 0, no kernel of a step does anything.
struct Step {
  uint32_t token;        // to be appended by the next step
  uint32_t stop;         // a Stop
  uint32_t left;         // how many tokens may still be appended, `token` among them; after the last one nothing is chosen
  uint32_t count;        // tokens chosen, ever: the next goes to place count % capacity of the rings
  uint32_t fault;        // a Fault; the step that had it has advanced nothing
  uint32_t fault_token;
};

// A layer's cache.
struct LayerState {
  uint32_t len;        // slots in use
  uint32_t cursor;     // place in its query ring of the next query, below window
  uint32_t window;     // queries that the ring turns through; 0: it takes none
  uint32_t first_row;  // of its rotary table among the rows of all: rank r of KV head h turns by row first_row + h * row_stride + r
};

// Whether there is nothing to do. Uniform over a grid: only a kernel's last act may change what it depends on, see attend.
__device__ __forceinline__ bool ended(const Step *step) {
  return fresh(&step->stop) | fresh(&step->fault) | (fresh(&step->left) == 0);
}
