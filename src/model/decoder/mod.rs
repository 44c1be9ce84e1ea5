//! The text decoders, with attention on the bounded cache.
//!
//! - this file: embedding, layers, output, and how a chunk goes through them
//! - `layer`: the layers, by what they remember of the stream
//! - `config`: which decoder a checkpoint has
//! - `layout`: its matrices as the products of a device take them
//! - `attention`: what the attention of every layer does between its projections
//! - `layer_types`: which layers attend, where the others keep a state
//! - `convolution`: what layers without keys have in common
//! - `rope`: the rotary embedding as configurations describe it
//! - `llama`: layers of Llama, Mistral, Qwen2, Qwen3, Cosmos 3 Edge
//! - `gpt_neox`: layers of GPT-NeoX (Pythia)
//! - `lfm2`: layers of LFM2
//! - `qwen3_5`: layers of Qwen3.5
//! - `working`: what a chunk is worked with
//! - `step`: one token through all of it in a device's own kernels

mod attention;
mod config;
mod convolution;
pub mod gpt_neox;
mod layer;
mod layer_types;
mod layout;
pub mod lfm2;
pub mod llama;
pub mod qwen3_5;
mod rope;
pub mod step;
pub mod working;

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{layer_norm, rms_norm, LayerNorm, Module, RmsNorm};

use super::linear::Linear;
use super::threads::Awake;
use super::weights::{Matrix, Weights};
use super::ModelError;
use crate::cache::{BoundedCache, Mark, Token};

pub use config::{Config, Unsupported};
pub use layer::{Block, Layer, Recurrent};
pub use layout::LayOut;
pub use rope::RopeParameters;

/// Rows up to which the products of a step on the CPU are so short that its threads are kept awake between them.
const SHORT: usize = 8;

/// The norm in front of the output layer.
#[derive(Debug, Clone)]
enum Norm {
    Rms(RmsNorm),
    Centred(qwen3_5::CentredNorm),
    Layer(LayerNorm),
}

/// A chunk of a decoder's input.
#[derive(Debug, Clone)]
pub struct Embedded {
    /// `[tokens, hidden]`
    pub x: Tensor,
    /// What is added to the hidden states after each of the first layers, `[tokens, hidden]` each and zero at text (DeepStack,
    /// arXiv 2406.04334); empty for most decoders.
    pub deep: Vec<Tensor>,
}

impl From<Tensor> for Embedded {
    fn from(x: Tensor) -> Self {
        Self {
            x,
            deep: Vec::new(),
        }
    }
}

impl Embedded {
    /// Tokens `at..at + count` of each of `streams`.
    fn narrow(&self, streams: usize, at: usize, count: usize) -> Result<Self> {
        let piece = |x: &Tensor| {
            let tokens = x.dim(0)? / streams;
            if count == tokens {
                return Ok(x.clone());
            }
            x.reshape((streams, tokens, ()))?
                .narrow(1, at, count)?
                .flatten_to(1)
        };
        Ok(Self {
            x: piece(&self.x)?,
            deep: self.deep.iter().map(piece).collect::<Result<_>>()?,
        })
    }
}

/// The decoder without its cache, which the caller owns.
#[derive(Debug, Clone)]
pub struct Decoder {
    /// `[vocab, hidden]`
    embed_tokens: Matrix,
    /// In their order; one can be put around another, to watch it.
    pub layers: Vec<Layer>,
    norm: Norm,
    lm_head: Linear,
    dtype: DType,
    device: Device,
    weight_bytes: usize,
}

