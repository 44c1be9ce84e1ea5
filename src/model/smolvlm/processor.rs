//! A picture to tiles, as the published Idefics3 / SmolVLM image processor does it.
//!
//! First to the longest edge, with the aspect ratio kept. A frame of the stream then becomes one tile. An image of a prompt goes to
//! multiples of a tile and is cut, if the checkpoint says so, and the whole of it follows as one tile more.

use serde::Deserialize;

use crate::model::checkpoint::Checkpoint;
use crate::model::decoder::Unsupported;
use crate::model::preprocess::picture::{PackedRgb, Picture};
use crate::model::preprocess::resample::Resizer;
use crate::model::preprocess::{filter, processor_config, Normalisation, NormalisationConfig};
use crate::model::vision::{Tile, View};
use crate::model::ModelError;

/// Mirrors `preprocessor_config.json`; missing fields have the values of the processor's class.
#[derive(Debug, Clone, Deserialize)]
struct Config {
    #[serde(default = "yes")]
    do_resize: bool,
    #[serde(default = "yes")]
    do_image_splitting: bool,
    size: LongestEdge,
    /// Side of a tile; the tower's input if absent.
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
    /// Images of a prompt are cut into tiles.
    splits: bool,
    pub resizer: Resizer,
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
        for (name, side) in [
            ("size.longest_edge", longest_edge),
            ("max_image_size.longest_edge", size),
        ] {
            if !(1..=MAX_SIDE).contains(&side) {
                return Err(Unsupported::new(name, side, format!("1 to {MAX_SIDE}")));
            }
        }
        Ok(Self {
            longest_edge,
            size,
            splits: config.do_image_splitting,
            resizer: Resizer::new(filter(config.resample)?),
            normalisation: Normalisation::new(&config.normalisation, [0.5; 3], [0.5; 3])?,
        })
    }

    /// Rows and columns that a picture of `size` (width, height) is cut into; none of either if it is not.
    pub fn grid(&self, size: (usize, usize), view: View) -> (usize, usize) {
        if view == View::Frame || !self.splits {
            return (0, 0);
        }
        let (width, height) = self.whole_tiles(self.first_size(size));
        match (height / self.size, width / self.size) {
            (1, 1) => (0, 0),
            several => several,
        }
    }

    /// The sizes that a frame of this size (width, height) is brought to, one after the other.
    pub fn frame_sizes(&self, size: (usize, usize)) -> Vec<(usize, usize)> {
        vec![self.first_size(size), (self.size, self.size)]
    }

    /// The tiles of a picture that is cut into `rows` and `columns`, row by row, and the whole of it.
    pub fn tiles(&self, picture: &dyn Picture, (rows, columns): (usize, usize)) -> Vec<Tile> {
        let first = self.resize(picture, self.first_size(picture.size()));
        if rows * columns == 0 {
            return vec![self.resize(&packed(&first), (self.size, self.size))];
        }
        let size = (columns * self.size, rows * self.size);
        let whole = self.resize(&packed(&first), size);
        let mut tiles = Vec::with_capacity(rows * columns + 1);
        for row in 0..rows {
            for column in 0..columns {
                tiles.push(whole.cut(self.size, row, column));
            }
        }
        tiles.push(self.resize(&packed(&whole), (self.size, self.size)));
        tiles
    }

    fn resize(&self, picture: &dyn Picture, size: (usize, usize)) -> Tile {
        Tile::resized(&self.resizer, picture, size)
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

    /// The longer side at the next multiple of a tile, the other scaled with it and then at its own next multiple.
    fn whole_tiles(&self, (width, height): (usize, usize)) -> (usize, usize) {
        let aspect = width as f64 / height as f64;
        let up = |side: usize| side.max(1).next_multiple_of(self.size);
        if width >= height {
            let width = up(width);
            (width, up((width as f64 / aspect) as usize))
        } else {
            let height = up(height);
            (up((height as f64 * aspect) as usize), height)
        }
    }
}

fn packed(tile: &Tile) -> PackedRgb<'_> {
    PackedRgb {
        width: tile.width,
        height: tile.height,
        bytes: &tile.rgb,
    }
}
