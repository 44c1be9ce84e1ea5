// A frame's picture to the values that the tower takes. Pictures are packed bytes: red, green and blue of each pixel, row by row.
#include "gpu.cuh"

constexpr int FRAME_THREADS = 256;

// Of a pixel that a pass of resizing makes: the first one that it is made of, how many they are, and their weights.
struct FrameTaps {
  const int32_t *row;
  __device__ __forceinline__ FrameTaps(const int32_t *taps, uint32_t most, unsigned made) : row(taps + size_t(made) * (2 + most)) {}
  __device__ __forceinline__ int first() const { return row[0]; }
  __device__ __forceinline__ int count() const { return row[1]; }
  __device__ __forceinline__ int weight(int i) const { return row[2 + i]; }
};

__device__ __forceinline__ uint8_t grey_level(int sum, uint32_t bits) {
  const int level = sum >> bits;
  return uint8_t(level < 0 ? 0 : level > 255 ? 255 : level);
}

// resize_across: rows at another width, in whole numbers: the same bytes whoever computes them.
//   picture  const uint8_t *, [height, width, 3]
//   width    uint32
//   taps     const int32_t *, [made, 2 + most]: of each pixel of a row first, count and weights; the weights have `bits`
//            fractional bits and sum up to about 1
//   most     uint32
//   bits     uint32: 1 to 22
//   made     uint32: pixels of a row that come out
//   out      uint8_t *, [height, made, 3]
// Grid: (ceil(made / 256), height); block: 256 threads.
KERNEL(FRAME_THREADS, 1) resize_across(const uint8_t *picture, uint32_t width, const int32_t *taps, uint32_t most, uint32_t bits,
                                       uint32_t made, uint8_t *out) {
  wait_for_producer();
  let_consumer_start();
  const unsigned x = blockIdx.x * FRAME_THREADS + threadIdx.x;
  if (x >= made) return;
  const FrameTaps of(taps, most, x);
  const uint8_t *from = picture + (size_t(blockIdx.y) * width + unsigned(of.first())) * 3;
  int red = 1 << (bits - 1), green = red, blue = red;
  for (int i = 0; i < of.count(); ++i, from += 3) {
    const int weight = of.weight(i);
    red += from[0] * weight;
    green += from[1] * weight;
    blue += from[2] * weight;
  }
  uint8_t *to = out + (size_t(blockIdx.y) * made + x) * 3;
  to[0] = grey_level(red, bits);
  to[1] = grey_level(green, bits);
  to[2] = grey_level(blue, bits);
}
EXPORT(resize_across)

// resize_down: the same for columns.
//   picture  const uint8_t *, [height, width, 3]
//   width    uint32
//   taps     const int32_t *, [made, 2 + most]
//   most     uint32
//   bits     uint32
//   out      uint8_t *, [made, width, 3]
// Grid: (ceil(3 * width / 256), made); block: 256 threads.
KERNEL(FRAME_THREADS, 1) resize_down(const uint8_t *picture, uint32_t width, const int32_t *taps, uint32_t most, uint32_t bits,
                                     uint8_t *out) {
  wait_for_producer();
  let_consumer_start();
  const unsigned at = blockIdx.x * FRAME_THREADS + threadIdx.x;
  const size_t row = size_t(width) * 3;
  if (at >= row) return;
  const FrameTaps of(taps, most, blockIdx.y);
  const uint8_t *from = picture + unsigned(of.first()) * row + at;
  int sum = 1 << (bits - 1);
  for (int i = 0; i < of.count(); ++i, from += row) sum += *from * of.weight(i);
  out[blockIdx.y * row + at] = grey_level(sum, bits);
}
EXPORT(resize_down)

// frame_square: a picture in the middle of a square of one colour.
//   picture  const uint8_t *, [height, width, 3]
//   width    uint32
//   height   uint32
//   red      uint32
//   green    uint32
//   blue     uint32
//   out      uint8_t *, [side, side, 3], side = max(width, height)
// Grid: (ceil(side / 256), side); block: 256 threads.
KERNEL(FRAME_THREADS, 1) frame_square(const uint8_t *picture, uint32_t width, uint32_t height, uint32_t red, uint32_t green,
                                      uint32_t blue, uint8_t *out) {
  wait_for_producer();
  let_consumer_start();
  const unsigned side = width > height ? width : height;
  const unsigned x = blockIdx.x * FRAME_THREADS + threadIdx.x, y = blockIdx.y;
  if (x >= side) return;
  const unsigned left = (side - width) / 2, top = (side - height) / 2;
  uint8_t *to = out + (size_t(y) * side + x) * 3;
  if (x >= left && x - left < width && y >= top && y - top < height) {
    const uint8_t *from = picture + (size_t(y - top) * width + (x - left)) * 3;
    to[0] = from[0];
    to[1] = from[1];
    to[2] = from[2];
  } else {
    to[0] = uint8_t(red);
    to[1] = uint8_t(green);
    to[2] = uint8_t(blue);
  }
}
EXPORT(frame_square)

// frame_values: normalised values, patch by patch: (byte * scale - mean) / deviation of the colour.
//   picture       const uint8_t *, [height, width, 3]: both multiples of a patch's side times merge
//   width         uint32
//   patch_height  uint32
//   patch_width   uint32
//   merge         uint32: patches come square by square of so many patches down and across, the squares row by row
//   repeat        uint32: how often each patch of a colour stands there, one behind the other
//   scale         float
//   mean_r mean_g mean_b  float
//   std_r std_g std_b     float
//   out           [patches, 3, repeat, patch_height, patch_width]
//   type          uint32, of out: 0 f32, 1 f16, 2 bf16
// Grid: (ceil(width / 256), height); block: 256 threads.
KERNEL(FRAME_THREADS, 1) frame_values(const uint8_t *picture, uint32_t width, uint32_t patch_height, uint32_t patch_width, uint32_t merge,
                                      uint32_t repeat, float scale, float mean_r, float mean_g, float mean_b, float std_r, float std_g,
                                      float std_b, void *out, uint32_t type) {
  wait_for_producer();
  let_consumer_start();
  const unsigned x = blockIdx.x * FRAME_THREADS + threadIdx.x, y = blockIdx.y;
  if (x >= width) return;
  const unsigned row = y / patch_height, column = x / patch_width, squares_across = width / patch_width / merge;
  const size_t square = size_t(row / merge) * squares_across + column / merge;
  const size_t patch = square * merge * merge + row % merge * merge + column % merge;
  const size_t area = size_t(patch_height) * patch_width;
  const size_t within = size_t(y % patch_height) * patch_width + x % patch_width;
  const uint8_t *from = picture + (size_t(y) * width + x) * 3;
  const float mean[3] = {mean_r, mean_g, mean_b}, deviation[3] = {std_r, std_g, std_b};
#pragma unroll
  for (int c = 0; c < 3; ++c) {
    const float value = (float(from[c]) * scale - mean[c]) / deviation[c];
    for (unsigned i = 0; i < repeat; ++i) store_element(out, ((patch * 3 + c) * repeat + i) * area + within, value, type);
  }
}
EXPORT(frame_values)
