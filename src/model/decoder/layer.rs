//! The layers of a decoder, by what they remember of the stream.

use std::fmt::Debug;
use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::{llama, LayOut};
use crate::cache::{BoundedCache, LayerSlots, LayerState, Token};

/// A layer of a decoder.
#[derive(Debug, Clone)]
pub enum Layer {
    /// It attends to keys and values in the cache.
    Attention(Arc<dyn Block>),
    /// It has a state of constant size, which eviction does not touch.
    Recurrent(Arc<dyn Recurrent>),
}

/// A layer that attends.
pub trait Block: Debug + Send + Sync {
    /// `x` is `[streams * tokens, hidden]`: the products run over all streams at once, the attention of each on its own cache.
    fn forward(
        &self,
        x: &Tensor,
        tokens: &[Vec<Token>],
        caches: Vec<LayerSlots<'_>>,
    ) -> Result<Tensor>;

    /// What a device's own kernels work with, where there are such for layers of this kind.
    fn as_llama(&self) -> Option<&llama::Layer> {
        None
    }

    /// The layer with each of its matrices as `change` lays it out; none: they stay as they are.
    fn laid_out(&self, _: &LayOut) -> Result<Option<Arc<dyn Block>>> {
        Ok(None)
    }
}

/// A layer that keeps a state in the place of keys.
pub trait Recurrent: Debug + Send + Sync {
    /// `x` is `[streams * tokens, hidden]`: the products run over all streams at once, and each brings its own state on.
    fn forward(&self, x: &Tensor, states: Vec<&mut LayerState>) -> Result<Tensor>;

    /// As [`Block::laid_out`].
    fn laid_out(&self, change: &LayOut) -> Result<Arc<dyn Recurrent>>;
}

impl Layer {
    /// Whether it keeps keys.
    pub fn keeps_keys(&self) -> bool {
        matches!(self, Self::Attention(_))
    }

    /// What a device's own kernels work with, where there are such for layers of this kind.
    pub fn as_llama(&self) -> Option<&llama::Layer> {
        match self {
            Self::Attention(block) => block.as_llama(),
            Self::Recurrent(_) => None,
        }
    }

    /// As [`Block::laid_out`].
    pub fn laid_out(&self, change: &LayOut) -> Result<Option<Self>> {
        match self {
            Self::Attention(block) => Ok(block.laid_out(change)?.map(Self::Attention)),
            Self::Recurrent(block) => Ok(Some(Self::Recurrent(block.laid_out(change)?))),
        }
    }

    /// `x` as [`Block::forward`] and [`Recurrent::forward`] take it; `index` counts the layers of this kind.
    pub fn forward(
        &self,
        x: &Tensor,
        tokens: &[Vec<Token>],
        (caches, index): (&mut [BoundedCache], usize),
    ) -> Result<Tensor> {
        let caches = caches.iter_mut();
        match self {
            Self::Attention(block) => {
                block.forward(x, tokens, caches.map(|cache| cache.layer(index)).collect())
            }
            Self::Recurrent(block) => {
                block.forward(x, caches.map(|cache| cache.state(index)).collect())
            }
        }
    }
}
