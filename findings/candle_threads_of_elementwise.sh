#!/usr/bin/env bash
# candle-core 0.11.1 on the CPU: inside a rayon pool (ThreadPool::install) float products use the threads of that pool. Operations on each
# element, from 65,536 elements on, and products of quantised weights do not: they go to a pool of candle's own, one for the process, which
# is made at its first use and has CANDLE_NUM_THREADS threads (else RAYON_NUM_THREADS, else one per core) with the caller. So a model that
# is given one thread still uses every core.
# Ends with an error if it behaves otherwise today. Needs cargo and Linux; builds the crates in a temporary folder.
set -euo pipefail
dir="$(mktemp -d)"
trap 'rm -rf "$dir"' EXIT
mkdir "$dir/src"
cat >"$dir/Cargo.toml" <<'TOML'
[package]
name = "candle_threads_of_elementwise"
version = "0.0.0"
edition = "2021"

[dependencies]
candle-core = "=0.11.1"
rayon = "=1.11.0"
TOML
cat >"$dir/src/main.rs" <<'RUST'
use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{DType, Device, Module, Tensor};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn threads() -> Result<usize> {
    Ok(std::fs::read_dir("/proc/self/task")?.count())
}

fn main() -> Result<()> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
    let numbers = |elements: usize| Tensor::ones((elements / 256, 256), DType::F32, &Device::Cpu);
    pool.install(|| -> Result<()> {
        let before = threads()?;
        numbers(65536)?.matmul(&numbers(65536)?.t()?)?;
        println!("float product: {} more threads", threads()? - before);
        numbers(32768)?.exp()?;
        println!("exp of 32768: {} more threads", threads()? - before);
        if std::env::args().nth(1).as_deref() == Some("quantised") {
            let weights = QTensor::quantize(&numbers(65536)?, GgmlDType::Q8_0)?;
            QMatMul::from_qtensor(weights)?.forward(&numbers(256)?)?;
            println!("product of Q8_0: {} more threads", threads()? - before);
        } else {
            numbers(65536)?.exp()?;
            println!("exp of 65536: {} more threads", threads()? - before);
        }
        Ok(())
    })
}
RUST
cargo build --quiet --manifest-path "$dir/Cargo.toml" --target-dir "$dir/target"
expected="float product: 0 more threads
exp of 32768: 0 more threads
exp of 65536: 4 more threads
float product: 0 more threads
exp of 32768: 0 more threads
product of Q8_0: 4 more threads"
found="$(for what in elements quantised; do CANDLE_NUM_THREADS=5 "$dir/target/debug/candle_threads_of_elementwise" "$what"; done)"
echo "$found"
diff <(echo "$expected") <(echo "$found") && echo "candle 0.11.1 behaves as described"
