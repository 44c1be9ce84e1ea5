//! What becomes of a frame on its way to the tower, as data: what a family's `prepare` and `pixels` do with one.

use candle_core::{DType, Device};

use super::resample::Resizer;
use super::Normalisation;
use crate::model::vision::Layout;

/// The steps from a frame's picture to the values that the tower takes.
#[derive(Debug)]
pub struct FrameRecipe<'a> {
    pub layout: Layout,
    /// First the picture comes into the middle of a square of this colour.
    pub square: Option<[u8; 3]>,
    /// Then it is resized to each of these sizes (width, height), one after the other.
    pub sizes: Vec<(usize, usize)>,
    pub resizer: &'a Resizer,
    pub normalisation: Normalisation,
    /// Then its values are laid out in patches; as one tile where the tower takes tiles.
    pub patches: Option<Patches>,
    /// What the tower computes in, and where.
    pub dtype: DType,
    pub device: &'a Device,
}

/// How a tower that takes pictures of any size wants them.
#[derive(Debug, Clone, Copy)]
pub struct Patches {
    /// Pixels.
    pub side: usize,
    /// Side of the squares of patches that become a token.
    pub merge: usize,
    /// How often a picture stands there in place of a video's frames.
    pub frames: usize,
}
