#!/usr/bin/env bash
# Usage: make.sh FOLDER: makes a CUDA toolkit there that compiles no kernel, and in FOLDER/run the libraries that count calls.
# What is linked with its libraries fails if it needs a function of them: they are empty.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
mkdir -p "$1"/{bin,include,lib64,run}
cp "$here/nvcc" "$1/bin/nvcc"
echo '#define CUDA_VERSION 13000' >"$1/include/cuda.h"
for name in cuda cudart cublas cublasLt curand nvrtc; do
    gcc -shared -o "$1/lib64/lib$name.so" -x c - </dev/null
done
gcc -O1 -shared -fPIC -fno-builtin -Wall -Wextra -Werror "$here/libraries.c" -o "$1/run/libcuda.so.1" -pthread
for name in libcudart.so.13 libcublas.so.13 libcurand.so.10; do
    ln -sf libcuda.so.1 "$1/run/$name"
done
