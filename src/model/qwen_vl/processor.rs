//! Pictures to patches, as the published Qwen2-VL image processor does it, which all the families use.

use candle_core::{Device, Tensor};
use serde::Deserialize;

use super::{Grid, Measures};
use crate::model::checkpoint::Checkpoint;
use crate::model::decoder::Unsupported;
use crate::model::fields::side;
use crate::model::preprocess::picture::{Picture, MAX_ASPECT};
use crate::model::preprocess::recipe::Patches;
use crate::model::preprocess::resample::Resizer;
use crate::model::preprocess::{
    filter, processor_config, Normalisation, NormalisationConfig, CLIP_MEAN, CLIP_STD,
};
use crate::model::vision::{Tile, View};
use crate::model::ModelError;

/// Mirrors `preprocessor_config.json`; missing fields have the values of transformers' `Qwen2VLImageProcessor`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
struct Config {
    do_resize: bool,
    /// PIL's number of the filter.
    resample: u8,
    size: Option<PixelCounts>,
    /// Where these stand, they win over `size`.
    min_pixels: Option<usize>,
    max_pixels: Option<usize>,
    #[serde(deserialize_with = "side")]
    patch_size: usize,
    #[serde(deserialize_with = "side")]
    temporal_patch_size: usize,
    merge_size: usize,
    #[serde(flatten)]
    normalisation: NormalisationConfig,
}

/// The fewest and the most pixels of a resized picture, whatever the names say.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
struct PixelCounts {
    shortest_edge: Option<usize>,
    longest_edge: Option<usize>,
    /// The same in older files.
    min_pixels: Option<usize>,
    max_pixels: Option<usize>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            do_resize: true,
            resample: 3,
            size: None,
            min_pixels: None,
            max_pixels: None,
            patch_size: 14,
            temporal_patch_size: 2,
            merge_size: 2,
            normalisation: NormalisationConfig::default(),
        }
    }
}

impl Config {
    /// The fewest and the most pixels.
    fn pixels(&self) -> Result<(usize, usize), Unsupported> {
        let size = self.size.unwrap_or(PixelCounts {
            shortest_edge: Some(56 * 56),
            longest_edge: Some(28 * 28 * 1280),
            ..PixelCounts::default()
        });
        let given = |name, value: Option<usize>| {
            value.ok_or_else(|| Unsupported::new(name, "missing", "a number of pixels"))
        };
        let fewest = self.min_pixels.or(size.shortest_edge).or(size.min_pixels);
        let most = self.max_pixels.or(size.longest_edge).or(size.max_pixels);
        let min = given("size.shortest_edge", fewest)?;
        let max = given("size.longest_edge", most)?;
        // No picture is made larger than the fewest; the most only bounds what pictures have anyway.
        Unsupported::too_large(&[("fewest pixels", min)])?;
        if min == 0 || min > max {
            let expected = format!("1 to {max}, the most pixels");
            return Err(Unsupported::new("fewest pixels", min, expected));
        }
        Ok((min, max))
    }
}

/// The most tokens of a video's frame (`VIDEO_MAX_TOKEN_NUM` of the families' own tools, qwen-vl-utils).
const FRAME_TOKENS: usize = 768;

/// The image processor of a checkpoint.
#[derive(Debug)]
pub struct ImageProcessor {
    /// The fewest and the most pixels of a resized picture.
    pixels: (usize, usize),
    patch: usize,
    frames: usize,
    merge: usize,
    pub resizer: Resizer,
    pub normalisation: Normalisation,
}

impl ImageProcessor {
    /// Reads the processor's configuration, which must fit the tower's.
    pub fn load(checkpoint: &Checkpoint, measures: &Measures) -> Result<Self, ModelError> {
        let (file, config) = processor_config::<Config>(checkpoint)?;
        Self::new(&config, measures).map_err(|unsupported| unsupported.of(file))
    }

    fn new(config: &Config, measures: &Measures) -> Result<Self, Unsupported> {
        if !config.do_resize {
            return Err(Unsupported::new("do_resize", "false", "true"));
        }
        for (field, given, tower) in [
            ("patch_size", config.patch_size, measures.patch_size),
            (
                "temporal_patch_size",
                config.temporal_patch_size,
                measures.temporal_patch_size,
            ),
            ("merge_size", config.merge_size, measures.spatial_merge_size),
        ] {
            if given != tower {
                let expected = format!("{tower}, as in vision_config");
                return Err(Unsupported::new(field, given, expected));
            }
        }
        Ok(Self {
            pixels: config.pixels()?,
            patch: config.patch_size,
            frames: config.temporal_patch_size,
            merge: config.merge_size,
            resizer: Resizer::new(filter(config.resample)?),
            normalisation: Normalisation::new(&config.normalisation, CLIP_MEAN, CLIP_STD)?,
        })
    }

