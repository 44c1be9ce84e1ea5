//! A layer of GPT-NeoX decoders (Pythia): layer norms, one fused projection, and attention beside the MLP.
//!
//! - `config`: the checkpoint's configuration, and what of it can be computed

mod config;

use std::sync::Arc;

use candle_core::{Result, Tensor};
use candle_nn::{layer_norm, LayerNorm, Module};

use super::attention::{rotary_order, Heads, Projected};
use super::working::Moment;
use super::{Block, LayOut};
use crate::cache::{LayerSlots, Token};
use crate::model::activation::Activation;
use crate::model::linear::{forward_all, Linear};
use crate::model::sum::sum;
use crate::model::weights::Weights;

pub use config::Config;

/// What is alive at the fullest moments of a layer.
pub fn moments(cfg: &Config) -> Vec<Moment> {
    let (hidden, inner) = (cfg.hidden_size, cfg.intermediate_size);
    let mlp = |hidden_rows, inner_rows, rounded| Moment {
        numbers: hidden_rows * hidden + inner_rows * inner,
        rounded,
        attends: false,
    };
    vec![
        // The chunk, what goes into the layer, and its norm.
        cfg.heads().attending(3 * hidden),
        // The chunk, what goes in, what attention adds, the sum, a norm; then what comes out.
        mlp(5, 2, 0),
        mlp(6, 1, inner),
    ]
}

#[derive(Debug)]
struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    dense: Linear,
    heads: Heads,
}

impl Attention {
    fn new(cfg: &Config, rotary_dim: usize, w: &Weights) -> Result<Self> {
        let heads = cfg.heads();
        let hidden = cfg.hidden_size;
        let fused = w.pp("query_key_value");
        let part = |part: usize, order: &[usize]| -> Result<Linear> {
            let rows = rows_of_part(&heads, part, order);
            let weight = fused.matrix((3 * hidden, hidden), "weight", Some(&rows))?;
            let bias = match cfg.attention_bias {
                true => Some(fused.get_rows(3 * hidden, "bias", &rows)?),
                false => None,
            };
            Ok(Linear::of(weight, bias))
        };
        let rotary = rotary_order(heads.head_dim, rotary_dim);
        let plain = (0..heads.head_dim).collect::<Vec<_>>();
        Ok(Self {
            query: part(0, &rotary)?,
            key: part(1, &rotary)?,
            value: part(2, &plain)?,
            dense: Linear::load_with(hidden, hidden, cfg.attention_bias, &w.pp("dense"))?,
            heads,
        })
    }

    fn forward(
        &self,
        x: &Tensor,
        tokens: &[Vec<Token>],
        caches: Vec<LayerSlots<'_>>,
    ) -> Result<Tensor> {
        let [q, k, v] = forward_all(x, &[&self.query, &self.key, &self.value])?;
        let attended = self.heads.attend(&Projected { q, k, v }, tokens, caches)?;
        self.dense.forward(&attended)
    }

    fn laid_out(&self, change: &LayOut) -> Result<Self> {
        Ok(Self {
            query: change(&self.query)?,
            key: change(&self.key)?,
            value: change(&self.value)?,
            dense: change(&self.dense)?,
            heads: self.heads,
        })
    }
}

/// Rows of the fused projection that make queries (0), keys (1) or values (2): each head has its three parts together. `order` is that of
/// a head's dimensions.
fn rows_of_part(heads: &Heads, part: usize, order: &[usize]) -> Vec<u32> {
    (0..heads.heads)
        .flat_map(|head| {
            let start = (head * 3 + part) * heads.head_dim;
            order.iter().map(move |&d| (start + d) as u32)
        })
        .collect()
}

/// One layer.
#[derive(Debug)]
pub struct Layer {
    input_layernorm: LayerNorm,
    attention: Attention,
    post_attention_layernorm: LayerNorm,
    dense_h_to_4h: Linear,
    dense_4h_to_h: Linear,
    activation: Activation,
    parallel: bool,
}

impl Layer {
    /// `rotary_dim` is that of the configuration's [`crate::cache::Rope`].
    pub fn new(
        cfg: &Config,
        (activation, rotary_dim): (Activation, usize),
        w: &Weights,
    ) -> Result<Self> {
        let (hidden, inner) = (cfg.hidden_size, cfg.intermediate_size);
        let norm = |name| layer_norm(hidden, cfg.layer_norm_eps, w.pp(name).var_builder());
        let mlp = w.pp("mlp");
        Ok(Self {
            input_layernorm: norm("input_layernorm")?,
            attention: Attention::new(cfg, rotary_dim, &w.pp("attention"))?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            dense_h_to_4h: Linear::load_with(hidden, inner, true, &mlp.pp("dense_h_to_4h"))?,
            dense_4h_to_h: Linear::load_with(inner, hidden, true, &mlp.pp("dense_4h_to_h"))?,
            activation,
            parallel: cfg.use_parallel_residual,
        })
    }

    fn mlp(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.post_attention_layernorm.forward(x)?;
        let x = self.activation.forward(&self.dense_h_to_4h.forward(&x)?)?;
        self.dense_4h_to_h.forward(&x)
    }
}

impl Block for Layer {
    fn laid_out(&self, change: &LayOut) -> Result<Option<Arc<dyn Block>>> {
        Ok(Some(Arc::new(Self {
            input_layernorm: self.input_layernorm.clone(),
            attention: self.attention.laid_out(change)?,
            post_attention_layernorm: self.post_attention_layernorm.clone(),
            dense_h_to_4h: change(&self.dense_h_to_4h)?,
            dense_4h_to_h: change(&self.dense_4h_to_h)?,
            activation: self.activation,
            parallel: self.parallel,
        })))
    }

    fn forward(
        &self,
        x: &Tensor,
        tokens: &[Vec<Token>],
        caches: Vec<LayerSlots<'_>>,
    ) -> Result<Tensor> {
        let attended = self
            .attention
            .forward(&self.input_layernorm.forward(x)?, tokens, caches)?;
        let added = sum(x, &attended)?;
        let expanded = self.mlp(if self.parallel { x } else { &added })?;
        sum(&added, &expanded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotating_dimensions_come_to_lie_half_a_head_apart() {
        assert_eq!(rotary_order(8, 4), [0, 1, 4, 5, 2, 3, 6, 7]);
        assert_eq!(rotary_order(8, 8), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(rotary_order(10, 2), [0, 2, 3, 4, 5, 1, 6, 7, 8, 9]);
    }

    #[test]
    fn the_fused_projection_has_the_parts_of_a_head_together() {
        let heads = Heads {
            heads: 2,
            kv_heads: 2,
            head_dim: 2,
        };
        assert_eq!(rows_of_part(&heads, 1, &[1, 0]), [3, 2, 9, 8]);
    }
}
