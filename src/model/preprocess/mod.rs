//! Pictures to pixel values, as the published image processors do it: what families share.
//!
//! - this file: a processor's configuration, and values normalised
//! - `picture`: pictures read row by row
//! - `grids`: grids of tiles
//! - `resample`: resizing as the published processors do it
//! - `recipe`: what becomes of a frame, as data
//! - `on_device`: the same on a GPU, in kernels of our own

pub mod grids;
pub mod on_device;
pub mod picture;
pub mod recipe;
pub mod resample;

use std::path::PathBuf;

use candle_core::{Device, Tensor};
use serde::de::DeserializeOwned;
use serde::Deserialize;
use serde_json::Value;

use super::checkpoint::Checkpoint;
use super::decoder::Unsupported;
use super::fields::without_nulls;
use super::json;
use super::vision::Tile;
use super::ModelError;
use resample::Filter;

const PREPROCESSOR: &str = "preprocessor_config.json";
const PROCESSOR: &str = "processor_config.json";
const VIDEO_PREPROCESSOR: &str = "video_preprocessor_config.json";

/// An image processor's configuration, and the file that it stands in: the block in `processor_config.json`, which wins as in
/// transformers since 5.0, or else `preprocessor_config.json`.
pub fn processor_config<T: DeserializeOwned>(
    checkpoint: &Checkpoint,
) -> Result<(PathBuf, T), ModelError> {
    let (origin, config) = image_processor(checkpoint)?;
    Ok((origin.file, config))
}

/// Where a processor's configuration stands.
#[derive(Debug)]
pub struct Origin {
    file: PathBuf,
    /// The block in that file.
    part: Option<&'static str>,
}

impl Origin {
    /// What is wrong with it, with where.
    pub fn error(self, unsupported: Unsupported) -> ModelError {
        match self.part {
            Some(part) => unsupported.within(part).of(self.file),
            None => unsupported.of(self.file),
        }
    }
}

fn image_processor<T: DeserializeOwned>(
    checkpoint: &Checkpoint,
) -> Result<(Origin, T), ModelError> {
    match block(checkpoint, "image_processor")? {
        Some(found) => Ok(found),
        None => alone(checkpoint, PREPROCESSOR),
    }
}

/// A video processor's configuration in the same way: the block in `processor_config.json`, else `video_preprocessor_config.json`, else,
/// as in transformers, what there is of the image processor.
pub fn video_processor_config<T: DeserializeOwned>(
    checkpoint: &Checkpoint,
) -> Result<(Origin, T), ModelError> {
    match block(checkpoint, "video_processor")? {
        Some(found) => Ok(found),
        None if checkpoint.has(VIDEO_PREPROCESSOR) => alone(checkpoint, VIDEO_PREPROCESSOR),
        None => image_processor(checkpoint),
    }
}

/// A block of `processor_config.json`, if it is there.
fn block<T: DeserializeOwned>(
    checkpoint: &Checkpoint,
    part: &'static str,
) -> Result<Option<(Origin, T)>, ModelError> {
    if !checkpoint.has(PROCESSOR) {
        return Ok(None);
    }
    let json = match checkpoint.json::<Value>(PROCESSOR)?[part].take() {
        Value::Null => return Ok(None),
        json => json,
    };
    let origin = Origin {
        file: checkpoint.path(PROCESSOR),
        part: Some(part),
    };
    read(origin, json).map(Some)
}

/// A processor's configuration in a file of its own.
fn alone<T: DeserializeOwned>(
    checkpoint: &Checkpoint,
    name: &str,
) -> Result<(Origin, T), ModelError> {
    let origin = Origin {
        file: checkpoint.path(name),
        part: None,
    };
    read(origin, checkpoint.json(name)?)
}

fn read<T: DeserializeOwned>(origin: Origin, json: Value) -> Result<(Origin, T), ModelError> {
    match json::of_value(&without_nulls(json, &[])) {
        Ok(config) => Ok((origin, config)),
        Err(unsupported) => Err(origin.error(unsupported)),
    }
}

