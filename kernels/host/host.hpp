// CUDA's execution model on the CPU, for tests: a block's threads are fibers, a barrier hands over to the next of them.
//
// The order of a launch says what runs when. 0: blocks and threads one after the other; 1: the same from the last to the first.
// From 2 on it is the seed of a shuffle: several blocks are under way at a time, their threads take turns in random order, and a
// thread may be interrupted at fences and atomic operations. A result that depends on the order is a race. What cannot be seen
// here: a missing fence, a cache that is not coherent, a missing wait between kernels.
#pragma once
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

struct dim3 { unsigned x = 1, y = 1, z = 1; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) float4 { float x, y, z, w; };

namespace gpu {

struct Fiber;

struct Warp {
  uint32_t arrived = 0, live = 0, generation = 0;
  // Two sets of places, used in turn: a lane is at most one operation ahead of the others.
  uint64_t slot[2][32];
};

struct Block {
  dim3 id;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  // What the threads share: variables by the address of a key, in the order of their first use.
  std::vector<std::pair<const void *, std::unique_ptr<unsigned char[]>>> shared;
  std::unique_ptr<unsigned char[]> dynamic;
  char *stacks = nullptr;
  unsigned live = 0, arrived = 0, generation = 0;
};

enum Wait { WAIT_NONE, WAIT_BLOCK, WAIT_WARP };
struct Fiber {
  void *sp = nullptr;
  Block *block = nullptr;
  Warp *warp = nullptr;
  dim3 thread;
  unsigned lane = 0, operations = 0, waits_since = 0;
  unsigned asleep = 0;  // turns to sit out
  Wait wait = WAIT_NONE;
  bool done = false;
};

// A launch, as one thread of the CPU carries it out.
struct Launch {
  dim3 grid, shape;
  unsigned dynamic, order;
  void (*entry)(void *);
  void *arguments;
  uint64_t random = 0;
  void *main_sp = nullptr;

