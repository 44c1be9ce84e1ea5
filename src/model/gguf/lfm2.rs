//! The decoder of LFM2: what its keys say beside those of all decoders, and the names of its tensors.

use serde_json::Value as Json;

use super::spelling::{Name, Spelling};
use super::tensors::Form;
use super::value::Value;
use super::Gguf;
use crate::model::decoder::lfm2::Config;
use crate::model::ModelError;

/// Names of a decoder alone. What is called the norm of the embedding stands behind the last layer.
pub const NAMES: Spelling = Spelling(&[
    ("token_embd", "model.embed_tokens"),
    ("token_embd_norm", "model.embedding_norm"),
    ("output", "lm_head"),
    ("blk.#.attn_norm", "model.layers.#.operator_norm"),
    ("blk.#.attn_q", "model.layers.#.self_attn.q_proj"),
    ("blk.#.attn_k", "model.layers.#.self_attn.k_proj"),
    ("blk.#.attn_v", "model.layers.#.self_attn.v_proj"),
    ("blk.#.attn_output", "model.layers.#.self_attn.out_proj"),
    ("blk.#.attn_q_norm", "model.layers.#.self_attn.q_layernorm"),
    ("blk.#.attn_k_norm", "model.layers.#.self_attn.k_layernorm"),
    ("blk.#.shortconv.in_proj", "model.layers.#.conv.in_proj"),
    ("blk.#.shortconv.conv", "model.layers.#.conv.conv"),
    ("blk.#.shortconv.out_proj", "model.layers.#.conv.out_proj"),
    ("blk.#.ffn_norm", "model.layers.#.ffn_norm"),
    ("blk.#.ffn_gate", "model.layers.#.feed_forward.w1"),
    ("blk.#.ffn_down", "model.layers.#.feed_forward.w2"),
    ("blk.#.ffn_up", "model.layers.#.feed_forward.w3"),
]);

impl Gguf {
    /// The configuration as published. Which layers attend is told by their numbers of heads, which are 0 for convolutions.
    pub(super) fn lfm2_config(&self, model_type: &str) -> Result<Json, ModelError> {
        let mut json = self.common_config(model_type)?;
        let key = self.key("attention.head_count_kv");
        let heads = self.elements(&key, "a whole number", Value::whole)?;
        let attending = heads.iter().copied().find(|&heads| heads > 0);
        let kv_heads = attending.unwrap_or_default();
        if let Some(other) = heads.iter().find(|&&heads| heads != 0 && heads != kv_heads) {
            let expected = format!("{kv_heads} or 0, as of the other layers");
            return Err(self.unsupported(&key, other, expected));
        }
        let layers = json["num_hidden_layers"].as_u64();
        if layers != Some(heads.len() as u64) {
            let (length, expected) = (format!("length of {key}"), &json["num_hidden_layers"]);
            return Err(self.unsupported(&length, heads.len(), expected));
        }
        let kind = |heads: &u64| match heads {
            0 => "conv",
            _ => "full_attention",
        };
        let biased = |name: &String| name.contains(".shortconv.") && name.ends_with(".bias");
        json["num_key_value_heads"] = kv_heads.into();
        json["layer_types"] = heads.iter().map(kind).collect();
        json["norm_eps"] = self.epsilon()?.into();
        json["conv_L_cache"] = self.size(&self.key("shortconv.l_cache"))?.into();
        json["conv_bias"] = self.header.tensors.keys().any(biased).into();
        // The width in the file is the one that is computed with.
        json["block_auto_adjust_ff_dim"] = false.into();
        Ok(json)
    }
}

/// Whether the decoder uses the tensor at all, and how it becomes the published one.
pub fn form(config: &Config, name: &Name) -> Option<Form> {
    let attends = config.attends().ok()?;
    let attends = name.layer().and_then(|layer| attends.get(layer).copied());
    let part = name.pattern.strip_prefix("blk.#.").unwrap_or(name.stem);
    let of_attention = part.starts_with("attn_") && part != "attn_norm";
    let of_convolution = part.starts_with("shortconv.");
    let used = match name.kind {
        "weight" if of_attention => attends == Some(true),
        "weight" if of_convolution => attends == Some(false),
        "bias" if of_convolution => attends == Some(false) && config.conv_bias,
        kind => kind == "weight",
    };
    let form = match (part, name.kind) {
        ("shortconv.conv", "weight") => Form::Channels,
        _ => Form::Whole,
    };
    used.then_some(form)
}
