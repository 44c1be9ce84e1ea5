//! The decoder of a GGUF file: its keys as a published `config.json`, its tensors under published names.

use serde_json::{json, Value as Json};

use super::lfm2;
use super::rope::FACTORS;
use super::spelling::{Name, Spelling};
use super::tensors::{Entry, Form};
use super::vocabulary::TOKENS;
use super::Gguf;
use crate::model::decoder::lfm2::LFM2;
use crate::model::decoder::{llama, Config, Unsupported};
use crate::model::ModelError;

/// The architectures that are read, and what published configurations call them. Qwen2-VL's is that of Qwen2.5-VL too.
const ARCHITECTURES: [(&str, &str); 6] = [
    ("llama", "llama"),
    ("qwen2", "qwen2"),
    ("qwen3", "qwen3"),
    (QWEN2_VL, llama::QWEN2_VL),
    (QWEN3_VL, llama::QWEN3_VL),
    (LFM2, LFM2),
];
pub const QWEN2_VL: &str = "qwen2vl";
pub const QWEN3_VL: &str = "qwen3vl";

pub const OUTPUT: &str = "output.weight";
const LAYERS: &str = "block_count";
const DEEP_LAYERS: &str = "n_deepstack_layers";

/// Names of Llama and its like as a decoder alone, `model` and `lm_head` being what a multimodal family may call otherwise.
const NAMES: Spelling = Spelling(&[
    ("token_embd", "model.embed_tokens"),
    ("output_norm", "model.norm"),
    ("output", "lm_head"),
    ("blk.#.attn_norm", "model.layers.#.input_layernorm"),
    ("blk.#.attn_q", "model.layers.#.self_attn.q_proj"),
    ("blk.#.attn_k", "model.layers.#.self_attn.k_proj"),
    ("blk.#.attn_v", "model.layers.#.self_attn.v_proj"),
    ("blk.#.attn_output", "model.layers.#.self_attn.o_proj"),
    ("blk.#.attn_q_norm", "model.layers.#.self_attn.q_norm"),
    ("blk.#.attn_k_norm", "model.layers.#.self_attn.k_norm"),
    ("blk.#.ffn_norm", "model.layers.#.post_attention_layernorm"),
    ("blk.#.ffn_gate", "model.layers.#.mlp.gate_proj"),
    ("blk.#.ffn_up", "model.layers.#.mlp.up_proj"),
    ("blk.#.ffn_down", "model.layers.#.mlp.down_proj"),
]);

/// Where a checkpoint has its decoder and its output layer.
#[derive(Debug, Clone, Copy)]
pub struct Paths {
    pub text: &'static str,
    pub head: &'static str,
}

impl Paths {
    pub const ALONE: Self = Self {
        text: "model",
        head: "lm_head",
    };

    /// `name` of a decoder alone, here.
    fn place(&self, name: &str) -> String {
        if let Some(rest) = name.strip_prefix(Self::ALONE.text) {
            return format!("{}{rest}", self.text);
        }
        match name.strip_prefix(Self::ALONE.head) {
            Some(rest) => format!("{}{rest}", self.head),
            None => name.to_string(),
        }
    }

    /// The name in the file of the published `name`, by the names of the file's architecture.
    pub fn stored(&self, names: &Spelling, name: &str) -> Option<String> {
        let under = |path: &str, alone: &str| Some(format!("{alone}{}", name.strip_prefix(path)?));
        let alone =
            under(self.text, Self::ALONE.text).or_else(|| under(self.head, Self::ALONE.head));
        names.stored(&alone?)
    }
}

impl Gguf {
    /// The decoder's configuration, checked, as JSON in the published spelling and as the decoder takes it.
    pub(super) fn decoder_config(&self) -> Result<(Json, Config), ModelError> {
        let architecture = self.architecture.as_str();
        let known = ARCHITECTURES.iter().find(|(name, _)| *name == architecture);
        let Some(&(_, model_type)) = known else {
            let expected = ARCHITECTURES.map(|(name, _)| format!("{name:?}"));
            let value = format!("{architecture:?}");
            return Err(self.unsupported("general.architecture", value, expected.join(", ")));
        };
        let json = match architecture {
            LFM2 => self.lfm2_config(model_type)?,
            _ => self.llama_config(model_type)?,
        };
        let wrong = |unsupported: Unsupported| unsupported.of(self.file().to_path_buf());
        let config = Config::from_json(json.clone(), model_type).map_err(wrong)?;
        config.cache_shape().map_err(wrong)?;
        Ok((json, config))
    }

