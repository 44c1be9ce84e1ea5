#!/usr/bin/env bash
# Builds the command line with the feature cuda, without ROS, into target/cuda. No GPU is needed for that.
# Usage: scripts/gpu-build.sh [CARGO_COMMAND ARGS...], without arguments: build.
# The CUDA toolkit is the one that the user has (CUDA_HOME, CUDA_PATH, nvcc in PATH or /usr/local/cuda), else a private one in
# .cuda, made of pinned wheels. CUDA_COMPUTE_CAP is the GPU to compile for: that of this machine, else 90; 87 is a Jetson AGX
# Orin. CUDAFORGE_THREADS says how many kernels are compiled at a time.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$INF_MLLM_ROOT"

say() { echo "gpu-build: $*" >&2; }
die() { say "$*"; exit 1; }

# Prints the root folder of the toolkit that the user has.
find_toolkit() {
    local root nvcc
    for root in "${CUDA_HOME-}" "${CUDA_PATH-}"; do
        [ -n "$root" ] || continue
        [ -x "$root/bin/nvcc" ] || die "there is no bin/nvcc in $root, which CUDA_HOME or CUDA_PATH names"
        echo "$root"
        return
    done
    nvcc="$(command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null)" || return 1
    dirname "$(dirname "$(readlink -f "$nvcc")")"
}

# A libcuda to link with where no driver is installed. It is empty: the executable loads the driver's when a GPU is asked for.
make_stub() {
    mkdir -p "$1/lib/stubs"
    gcc -shared -o "$1/lib/stubs/libcuda.so" -x c - </dev/null
}

# Installs the wheels into .cuda, and adds what they lack for a build.
private_toolkit() {
    local toolkit="$INF_MLLM_ROOT/.cuda/nvidia/cu13" stamp name
    stamp="$(cat scripts/cuda-requirements.txt scripts/gpu-build.sh | sha256sum | cut -d' ' -f1)"
    if [ "$(cat .cuda/stamp 2>/dev/null)" != "$stamp" ]; then
        [ "$(uname -m)" = x86_64 ] || die "the private CUDA toolkit exists for x86_64 only, not $(uname -m): install CUDA and set CUDA_HOME"
        python3 -m pip --version >/dev/null 2>&1 || die "python3 with pip is missing; run make setup"
        say "installing a CUDA toolkit into .cuda (1.2 GB)"
        rm -rf .cuda
        python3 -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary=:all: \
            --target .cuda -r scripts/cuda-requirements.txt
        ln -s lib "$toolkit/lib64"
        for name in cublas cublasLt cudart curand nvrtc; do
            (cd "$toolkit/lib" && ln -s "lib$name".so.[0-9]* "lib$name.so")
        done
        make_stub "$toolkit"
        echo "$stamp" >.cuda/stamp
    fi
    # build.rs lets the executables find this toolkit's libraries.
    export INF_MLLM_PRIVATE_CUDA="$toolkit" CUDA_HOME="$toolkit"
}

# The compute capability of this machine's first GPU, as in 90.
local_compute_cap() {
    nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sed -n '1s/^\([0-9]*\)\.\([0-9]\)$/\1\2/p'
}

# Fails if an executable does not start without the libraries of CUDA: src/model/device/on_demand.rs loads them when they are asked for,
# if it knows every function that is called.
check_start() {
    local executable="$1" needed
    needed="$(readelf -d "$executable" | grep -oE '(cuda|cudart|cublas|cublasLt|curand|nvrtc)\.so[.0-9]*' | tr '\n' ' ' || true)"
    [ -n "$needed" ] || return 0
    say "$executable does not start without $needed: src/model/device/on_demand.rs does not name these functions:"
    nm -D --undefined-only "$executable" | grep -oE '\b(__)?cu(da|blas|blasLt|rand)?[A-Z]\w+' >&2 || true
    exit 1
}

unset INF_MLLM_PRIVATE_CUDA
if toolkit="$(find_toolkit)"; then
    export CUDA_HOME="$toolkit"
else
    # A folder that was named but holds no toolkit has been complained about.
    [ -z "${CUDA_HOME-}${CUDA_PATH-}" ] || exit 1
    private_toolkit
fi
export CUDA_PATH="$CUDA_HOME" PATH="$CUDA_HOME/bin:$PATH"
[ -n "${CUDA_COMPUTE_CAP-}" ] || CUDA_COMPUTE_CAP="$(local_compute_cap || true)"
export CUDA_COMPUTE_CAP="${CUDA_COMPUTE_CAP:-90}" CUDAFORGE_THREADS="${CUDAFORGE_THREADS:-2}"

say "CUDA $(nvcc --version | sed -n 's/.*release \([0-9.]*\).*/\1/p') in $CUDA_HOME, compute capability $CUDA_COMPUTE_CAP"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$INF_MLLM_ROOT/target}/cuda"
command="${1:-build}"
shift || true
cargo "$command" --release --locked --features cuda "$@"
if [ "$command" = build ]; then
    check_start "$CARGO_TARGET_DIR/release/inf_mllm"
    say "built $CARGO_TARGET_DIR/release/inf_mllm; docs/gpu.md says how to run it"
fi
