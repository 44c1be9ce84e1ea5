//! How long a checkpoint takes to load and how much memory at most, by type of the numbers in the file and in memory.
//!
//! `cargo run --release --example load_speed -- [MB]` writes files of so many megabytes (400) of floats into the directory
//! for temporary files, one after the other, and one of AWQ, and loads each in a process of its own, from the page cache.
//! `... --example load_speed -- PATH` does it with a decoder that is there: a directory or a GGUF file.
//!
//! The last column is the peak, without what the process had before, against what the weights take.

mod checkpoint;

use std::env;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{ensure, Context};
use candle_core::DType;
use checkpoint::Form;
use inf_mllm::model::weights::Quantization;
use safetensors::Dtype;

/// Types of the arithmetic, and what becomes of matrices.
const WAYS: [(DType, Quantization); 6] = [
    (DType::F32, Quantization::Auto),
    (DType::F32, Quantization::None),
    (DType::F16, Quantization::None),
    (DType::BF16, Quantization::None),
    (DType::F32, Quantization::Q8_0),
    (DType::F32, Quantization::Q4K),
];

fn measure(path: &Path, way: usize) -> anyhow::Result<()> {
    let (dtype, quantization) = WAYS[way];
    let before = checkpoint::peak_memory()?;
    let started = Instant::now();
    let decoder = checkpoint::load(path, quantization, dtype)?;
    let seconds = started.elapsed().as_secs_f64();
    let peak = checkpoint::peak_memory()?.saturating_sub(before);
    let weights = decoder.weight_bytes() as f64;
    println!(
        "{:5} {:5} {seconds:7.2} {:8.0} {:8.0} {:6.2}",
        format!("{dtype:?}").to_lowercase(),
        quantization.name(),
        weights / 1e6,
        peak as f64 / 1e6,
        peak as f64 / weights
    );
    Ok(())
}

fn measure_all(path: &Path) -> anyhow::Result<()> {
    println!("dtype quant seconds weights     peak  ratio   (MB)");
    for way in 0..WAYS.len() {
        let mut child = Command::new(env::current_exe()?);
        let status = child.arg(path).arg(way.to_string()).status()?;
        ensure!(status.success(), "the process ended with {status}");
    }
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let args = env::args().skip(1).collect::<Vec<_>>();
    let first = args.first().map_or("400", String::as_str);
    if let Some(way) = args.get(1) {
        return measure(Path::new(first), way.parse().context("way")?);
    }
    let Ok(megabytes) = first.parse::<usize>() else {
        return measure_all(Path::new(first));
    };
    for (form, bytes) in [
        (Form::Floats(Dtype::BF16), 2),
        (Form::Floats(Dtype::F32), 4),
        (Form::Awq, 2),
    ] {
        let dir = env::temp_dir().join(format!("load_speed-{}", std::process::id()));
        std::fs::create_dir_all(&dir)?;
        let numbers = (megabytes << 20) / bytes;
        println!("{} million numbers as {form:?}", numbers / 1_000_000);
        let measured = checkpoint::write(&dir, numbers, form).and_then(|()| measure_all(&dir));
        std::fs::remove_dir_all(&dir)?;
        measured?;
    }
    Ok(())
}
