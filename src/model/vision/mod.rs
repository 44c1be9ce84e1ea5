//! What every family does with pictures: the sizes that its tower takes, the tower, and the connector into the decoder.
//!
//! - this file: what a family implements
//! - `attention`: attention within windows of rows
//! - `beside`: a tower on a stream of its own
//! - `frames`: frames, on the CPU or in kernels of our own
//! - `layers`: linear layers
//! - `norm`: norms of rows
//! - `panels`: matrices as the CPU multiplies many rows with them
//! - `positions`: learned positions over a grid of any size
//! - `projector`: two layers from the tower's features to the decoder's rows
//! - `shuffle`: squares of patches joined into rows
//! - `siglip2`: the tower of SigLIP 2 for pictures of any size
//! - `vit`: the tower of CLIP and of SigLIP
//! - `working`: what towers work with

pub mod attention;
pub mod beside;
pub mod frames;
pub mod layers;
pub mod norm;
pub mod panels;
pub mod positions;
pub mod projector;
pub mod shuffle;
pub mod siglip2;
pub mod vit;
pub mod working;

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::preprocess::picture::Picture;
use super::preprocess::recipe::FrameRecipe;
use super::preprocess::resample::Resizer;
use super::ModelError;
use working::Working;

/// What a picture is for the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// One of so many images of a prompt, as the published processor sees it.
    Image { of: usize },
    /// A frame of the stream, as the published processor sees a video's.
    Frame,
}

/// The fewest and the most pixels of a frame at the size that the tower takes, in the place of the published ones; 0: as published.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FramePixels {
    pub min: usize,
    pub max: usize,
}

impl FramePixels {
    /// The fewest and the most that count where `fewest` and `most` are published; `square`: pixels of what one token shows, without which
    /// there is no frame.
    pub fn instead_of(
        self,
        (fewest, most): (usize, usize),
        square: usize,
    ) -> std::result::Result<(usize, usize), FramePixelsError> {
        let Self { min, max } = self;
        if max > 0 && max < square {
            let expected = format!("0, or at least {square} (what one token shows)");
            return Err(FramePixelsError::Most { max, expected });
        }
        let (most, limit) = match max {
            0 => (most, "the checkpoint's most"),
            max => (max, "frame_max_pixels"),
        };
        if min > most {
            let expected = format!("0 to {most} ({limit})");
            return Err(FramePixelsError::Fewest { min, expected });
        }
        match min {
            0 => Ok((fewest.min(most), most)),
            min => Ok((min, most)),
        }
    }
}

/// Why a tower takes no frames of so many pixels.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FramePixelsError {
    /// All its frames have one size.
    #[error("frames of one size")]
    OneSize,
    #[error("the fewest pixels of a frame are {min}, expected {expected}")]
    Fewest { min: usize, expected: String },
    #[error("the most pixels of a frame are {max}, expected {expected}")]
    Most { max: usize, expected: String },
}

/// How a picture is laid out in tiles or patches; its markup and the number of its tokens follow from this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Width and height of the picture, pixels.
    pub picture: (usize, usize),
    pub view: View,
    /// Time, height and width: in patches where the tower takes any size, else in tiles beside the one of the whole picture.
    pub grid: [usize; 3],
}

/// A part of a picture at a size that the tower takes, packed RGB bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tile {
    pub width: usize,
    pub height: usize,
    pub rgb: Vec<u8>,
}

impl Tile {
    /// The whole of a picture at `size` (width, height).
    pub fn resized(
        resizer: &Resizer,
        picture: &dyn Picture,
        (width, height): (usize, usize),
    ) -> Self {
        Self {
            width,
            height,
            rgb: resizer.resize(picture, (width, height)),
        }
    }

    /// Of this one in squares of `side` pixels the one at `row` and `column`.
    pub fn cut(&self, side: usize, row: usize, column: usize) -> Self {
        let lines = self.rgb.chunks_exact(3 * self.width);
        let lines = lines.skip(row * side).take(side);
        let bytes = 3 * side;
        Self {
            width: side,
            height: side,
            rgb: lines
                .flat_map(|line| &line[column * bytes..][..bytes])
                .copied()
                .collect(),
        }
    }
}