impl Decoder {
    /// `text` stands at the decoder (`embed_tokens`, `layers`, `norm`; for GPT-NeoX `embed_in`, `layers`, `final_layer_norm`; for LFM2
    /// `embed_tokens`, `layers`, `embedding_norm`),
    /// `head` at the output layer (`lm_head`, `embed_out`).
    pub fn new(config: &Config, text: &Weights, head: &Weights) -> Result<Self> {
        let (vocab, hidden) = (config.vocab_size(), config.hidden_size());
        let before = text.taken();
        let (embed, norm, layers): (_, _, Vec<Layer>) = match config {
            Config::Llama(cfg) => {
                let layer = |i| -> Result<Layer> {
                    let layer = llama::layer(cfg, &text.pp("layers").pp(i))?;
                    Ok(Layer::Attention(layer))
                };
                let norm = text.pp("norm").var_builder();
                (
                    "embed_tokens",
                    Norm::Rms(rms_norm(hidden, cfg.rms_norm_eps, norm)?),
                    (0..cfg.num_hidden_layers)
                        .map(layer)
                        .collect::<Result<_>>()?,
                )
            }
            Config::GptNeoX(cfg) => {
                let shape = cfg.cache_shape().map_err(candle_core::Error::wrap)?;
                let activation = cfg.activation().map_err(candle_core::Error::wrap)?;
                let about = (activation, shape.rope.rotary_dim);
                let layer = |i| -> Result<Layer> {
                    let layer = gpt_neox::Layer::new(cfg, about, &text.pp("layers").pp(i))?;
                    Ok(Layer::Attention(Arc::new(layer)))
                };
                let norm = text.pp("final_layer_norm").var_builder();
                (
                    "embed_in",
                    Norm::Layer(layer_norm(hidden, cfg.layer_norm_eps, norm)?),
                    (0..cfg.num_hidden_layers)
                        .map(layer)
                        .collect::<Result<_>>()?,
                )
            }
            Config::Lfm2(cfg) => {
                let attends = cfg.attends().map_err(candle_core::Error::wrap)?;
                let w_layers = text.pp("layers");
                let layer = |(i, attends)| -> Result<Layer> {
                    let w = w_layers.pp(i);
                    Ok(match attends {
                        true => Layer::Attention(Arc::new(lfm2::attending(cfg, &w)?)),
                        false => Layer::Recurrent(Arc::new(lfm2::ConvLayer::new(cfg, &w)?)),
                    })
                };
                let norm = text.pp("embedding_norm").var_builder();
                (
                    "embed_tokens",
                    Norm::Rms(rms_norm(hidden, cfg.norm_eps, norm)?),
                    attends
                        .into_iter()
                        .enumerate()
                        .map(layer)
                        .collect::<Result<_>>()?,
                )
            }
            Config::Qwen3_5(cfg) => (
                "embed_tokens",
                Norm::Centred(qwen3_5::CentredNorm::last(cfg, &text.pp("norm"))?),
                qwen3_5::layers(cfg, &text.pp("layers"))?,
            ),
        };
        let [embed_tokens, head] =
            embedding_and_head(&text.pp(embed), head, (vocab, hidden), config.tied())?;
        Ok(Self {
            embed_tokens,
            layers,
            norm,
            lm_head: Linear::of(head, None),
            dtype: text.dtype(),
            device: text.device().clone(),
            weight_bytes: text.taken() - before,
        })
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Type of the arithmetic.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Memory of embedding, layers and output layer, bytes; what they share is counted once.
    pub fn weight_bytes(&self) -> usize {
        self.weight_bytes
    }

    /// Memory of the table of embeddings, which may be the output layer too, bytes.
    pub fn embedding_bytes(&self) -> usize {
        self.embed_tokens.bytes()
    }

    /// `[tokens, hidden]` for token ids.
    pub fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        let index = || Tensor::from_slice(ids, ids.len(), &self.device);
        match &self.embed_tokens {
            Matrix::Dense(table) => table.index_select(&index()?, 0),
            Matrix::Quantised(table) => table.embedding(&index()?)?.to_dtype(self.dtype),
            Matrix::Panels(table) => {
                let shape = (ids.len(), table.dims2().1);
                Tensor::from_vec(table.select(ids)?, shape, &self.device)?.to_dtype(self.dtype)
            }
            Matrix::Planes(table) => table.select(ids, self.dtype),
        }
    }

