//! A picture to patches, as the published image processor (`Lfm2VlImageProcessor`) does it.
//!
//! A picture keeps its aspect ratio: its sides become multiples of a token's, and its pixels lie within two limits. An image of a prompt
//! that is much larger is cut into a grid of tiles, and the whole of it may follow at the size that it had uncut. A frame of the stream is
//! never cut.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use serde::Deserialize;

use super::config::Shape;
use crate::model::checkpoint::Checkpoint;
use crate::model::decoder::Unsupported;
use crate::model::preprocess::grids::TileGrids;
use crate::model::preprocess::picture::Picture;
use crate::model::preprocess::resample::Resizer;
use crate::model::preprocess::{filter, processor_config, Normalisation, NormalisationConfig};
use crate::model::vision::{FramePixels, FramePixelsError, Layout, Tile, View};
use crate::model::ModelError;

/// Mirrors `preprocessor_config.json`; missing fields have the values of the processor's class.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
struct Config {
    downsample_factor: usize,
    do_image_splitting: bool,
    min_tiles: usize,
    max_tiles: usize,
    use_thumbnail: bool,
    min_image_tokens: usize,
    max_image_tokens: usize,
    encoder_patch_size: usize,
    tile_size: usize,
    max_pixels_tolerance: f64,
    /// PIL's number of the filter.
    resample: u8,
    #[serde(flatten)]
    normalisation: NormalisationConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            downsample_factor: 2,
            do_image_splitting: true,
            min_tiles: 2,
            max_tiles: 10,
            use_thumbnail: true,
            min_image_tokens: 64,
            max_image_tokens: 256,
            encoder_patch_size: 16,
            tile_size: 512,
            max_pixels_tolerance: 2.0,
            resample: 2,
            normalisation: NormalisationConfig::default(),
        }
    }
}

/// The most tiles that an image may be cut into, rows and columns of which the vocabulary names ten each.
const MOST_TILES: usize = 10;

/// The most tokens of a tile or of a whole picture; published checkpoints have 256.
const MOST_TOKENS: usize = 1 << 14;

/// The image processor of a checkpoint.
#[derive(Debug, Clone)]
pub struct Processor {
    /// Side of a patch, pixels.
    pub patch: usize,
    /// Side of the squares of patches that become a token.
    factor: usize,
    /// The fewest and the most tokens of a picture that is not cut.
    tokens: (usize, usize),
    /// The same of a frame.
    frame_tokens: (usize, usize),
    /// How many times the most pixels of an uncut picture one may have that is not cut.
    tolerance: f64,
    /// What an image may be cut into, if any is.
    grids: Option<TileGrids>,
    /// The whole follows behind the tiles.
    thumbnail: bool,
    pub resizer: Arc<Resizer>,
    pub normalisation: Normalisation,
}

impl Processor {
    /// Reads the processor's configuration, which must fit the tower's.
    pub fn load(checkpoint: &Checkpoint, shape: &Shape) -> Result<Self, ModelError> {
        let (file, config) = processor_config::<Config>(checkpoint)?;
        Self::new(&config, shape).map_err(|unsupported| unsupported.of(file))
    }

    fn new(config: &Config, shape: &Shape) -> Result<Self, Unsupported> {
        let (patch, factor) = (shape.tower.patch, shape.factor);
        for (field, given, wanted, place) in [
            (
                "encoder_patch_size",
                config.encoder_patch_size,
                patch,
                "patch_size of vision_config",
            ),
            (
                "downsample_factor",
                config.downsample_factor,
                factor,
                "as in config.json",
            ),
        ] {
            if given != wanted {
                let expected = format!("{wanted}, {place}");
                return Err(Unsupported::new(field, given, expected));
            }
        }
        let (least, most) = (config.min_image_tokens, config.max_image_tokens);
        if !(1..=MOST_TOKENS).contains(&most) {
            let expected = format!("1 to {MOST_TOKENS}");
            return Err(Unsupported::new("max_image_tokens", most, expected));
        }
        if !(1..=most).contains(&least) {
            let expected = format!("1 to max_image_tokens ({most})");
            return Err(Unsupported::new("min_image_tokens", least, expected));
        }
        Unsupported::negative(&[("max_pixels_tolerance", config.max_pixels_tolerance)])?;
        Ok(Self {
            patch,
            factor,
            tokens: (least, most),
            frame_tokens: (least, most),
            tolerance: config.max_pixels_tolerance,
            grids: match config.do_image_splitting {
                true => Some(config.grids(patch * factor)?),
                false => None,
            },
            thumbnail: config.use_thumbnail,
            resizer: Arc::new(Resizer::new(filter(config.resample)?)),
            normalisation: Normalisation::new(&config.normalisation, [0.5; 3], [0.5; 3])?,
        })
    }

    /// The same with other limits for frames.
    pub fn with_frame_pixels(&self, asked: FramePixels) -> Result<Self, FramePixelsError> {
        let square = self.unit() * self.unit();
        let (least, most) = self.frame_tokens;
        let (least, most) = asked.instead_of((least * square, most * square), square)?;
        let most = most / square;
        Ok(Self {
            frame_tokens: (least.div_ceil(square).min(most), most),
            ..self.clone()
        })
    }

    /// Side of a token's square, pixels.
    fn unit(&self) -> usize {
        self.patch * self.factor
    }

    /// Rows and columns of tiles, none of either where the picture is not cut.
    pub fn grid(&self, (width, height): (usize, usize), view: View) -> [usize; 2] {
        let unit = self.unit() as f64;
        let side = |length: usize| {
            let whole = (length as f64 / unit).round_ties_even() * unit;
            whole.max(self.patch as f64)
        };
        let most = self.tokens.1 as f64 * unit * unit * self.tolerance;
        match &self.grids {
            Some(grids) if view != View::Frame && side(width) * side(height) > most => {
                grids.best((width, height))
            }
            _ => [0, 0],
        }
    }

