#!/usr/bin/env bash
# llama.cpp v0.5.0 as built for CUDA 13 in @node-llama-cpp/linux-x64-cuda 3.22.1: for Hopper (H100, H200), Ampere's A100 and Turing it holds
# intermediate code (PTX) alone, of version 9.1, which CUDA 13.1 brought; machine code is there for four other kinds of GPU. A driver of CUDA
# 13.0 runs machine code of all of CUDA 13, but no newer PTX: on an H200 with driver 580.159 the first kernel ends with "the provided PTX
# was compiled with an unsupported toolchain", after the model has been loaded. Release 3.14.5 (llama.cpp b7347, CUDA 13.0) has machine
# code for Hopper. Shown is what the two hold, by NVIDIA's cuobjdump 13.5.37; that needs no GPU. Ends with an error if it is otherwise
# today. Needs python3 with pip, npm, x86_64, 700 MB.
set -euo pipefail
dir="$(mktemp -d)"
trap 'rm -rf "$dir"' EXIT
python3 -m pip install --quiet --root-user-action=ignore --disable-pip-version-check --no-deps --target "$dir/tools" nvidia-cuda-cuobjdump==13.5.37
cuobjdump="$dir/tools/nvidia/cu13/bin/cuobjdump"
chmod +x "$cuobjdump"
kinds() { grep -o 'sm_[0-9a-z]*' | sort -uV | paste -sd' ' -; }
show() {
    mkdir "$dir/$1"
    (cd "$dir/$1" && npm pack --silent "@node-llama-cpp/linux-x64-cuda@$1" >/dev/null && tar xzf ./*.tgz)
    local library="$dir/$1/package/bins/linux-x64-cuda/libggml-cuda.so"
    echo "$1 machine code: $("$cuobjdump" --list-elf "$library" | kinds)"
    echo "$1 PTX: $("$cuobjdump" --list-ptx "$library" | kinds)"
    # All modules were made by one compiler; the first one tells its version.
    "$cuobjdump" --dump-ptx "$library" 2>/dev/null | sed -n '/^\.version/{s/^\./'"$1"' PTX /p;q}' || true
}
expected="3.14.5 machine code: sm_86 sm_89 sm_90
3.14.5 PTX: sm_75 sm_80
3.14.5 PTX version 9.0
3.22.1 machine code: sm_86 sm_89 sm_120a sm_121a
3.22.1 PTX: sm_75 sm_80 sm_90
3.22.1 PTX version 9.1"
found="$(show 3.14.5 && show 3.22.1)"
echo "$found"
diff <(echo "$expected") <(echo "$found") && echo "the two hold what is described"