  unsigned below(unsigned n) {
    random = random * 6364136223846793005ull + 1442695040888963407ull;
    return unsigned(random >> 33) % n;
  }
};

inline thread_local Launch *launch = nullptr;
inline thread_local Fiber *fiber = nullptr;

constexpr size_t STACK = 64 << 10;
constexpr unsigned BLOCKS_AT_A_TIME = 4;

// Saves what the caller's caller expects to find again and the stack pointer in *from, goes on at `to`.
extern "C" void gpu_switch(void **from, void *to);
#if defined(__x86_64__)
asm(R"(.text
.weak gpu_switch
gpu_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
)");
inline void *first_frame(uintptr_t top, void (*entry)()) {
  void **sp = reinterpret_cast<void **>(top);
  *--sp = nullptr;
  *--sp = reinterpret_cast<void *>(entry);
  for (int i = 0; i < 6; ++i) *--sp = nullptr;
  return sp;
}
#elif defined(__aarch64__)
asm(R"(.text
.weak gpu_switch
gpu_switch:
  stp x19, x20, [sp, #-160]!
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x2, sp
  str x2, [x0]
  mov sp, x1
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  ldp x19, x20, [sp], #160
  ret
)");
inline void *first_frame(uintptr_t top, void (*entry)()) {
  void **sp = reinterpret_cast<void **>(top) - 20;
  std::memset(sp, 0, 160);
  sp[11] = reinterpret_cast<void *>(entry);
  return sp;
}
#else
#error "fibers are written for x86_64 and aarch64"
#endif

#if defined(__SANITIZE_ADDRESS__)
extern "C" void __sanitizer_start_switch_fiber(void **, const void *, size_t);
extern "C" void __sanitizer_finish_switch_fiber(void *, const void **, size_t *);
inline thread_local const void *main_bottom = nullptr;
inline thread_local size_t main_size = 0;
inline void leaving(void **fake, const void *bottom, size_t size) { __sanitizer_start_switch_fiber(fake, bottom, size); }
inline void back(void *fake, const void **bottom, size_t *size) { __sanitizer_finish_switch_fiber(fake, bottom, size); }
extern "C" void __asan_unpoison_memory_region(const volatile void *, size_t);
// A fiber that has ended leaves the borders of its last frames behind.
inline void clean(void *stacks, size_t size) { __asan_unpoison_memory_region(stacks, size); }
#else
inline thread_local const void *main_bottom = nullptr;
inline thread_local size_t main_size = 0;
inline void leaving(void **, const void *, size_t) {}
inline void back(void *, const void **, size_t *) {}
inline void clean(void *, size_t) {}
#endif

// Hands over to the thread of the CPU that carries out the launch.
inline void pause() {
  Fiber *mine = fiber;
  void *fake = nullptr;
  leaving(mine->done ? nullptr : &fake, main_bottom, main_size);
  gpu_switch(&mine->sp, launch->main_sp);
  back(fake, &main_bottom, &main_size);
}

inline void open_block(Block &b) { b.arrived = 0; ++b.generation; }
inline void open_warp(Warp &w) { w.arrived = 0; ++w.generation; }

inline void run_thread() {
  back(nullptr, &main_bottom, &main_size);
  launch->entry(launch->arguments);
  Fiber &mine = *fiber;
  Block &b = *mine.block;
  Warp &w = *mine.warp;
  mine.done = true;
  // Who has ended is not waited for.
  w.live &= ~(1u << mine.lane);
  if (--b.live && b.arrived == b.live) open_block(b);
  if (w.live && (w.arrived & w.live) == w.live) open_warp(w);
  pause();
}

inline void wait(Wait what, unsigned generation) {
  Fiber &mine = *fiber;
  mine.wait = what;
  mine.waits_since = generation;
  pause();
  mine.wait = WAIT_NONE;
}

inline void block_barrier() {
  Block &b = *fiber->block;
  const unsigned generation = b.generation;
  if (++b.arrived == b.live) open_block(b);
  else wait(WAIT_BLOCK, generation);
}

inline void warp_barrier() {
  Warp &w = *fiber->warp;
  const unsigned generation = w.generation;
  w.arrived |= 1u << fiber->lane;
  if ((w.arrived & w.live) == w.live) open_warp(w);
  else wait(WAIT_WARP, generation);
}

// Where another thread may come in between, and with turns to sit out a whole block.
inline void interruption(unsigned turns) {
  if (launch->order < 2 || launch->below(2)) return;
  fiber->asleep = turns;
  pause();
}

// What lane `source` of the warp gives.
template <typename T> inline T from_lane(T x, unsigned source) {
  static_assert(sizeof(T) <= 8);
  Fiber &mine = *fiber;
  uint64_t *slot = mine.warp->slot[mine.operations++ & 1];
  std::memcpy(&slot[mine.lane], &x, sizeof x);
  warp_barrier();
  T y;
  std::memcpy(&y, &slot[source & 31], sizeof y);
  return y;
}

// A block's own copy of the shared variable that `key` stands for; it begins as rubbish.
inline void *shared(const void *key, size_t size) {
  Block &b = *fiber->block;
  for (auto &[known, place] : b.shared)
    if (known == key) return place.get();
  b.shared.emplace_back(key, new unsigned char[size]);
  std::memset(b.shared.back().second.get(), 0xcd, size);
  return b.shared.back().second.get();
}

inline void begin(Block &b, unsigned index) {
  const dim3 grid = launch->grid, shape = launch->shape;
  const unsigned threads = shape.x * shape.y * shape.z;
  b.id = {index % grid.x, index / grid.x % grid.y, index / (grid.x * grid.y)};
  b.warps.assign((threads + 31) / 32, Warp());
  b.fibers.assign(threads, Fiber());
  b.live = threads;
  b.arrived = b.generation = 0;
  b.shared.clear();
  clean(b.stacks, threads * STACK);
  b.dynamic.reset(new unsigned char[launch->dynamic + 1]);
  std::memset(b.dynamic.get(), 0xcd, launch->dynamic);
  for (unsigned i = 0; i < threads; ++i) {
    Fiber &f = b.fibers[i];
    f.block = &b;
    f.warp = &b.warps[i / 32];
    f.lane = i % 32;
    f.warp->live |= 1u << f.lane;
    f.thread = {i % shape.x, i / shape.x % shape.y, i / (shape.x * shape.y)};
    f.sp = first_frame(reinterpret_cast<uintptr_t>(b.stacks + (i + 1) * STACK) & ~uintptr_t(15), run_thread);
  }
}

// Lets every thread of a block that waits for nothing run up to its next pause; false if there was none.
inline bool sweep(Block &b) {
  const unsigned threads = unsigned(b.fibers.size());
  const unsigned order = launch->order, first = order > 1 ? launch->below(threads) : 0;
  // A step that shares no factor with the number of threads goes through all of them.
  unsigned step = 1;
  if (order > 1) do step = 1 + launch->below(threads); while (std::gcd(step, threads) != 1);
  bool moved = false;
  for (unsigned n = 0; n < threads; ++n) {
    const unsigned i = order == 1 ? threads - 1 - n : unsigned((first + uint64_t(n) * step) % threads);
    Fiber &f = b.fibers[i];
    const bool waits = (f.wait == WAIT_BLOCK && f.waits_since == b.generation) || (f.wait == WAIT_WARP && f.waits_since == f.warp->generation);
    if (f.done || waits) continue;
    moved = true;
    if (f.asleep > 0) {
      --f.asleep;
      continue;
    }
    fiber = &f;
    void *fake = nullptr;
    leaving(&fake, b.stacks + i * STACK, STACK);
    gpu_switch(&launch->main_sp, f.sp);
    back(fake, nullptr, nullptr);
  }
  return moved;
}

inline void run(dim3 grid, dim3 shape, unsigned dynamic, void (*entry)(void *), void *arguments, unsigned order, unsigned threads) {
  const unsigned total = grid.x * grid.y * grid.z;
  const size_t stacks = size_t(shape.x) * shape.y * shape.z * STACK;
  std::atomic<unsigned> next{0};
  const auto work = [&](unsigned worker) {
    Launch mine{grid, shape, dynamic, order, entry, arguments};
    mine.random = (uint64_t(order) << 32) + worker;
    launch = &mine;
    std::vector<std::unique_ptr<Block>> blocks;
    const auto begin_another = [&](Block &b) {
      const unsigned n = next++;
      if (n >= total) return false;
      begin(b, order == 1 ? total - 1 - n : n);
      return true;
    };
    // Kept for the next launch: memory that is new has to be mapped page by page.
    static thread_local std::unique_ptr<char[]> all_stacks;
    static thread_local size_t room = 0;
    if (room < stacks * (order > 1 ? BLOCKS_AT_A_TIME : 1)) {
      room = stacks * (order > 1 ? BLOCKS_AT_A_TIME : 1);
      all_stacks.reset(new char[room]);
    }
    while (blocks.size() < (order > 1 ? BLOCKS_AT_A_TIME : 1)) {
      blocks.emplace_back(new Block);
      blocks.back()->stacks = all_stacks.get() + (blocks.size() - 1) * stacks;
      if (!begin_another(*blocks.back())) { blocks.pop_back(); break; }
    }
    while (!blocks.empty()) {
      const unsigned at = order > 1 ? mine.below(unsigned(blocks.size())) : 0;
      Block &b = *blocks[at];
      if (!sweep(b) && b.live) {
        std::fprintf(stderr, "block %u,%u,%u: %u threads wait for each other, %u of them for the whole block\n", b.id.x, b.id.y, b.id.z, b.live, b.arrived);
        std::abort();
      }
      if (b.live == 0 && !begin_another(b)) blocks.erase(blocks.begin() + at);
    }
    launch = nullptr;
  };
  if (threads <= 1) return work(0);
  std::vector<std::thread> pool;
  for (unsigned i = 0; i < threads; ++i) pool.emplace_back(work, i);
  for (auto &thread : pool) thread.join();
}

// Kernels by name, called as cuLaunchKernel calls them: with an array of pointers to the arguments.
struct Kernel {
  void (*entry)(void *);
  unsigned arguments;
};
inline std::map<std::string, Kernel> &kernels() {
  static std::map<std::string, Kernel> all;
  return all;
}
template <auto F> struct Call;
template <typename... A, void (*F)(A...)> struct Call<F> {
  static constexpr unsigned ARGUMENTS = sizeof...(A);
  static void entry(void *arguments) { call(static_cast<void **>(arguments), std::index_sequence_for<A...>{}); }
  template <size_t... I> static void call(void **arguments, std::index_sequence<I...>) { F(*static_cast<A *>(arguments[I])...); }
};
struct Register {
  Register(const char *name, Kernel kernel) { kernels()[name] = kernel; }
};

}  // namespace gpu

#define threadIdx (gpu::fiber->thread)
#define blockIdx (gpu::fiber->block->id)
#define blockDim (gpu::launch->shape)
#define gridDim (gpu::launch->grid)
#define KERNEL(threads, blocks) extern "C" void
#define EXPORT(name) static gpu::Register register_##name(#name, {&gpu::Call<&name>::entry, gpu::Call<&name>::ARGUMENTS});
#define SHARED(type, name, dims)         \
  using type_of_##name = type dims;      \
  static const char key_of_##name = 0;   \
  type_of_##name &name = *static_cast<type_of_##name *>(gpu::shared(&key_of_##name, sizeof(type_of_##name)))
#define DYNAMIC_SHARED(type, name) type *name = reinterpret_cast<type *>(gpu::fiber->block->dynamic.get())

inline void __syncthreads() { gpu::block_barrier(); }
inline void __syncwarp() { gpu::warp_barrier(); }
inline void __threadfence() {
  std::atomic_thread_fence(std::memory_order_seq_cst);
  gpu::interruption(0);
}
inline void __threadfence_system() { __threadfence(); }
template <typename T> inline T __shfl_xor_sync(unsigned, T x, int mask) { return gpu::from_lane(x, gpu::fiber->lane ^ mask); }
template <typename T> inline T __shfl_sync(unsigned, T x, int lane) { return gpu::from_lane(x, lane); }
inline unsigned atomicInc(unsigned *at, unsigned limit) {
  unsigned old = __atomic_load_n(at, __ATOMIC_SEQ_CST);
  while (!__atomic_compare_exchange_n(at, &old, old >= limit ? 0 : old + 1, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {}
  gpu::interruption(64);
  return old;
}

// As a butterfly over the lanes of each group of `width`, in one hand-over: the last lane to come works for all.
template <typename T, typename Both> inline T butterfly(T x, int width, Both both) {
  gpu::Fiber &mine = *gpu::fiber;
  gpu::Warp &w = *mine.warp;
  uint64_t *words = w.slot[mine.operations++ & 1];
  T slot[32];
  std::memcpy(&words[mine.lane], &x, sizeof x);
  if ((w.arrived | 1u << mine.lane) == w.live) {
    for (int i = 0; i < 32; ++i) std::memcpy(&slot[i], &words[i], sizeof(T));
    for (int m = width / 2; m > 0; m >>= 1) {
      T next[32];
      for (int i = 0; i < 32; ++i) next[i] = both(slot[i], slot[i ^ m]);
      std::memcpy(slot, next, sizeof next);
    }
    for (int i = 0; i < 32; ++i) std::memcpy(&words[i], &slot[i], sizeof(T));
  }
  gpu::warp_barrier();
  std::memcpy(&x, &words[mine.lane], sizeof x);
  return x;
}
inline float lanes_sum(float x, int width) { return butterfly(x, width, [](float a, float b) { return a + b; }); }
inline uint32_t lanes_max(uint32_t x, int width) { return butterfly(x, width, [](uint32_t a, uint32_t b) { return a < b ? b : a; }); }

inline float __uint_as_float(uint32_t bits) { float x; std::memcpy(&x, &bits, 4); return x; }
inline uint32_t __float_as_uint(float x) { uint32_t bits; std::memcpy(&bits, &x, 4); return bits; }
// To the nearest, of two equally near ones to the even one; of what is within an int.
inline int __float2int_rn(float x) { return int(std::nearbyintf(x)); }
// Plus the products of four signed bytes.
inline int __dp4a(int a, int b, int sum) {
  for (int shift = 0; shift < 32; shift += 8) sum += int(int8_t(unsigned(a) >> shift)) * int(int8_t(unsigned(b) >> shift));
  return sum;
}
inline float reciprocal(float x) { return 1.0f / x; }
// Of the bytes of x and y, numbered from 0 to 7, those that the digits of `which` say.
inline uint32_t __byte_perm(uint32_t x, uint32_t y, uint32_t which) {
  const uint64_t all = uint64_t(y) << 32 | x;
  uint32_t bytes = 0;
  for (int i = 0; i < 4; ++i) bytes |= uint32_t(all >> 8 * (which >> 4 * i & 7) & 0xff) << 8 * i;
  return bytes;
}
using std::isfinite;
template <typename T> inline T min(T a, T b) { return b < a ? b : a; }
template <typename T> inline T max(T a, T b) { return a < b ? b : a; }

// IEEE 754 binary16, and the upper half of a binary32, by their bits.
struct f16 { uint16_t bits; };
struct bf16 { uint16_t bits; };
inline uint16_t bits_of(f16 x) { return x.bits; }
inline uint16_t bits_of(bf16 x) { return x.bits; }
inline float half_bits_to_float(uint32_t bits) {
  const uint32_t exponent = bits >> 10 & 31, fraction = bits & 1023;
  const float size = exponent == 0    ? std::ldexp(float(fraction), -24)
                     : exponent == 31 ? (fraction ? NAN : INFINITY)
                                      : __uint_as_float((exponent + 112) << 23 | fraction << 13);
  return bits >> 15 & 1 ? -size : size;
}
inline float to_float(f16 x) { return half_bits_to_float(x.bits); }
inline float to_float(bf16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }
// To the nearest, of two equally near ones to the even one.
inline void from_float(float x, f16 &to) {
  const uint32_t bits = __float_as_uint(x), size = bits & 0x7fffffffu;
  const uint16_t sign = uint16_t(bits >> 16 & 0x8000u);
  if (size > 0x7f800000u) to.bits = 0x7fff;
  else if (size >= 0x477ff000u) to.bits = sign | 0x7c00;
  else if (size < 0x38800000u) to.bits = uint16_t(sign | uint16_t(std::nearbyintf(std::ldexp(__uint_as_float(size), 24))));
  else to.bits = uint16_t(sign | uint16_t((size - 0x38000000u + 0xfffu + (size >> 13 & 1u)) >> 13));
}
inline void from_float(float x, bf16 &to) {
  const uint32_t bits = __float_as_uint(x);
  to.bits = (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fff : uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

inline void wait_for_producer() {}
inline void let_consumer_start() {}
// As on the GPU, where an address that is not aligned ends the launch.
template <typename T> inline T load_aligned(const void *from) {
  if (reinterpret_cast<uintptr_t>(from) % sizeof(T) != 0) {
    std::fprintf(stderr, "a load of %zu bytes from %p\n", sizeof(T), from);
    std::abort();
  }
  T x;
  std::memcpy(&x, from, sizeof x);
  return x;
}
inline uint4 load_weights(const void *from) { return load_aligned<uint4>(from); }
inline uint2 load_weights_8(const void *from) { return load_aligned<uint2>(from); }
inline uint32_t load_word(const void *from) { return load_aligned<uint32_t>(from); }
inline uint4 load_16_bytes(const void *from) { return load_aligned<uint4>(from); }
inline uint2 load_8_bytes(const void *from) { return load_aligned<uint2>(from); }
inline uint32_t load_4_bytes(const void *from) { return load_aligned<uint32_t>(from); }
inline uint32_t load_2_bytes(const void *from) { return load_aligned<uint16_t>(from); }
inline void publish(uint32_t *to, uint4 v) { *reinterpret_cast<uint4 *>(to) = v; }
template <typename T> inline T fresh(const T *from) { return *from; }
