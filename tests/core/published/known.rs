//! What the published checkpoints are, by their cards and configurations.

/// What is known of a checkpoint without its files.
pub struct Known {
    pub name: &'static str,
    /// [`Report::family`] and [`Report::decoder`].
    pub kind: (&'static str, &'static str),
    /// Longest input, tokens.
    pub context: usize,
    /// Layers, heads of keys and values, and their size.
    pub cache: [u64; 3],
    /// Tokens of a frame of 640 x 480 pixels; none: it takes no pictures.
    pub frame: Option<usize>,
    /// Patterns of tensors that the model does without.
    pub unused: &'static [&'static str],
}

/// Buffers that older releases of transformers wrote beside the weights.
const OLD_LLAMA: &[&str] = &["model.layers.{0..31}.self_attn.rotary_emb.inv_freq"];
const OLD_NEOX: &[&str] = &[
    "gpt_neox.layers.{0..31}.attention.bias",
    "gpt_neox.layers.{0..31}.attention.masked_bias",
    "gpt_neox.layers.{0..31}.attention.rotary_emb.inv_freq",
];
/// Features are taken after the last layer but one.
const LAST_OF_CLIP: &[&str] = &[
    "vision_tower.vision_model.encoder.layers.23.*",
    "vision_tower.vision_model.post_layernorm.*",
];
/// Features are taken in front of it.
const LAST_NORM: &[&str] = &["vision_tower.vision_model.post_layernorm.*"];

#[rustfmt::skip]
pub const TEXT: [Known; 7] = [
    Known { name: "vicuna-7b-v1.5", kind: ("text", "llama"), context: 4096, cache: [32, 32, 128], frame: None, unused: OLD_LLAMA },
    Known { name: "LLaMA-2-7B-32K", kind: ("text", "llama"), context: 32768, cache: [32, 32, 128], frame: None, unused: OLD_LLAMA },
    Known { name: "SmolLM2-135M", kind: ("text", "llama"), context: 8192, cache: [30, 3, 64], frame: None, unused: &[] },
    Known { name: "SmolLM2-1.7B", kind: ("text", "llama"), context: 8192, cache: [24, 32, 64], frame: None, unused: &[] },
    Known { name: "Qwen2.5-0.5B", kind: ("text", "qwen2"), context: 32768, cache: [24, 2, 64], frame: None, unused: &[] },
    // The copy of the input embedding that is its output layer.
    Known { name: "Qwen3-0.6B", kind: ("text", "qwen3"), context: 40960, cache: [28, 8, 128], frame: None, unused: &["lm_head.weight"] },
    Known { name: "pythia-2.8b", kind: ("text", "gpt_neox"), context: 2048, cache: [32, 32, 80], frame: None, unused: OLD_NEOX },
];

#[rustfmt::skip]
pub const SMOLVLM: [Known; 4] = [
    Known { name: "SmolVLM-256M-Instruct", kind: ("SmolVLM", "llama"), context: 8192, cache: [30, 3, 64], frame: Some(64), unused: &[] },
    Known { name: "SmolVLM-500M-Instruct", kind: ("SmolVLM", "llama"), context: 8192, cache: [32, 5, 64], frame: Some(64), unused: &[] },
    Known { name: "SmolVLM2-2.2B-Instruct", kind: ("SmolVLM", "llama"), context: 8192, cache: [24, 32, 64], frame: Some(81), unused: &[] },
    Known { name: "Idefics3-8B-Llama3", kind: ("SmolVLM", "llama"), context: 131072, cache: [32, 8, 128], frame: Some(169), unused: &[] },
];

#[rustfmt::skip]
pub const LLAVA: [Known; 5] = [
    Known { name: "llava-1.5-7b-hf", kind: ("LLaVA-1.5", "llama"), context: 4096, cache: [32, 32, 128], frame: Some(576), unused: LAST_OF_CLIP },
    Known { name: "llava-v1.6-mistral-7b-hf", kind: ("LLaVA-NeXT", "mistral"), context: 32768, cache: [32, 8, 128], frame: Some(576), unused: LAST_OF_CLIP },
    Known { name: "llava-v1.6-vicuna-7b-hf", kind: ("LLaVA-NeXT", "llama"), context: 4096, cache: [32, 32, 128], frame: Some(576), unused: LAST_OF_CLIP },
    Known { name: "llava-onevision-qwen2-0.5b-ov-hf", kind: ("LLaVA-OneVision", "qwen2"), context: 32768, cache: [24, 2, 64], frame: Some(14 * 14 + 1), unused: LAST_NORM },
    Known { name: "llava-onevision-qwen2-7b-ov-hf", kind: ("LLaVA-OneVision", "qwen2"), context: 32768, cache: [28, 4, 128], frame: Some(14 * 14 + 1), unused: LAST_NORM },
];

