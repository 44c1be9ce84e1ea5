//! A picture to tiles, as the published image processor (GotOcr2's, with the tiles of InternVL) and video processor do it.
//!
//! An image of a prompt is brought to the grid of tiles whose shape is nearest to its own, its aspect ratio given up, and cut; the
//! whole of it follows as one tile more. One that is one tile, and every frame, is that tile alone.

use serde::Deserialize;

use crate::model::checkpoint::Checkpoint;
use crate::model::decoder::Unsupported;
use crate::model::preprocess::grids::TileGrids;
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
    /// What an image may be cut into.
    pub grids: TileGrids,
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
            grids: TileGrids::new(tile, least, most),
            resizer: Resizer::new(filter(config.resample)?),
            normalisation: Normalisation::new(&config.normalisation, CLIP_MEAN, CLIP_STD)?,
        })
    }

    /// The tiles of an image that is cut into `rows` and `columns`, row by row, and the whole of it.
    pub fn tiles(&self, picture: &dyn Picture, [rows, columns]: [usize; 2]) -> Vec<Tile> {
        let size = (columns * self.grids.tile, rows * self.grids.tile);
        let resized = Tile::resized(&self.resizer, picture, size);
        let tile = |at: usize| resized.cut(self.grids.tile, at / columns, at % columns);
        let mut tiles = (0..rows * columns).map(tile).collect::<Vec<_>>();
        tiles.push(self.whole(picture));
        tiles
    }

    /// The whole picture at the size of a tile, its aspect ratio given up.
    pub fn whole(&self, picture: &dyn Picture) -> Tile {
        Tile::resized(&self.resizer, picture, (self.grids.tile, self.grids.tile))
    }
}