    /// Appends a chunk to the stream: `x` is `[tokens, hidden]`, `marks` says what each token is.
    ///
    /// Returns the last hidden states, normalised, `[tokens, hidden]`; of text tokens only where the cache withdraws visual tokens
    /// (arXiv 2405.05803), which may be none. The caller then asks the cache to reserve what the next step needs.
    ///
    /// An error can come when some layers have taken the chunk and others have not: what the cache is worth then is what
    /// [`BoundedCache::put_back`] makes of it.
    pub fn append(
        &self,
        x: &Tensor,
        marks: &[Mark],
        cache: &mut BoundedCache,
    ) -> std::result::Result<Tensor, ModelError> {
        self.append_embedded(&x.clone().into(), marks, cache)
    }

    /// [`Self::append`] for a chunk whose images reach deeper layers as well.
    pub fn append_embedded(
        &self,
        chunk: &Embedded,
        marks: &[Mark],
        cache: &mut BoundedCache,
    ) -> std::result::Result<Tensor, ModelError> {
        self.append_all(chunk, marks, std::slice::from_mut(cache), self.layers.len())
    }

    /// Puts a chunk through the decoder as far as the first `layers` layers that keep keys, for what the cache hears there ([`BoundedCache::listen`]): the states that come
    /// out of them, normalised, `[tokens, hidden]` as [`Self::append`] does.
    ///
    /// It is not in the layers behind, so that the cache is worth nothing until [`BoundedCache::put_back`]. Where layers compact together
    /// and the chunk takes a compaction, it goes through all of them.
    pub fn pass_through(
        &self,
        layers: usize,
        chunk: &Embedded,
        marks: &[Mark],
        cache: &mut BoundedCache,
    ) -> std::result::Result<Tensor, ModelError> {
        let layers = match cache.admissible(marks)? == marks.len() {
            true => self.depth(layers),
            false => self.layers.len(),
        };
        self.append_all(chunk, marks, std::slice::from_mut(cache), layers)
    }

    /// How many layers there are as far as the first `keeping` that keep keys.
    fn depth(&self, keeping: usize) -> usize {
        let layers = (1..).zip(&self.layers);
        let mut depths = layers.filter(|(_, layer)| layer.keeps_keys());
        match keeping.checked_sub(1) {
            Some(last) => depths
                .nth(last)
                .map_or(self.layers.len(), |(depth, _)| depth),
            None => 0,
        }
    }

    /// Appends the same chunk to several streams in lock-step, one pass over the weights for all of them.
    ///
    /// `x` is `[streams * tokens, hidden]`, one stream after the other; `marks` (`[tokens]`) holds for each of them, and they
    /// withdraw visual tokens at the same layer, if at all. Returns `[streams * tokens, hidden]`, as [`Self::append`] does.
    pub fn append_many(
        &self,
        x: &Tensor,
        marks: &[Mark],
        caches: &mut [BoundedCache],
    ) -> std::result::Result<Tensor, ModelError> {
        self.append_all(&x.clone().into(), marks, caches, self.layers.len())
    }

    /// Through the first `layers` layers.
    fn append_all(
        &self,
        chunk: &Embedded,
        marks: &[Mark],
        caches: &mut [BoundedCache],
        layers: usize,
    ) -> std::result::Result<Tensor, ModelError> {
        let short = self.device.is_cpu() && marks.len() * caches.len() <= SHORT;
        let _awake = short.then(Awake::here).flatten();
        let mut pieces = Vec::new();
        let mut at = 0;
        while at < marks.len() {
            let mut count = marks.len() - at;
            for cache in caches.iter_mut() {
                count = cache.admissible(&marks[at..at + count])?;
            }
            let piece = chunk.narrow(caches.len(), at, count)?;
            pieces.push(self.append_piece(piece, &marks[at..at + count], caches, layers)?);
            at += count;
        }
        match pieces.len() {
            0 => Ok(chunk.x.clone()),
            1 => Ok(pieces.remove(0)),
            _ => {
                let by_stream = pieces.iter().map(|piece| {
                    let (rows, hidden) = piece.dims2()?;
                    piece.reshape((caches.len(), rows / caches.len(), hidden))
                });
                let by_stream = by_stream.collect::<Result<Vec<_>>>()?;
                Ok(Tensor::cat(&by_stream, 1)?.flatten_to(1)?)
            }
        }
    }