#[rustfmt::skip]
pub const INTERNVL: [Known; 6] = [
    Known { name: "InternVL3-1B-hf", kind: ("InternVL", "qwen2"), context: 32768, cache: [24, 2, 64], frame: Some(256), unused: &[] },
    Known { name: "InternVL3-2B-hf", kind: ("InternVL", "qwen2"), context: 32768, cache: [28, 2, 128], frame: Some(256), unused: &[] },
    Known { name: "InternVL3_5-1B-HF", kind: ("InternVL", "qwen3"), context: 40960, cache: [28, 8, 128], frame: Some(256), unused: &[] },
    Known { name: "InternVL3_5-2B-HF", kind: ("InternVL", "qwen3"), context: 40960, cache: [28, 8, 128], frame: Some(256), unused: &[] },
    Known { name: "InternVL3_5-4B-HF", kind: ("InternVL", "qwen3"), context: 40960, cache: [36, 8, 128], frame: Some(256), unused: &[] },
    Known { name: "InternVL3_5-8B-HF", kind: ("InternVL", "qwen3"), context: 40960, cache: [36, 8, 128], frame: Some(256), unused: &[] },
];

#[rustfmt::skip]
pub const LFM2: [Known; 3] = [
    Known { name: "LFM2-VL-450M", kind: ("LFM2-VL", "lfm2"), context: 128_000, cache: [6, 8, 64], frame: Some(18 * 13), unused: &[] },
    Known { name: "LFM2.5-VL-450M", kind: ("LFM2-VL", "lfm2"), context: 128_000, cache: [6, 8, 64], frame: Some(18 * 13), unused: &[] },
    Known { name: "LFM2.5-VL-1.6B", kind: ("LFM2-VL", "lfm2"), context: 128_000, cache: [6, 8, 64], frame: Some(18 * 13), unused: &[] },
];

#[rustfmt::skip]
pub const QWEN: [Known; 6] = [
    Known { name: "Qwen2-VL-2B-Instruct", kind: ("Qwen2-VL", "qwen2_vl_text"), context: 32_768, cache: [28, 2, 128], frame: Some(23 * 17), unused: &[] },
    Known { name: "Qwen2.5-VL-3B-Instruct", kind: ("Qwen2.5-VL", "qwen2_5_vl_text"), context: 128_000, cache: [36, 2, 128], frame: Some(23 * 17), unused: &[] },
    Known { name: "Qwen2.5-VL-7B-Instruct", kind: ("Qwen2.5-VL", "qwen2_5_vl_text"), context: 128_000, cache: [28, 4, 128], frame: Some(23 * 17), unused: &[] },
    Known { name: "Qwen3-VL-2B-Instruct", kind: ("Qwen3-VL", "qwen3_vl_text"), context: 262_144, cache: [28, 8, 128], frame: Some(20 * 15), unused: &[] },
    Known { name: "Qwen3-VL-8B-Instruct", kind: ("Qwen3-VL", "qwen3_vl_text"), context: 262_144, cache: [36, 8, 128], frame: Some(20 * 15), unused: &[] },
    Known { name: "Qwen3-VL-4B-Instruct", kind: ("Qwen3-VL", "qwen3_vl_text"), context: 262_144, cache: [36, 8, 128], frame: Some(20 * 15), unused: &[] },
];

/// The layers that keep no keys do not count.
#[rustfmt::skip]
pub const QWEN3_5: [Known; 4] = [
    Known { name: "Qwen3.5-0.8B", kind: ("Qwen3.5", "qwen3_5_text"), context: 262_144, cache: [6, 2, 256], frame: Some(20 * 15), unused: &[] },
    Known { name: "Qwen3.5-2B", kind: ("Qwen3.5", "qwen3_5_text"), context: 262_144, cache: [6, 2, 256], frame: Some(20 * 15), unused: &[] },
    Known { name: "Qwen3.5-4B", kind: ("Qwen3.5", "qwen3_5_text"), context: 262_144, cache: [8, 4, 256], frame: Some(20 * 15), unused: &[] },
    Known { name: "Qwen3.5-9B", kind: ("Qwen3.5", "qwen3_5_text"), context: 262_144, cache: [8, 4, 256], frame: Some(20 * 15), unused: &[] },
];

/// Their generators have nothing to do with answers.
#[rustfmt::skip]
pub const COSMOS3: [Known; 2] = [
    Known { name: "Cosmos3-Edge", kind: ("Cosmos 3 Edge", "cosmos3_edge_text"), context: 131_072, cache: [28, 8, 128], frame: Some(20 * 15), unused: &[] },
    Known { name: "Cosmos3-Nano", kind: ("Cosmos 3", "qwen3_vl_text"), context: 262_144, cache: [36, 8, 128], frame: Some(20 * 15), unused: &[] },
];

#[rustfmt::skip]
pub const QUANTISED: [Known; 3] = [
    Known { name: "Qwen2.5-VL-3B-Instruct-AWQ", kind: ("Qwen2.5-VL", "qwen2_5_vl_text"), context: 128_000, cache: [36, 2, 128], frame: Some(23 * 17), unused: &[] },
    Known { name: "Qwen2.5-VL-3B-Instruct-quantized.w4a16", kind: ("Qwen2.5-VL", "qwen2_5_vl_text"), context: 128_000, cache: [36, 2, 128], frame: Some(23 * 17), unused: &[] },
    Known { name: "Qwen3-VL-2B-Instruct-FP8", kind: ("Qwen3-VL", "qwen3_vl_text"), context: 262_144, cache: [28, 8, 128], frame: Some(20 * 15), unused: &[] },
];
