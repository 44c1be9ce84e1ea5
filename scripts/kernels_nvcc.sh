#!/usr/bin/env bash
# Compiles kernels/ for every GPU of kernels/targets, as a GPU build does, and fails if a kernel spills registers or needs local
# memory. Needs no GPU. The compiler is that of CUDA_HOME, PATH or .cuda, else one of pinned wheels in .nvcc.
# Usage: scripts/kernels_nvcc.sh [FATBIN], where the result is to be kept.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { echo "kernels_nvcc: $*" >&2; }
die() { say "$*"; exit 1; }

# The compiler's own wheels out of those of the whole toolkit.
install_compiler() {
    local wanted='nvidia-(cuda-(nvcc|crt|cccl|runtime)|nvvm)=='
    [ "$(uname -m)" = x86_64 ] || die "the pinned compiler is for x86_64 only: install CUDA and set CUDA_HOME"
    [ -x .nvcc/nvidia/cu13/bin/nvcc ] && return
    say "installing a CUDA compiler into .nvcc"
    rm -rf .nvcc
    awk -v wanted="^$wanted" '/^[a-z]/ { on = $0 ~ wanted } on' scripts/cuda-requirements.txt >"$work/requirements.txt"
    python3 -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary=:all: \
        --target .nvcc -r "$work/requirements.txt"
}

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
if [ -x "${CUDA_HOME-}/bin/nvcc" ]; then nvcc="$CUDA_HOME/bin/nvcc"
elif nvcc="$(command -v nvcc)"; then :
elif [ -x .cuda/nvidia/cu13/bin/nvcc ]; then nvcc=.cuda/nvidia/cu13/bin/nvcc
else install_compiler; nvcc=.nvcc/nvidia/cu13/bin/nvcc; fi

read -ra targets <kernels/targets
old='' new=''
for target in "${targets[@]}"; do
    if [ "$target" -lt 90 ]; then old+=",sm_$target"; else new+=",sm_$target"; fi
done
fatbin="${1:-$work/kernels.fatbin}"
started=$SECONDS
"$nvcc" -fatbin -optf kernels/nvcc.options -Xptxas -v -gencode "arch=compute_${targets[0]},code=[compute_${targets[0]}$old]" \
    -gencode "arch=compute_90,code=[${new#,}]" -o "$fatbin" kernels/all.cu 2>"$work/log" || { cat "$work/log"; die "nvcc failed"; }
seconds=$((SECONDS - started))

# A line for each kernel and GPU: name, target, bytes of stack, spilled, registers.
awk -F"'" '
    /Compiling entry function/ { name = $2; target = $4 }
    /bytes stack frame/ { split($0, word, " "); stack = word[1]; spilled = word[5] + word[9] }
    /Used [0-9]+ registers/ { match($0, /Used [0-9]+/); print name, target, stack, spilled, substr($0, RSTART + 5, RLENGTH - 5) }
' "$work/log" >"$work/kernels"
for target in "${targets[@]}"; do
    awk -v target="sm_$target" '
        $2 == target { n++; if ($5 > most) { most = $5; which = $1 } }
        END { printf "%s: %d kernels, at most %d registers (%s)\n", target, n, most, which; exit n == 0 }
    ' "$work/kernels" || die "no kernel was compiled for sm_$target"
done
if awk '$3 + $4 > 0 { print; bad = 1 } END { exit !bad }' "$work/kernels"; then
    die "these kernels (name, GPU, bytes of stack, bytes spilled, registers) need local memory"
fi
say "$(wc -l <"$work/kernels") kernels in $seconds s, $(stat -c %s "$fatbin") bytes, none needs local memory"