    /// The same for tokens that every cache takes at once.
    fn append_piece(
        &self,
        piece: Embedded,
        marks: &[Mark],
        caches: &mut [BoundedCache],
        layers: usize,
    ) -> std::result::Result<Tensor, ModelError> {
        let Embedded { mut x, mut deep } = piece;
        let mut tokens = caches
            .iter_mut()
            .map(|cache| cache.admit(marks))
            .collect::<std::result::Result<Vec<_>, _>>()?;
        let (mut keeping, mut recurrent) = (0, 0);
        for (i, layer) in self.layers.iter().enumerate().take(layers) {
            let of_kind = match layer.keeps_keys() {
                true => &mut keeping,
                false => &mut recurrent,
            };
            let index = *of_kind;
            *of_kind += 1;
            let mut withdrawing = caches.iter().filter(|cache| cache.withdraws_at(index));
            if layer.keeps_keys() && withdrawing.next().is_some() {
                (x, tokens) = text_only(&x, &tokens)?;
                deep.clear();
            }
            if tokens.iter().all(Vec::is_empty) {
                return Ok(x);
            }
            x = layer.forward(&x, &tokens, (caches, index))?;
            if let Some(added) = deep.get(i) {
                x = (x + added)?;
            }
        }
        Ok(match &self.norm {
            Norm::Rms(norm) => norm.forward(&x)?,
            Norm::Centred(norm) => norm.forward(&x)?,
            Norm::Layer(norm) => norm.forward(&x)?,
        })
    }

    /// `[tokens, vocab]` for hidden states `[tokens, hidden]`.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.lm_head.forward(hidden)
    }
}

/// The input embedding and the output layer, `[vocab, hidden]` each.
///
/// If they are `tied`, they are one, whichever of them there is; but if there are two that differ, the configuration is wrong and both
/// are used, as transformers does (5.24, `tie_weights`).
fn embedding_and_head(
    embedding: &Weights,
    head: &Weights,
    shape: (usize, usize),
    tied: bool,
) -> Result<[Matrix; 2]> {
    const NAME: &str = "weight";
    let two = match (embedding.contains(NAME), head.contains(NAME)) {
        (true, true) => !tied || !embedding.same(head, NAME),
        _ => !tied,
    };
    if two {
        if tied {
            tracing::warn!(
                "tie_word_embeddings is true, but the checkpoint has an output layer that differs from the embeddings: it is used"
            );
        }
        return Ok([
            embedding.matrix(shape, NAME, None)?,
            head.matrix(shape, NAME, None)?,
        ]);
    }
    let there = match embedding.contains(NAME) || !head.contains(NAME) {
        true => embedding,
        false => head,
    };
    let one = there.matrix(shape, NAME, None)?;
    Ok([one.clone(), one])
}

/// The rows of `x` (`[streams * tokens, hidden]`) and the tokens of each stream that show no frame.
fn text_only(x: &Tensor, tokens: &[Vec<Token>]) -> Result<(Tensor, Vec<Vec<Token>>)> {
    let is_text = |token: &Token| token.mark.is_text();
    let rows = (0u32..)
        .zip(tokens.iter().flatten())
        .filter(|(_, token)| is_text(token))
        .map(|(row, _)| row)
        .collect::<Vec<_>>();
    let index = Tensor::from_slice(&rows, rows.len(), x.device())?;
    let of_stream = |tokens: &Vec<Token>| tokens.iter().copied().filter(is_text).collect();
    Ok((
        x.index_select(&index, 0)?,
        tokens.iter().map(of_stream).collect(),
    ))
}
