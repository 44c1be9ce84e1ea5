// All kernels, as nvcc compiles them into one file.
#include "attend.cu"
#include "output.cu"
#include "products.cu"