    /// Width and height of the whole picture, pixels.
    ///
    /// Both sides become multiples of a token's, the nearest if the number of pixels is then within the limits, else with the aspect ratio
    /// kept as well as it can be. The published processor (`smart_resize`) goes beyond the most pixels where a shorter side of one token makes
    /// a long picture larger; here the longer side gives way.
    pub fn whole(&self, (width, height): (usize, usize), view: View) -> (usize, usize) {
        let (fewest, most) = match view {
            View::Image { .. } => self.tokens,
            View::Frame => self.frame_tokens,
        };
        let (w, h, unit) = (width as f64, height as f64, self.unit() as f64);
        let pixels = |tokens: usize| tokens as f64 * unit * unit;
        let (least_pixels, most_pixels) = (pixels(fewest), pixels(most));
        let nearest = |length: f64| (length / unit).round_ties_even().max(1.0);
        let (mut across, mut down) = (nearest(w), nearest(h));
        let now = across * down * unit * unit;
        if now > most_pixels {
            let shrink = (h * w / most_pixels).sqrt();
            let fitted = |length: f64| (length / shrink / unit).floor().max(1.0);
            (across, down) = (fitted(w), fitted(h));
        } else if now < least_pixels {
            let grow = (least_pixels / (h * w)).sqrt();
            let fitted = |length: f64| (length * grow / unit).ceil();
            (across, down) = (fitted(w), fitted(h));
        }
        let at_most = |this: f64, other: f64| this.min((most as f64 / other).floor().max(1.0));
        match across > down {
            true => across = at_most(across, down),
            false => down = at_most(down, across),
        }
        ((across * unit) as usize, (down * unit) as usize)
    }

    /// Rows and columns of patches of each part of a picture: tiles row by row, then the whole.
    pub fn parts(&self, layout: &Layout) -> Vec<[usize; 2]> {
        let [_, rows, columns] = layout.grid;
        let mut parts = Vec::new();
        if let Some(grids) = &self.grids {
            parts.resize(rows * columns, [grids.tile / self.patch; 2]);
        }
        if parts.is_empty() || self.thumbnail {
            let (width, height) = self.whole(layout.picture, layout.view);
            parts.push([height / self.patch, width / self.patch]);
        }
        parts
    }

    /// Whether the whole follows behind the tiles.
    pub fn has_thumbnail(&self) -> bool {
        self.thumbnail
    }

    /// Rows and columns of tokens of such a part.
    pub fn tokens(&self, [rows, columns]: [usize; 2]) -> usize {
        (rows / self.factor) * (columns / self.factor)
    }

    /// The parts of a picture.
    pub fn tiles(&self, picture: &dyn Picture, layout: &Layout) -> Vec<Tile> {
        let [_, rows, columns] = layout.grid;
        let mut tiles = Vec::new();
        if let Some(TileGrids { tile, .. }) = self.grids.as_ref().filter(|_| rows * columns > 0) {
            let size = (columns * tile, rows * tile);
            let resized = Tile::resized(&self.resizer, picture, size);
            let cut = |at: usize| resized.cut(*tile, at / columns, at % columns);
            tiles.extend((0..rows * columns).map(cut));
        }
        if tiles.is_empty() || self.thumbnail {
            let size = self.whole(layout.picture, layout.view);
            tiles.push(Tile::resized(&self.resizer, picture, size));
        }
        tiles
    }

    /// The patches of tiles, `[patches, side * side * 3]`, f32: row by row, and of each its pixels row by row.
    pub fn patches(&self, tiles: &[Tile]) -> candle_core::Result<Tensor> {
        let side = self.patch;
        let mut values = Vec::new();
        for tile in tiles {
            let (rows, columns) = (tile.height / side, tile.width / side);
            for at in 0..rows * columns {
                let (top, left) = (at / columns * side, at % columns * side);
                for y in top..top + side {
                    let pixels = tile.rgb[3 * (y * tile.width + left)..][..3 * side].iter();
                    let pixels = pixels.enumerate();
                    values.extend(pixels.map(|(i, &byte)| self.normalisation.value(byte, i % 3)));
                }
            }
        }
        let width = 3 * side * side;
        Tensor::from_vec(values, (tiles_patches(tiles, side), width), &Device::Cpu)
    }
}

fn tiles_patches(tiles: &[Tile], side: usize) -> usize {
    let patches = |tile: &Tile| (tile.height / side) * (tile.width / side);
    tiles.iter().map(patches).sum()
}

impl Config {
    /// The grids that an image may be cut into, where a token is `unit` pixels wide.
    fn grids(&self, unit: usize) -> Result<TileGrids, Unsupported> {
        let (least, most) = (self.min_tiles, self.max_tiles);
        if !(2..=MOST_TILES).contains(&most) {
            let expected = format!("2 to {MOST_TILES}");
            return Err(Unsupported::new("max_tiles", most, expected));
        }
        if !(2..=most).contains(&least) {
            // Of a single tile the published processor counts other tokens than it makes.
            let expected = format!("2 to max_tiles ({most})");
            return Err(Unsupported::new("min_tiles", least, expected));
        }
        let tokens = (self.tile_size / unit).saturating_pow(2);
        if !self.tile_size.is_multiple_of(unit) || !(1..=MOST_TOKENS).contains(&tokens) {
            let expected = format!("a multiple of {unit} with 1 to {MOST_TOKENS} tokens");
            return Err(Unsupported::new("tile_size", self.tile_size, expected));
        }
        Ok(TileGrids::new(self.tile_size, least, most))
    }
}