/// A picture in tiles.
#[derive(Debug, Clone)]
pub struct Prepared {
    pub layout: Layout,
    pub tiles: Vec<Tile>,
}

/// A picture's normalised values, in the order that the family's processor gives them.
#[derive(Debug, Clone)]
pub struct Pixels {
    pub layout: Layout,
    /// `[tiles, 3, height, width]`, or `[patches, values]` where the tower takes any size.
    pub values: Tensor,
}

/// What the tower makes of a picture.
#[derive(Debug, Clone)]
pub struct TowerOutput {
    /// What the connector takes, `[rows, width]` or `[tiles, rows, width]`.
    pub features: Tensor,
    /// Features of earlier layers, for deeper layers of the decoder.
    pub deep: Vec<Tensor>,
}

/// A picture as rows of the decoder's input.
#[derive(Debug, Clone)]
pub struct ImageFeatures {
    /// `[tokens, hidden]`
    pub rows: Tensor,
    /// What is added after each of the decoder's first layers, `[tokens, hidden]` each.
    pub deep: Vec<Tensor>,
    /// Time, height and width in tokens, for decoders whose positions have three axes.
    pub grid: Option<[usize; 3]>,
}

impl ImageFeatures {
    /// The tensors with what they are.
    pub fn named(&self) -> Vec<(&'static str, &Tensor)> {
        let deep = self.deep.iter();
        let deep = deep.map(|rows| ("deeper features of the vision tower", rows));
        let rows = ("features of the vision tower", &self.rows);
        [rows].into_iter().chain(deep).collect()
    }
}

/// A family's way from pictures to rows of the decoder's input.
pub trait Vision: Send + Sync {
    /// How a picture of `size` (width, height) is laid out.
    fn layout(&self, size: (usize, usize), view: View) -> Layout;

    /// The tokens that such a picture becomes.
    fn tokens(&self, layout: &Layout) -> usize;

    /// The text that takes the place of a picture's placeholder in a prompt.
    fn markup(&self, layout: &Layout) -> String;

    /// What it is worked with on the CPU.
    fn working(&self, layout: &Layout) -> Working;

    /// The picture at the sizes that the tower takes.
    fn prepare(&self, picture: &dyn Picture, view: View) -> Prepared;

    /// What [`Self::prepare`] and [`Self::pixels`] do with a frame of a picture of `size` (width, height).
    fn frame(&self, size: (usize, usize)) -> FrameRecipe<'_>;

    /// The values of a prepared picture.
    fn pixels(&self, prepared: &Prepared) -> Result<Pixels>;

    /// The same with other limits for the pixels of frames, if it takes frames of any size.
    fn with_frame_pixels(
        &self,
        _asked: FramePixels,
    ) -> std::result::Result<Arc<dyn Vision>, FramePixelsError> {
        Err(FramePixelsError::OneSize)
    }

    /// Whether the tower takes two frames in a row as one, as it was trained on videos.
    fn takes_pairs(&self) -> bool {
        false
    }

    /// The values of two frames of one layout as the tower takes them together; of one that takes no pairs those of the second.
    fn join(&self, _first: &Pixels, second: &Pixels) -> Result<Pixels> {
        Ok(second.clone())
    }

    /// The pictures in a published processor's tensors, by their names there.
    fn split(
        &self,
        tensors: &HashMap<String, Tensor>,
        view: View,
    ) -> std::result::Result<Vec<Pixels>, ModelError>;

    /// The tower.
    fn tower(&self, pixels: &Pixels) -> Result<TowerOutput>;

    /// The connector.
    fn connect(&self, features: &TowerOutput, layout: &Layout) -> Result<ImageFeatures>;

    /// Tower and connector.
    fn encode(&self, pixels: &Pixels) -> Result<ImageFeatures> {
        self.connect(&self.tower(pixels)?, &pixels.layout)
    }
}

/// A processor's tensor that must be there.
pub fn processor_tensor<'a>(
    tensors: &'a HashMap<String, Tensor>,
    name: &str,
) -> std::result::Result<&'a Tensor, ModelError> {
    tensors
        .get(name)
        .ok_or_else(|| ModelError::Inputs(format!("the inputs hold no tensor {name}")))
}
