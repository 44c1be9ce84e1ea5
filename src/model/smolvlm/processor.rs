//! A picture to tiles, as the published Idefics3 / SmolVLM image processor does it.
//!
//! First to the longest edge, with the aspect ratio kept; that of frames is another in SmolVLM2. A frame of the stream then becomes one tile. An image of a prompt goes to
//! multiples of a tile and is cut, if the checkpoint says so, and the whole of it follows as one tile more.

use serde::Deserialize;

use crate::model::checkpoint::Checkpoint;
use crate::model::decoder::Unsupported;
use crate::model::preprocess::picture::{PackedRgb, Picture};
use crate::model::preprocess::resample::Resizer;
use crate::model::preprocess::{
    filter, processor_config, video_processor_config, Normalisation, NormalisationConfig,
};
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

/// What the same file says of videos, in SmolVLM2, or a file of the video processor's own.
#[derive(Debug, Clone, Deserialize)]
struct VideoConfig {
    size: Option<LongestEdge>,
    /// What counts where it is there: the processor of the checkpoints' time (transformers 4.50) takes it for the frames' `size`.
    video_sampling: Option<VideoSampling>,
}

#[derive(Debug, Clone, Deserialize)]
struct VideoSampling {
    video_size: Option<LongestEdge>,
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
    /// The same of frames.
    frame_edge: usize,
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
        let (origin, video) = video_processor_config::<VideoConfig>(checkpoint)?;
        let mut processor =
            Self::new(&config, image_size).map_err(|unsupported| unsupported.of(file))?;
        if let Some((name, side)) = video.longest_edge() {
            let checked = check_side(name, side);
            checked.map_err(|unsupported| origin.error(unsupported))?;
            processor.frame_edge = side;
        }
        Ok(processor)
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
            check_side(name, side)?;
        }
        Ok(Self {
            longest_edge,
            frame_edge: longest_edge,
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
        let (width, height) = self.whole_tiles(first_size(size, self.longest_edge));
        match (height / self.size, width / self.size) {
            (1, 1) => (0, 0),
            several => several,
        }
    }

    /// The sizes that a frame of this size (width, height) is brought to, one after the other.
    pub fn frame_sizes(&self, size: (usize, usize)) -> Vec<(usize, usize)> {
        vec![first_size(size, self.frame_edge), (self.size, self.size)]
    }

    /// The tiles of a picture that is cut into `rows` and `columns`, row by row, and the whole of it.
    pub fn tiles(
        &self,
        picture: &dyn Picture,
        (rows, columns): (usize, usize),
        view: View,
    ) -> Vec<Tile> {
        let longest = match view {
            View::Image { .. } => self.longest_edge,
            View::Frame => self.frame_edge,
        };
        let first = self.resize(picture, first_size(picture.size(), longest));
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

impl VideoConfig {
    /// The longest edge of frames, with the field that says it.
    fn longest_edge(&self) -> Option<(&'static str, usize)> {
        let sampling = self.video_sampling.as_ref();
        let sampled = sampling.and_then(|sampling| sampling.video_size.as_ref());
        let sampled = sampled.map(|size| ("video_sampling.video_size.longest_edge", size));
        let found = sampled.or(self.size.as_ref().map(|size| ("size.longest_edge", size)));
        found.map(|(name, size)| (name, size.longest_edge))
    }
}

fn check_side(name: &str, side: usize) -> Result<(), Unsupported> {
    match (1..=MAX_SIDE).contains(&side) {
        true => Ok(()),
        false => Err(Unsupported::new(name, side, format!("1 to {MAX_SIDE}"))),
    }
}

/// Size of a picture (width, height) with the longest edge at `longest`, the other one scaled with it and made even by adding one.
fn first_size((width, height): (usize, usize), longest: usize) -> (usize, usize) {
    let aspect = width as f64 / height as f64;
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

fn packed(tile: &Tile) -> PackedRgb<'_> {
    PackedRgb {
        width: tile.width,
        height: tile.height,
        bytes: &tile.rgb,
    }
}