    /// Side of a patch, pixels.
    pub fn patch(&self) -> usize {
        self.patch
    }

    /// The grid of a picture of `size` (width, height).
    ///
    /// Both sides become multiples of a square's, the nearest if the number of pixels is then within the limits, else with the
    /// aspect ratio kept as well as it can be: the published numbers, which go beyond the most pixels where a shorter side of one square
    /// makes a long picture larger. The published processor (`smart_resize`) refuses pictures more than 200 times as long as wide; here
    /// the longer side of those gives way, so that the most pixels hold.
    pub fn grid(&self, (width, height): (usize, usize), view: View) -> Grid {
        let side = self.patch * self.merge;
        let (min, max) = match (view, self.pixels) {
            (View::Image { .. }, pixels) => pixels,
            (View::Frame, (min, max)) => (min, max.min(FRAME_TOKENS * side * side).max(min)),
        };
        let (w, h, unit) = (width as f64, height as f64, side as f64);
        let pixels = |down: f64, across: f64| down * across * unit * unit;
        let (mut down, mut across) = ((h / unit).round_ties_even(), (w / unit).round_ties_even());
        if pixels(down, across) > max as f64 {
            let shrink = (h * w / max as f64).sqrt();
            let fitted = |length: f64| (length / shrink / unit).floor().max(1.0);
            (down, across) = (fitted(h), fitted(w));
        } else if pixels(down, across) < min as f64 {
            let grow = (min as f64 / (h * w)).sqrt();
            let fitted = |length: f64| (length * grow / unit).ceil();
            (down, across) = (fitted(h), fitted(w));
        }
        if width.max(height) > MAX_ASPECT * width.min(height) {
            let squares = (max as f64 / (unit * unit)).floor().max(1.0);
            let at_most = |this: f64, other: f64| this.min((squares / other).floor()).max(1.0);
            if down > across {
                down = at_most(down, across);
            } else {
                across = at_most(across, down);
            }
        }
        Grid {
            height: down as usize * self.merge,
            width: across as usize * self.merge,
            merge: self.merge,
        }
    }

    /// Width and height of the picture of a grid, pixels.
    pub fn size_of(&self, grid: Grid) -> (usize, usize) {
        (grid.width * self.patch, grid.height * self.patch)
    }

    /// How a picture is laid out.
    pub fn layout(&self) -> Patches {
        Patches {
            side: self.patch,
            merge: self.merge,
            frames: self.frames,
        }
    }

    /// The picture at the size of its grid.
    pub fn resize(&self, picture: &dyn Picture, grid: Grid) -> Tile {
        let (width, height) = self.size_of(grid);
        Tile {
            width,
            height,
            rgb: self.resizer.resize(picture, (width, height)),
        }
    }

    /// The patches of a resized picture, `[patches, 3 * frames * side * side]`, f32: colour by colour, the picture as every frame.
    pub fn patches(&self, tile: &Tile, grid: Grid) -> candle_core::Result<Tensor> {
        let area = self.patch * self.patch;
        let mut values = Vec::with_capacity(grid.patches() * 3 * self.frames * area);
        for (row, column) in grid.places() {
            for colour in 0..3 {
                let first = values.len();
                for y in row * self.patch..(row + 1) * self.patch {
                    let from = 3 * (y * tile.width + column * self.patch);
                    let pixels = tile.rgb[from..][..3 * self.patch].as_chunks::<3>().0;
                    let bytes = pixels.iter().map(|pixel| pixel[colour]);
                    values.extend(bytes.map(|byte| self.normalisation.value(byte, colour)));
                }
                for _ in 1..self.frames {
                    values.extend_from_within(first..first + area);
                }
            }
        }
        let shape = (grid.patches(), 3 * self.frames * area);
        Tensor::from_vec(values, shape, &Device::Cpu)
    }

    /// Of the patches of two pictures, `[patches, 3 * 2 * side * side]` each, the first of the one as the first frame and the second of the
    /// other as the second.
    pub fn join(&self, first: &Tensor, second: &Tensor) -> candle_core::Result<Tensor> {
        let area = self.patch * self.patch;
        let frames = |values: &Tensor| values.reshape((values.dim(0)?, 3, self.frames, area));
        let (before, behind) = (frames(first)?, frames(second)?);
        let parts = [
            before.narrow(2, 0, 1)?,
            behind.narrow(2, 1, self.frames - 1)?,
        ];
        Tensor::cat(&parts, 2)?.reshape(first.shape())
    }
}
