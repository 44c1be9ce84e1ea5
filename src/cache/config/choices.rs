//! What some parameters of the cache choose among.

use std::fmt;

use candle_core::DType;

use crate::cache::parameter::choice;
use crate::cache::storage::Storage;

/// The policies by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PolicyKind {
    Full,
    Window,
    StreamingLlm,
    H2o,
    Tova,
    SnapKv,
    InfMllm,
    InfMllmPlus,
    LastFrames,
}

impl PolicyKind {
    pub const ALL: [Self; 9] = [
        Self::Full,
        Self::Window,
        Self::StreamingLlm,
        Self::H2o,
        Self::Tova,
        Self::SnapKv,
        Self::InfMllm,
        Self::InfMllmPlus,
        Self::LastFrames,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Window => "window",
            Self::StreamingLlm => "streaming_llm",
            Self::H2o => "h2o",
            Self::Tova => "tova",
            Self::SnapKv => "snapkv",
            Self::InfMllm => "inf_mllm",
            Self::InfMllmPlus => "inf_mllm_plus",
            Self::LastFrames => "last_frames",
        }
    }
}

choice!(PolicyKind);

impl fmt::Display for PolicyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How the bias grows with age.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BiasForm {
    /// Linear in the candidate's rank by age, from 0 to the whole bias.
    Range,
    /// Linear in the token's age, unbounded.
    Slope,
}

impl BiasForm {
    pub const ALL: [Self; 2] = [Self::Slope, Self::Range];

    /// As parameters name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Range => "range",
            Self::Slope => "slope",
        }
    }
}

choice!(BiasForm);

/// Which queries score the cached keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuerySource {
    /// The newest of the stream, whatever they are.
    Stream,
    /// Those of the newest instruction, asked again at the end of the stream; before the first one, the stream's.
    Instruction,
}

impl QuerySource {
    pub const ALL: [Self; 2] = [Self::Stream, Self::Instruction];

    /// As parameters name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::Instruction => "instruction",
        }
    }
}

choice!(QuerySource);

/// What shares one kept set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// As the policy has it.
    Auto,
    /// One kept set per KV head; scores are the mean over the head's group.
    KvHead,
    /// One kept set per layer; scores are the mean over all its heads.
    Layer,
    /// One kept set for all layers (those that visual tokens are withdrawn from have their own); scores are the mean over all heads
    /// of all layers. A chunk goes through the model in pieces, if a compaction is due within it.
    Model,
}

impl Scope {
    pub const ALL: [Self; 4] = [Self::Auto, Self::KvHead, Self::Layer, Self::Model];

    /// As parameters name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::KvHead => "kv_head",
            Self::Layer => "layer",
            Self::Model => "model",
        }
    }

    /// `own` for [`Scope::Auto`].
    pub fn or(self, own: Self) -> Self {
        match self {
            Self::Auto => own,
            given => given,
        }
    }
}

choice!(Scope);

/// What keys and values are stored as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvStorage {
    /// As the model computes.
    Auto,
    F32,
    /// Half the memory; sums stay in f32.
    F16,
    /// A good quarter of the memory: [`Storage::Q8`].
    Q8,
}

impl KvStorage {
    pub const ALL: [Self; 4] = [Self::Auto, Self::F32, Self::F16, Self::Q8];

    /// As parameters name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Q8 => "q8",
        }
    }

    /// That where the model computes in `dtype`.
    pub fn of(self, dtype: DType) -> Storage {
        match self {
            Self::Auto => Storage::Numbers(dtype),
            Self::F32 => Storage::Numbers(DType::F32),
            Self::F16 => Storage::Numbers(DType::F16),
            Self::Q8 => Storage::Q8,
        }
    }
}

choice!(KvStorage);
