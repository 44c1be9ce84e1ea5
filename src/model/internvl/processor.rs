//! A picture to tiles, as the published image processor (GotOcr2's, with the tiles of InternVL) and video processor do it.
//!
//! An image of a prompt is brought to the grid of tiles whose shape is nearest to its own, its aspect ratio given up, and cut; the
//! whole of it follows as one tile more. One that is one tile, and every frame, is that tile alone.

use serde::Deserialize;

use crate::model::checkpoint::Checkpoint;
use crate::model::decoder::Unsupported;
use crate::model::preprocess::picture::Picture;
use crate::model::preprocess::resample::Resizer;
use crate::model::preprocess::{
    filter, processor_config, Normalisation, NormalisationConfig, CLIP_MEAN, CLIP_STD,
};
use crate::model::vision::Tile;
use crate::model::ModelError;

/// Mirrors `preprocessor_config.json`; missing fields have the values of the processor's class. `crop_to_patches` is not among them: the
/// published `InternVLProcessor` cuts images whatever it says.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
struct Config {
    do_resize: bool,
    size: Sides,
    /// PIL's number of the filter.
    resample: u8,
    min_patches: usize,
    max_patches: usize,
    #[serde(flatten)]
    normalisation: NormalisationConfig,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct Sides {
    height: usize,
    width: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            do_resize: true,
            size: Sides {
                height: 384,
                width: 384,
            },
            resample: 3,
            min_patches: 1,
            max_patches: 12,
            normalisation: NormalisationConfig::default(),
        }
    }
}

/// The most tiles that an image may be cut into; published checkpoints cut into up to 12.
const MOST_TILES: usize = 64;

/// The image processor of a checkpoint.
#[derive(Debug)]
pub struct Processor {
    /// Side of a tile, pixels.
    pub tile: usize,
    /// Rows and columns that an image may be cut into, by their product.
    grids: Vec<[usize; 2]>,
    pub resizer: Resizer,
    pub normalisation: Normalisation,
}

impl Processor {
    /// Reads the processor's configuration for a tower of `tile` pixels.
    pub fn load(checkpoint: &Checkpoint, tile: usize) -> Result<Self, ModelError> {
        let (file, config) = processor_config::<Config>(checkpoint)?;
        Self::new(&config, tile).map_err(|unsupported| unsupported.of(file))
    }

    fn new(config: &Config, tile: usize) -> Result<Self, Unsupported> {
        if !config.do_resize {
            return Err(Unsupported::new("do_resize", "false", "true"));
        }
        let Sides { height, width } = config.size;
        if (height, width) != (tile, tile) {
            let value = format!("{height} x {width}");
            let expected = format!("both sides {tile}, the vision tower's image_size");
            return Err(Unsupported::new("size", value, expected));
        }
        let (least, most) = (config.min_patches, config.max_patches);
        if !(1..=MOST_TILES).contains(&most) {
            let expected = format!("1 to {MOST_TILES}");
            return Err(Unsupported::new("max_patches", most, expected));
        }
        if !(1..=most).contains(&least) {
            let expected = format!("1 to max_patches ({most})");
            return Err(Unsupported::new("min_patches", least, expected));
        }
        Ok(Self {
            tile,
            grids: grids(least, most),
            resizer: Resizer::new(filter(config.resample)?),
            normalisation: Normalisation::new(&config.normalisation, CLIP_MEAN, CLIP_STD)?,
        })
    }

    /// Rows and columns of tiles for an image of `size` (width, height): the grid whose aspect ratio is nearest. Of equals the one with
    /// the most tiles, as long as these have less than twice the image's pixels.
    pub fn grid(&self, (width, height): (usize, usize)) -> [usize; 2] {
        let ratio = width as f64 / height as f64;
        let pixels = width as f64 * height as f64;
        let (mut best, mut least) = ([1, 1], f64::INFINITY);
        for &[rows, columns] in &self.grids {
            let off = (ratio - columns as f64 / rows as f64).abs();
            let filled = || pixels > 0.5 * (self.tile * self.tile * rows * columns) as f64;
            if off < least || (off == least && filled()) {
                (best, least) = ([rows, columns], off);
            }
        }
        best
    }

    /// The tiles of an image that is cut into `rows` and `columns`, row by row, and the whole of it.
    pub fn tiles(&self, picture: &dyn Picture, [rows, columns]: [usize; 2]) -> Vec<Tile> {
        let size = (columns * self.tile, rows * self.tile);
        let resized = Tile::resized(&self.resizer, picture, size);
        let tile = |at: usize| resized.cut(self.tile, at / columns, at % columns);
        let mut tiles = (0..rows * columns).map(tile).collect::<Vec<_>>();
        tiles.push(self.whole(picture));
        tiles
    }

    /// The whole picture at the size of a tile, its aspect ratio given up.
    pub fn whole(&self, picture: &dyn Picture) -> Tile {
        Tile::resized(&self.resizer, picture, (self.tile, self.tile))
    }
}

/// All grids of `least` to `most` tiles, rows and columns, from the fewest tiles to the most; of equals the narrowest first.
fn grids(least: usize, most: usize) -> Vec<[usize; 2]> {
    let sides = |columns| (1..=most / columns).map(move |rows| [rows, columns]);
    let mut grids = (1..=most).flat_map(sides).collect::<Vec<_>>();
    grids.retain(|[rows, columns]| rows * columns >= least);
    grids.sort_by_key(|[rows, columns]| rows * columns);
    grids
}
