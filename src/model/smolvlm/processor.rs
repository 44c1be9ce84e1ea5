//! A picture to tiles, as the published Idefics3 / SmolVLM image processor does it for one unsplit image.
//!
//! Resize to the longest edge with the aspect ratio kept, resize again to the tower's square.

use serde::Deserialize;

use crate::model::checkpoint::Checkpoint;
use crate::model::decoder::Unsupported;
use crate::model::preprocess::picture::{PackedRgb, Picture};
use crate::model::preprocess::resample::Resizer;
use crate::model::preprocess::{filter, processor_config, Normalisation, NormalisationConfig};
use crate::model::vision::Tile;
use crate::model::ModelError;

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
    #[serde(flatten)]
    normalisation: NormalisationConfig,
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

/// The largest side that the published processor lets an intermediate picture have, pixels.
const MAX_SIDE: usize = 4096;

/// The image processor of a checkpoint.
#[derive(Debug)]
pub struct ImageProcessor {
    longest_edge: usize,
    /// Side of a tile, pixels.
    size: usize,
    resizer: Resizer,
    pub normalisation: Normalisation,
}

impl ImageProcessor {
    /// Reads the processor's configuration for a tower of `image_size` pixels.
    pub fn load(checkpoint: &Checkpoint, image_size: usize) -> Result<Self, ModelError> {
        let (file, config) = processor_config::<Config>(checkpoint)?;
        Self::new(&config, image_size).map_err(|unsupported| unsupported.of(file))
    }

    fn new(config: &Config, image_size: usize) -> Result<Self, Unsupported> {
        let size = match &config.max_image_size {
            Some(size) => size.longest_edge,
            None => image_size,
        };
        if size != image_size {
            return Err(Unsupported::new(
                "max_image_size.longest_edge",
                size,
                format!("{image_size}, the vision tower's image_size"),
            ));
        }
        if !config.do_resize {
            return Err(Unsupported::new("do_resize", "false", "true"));
        }
        let longest_edge = config.size.longest_edge;
        if !(1..=MAX_SIDE).contains(&longest_edge) {
            return Err(Unsupported::new(
                "size.longest_edge",
                longest_edge,
                format!("1 to {MAX_SIDE}"),
            ));
        }
        Ok(Self {
            longest_edge,
            size,
            resizer: Resizer::new(filter(config.resample)?),
            normalisation: Normalisation::new(&config.normalisation, [0.5; 3], [0.5; 3])?,
        })
    }

    /// The whole picture at the tower's size.
    pub fn square(&self, picture: &dyn Picture) -> Tile {
        let (width, height) = self.first_size(picture.size());
        let first = self.resizer.resize(picture, (width, height));
        let first = PackedRgb {
            width,
            height,
            bytes: &first,
        };
        Tile {
            width: self.size,
            height: self.size,
            rgb: self.resizer.resize(&first, (self.size, self.size)),
        }
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
