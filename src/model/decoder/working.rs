//! What a chunk is worked with on its way through a decoder on the CPU, beside weights and cache.
//!
//! Counted are the tensors that are alive together at the fullest moments of a layer, as its `forward` makes them and lets them go. What does
//! not grow with the chunk is left out.

use candle_core::DType;

use super::{gpt_neox, lfm2, llama, qwen3_5, Config};
use crate::cache::CacheShape;
use crate::model::weights::Rounded;

/// What is alive at a moment of a layer.
#[derive(Debug, Clone, Copy, Default)]
pub struct Moment {
    /// Numbers of each token.
    pub numbers: usize,
    /// Numbers of each token that are rounded for a product with blocks.
    pub rounded: usize,
    /// Keys and values of the whole cache are ready for many queries.
    pub attends: bool,
}

/// A chunk and what it meets.
#[derive(Debug, Clone, Copy)]
pub struct Chunk {
    pub tokens: usize,
    /// Slots in use behind it.
    pub slots: usize,
    /// Type of the arithmetic.
    pub dtype: DType,
    /// Matrices are blocks in panels.
    pub in_panels: bool,
    /// Rows of the decoder's width that wait beside it for each token: features of a picture, and what they add to deeper layers.
    pub waiting: usize,
}

impl Config {
    /// The moments of a layer of which one is the fullest; of decoders with layers of several kinds those of each.
    fn moments(&self) -> Vec<Moment> {
        match self {
            Self::Llama(cfg) => llama::moments(
                cfg.hidden_size,
                &cfg.heads(),
                cfg.qk_norm(),
                cfg.intermediate_size,
            ),
            Self::GptNeoX(cfg) => gpt_neox::moments(cfg),
            Self::Lfm2(cfg) => lfm2::moments(cfg),
            Self::Qwen3_5(cfg) => qwen3_5::moments(cfg),
        }
    }

    /// What the chunk is worked with, bytes; `shape` is that of this decoder.
    pub fn working_bytes(&self, shape: &CacheShape, chunk: &Chunk) -> u64 {
        let bytes = |moment: Moment| {
            let numbers = moment.numbers + chunk.waiting * self.hidden_size();
            let rounded = match chunk.in_panels {
                true => Rounded::bytes(moment.rounded),
                false => 0,
            };
            let of_token = numbers * chunk.dtype.size_in_bytes() + rounded;
            let staged = match moment.attends {
                true => shape.staged_bytes(chunk.slots),
                false => 0,
            };
            let tokens = (chunk.tokens as u64).saturating_mul(of_token as u64);
            tokens.saturating_add(staged)
        };
        let moments = self.moments().into_iter().map(bytes);
        moments.max().unwrap_or(0)
    }
}