/// Mean and deviation of the pictures that CLIP was trained on, the defaults of several processors.
pub const CLIP_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
pub const CLIP_STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// The fields of every image processor that say how values are normalised; missing ones have `defaults`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct NormalisationConfig {
    do_rescale: Option<bool>,
    do_normalize: Option<bool>,
    rescale_factor: Option<f64>,
    image_mean: Option<[f32; 3]>,
    image_std: Option<[f32; 3]>,
}

/// Values of bytes: `(byte * scale - mean) / std`.
#[derive(Debug, Clone, Copy)]
pub struct Normalisation {
    scale: f32,
    mean: [f32; 3],
    std: [f32; 3],
}

impl Normalisation {
    /// `mean` and `std` are those of the processor's class.
    pub fn new(
        config: &NormalisationConfig,
        mean: [f32; 3],
        std: [f32; 3],
    ) -> Result<Self, Unsupported> {
        for (field, given) in [
            ("do_rescale", config.do_rescale),
            ("do_normalize", config.do_normalize),
        ] {
            if given == Some(false) {
                return Err(Unsupported::new(field, "false", "true"));
            }
        }
        let mean = config.image_mean.unwrap_or(mean);
        let std = config.image_std.unwrap_or(std);
        let scale = config.rescale_factor.unwrap_or(1.0 / 255.0) as f32;
        if !mean.iter().all(|value| value.is_finite()) {
            let (value, expected) = (format!("{mean:?}"), "three finite numbers");
            return Err(Unsupported::new("image_mean", value, expected));
        }
        let positive = |value: &f32| value.is_finite() && *value > 0.0;
        if !std.iter().all(positive) {
            let (value, expected) = (format!("{std:?}"), "three numbers above 0");
            return Err(Unsupported::new("image_std", value, expected));
        }
        if !positive(&scale) {
            return Err(Unsupported::new(
                "rescale_factor",
                scale,
                "a number above 0",
            ));
        }
        Ok(Self { scale, mean, std })
    }

    /// Of each channel, in values from 0 to 1.
    pub fn mean(&self) -> [f32; 3] {
        self.mean
    }

    /// What values from 0 to 255 are multiplied with.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// Of each channel, in values from 0 to 1.
    pub fn std(&self) -> [f32; 3] {
        self.std
    }

    /// One byte of channel `c`.
    pub fn value(&self, byte: u8, c: usize) -> f32 {
        (f32::from(byte) * self.scale - self.mean[c]) / self.std[c]
    }

    /// `[tiles, 3, height, width]`, f32, of tiles of one size.
    pub fn values(&self, tiles: &[Tile]) -> candle_core::Result<Tensor> {
        let (width, height) = tiles
            .first()
            .map_or((0, 0), |tile| (tile.width, tile.height));
        let plane = width * height;
        let mut values = vec![0f32; tiles.len() * 3 * plane];
        for (tile, values) in tiles
            .iter()
            .zip(values.chunks_exact_mut((3 * plane).max(1)))
        {
            for (i, pixel) in tile.rgb.as_chunks::<3>().0.iter().enumerate() {
                for c in 0..3 {
                    values[c * plane + i] = self.value(pixel[c], c);
                }
            }
        }
        Tensor::from_vec(values, (tiles.len(), 3, height, width), &Device::Cpu)
    }
}

/// The filter of PIL's number.
pub fn filter(number: u8) -> Result<Filter, Unsupported> {
    match number {
        1 => Ok(Filter::Lanczos),
        2 => Ok(Filter::Bilinear),
        3 => Ok(Filter::Bicubic),
        other => Err(Unsupported::new(
            "resample",
            other,
            "1 (lanczos), 2 (bilinear) or 3 (bicubic)",
        )),
    }
}
