#!/usr/bin/env bash
# candle 0.11.1 (candle-core, candle-nn) on the CPU sums f16 in f16, where a sum of 2048 no longer grows by 1:
# - the product of one row with a matrix whose rows lie one after the other (four rows, or a transposed matrix, are right);
# - softmax_last_dim, whose shares then add up to more than 1.
# Ends with an error if it behaves otherwise today. Needs cargo; builds the two crates in a temporary folder.
set -euo pipefail
dir="$(mktemp -d)"
trap 'rm -rf "$dir"' EXIT
mkdir "$dir/src"
cat >"$dir/Cargo.toml" <<'TOML'
[package]
name = "candle_f16_sums"
version = "0.0.0"
edition = "2021"

[dependencies]
candle-core = "=0.11.1"
candle-nn = "=0.11.1"
TOML
cat >"$dir/src/main.rs" <<'RUST'
use candle_core::{DType, Device, Result, Tensor};

fn number(x: &Tensor) -> Result<f32> {
    x.flatten_all()?.get(0)?.to_dtype(DType::F32)?.to_scalar()
}

fn main() -> Result<()> {
    let ones = |rows, columns| Tensor::ones((rows, columns), DType::F16, &Device::Cpu);
    let (row, rows, matrix) = (ones(1, 8192)?, ones(4, 8192)?, ones(8192, 4)?);
    println!("one row: {}", number(&row.matmul(&matrix)?)?);
    println!("four rows: {}", number(&rows.matmul(&matrix)?)?);
    println!("one row, transposed matrix: {}", number(&row.matmul(&ones(4, 8192)?.t()?)?)?);
    let shares = candle_nn::ops::softmax_last_dim(&row)?.to_dtype(DType::F32)?;
    println!("shares of equal logits add up to: {}", shares.sum_all()?.to_scalar::<f32>()?);
    Ok(())
}
RUST
expected="one row: 2048
four rows: 8192
one row, transposed matrix: 8192
shares of equal logits add up to: 4"
found="$(cargo run --quiet --manifest-path "$dir/Cargo.toml")"
echo "$found"
diff <(echo "$expected") <(echo "$found") && echo "candle 0.11.1 behaves as described"
