//! How long a frame takes through the vision tower and the connector: the best and the median of several runs, and of each part.
//!
//! `cargo run --release --example tower_speed -- MODEL [WIDTHxHEIGHT [THREADS [RUNS]]]`
//!
//! The picture is noise of 512 x 512 pixels unless another size is given. THREADS 0 (the default) means what the node would use.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use candle_core::Device;
use image::RgbImage;
use inf_mllm::model::checkpoint::Checkpoint;
use inf_mllm::model::mllm::Mllm;
use inf_mllm::model::precision::Precision;
use inf_mllm::model::threads::thread_pool;
use inf_mllm::model::vision::View;
use inf_mllm::model::weights::Quantization;

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let model = PathBuf::from(args.next().context("give a checkpoint")?);
    let size = args.next().unwrap_or("512x512".to_string());
    let (width, height) = size.split_once('x').context("a size is WIDTHxHEIGHT")?;
    let (width, height) = (width.parse()?, height.parse()?);
    let threads = args.next().map_or(Ok(0), |count| count.parse())?;
    let runs: usize = args.next().map_or(Ok(5), |count| count.parse())?;
    anyhow::ensure!(runs > 0, "0 runs, expected at least 1");
    let checkpoint = Checkpoint::open(&model)?;
    let pool = thread_pool(threads, &checkpoint)?;
    pool.install(|| {
        let (auto, precision) = (Quantization::Auto, Precision::Auto);
        let model = Mllm::load(&checkpoint, auto, precision, &Device::Cpu)?;
        let value = |x: u32, y: u32, c: u32| ((x * 7919 + y * 104_729 + c * 31) >> 3) as u8;
        let picture = RgbImage::from_fn(width, height, |x, y| {
            image::Rgb([0, 1, 2].map(|c| value(x, y, c)))
        });
        let pixels = model
            .vision
            .pixels(&model.vision.prepare(&picture, View::Frame))?;
        let mut times = Vec::new();
        let mut tokens = 0;
        for _ in 0..=runs {
            let started = Instant::now();
            let features = model.vision.tower(&pixels)?;
            let tower = started.elapsed();
            let image = model.vision.connect(&features, &pixels.layout)?;
            times.push((started.elapsed(), tower));
            tokens = image.rows.dim(0)?;
        }
        // The first run touches the memory for the first time.
        times.remove(0);
        times.sort_unstable();
        let ms = |time: std::time::Duration| time.as_secs_f64() * 1e3;
        let (best, median) = (times[0], times[times.len() / 2]);
        println!(
            "{width} x {height} pixels, {tokens} tokens, {} threads",
            pool.current_num_threads()
        );
        println!(
            "best   {:9.2} ms, of them the tower {:9.2}",
            ms(best.0),
            ms(best.1)
        );
        println!(
            "median {:9.2} ms, of them the tower {:9.2}",
            ms(median.0),
            ms(median.1)
        );
        Ok(())
    })
}
