#!/usr/bin/env bash
# The tests of kernels/ on the CPU where `make test` does not go: under AddressSanitizer, and with planted faults, each of which must
# be caught. Usage: scripts/kernels.sh
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
use_rust
cd "$INF_MLLM_ROOT"

say() { echo "kernels: $*" >&2; }
die() { say "$*"; exit 1; }

host="$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')"
log="$(mktemp)"
trap 'rm -f "$log"' EXIT
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$INF_MLLM_ROOT/target}/kernels"
# What ends with the process is no leak; frames of fibers lie on their own stacks.
export ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0
readonly ADDRESSES='-O1 -g1 -fsanitize=address'

# check FLAGS ARGS...: runs the tests with the kernels compiled with FLAGS; the report is in $log.
check() {
    local flags="$1" linked='' runner=env
    shift
    if [[ "$flags" = *-fsanitize=address* ]]; then
        # Loaded before everything else, so that it has the memory of Rust, too, in its hands.
        linked='-C link-arg=-lasan' runner="env LD_PRELOAD=$(g++ -print-file-name=libasan.so)"
    fi
    export KERNELS_FLAGS="$flags" RUSTFLAGS="$linked" "CARGO_TARGET_${host}_RUNNER=$runner"
    cargo test --quiet --release --locked -p kernels-on-cpu --test kernels --no-run
    cargo test --quiet --release --locked -p kernels-on-cpu --test kernels -- "$@" >"$log" 2>&1
}

# caught FAULT FLAGS TEST SIGN: fails unless TEST fails with FAULT planted and says SIGN.
caught() {
    if check "$2 -D$1" "$3"; then die "$1 was not noticed by $3"; fi
    grep -q "$4" "$log" || { cat "$log"; die "$1 made $3 fail, but not by saying: $4"; }
    say "$1: caught"
}

check "$ADDRESSES" || { cat "$log"; die "the tests fail under AddressSanitizer"; }
say "AddressSanitizer: $(grep -o '[0-9]* passed' "$log")"
caught PLANT_NO_CHECK_OF_ROOM "$ADDRESSES" a_full_cache 'heap-buffer-overflow'
caught PLANT_NO_BARRIER_BEFORE_SUMS -O0 attention_is_that_of_f64 'panicked'
caught PLANT_FLAG_BEFORE_DATA -O0 attention_is_that_of_f64 'panicked'
caught PLANT_NO_BARRIER_BEHIND_INPUT -O0 products 'panicked'
