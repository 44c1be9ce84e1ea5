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

impl FrameRecipe<'_> {
    /// Bytes of the largest picture on the way of one of `size` (width, height).
    pub fn largest(&self, size: (usize, usize)) -> usize {
        let side = size.0.max(size.1);
        let mut at = match self.square {
            Some(_) => (side, side),
            None => size,
        };
        let mut pixels = at.0 * at.1;
        for &to in &self.sizes {
            // Rows are resized before columns.
            pixels = pixels.max(to.0 * at.1).max(to.0 * to.1);
            at = to;
        }
        3 * pixels
    }
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
