//! A picture to pixel values, as the published Idefics3 / SmolVLM image processor does it for one unsplit image.
//!
//! Resize to the longest edge with the aspect ratio kept, resize again to the tower's square, rescale, normalise.

use candle_core::{Device, Tensor};
use serde::Deserialize;

use super::checkpoint::Checkpoint;
use super::picture::{PackedRgb, Picture};
use super::resample::{Filter, Resizer};
use super::ModelError;

const PREPROCESSOR: &str = "preprocessor_config.json";
const PROCESSOR: &str = "processor_config.json";

/// Mirrors `preprocessor_config.json`.
#[derive(Debug, Clone, Deserialize)]
struct Config {
    #[serde(default = "yes")]
    do_resize: bool,
    size: LongestEdge,
    /// The square that an unsplit image becomes; the tower's input if absent.
    max_image_size: Option<LongestEdge>,
    /// PIL's number of the filter.
    #[serde(default = "lanczos")]
    resample: u8,
    #[serde(default = "rescale_factor")]
    rescale_factor: f64,
    #[serde(default = "half")]
    image_mean: [f32; 3],
    #[serde(default = "half")]
    image_std: [f32; 3],
}

#[derive(Debug, Clone, Deserialize)]
struct LongestEdge {
    longest_edge: usize,
}

fn yes() -> bool {
    true
}

fn lanczos() -> u8 {
    1
}

fn rescale_factor() -> f64 {
    1.0 / 255.0
}

fn half() -> [f32; 3] {
    [0.5; 3]
}

/// The largest side that the published processor lets an intermediate picture have, pixels.
const MAX_SIDE: usize = 4096;

/// The image processor of a checkpoint.
#[derive(Debug)]
pub struct ImageProcessor {
    longest_edge: usize,
    size: usize,
    resizer: Resizer,
    scale: f32,
    mean: [f32; 3],
    std: [f32; 3],
}

impl ImageProcessor {
    /// Reads `preprocessor_config.json` (or the nested form in `processor_config.json`) for a tower of `image_size` pixels.
    pub fn load(checkpoint: &Checkpoint, image_size: usize) -> Result<Self, ModelError> {
        let nested = match checkpoint.has(PROCESSOR) {
            true => checkpoint.json::<serde_json::Value>(PROCESSOR)?["image_processor"].take(),
            false => serde_json::Value::Null,
        };
        let (name, config) = if checkpoint.has(PREPROCESSOR) || nested.is_null() {
            (PREPROCESSOR, checkpoint.json::<Config>(PREPROCESSOR)?)
        } else {
            let config = serde_json::from_value(nested).map_err(|e| ModelError::File {
                file: checkpoint.path(PROCESSOR),
                what: format!("image_processor: {e}"),
            })?;
            (PROCESSOR, config)
        };
        let unsupported = |field: &str, value: String, expected: String| ModelError::Unsupported {
            file: checkpoint.path(name),
            field: field.to_string(),
            value,
            expected,
        };
        let size = config
            .max_image_size
            .map_or(image_size, |size| size.longest_edge);
        if size != image_size {
            return Err(unsupported(
                "max_image_size.longest_edge",
                size.to_string(),
                format!("{image_size}, the vision tower's image_size"),
            ));
        }
        if !config.do_resize {
            return Err(unsupported("do_resize", "false".into(), "true".into()));
        }
        let longest_edge = config.size.longest_edge;
        if !(1..=MAX_SIDE).contains(&longest_edge) {
            return Err(unsupported(
                "size.longest_edge",
                longest_edge.to_string(),
                format!("1 to {MAX_SIDE}"),
            ));
        }
        if config.image_std.contains(&0.0) {
            return Err(unsupported(
                "image_std",
                format!("{:?}", config.image_std),
                "no zeros".into(),
            ));
        }
        let filter = match config.resample {
            1 => Filter::Lanczos,
            2 => Filter::Bilinear,
            3 => Filter::Bicubic,
            other => {
                return Err(unsupported(
                    "resample",
                    other.to_string(),
                    "1 (lanczos), 2 (bilinear) or 3 (bicubic)".into(),
                ))
            }
        };
        Ok(Self {
            longest_edge,
            size,
            resizer: Resizer::new(filter),
            scale: config.rescale_factor as f32,
            mean: config.image_mean,
            std: config.image_std,
        })
    }

    /// The picture at the tower's size, packed RGB bytes.
    pub fn square(&self, picture: &dyn Picture) -> Vec<u8> {
        let (width, height) = self.first_size(picture.size());
        let first = self.resizer.resize(picture, (width, height));
        let first = PackedRgb {
            width,
            height,
            bytes: &first,
        };
        self.resizer.resize(&first, (self.size, self.size))
    }

    /// Pixel values `[1, 3, size, size]`, f32.
    pub fn pixel_values(&self, picture: &dyn Picture) -> Result<Tensor, ModelError> {
        self.normalised(&self.square(picture))
    }

    /// Pixel values `[1, 3, size, size]`, f32, of what [`Self::square`] gave.
    pub fn normalised(&self, square: &[u8]) -> Result<Tensor, ModelError> {
        let plane = self.size * self.size;
        let mut values = vec![0f32; 3 * plane];
        for (i, pixel) in square.chunks_exact(3).enumerate() {
            for c in 0..3 {
                values[c * plane + i] =
                    (f32::from(pixel[c]) * self.scale - self.mean[c]) / self.std[c];
            }
        }
        Ok(Tensor::from_vec(
            values,
            (1, 3, self.size, self.size),
            &Device::Cpu,
        )?)
    }

    /// Size with the longest edge at `longest_edge`, the other one scaled with it and made even by adding one.
    fn first_size(&self, (width, height): (usize, usize)) -> (usize, usize) {
        let aspect = width as f64 / height as f64;
        let longest = self.longest_edge;
        let even = |side: f64| {
            let side = side as usize;
            (side + side % 2).max(1)
        };
        if width >= height {
            (longest, even(longest as f64 / aspect))
        } else {
            (even(longest as f64 * aspect), longest)
        }
    }
}
