//! What keys and values are stored as.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// A stored number that widens to f32 without loss.
pub trait Element: Copy + Send + Sync {
    /// The numbers as f32: themselves, or widened into `scratch`.
    fn widen<'a>(stored: &'a [Self], scratch: &'a mut Vec<f32>) -> &'a [f32];
}

impl Element for f32 {
    fn widen<'a>(stored: &'a [Self], _scratch: &'a mut Vec<f32>) -> &'a [f32] {
        stored
    }
}

impl Element for f16 {
    fn widen<'a>(stored: &'a [Self], scratch: &'a mut Vec<f32>) -> &'a [f32] {
        scratch.resize(stored.len(), 0.0);
        stored.convert_to_f32_slice(scratch);
        scratch
    }
}

impl Element for bf16 {
    fn widen<'a>(stored: &'a [Self], scratch: &'a mut Vec<f32>) -> &'a [f32] {
        scratch.resize(stored.len(), 0.0);
        stored.convert_to_f32_slice(scratch);
        scratch
    }
}
