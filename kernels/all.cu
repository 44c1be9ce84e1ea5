// All kernels, as nvcc compiles them into one file.
#include "attend_bf16.cu"
#include "attend_chunk.cu"
#include "attend_f16.cu"
#include "attend_f32.cu"
#include "history.cu"
#include "output.cu"
#include "products.cu"
#include "scores.cu"
