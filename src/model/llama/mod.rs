//! The Llama decoder (SmolLM2, and the text part of SmolVLM / Idefics3), with attention on the bounded cache.
//!
//! - `config`: the checkpoint's configuration, and what of it this decoder can compute

mod config;

use candle_core::{Device, Result, Tensor};
use candle_nn::{rms_norm, Embedding, Module, RmsNorm, VarBuilder};

use crate::cache::{BoundedCache, LayerSlots, Mark, Token};

use super::linear::{forward_all, Linear};
use super::ModelError;

pub use config::{Config, RopeParameters};

#[derive(Debug, Clone)]
struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl Attention {
    fn new(cfg: &Config, vb: VarBuilder) -> Result<Self> {
        let (heads, kv_heads, head_dim) = (cfg.num_attention_heads, cfg.kv_heads(), cfg.head_dim());
        let hidden = cfg.hidden_size;
        Ok(Self {
            q_proj: Linear::load(hidden, heads * head_dim, vb.pp("q_proj"))?,
            k_proj: Linear::load(hidden, kv_heads * head_dim, vb.pp("k_proj"))?,
            v_proj: Linear::load(hidden, kv_heads * head_dim, vb.pp("v_proj"))?,
            o_proj: Linear::load(heads * head_dim, hidden, vb.pp("o_proj"))?,
            heads,
            kv_heads,
            head_dim,
        })
    }

    /// `x` is `[streams * tokens, hidden]`: the products run over all streams at once, the attention of each on its own cache.
    fn forward(
        &self,
        x: &Tensor,
        tokens: &[Vec<Token>],
        caches: Vec<LayerSlots<'_>>,
    ) -> Result<Tensor> {
        let [q, k, v] = forward_all(x, &[&self.q_proj, &self.k_proj, &self.v_proj])?;
        let mut attended = Vec::with_capacity(tokens.len());
        for (i, (mut cache, tokens)) in caches.into_iter().zip(tokens).enumerate() {
            let split = |x: &Tensor, heads: usize| {
                // [tokens, heads * head_dim] of one stream -> [heads, tokens, head_dim]
                x.narrow(0, i * tokens.len(), tokens.len())?
                    .reshape((tokens.len(), heads, self.head_dim))?
                    .transpose(0, 1)?
                    .contiguous()
            };
            let (q, k, v) = (
                split(&q, self.heads)?,
                split(&k, self.kv_heads)?,
                split(&v, self.kv_heads)?,
            );
            attended.push(cache.attend(&q, &k, &v, tokens)?);
        }
        let attended = match attended.as_slice() {
            [one] => one.clone(),
            several => Tensor::cat(several, 0)?,
        };
        self.o_proj.forward(&attended)
    }
}

#[derive(Debug, Clone)]
struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

impl Mlp {
    fn new(cfg: &Config, vb: VarBuilder) -> Result<Self> {
        let (hidden, inner) = (cfg.hidden_size, cfg.intermediate_size);
        Ok(Self {
            gate_proj: Linear::load(hidden, inner, vb.pp("gate_proj"))?,
            up_proj: Linear::load(hidden, inner, vb.pp("up_proj"))?,
            down_proj: Linear::load(inner, hidden, vb.pp("down_proj"))?,
        })
    }
}

impl Module for Mlp {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let [gate, up] = forward_all(x, &[&self.gate_proj, &self.up_proj])?;
        self.down_proj.forward(&(gate.silu()? * up)?)
    }
}

#[derive(Debug, Clone)]
struct Layer {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    mlp: Mlp,
}

impl Layer {
    fn new(cfg: &Config, vb: VarBuilder) -> Result<Self> {
        let norm = |name| rms_norm(cfg.hidden_size, cfg.rms_norm_eps, vb.pp(name));
        Ok(Self {
            input_layernorm: norm("input_layernorm")?,
            self_attn: Attention::new(cfg, vb.pp("self_attn"))?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            mlp: Mlp::new(cfg, vb.pp("mlp"))?,
        })
    }