    /// What a key of the architecture is called.
    pub(super) fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    /// The fields of a configuration that all decoders have.
    pub(super) fn common_config(&self, model_type: &str) -> Result<Json, ModelError> {
        let heads = self.size(&self.key("attention.head_count"))?;
        let hidden_size = self.size(&self.key("embedding_length"))?;
        let head_dim = match self.optional_size(&self.key("attention.key_length"))? {
            Some(given) => given,
            None => hidden_size / heads.max(1),
        };
        // Other rotary widths, value widths and experts are models that no decoder here is.
        for (name, expected) in [
            ("attention.value_length", head_dim),
            ("rope.dimension_count", head_dim),
            ("expert_count", 0),
        ] {
            let given = self.optional_size(&self.key(name))?;
            if let Some(given) = given.filter(|&given| given != expected) {
                return Err(self.unsupported(&self.key(name), given, expected));
            }
        }
        let vocab_size = self.vocabulary_size()?;
        let given = self.optional_size(&self.key("vocab_size"))?;
        if let Some(given) = given.filter(|&given| given != vocab_size) {
            let expected = format!("{vocab_size}, the length of {TOKENS}");
            return Err(self.unsupported(&self.key("vocab_size"), given, expected));
        }
        Ok(json!({
            "model_type": model_type,
            "vocab_size": vocab_size,
            "hidden_size": hidden_size,
            "intermediate_size": self.size(&self.key("feed_forward_length"))?,
            "num_hidden_layers": self.size(&self.key(LAYERS))?,
            "num_attention_heads": heads,
            "head_dim": head_dim,
            "max_position_embeddings": self.size(&self.key("context_length"))?,
            "tie_word_embeddings": !self.header.tensors.contains_key(OUTPUT),
            "rope_parameters": self.rope_parameters(head_dim)?,
        }))
    }

    /// What is added to the square of a norm's width.
    pub(super) fn epsilon(&self) -> Result<f64, ModelError> {
        self.float(&self.key("attention.layer_norm_rms_epsilon"))
    }

    fn llama_config(&self, model_type: &str) -> Result<Json, ModelError> {
        let mut json = self.common_config(model_type)?;
        let layers = self.size(&self.key(LAYERS))?;
        if let Some(deep) = self.deep_layers()?.filter(|&deep| deep > layers) {
            let expected = format!("at most {layers}, the number of layers");
            return Err(self.unsupported(&self.key(DEEP_LAYERS), deep, expected));
        }
        let kv_heads = self.optional_size(&self.key("attention.head_count_kv"))?;
        let window = self.optional_size(&self.key("attention.sliding_window"))?;
        json["num_key_value_heads"] = kv_heads.into();
        json["rms_norm_eps"] = self.epsilon()?.into();
        json["attention_bias"] = self
            .header
            .tensors
            .contains_key("blk.0.attn_output.bias")
            .into();
        json["sliding_window"] = window.into();
        json["use_sliding_window"] = window.is_some().into();
        Ok(json)
    }

    /// The first layers that take features of earlier layers of a tower, if the file says how many they are.
    pub(super) fn deep_layers(&self) -> Result<Option<usize>, ModelError> {
        self.optional_size(&self.key(DEEP_LAYERS))
    }

    /// Names of the decoder's tensors, and those of a decoder alone.
    pub(super) fn decoder_names(&self) -> &'static Spelling {
        match self.architecture.as_str() {
            LFM2 => &lfm2::NAMES,
            _ => &NAMES,
        }
    }

    /// Whether the decoder uses the tensor at all, and how it becomes the published one.
    fn form(&self, config: &Config, name: &Name) -> Option<Form> {
        match config {
            Config::Llama(config) => has_place(config, name).then(|| {
                let heads = self.paired(config, &name.pattern);
                heads.map_or(Form::Whole, Form::Paired)
            }),
            Config::Lfm2(config) => lfm2::form(config, name),
            Config::GptNeoX(_) | Config::Qwen3_5(_) => None,
        }
    }

    /// The decoder's tensors under published names. One that has no place in the decoder is an error.
    pub(super) fn decoder_entries(
        &self,
        config: &Config,
        paths: Paths,
    ) -> Result<Vec<(String, Entry)>, ModelError> {
        let (names, layers) = (self.decoder_names(), self.size(&self.key(LAYERS))?);
        let mut entries = Vec::new();
        for (stored, info) in &self.header.tensors {
            if stored == FACTORS {
                continue;
            }
            let name = Name::parse(stored);
            let hub = names.hub(stored, layers).zip(self.form(config, &name));
            let Some((hub, form)) = hub else {
                return Err(self.fail(format!(
                    "the tensor {stored} has no place in a decoder of architecture {} with {layers} layers",
                    self.architecture
                )));
            };
            entries.push((paths.place(&hub), Entry::new(stored, info, form)));
        }
        Ok(entries)
    }

    /// Heads whose rows lie in pairs: llama.cpp rotates neighbours in this architecture, so that its converter has put row i of
    /// a head's second half after row i of the first.
    fn paired(&self, config: &llama::Config, pattern: &str) -> Option<usize> {
        match (self.architecture.as_str(), pattern) {
            ("llama", "blk.#.attn_q") => Some(config.num_attention_heads),
            ("llama", "blk.#.attn_k") => Some(config.kv_heads()),
            _ => None,
        }
    }
}

/// Whether the decoder uses the tensor at all.
fn has_place(config: &llama::Config, name: &Name) -> bool {
    let pattern = name.pattern.strip_prefix("blk.#.").unwrap_or(name.stem);
    match (pattern, name.kind) {
        ("attn_q" | "attn_k" | "attn_v", "bias") => config.qkv_bias(),
        ("attn_output", "bias") => config.attention_bias,
        ("attn_q_norm" | "attn_k_norm", "weight") => config.qk_norm(),
        (_, kind) => kind == "weight",
    }
}
