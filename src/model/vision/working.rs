//! What a tower works with on the CPU, beside its weights.
//!
//! Counted are the tensors that are alive together at the fullest moments of a layer, as its `forward` makes them and lets them go. What does not
//! grow with the picture is left out.

use candle_core::DType;

use super::vit::Sizes;
use crate::simd::tiles::COLUMNS;

/// What a picture is worked with.
#[derive(Debug, Clone, Copy)]
pub struct Working {
    /// By the tower.
    pub bytes: u64,
    /// Layers of the decoder that its features are added to later.
    pub deep: usize,
}

/// What goes through the layers of a tower, numbers of a patch.
#[derive(Debug, Clone, Copy)]
pub struct Widths {
    pub hidden: usize,
    pub heads: usize,
    /// All that is alive between the products of the MLP: what its first one gives; gated, the gate, the other half and their product.
    pub inner: usize,
    /// Values of the picture, as often as they are there.
    pub values: usize,
    /// Hidden states beside those in a layer: of other layers, positions, what comes in front of them.
    pub beside: usize,
    /// Hidden states that what attention gives stays alive as beside its sum with what went in.
    pub unsummed: usize,
    /// Cosines and sines that queries and keys are turned by.
    pub turns: usize,
}

impl Widths {
    /// Of a tower whose layers are those of SigLIP.
    pub fn of(sizes: &Sizes, values: usize, beside: usize) -> Self {
        Self {
            hidden: sizes.hidden,
            heads: sizes.heads,
            inner: sizes.intermediate,
            values,
            beside,
            unsummed: 0,
            turns: 0,
        }
    }

    /// For so many patches that attend to each other; `dtype` is the type of the arithmetic.
    pub fn bytes(&self, patches: usize, dtype: DType) -> u64 {
        let Self { hidden, heads, .. } = *self;
        let around = self.values + self.beside * hidden;
        // What goes into the layer, its norm, queries, keys, values, and what comes of them.
        let attending = around + 6 * hidden;
        // What goes in, the sum with what attention gives, its norm, and what comes out.
        let feeding = around + (4 + self.unsummed) * hidden + self.inner;
        // Keys turned over, values filled up.
        let head_dim = hidden / heads.max(1);
        let staged = heads * (head_dim + head_dim.next_multiple_of(COLUMNS)) + self.turns;
        let number = dtype.size_in_bytes();
        let of_patch = (attending * number + staged * size_of::<f32>()).max(feeding * number);
        (patches as u64).saturating_mul(of_patch as u64)
    }
}