    fn forward(
        &self,
        x: &Tensor,
        tokens: &[Vec<Token>],
        caches: Vec<LayerSlots<'_>>,
    ) -> Result<Tensor> {
        let attended = self
            .self_attn
            .forward(&self.input_layernorm.forward(x)?, tokens, caches)?;
        let x = (x + attended)?;
        let expanded = self
            .mlp
            .forward(&self.post_attention_layernorm.forward(&x)?)?;
        x + expanded
    }
}

/// The decoder without its cache, which the caller owns.
#[derive(Debug, Clone)]
pub struct Llama {
    embed_tokens: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
    lm_head: Linear,
}

impl Llama {
    /// `vb` stands at the text model (`embed_tokens`, `layers`, `norm`), `head` at the root where `lm_head` is;
    /// no `head` means that the output layer is the input embedding.
    pub fn new(cfg: &Config, vb: VarBuilder, head: Option<VarBuilder>) -> Result<Self> {
        let embed_tokens =
            candle_nn::embedding(cfg.vocab_size, cfg.hidden_size, vb.pp("embed_tokens"))?;
        let lm_head = match head {
            Some(head) => Linear::load(cfg.hidden_size, cfg.vocab_size, head.pp("lm_head"))?,
            None => Linear::new(embed_tokens.embeddings().clone()),
        };
        let layers = (0..cfg.num_hidden_layers)
            .map(|i| Layer::new(cfg, vb.pp("layers").pp(i)))
            .collect::<Result<_>>()?;
        Ok(Self {
            embed_tokens,
            layers,
            norm: rms_norm(cfg.hidden_size, cfg.rms_norm_eps, vb.pp("norm"))?,
            lm_head,
        })
    }

    pub fn device(&self) -> &Device {
        self.embed_tokens.embeddings().device()
    }

    /// `[tokens, hidden]` for token ids.
    pub fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        let ids = Tensor::from_slice(ids, ids.len(), self.device())?;
        self.embed_tokens.forward(&ids)
    }

    /// Appends a chunk to the stream: `x` is `[tokens, hidden]`, `marks` says what each token is.
    ///
    /// Returns the last hidden states, normalised, `[tokens, hidden]`; of text tokens only where the cache withdraws visual tokens
    /// (arXiv 2405.05803). The caller then asks the cache to reserve what the next step needs.
    pub fn append(
        &self,
        x: &Tensor,
        marks: &[Mark],
        cache: &mut BoundedCache,
    ) -> std::result::Result<Tensor, ModelError> {
        self.append_many(x, marks, std::slice::from_mut(cache))
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
        let mut pieces = Vec::new();
        let mut at = 0;
        while at < marks.len() {
            let mut count = marks.len() - at;
            for cache in caches.iter_mut() {
                count = cache.admissible(count)?;
            }
            let piece = match count == marks.len() {
                true => x.clone(),
                false => x
                    .reshape((caches.len(), marks.len(), ()))?
                    .narrow(1, at, count)?
                    .flatten_to(1)?,
            };
            pieces.push(self.append_piece(piece, &marks[at..at + count], caches)?);
            at += count;
        }
        match pieces.len() {
            0 => Ok(x.clone()),
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
        mut x: Tensor,
        marks: &[Mark],
        caches: &mut [BoundedCache],
    ) -> std::result::Result<Tensor, ModelError> {
        let mut tokens = caches
            .iter_mut()
            .map(|cache| cache.admit(marks))
            .collect::<std::result::Result<Vec<_>, _>>()?;
        for (i, layer) in self.layers.iter().enumerate() {
            if caches.iter().any(|cache| cache.withdraws_at(i)) {
                (x, tokens) = text_only(&x, &tokens)?;
            }
            if tokens.iter().all(Vec::is_empty) {
                return Ok(x);
            }
            let caches = caches.iter_mut().map(|cache| cache.layer(i)).collect();
            x = layer.forward(&x, &tokens, caches)?;
        }
        Ok(self.norm.forward(&x)?)
    }

    /// `[tokens, vocab]` for hidden states `[tokens, hidden]`.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.lm_head.forward(hidden)
    }
}

/// The rows of `x` (`[streams * tokens, hidden]`) and the tokens of each stream that show no frame.
fn text_only(x: &Tensor, tokens: &[Vec<Token>]) -> Result<(Tensor, Vec<Vec<Token>>)> {
    let is_text = |token: &Token| token.mark.frame.is_none();
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
