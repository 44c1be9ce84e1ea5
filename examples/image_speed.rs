//! How long conversion and resizing take, from a camera message to the bytes of the model's input: the best and the median of
//! many runs, for the sizes and encodings that cameras send. `cargo run --release --example image_speed`

use std::path::Path;
use std::time::{Duration, Instant};

use candle_core::Device;
use inf_mllm::model::checkpoint::Checkpoint;
use inf_mllm::model::mllm::Mllm;
use inf_mllm::model::precision::Precision;
use inf_mllm::model::vision::View;
use inf_mllm::model::weights::Quantization;
use inf_mllm::stream::frame::layout;
use inf_mllm::stream::{CameraImage, ImageData};

const RUNS: usize = 200;

fn message(encoding: &str, width: u32, height: u32) -> anyhow::Result<CameraImage> {
    let Some((step, rows)) = layout(encoding, width, height) else {
        anyhow::bail!("unknown encoding {encoding}");
    };
    let data = (0..step * rows).map(|i| ((i * 7919) >> 5) as u8).collect();
    let data = ImageData::Raw {
        encoding: encoding.to_string(),
        width,
        height,
        step: u32::try_from(step)?,
        is_bigendian: false,
        data,
    };
    Ok(CameraImage::recorded(0, "", data))
}

fn main() -> anyhow::Result<()> {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    let checkpoint = Checkpoint::open(&model)?;
    let model = Mllm::load(
        &checkpoint,
        Quantization::Auto,
        Precision::F32,
        &Device::Cpu,
    )?;
    println!(
        "{:12} {:>11} {:>9} {:>9}",
        "encoding", "size", "best ms", "median ms"
    );
    for (encoding, width, height) in [
        ("rgb8", 640, 480),
        ("bgr8", 640, 480),
        ("rgba8", 640, 480),
        ("mono8", 640, 480),
        ("yuv422", 640, 480),
        ("nv12", 640, 480),
        ("rgb8", 1920, 1080),
        ("yuv422_yuy2", 1920, 1080),
        ("nv12", 1920, 1080),
    ] {
        let image = message(encoding, width, height)?;
        let mut times = (0..RUNS)
            .map(|_| {
                let started = Instant::now();
                let prepared = model.vision.prepare(&image.picture()?, View::Frame);
                std::hint::black_box(prepared);
                Ok(started.elapsed())
            })
            .collect::<anyhow::Result<Vec<Duration>>>()?;
        times.sort_unstable();
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        println!(
            "{encoding:12} {width:>5} x{height:>5} {:>9.3} {:>9.3}",
            ms(times[0]),
            ms(times[RUNS / 2])
        );
    }
    Ok(())
}
