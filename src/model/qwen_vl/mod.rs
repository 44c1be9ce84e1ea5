//! What the Qwen-VL families share: pictures of any size in patches, of which squares become one token each.
//!
//! - this file: the measures of a tower
//! - `family`: configurations and where things stand
//! - `grid`: the order of a picture's patches, where each stands, and windows
//! - `blocks`: the layers of a tower
//! - `processor`: pictures to patches
//! - `sizes`: the sizes that pictures are brought to
//! - `vision`: the way from pictures to rows of the decoder's input

mod blocks;
mod family;
mod grid;
mod processor;
mod sizes;
mod vision;

use serde::Deserialize;

use super::activation::Activation;
use super::decoder::Unsupported;
use super::vision::working::Widths;

pub use blocks::{Block, Feed, Merger, MergerNorm, PatchEmbed, EPSILON};
pub use family::{Kind, QwenVl, VisionConfig};
pub use grid::{Angles, Grid};
pub use processor::Processing;
pub use sizes::VideoSizes;
pub use vision::{QwenVision, Tower};

/// The token that stands for a row of image features.
pub const IMAGE_PAD: &str = "<|image_pad|>";
/// What stands around the features of an image.
pub const AROUND_IMAGE: [&str; 2] = ["<|vision_start|>", "<|vision_end|>"];

/// Measures of a tower.
#[derive(Debug, Clone)]
pub struct Measures {
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_heads: usize,
    pub hidden_act: String,
    /// Colours, in the spellings that there are.
    pub channels: [Option<usize>; 2],
    /// Width of the decoder, as the tower's configuration has it.
    pub out_hidden_size: usize,
    /// Side of a patch, pixels.
    pub patch_size: usize,
    /// Frames of a patch.
    pub temporal_patch_size: usize,
    /// Side of the square of patches that becomes one token.
    pub spatial_merge_size: usize,
    /// Base of the rotary embedding's frequencies.
    pub theta: f64,
}

/// Sides of patches and squares beyond this belong to no model, and powers of them could overflow.
const MAX_SIDE: usize = 256;

/// Mirrors `rope_parameters` of `vision_config`, as transformers 5 writes it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct AxialRope {
    rope_theta: Option<f64>,
    rope_type: Option<String>,
}

const DEFAULT_THETA: f64 = 10_000.0;

impl AxialRope {
    /// Base of the frequencies.
    pub fn theta(&self) -> Result<f64, Unsupported> {
        let fail = |field, value: &dyn std::fmt::Display, expected| {
            Err(Unsupported::new(field, value, expected).within("rope_parameters"))
        };
        match self.rope_type.as_deref() {
            None | Some("axial" | "default") => {}
            Some(other) => return fail("rope_type", &other, "axial"),
        }
        let theta = self.rope_theta.unwrap_or(DEFAULT_THETA);
        match theta.is_finite() && theta > 1.0 {
            true => Ok(theta),
            false => fail("rope_theta", &theta, "a number above 1"),
        }
    }
}

impl Measures {
    /// Checks what can be checked without the weights; `width` is that of the decoder.
    pub fn check(&self, width: usize) -> Result<(), Unsupported> {
        let sizes = [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_heads", self.num_heads),
            ("patch_size", self.patch_size),
            ("temporal_patch_size", self.temporal_patch_size),
            ("spatial_merge_size", self.spatial_merge_size),
        ];
        Unsupported::zeros(&sizes)?;
        Unsupported::too_large(&sizes)?;
        for (field, value) in &sizes[3..] {
            if *value > MAX_SIDE {
                return Err(Unsupported::new(
                    field,
                    value,
                    format!("at most {MAX_SIDE}"),
                ));
            }
        }
        if let Some(other) = self
            .channels
            .into_iter()
            .flatten()
            .find(|&count| count != 3)
        {
            return Err(Unsupported::new("in_channels", other, 3));
        }
        let head_dim = self.hidden_size / self.num_heads;
        if !self.hidden_size.is_multiple_of(self.num_heads) || !head_dim.is_multiple_of(4) {
            let hidden = self.hidden_size;
            let expected =
                format!("a divisor of hidden_size ({hidden}) that leaves a multiple of 4");
            return Err(Unsupported::new("num_heads", self.num_heads, expected));
        }
        if self.out_hidden_size != width {
            let expected = format!("{width}, the decoder's hidden_size");
            return Err(Unsupported::new(
                "width of the merger",
                self.out_hidden_size,
                expected,
            ));
        }
        self.activation().map(|_| ())
    }

    pub fn activation(&self) -> Result<Activation, Unsupported> {
        Activation::parse(&self.hidden_act).ok_or_else(|| {
            let expected = "silu, gelu, gelu_pytorch_tanh or quick_gelu";
            Unsupported::new("hidden_act", &self.hidden_act, expected)
        })
    }

    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_heads
    }

    /// What goes through the layers of a tower: `inner` between the products of the MLP, `beside` hidden states beside those in a layer.
    pub fn widths(&self, inner: usize, beside: usize) -> Widths {
        // Each frame that waits for another is there beside the two together.
        let copies = match self.temporal_patch_size {
            1 => 1,
            frames => 1 + frames,
        };
        let patch = 3 * self.temporal_patch_size * self.patch_size.pow(2);
        Widths {
            hidden: self.hidden_size,
            heads: self.num_heads,
            inner,
            values: copies * patch,
            beside,
            unsummed: 0,
            turns: 2 * self.head_dim(),
        }
    }

    /// Patches that become one token.
    pub fn merged(&self) -> usize {
        self.spatial_merge_size.pow(2)
    }

    /// Numbers of such patches side by side.
    pub fn merged_width(&self) -> usize {
        self.hidden_size * self.merged()
    }
}
