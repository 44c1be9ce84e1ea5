//! The node's parameters: their defaults, ranges and meaning. config/inf_mllm.yaml lists the same for users.
//!
//! - `cache`: those of the bounded cache
//! - `slot`: one parameter's value and range
//! - `find`: where the checkpoint is

mod cache;
mod find;
mod slot;

use std::fmt::Display;
use std::sync::{Arc, OnceLock};

use r2r::indexmap::IndexMap;
use r2r::{Parameter, ParameterValue, RosParams};

use cache::CacheParameters;
use find::find_model;
use slot::{show, Field, Slot};

use super::NodeError;
use crate::stream::gate::{FRAME_RATES, MAX_FRAME_AGES, MIN_CHANGES};
use crate::stream::session::PromptCheck;
use crate::stream::{GateConfig, SessionConfig};

/// Every parameter of the node. They are read once at the start; only the system prompt can be changed later.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameters {
    /// Folder of the checkpoint. A relative path is looked up in the installed package's share folder, then in the working
    /// directory.
    pub model: String,
    /// Where the model runs: auto (the GPU if there is one), cpu, cuda.
    pub device: String,
    /// Type of the arithmetic: auto (f32 on the CPU, on a GPU as the weights are stored), f32, f16, bf16.
    pub dtype: String,
    /// What becomes of the decoder's matrices: auto (as stored), none, q8_0, q4_k.
    pub quantization: String,
    /// Threads of the model on the CPU; 0: one for a small model, else one per core.
    pub threads: i64,
    /// Which images are subscribed: raw (`image`) or compressed (`image/compressed`, jpeg or png).
    pub image_transport: String,
    /// Reliability asked of the image publisher: best_effort or reliable.
    pub image_reliability: String,
    /// Images held until the node reads them.
    pub image_depth: i64,
    /// Reliability asked of the publishers of instructions: reliable or best_effort.
    pub instruction_reliability: String,
    /// Without an image for longer than this, seconds, the node says that it sees nothing.
    pub image_timeout: f64,
    /// Text of the system turn; it is the protected prefix of the cache. Empty: no system turn.
    pub system_prompt: String,
    /// What matters, as an example of it; inf_mllm_plus keeps what is like it. Empty: nothing in particular.
    pub standing_instruction: String,
    pub cache: CacheParameters,
    /// Longest answer, tokens, unless the instruction says otherwise.
    pub max_new_tokens: i64,
    /// The most that an instruction may ask for as its longest answer, tokens.
    pub max_new_tokens_limit: i64,
    /// Sampling temperature; 0: greedy.
    pub temperature: f64,
    /// Seed of the sampling.
    pub seed: i64,
    /// Instructions that may wait; one more is refused.
    pub queue_size: i64,
    /// Most frames used per second of their stamps; 0: all.
    pub frame_rate: f64,
    /// Mean difference of the pixels at the model's input size, 0 to 1, from which a frame is worth remembering after the
    /// last one used; 0: any is.
    pub min_change: f64,
    /// A jump of the stamps by more than this, seconds, starts a new epoch.
    pub time_jump_threshold: f64,
    /// A new epoch starts with an empty memory.
    pub reset_on_time_jump: bool,
    /// An instruction that is asked when the newest picture is older than this, seconds, is refused; 0: none is.
    pub max_frame_age: f64,
    /// Time between two CacheStats messages, seconds.
    pub stats_period: f64,
    /// Take the time from /clock.
    pub use_sim_time: bool,
    /// What a new system prompt has to fit into.
    prompts: Prompts,
}

/// The check of system prompts, which there is once the model is loaded: the same for all copies of the parameters.
#[derive(Debug, Clone, Default)]
struct Prompts(Arc<OnceLock<PromptCheck>>);

/// It is no value that parameters could differ in.
impl PartialEq for Prompts {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Default for Parameters {
    fn default() -> Self {
        let session = SessionConfig::default();
        Self {
            model: session.model_dir.display().to_string(),
            device: session.device.name().into(),
            dtype: session.dtype.name().into(),
            quantization: session.quantization.name().into(),
            threads: session.threads as i64,
            image_transport: "raw".into(),
            image_reliability: BEST_EFFORT.into(),
            image_depth: 5,
            instruction_reliability: RELIABLE.into(),
            image_timeout: 5.0,
            system_prompt: session.system_prompt,
            standing_instruction: session.standing_instruction,
            cache: CacheParameters::default(),
            max_new_tokens: session.max_new_tokens as i64,
            max_new_tokens_limit: session.max_new_tokens_limit as i64,
            temperature: session.temperature,
            seed: session.seed as i64,
            queue_size: session.queue_size as i64,
            frame_rate: session.gate.frame_rate,
            min_change: session.gate.min_change,
            time_jump_threshold: session.gate.time_jump_threshold,
            reset_on_time_jump: session.gate.reset_on_time_jump,
            max_frame_age: session.gate.max_frame_age,
            stats_period: 1.0,
            use_sim_time: false,
            prompts: Prompts::default(),
        }
    }
}

/// Token counts stay far from overflow in any sum.
const TOKENS: i64 = 1 << 24;

/// No answer is longer, tokens: an hour of writing for a fast model.
const LONGEST_ANSWER: i64 = 65_536;

/// What a reliability may be, as `ros2 topic info --verbose` names it but in small letters.
pub const BEST_EFFORT: &str = "best_effort";
pub const RELIABLE: &str = "reliable";
const RELIABILITIES: &[&str] = &[BEST_EFFORT, RELIABLE];

const DTYPES: &[&str] = &["auto", "f32", "f16", "bf16"];
const QUANTIZATIONS: &[&str] = &["auto", "none", "q8_0", "q4_k"];

impl Parameters {
    fn fields(&mut self) -> Vec<Field<'_>> {
        use Slot::{Choice, Flag, Integer, Real, Text};
        let mut fields = vec![
            field("model", "folder of the checkpoint", Text(&mut self.model)),
            field(
                "device",
                "where the model runs",
                Choice(&mut self.device, &["auto", "cpu", "cuda"]),
            ),
            field(
                "dtype",
                "type of the arithmetic",
                Choice(&mut self.dtype, DTYPES),
            ),
            field(
                "quantization",
                "what becomes of the decoder's matrices",
                Choice(&mut self.quantization, QUANTIZATIONS),
            ),
            field(
                "threads",
                "threads of the model on the CPU; 0: automatic",
                Integer(&mut self.threads, 0..=1024),
            ),
            field(
                "image_transport",
                "which images are subscribed",
                Choice(&mut self.image_transport, &["raw", "compressed"]),
            ),
            field(
                "image_reliability",
                "reliability asked of the image publisher",
                Choice(&mut self.image_reliability, RELIABILITIES),
            ),
            field(
                "image_depth",
                "images held until the node reads them",
                Integer(&mut self.image_depth, 1..=1000),
            ),
            field(
                "instruction_reliability",
                "reliability asked of the publishers of instructions",
                Choice(&mut self.instruction_reliability, RELIABILITIES),
            ),
            field(
                "image_timeout",
                "without an image for longer than this, seconds, the node says that it sees nothing",
                Real(&mut self.image_timeout, 0.1..=3600.0),
            ),
            field(
                "system_prompt",
                "system turn, the protected prefix of the cache",
                Text(&mut self.system_prompt),
            ),
            field(
                "standing_instruction",
                "an example of what inf_mllm_plus is to keep",
                Text(&mut self.standing_instruction),
            ),
        ];
        fields.extend(self.cache.fields());
        fields.extend([
            field(
                "max_new_tokens",
                "longest answer, tokens",
                Integer(&mut self.max_new_tokens, 1..=LONGEST_ANSWER),
            ),
            field(
                "max_new_tokens_limit",
                "most that an instruction may ask for, tokens",
                Integer(&mut self.max_new_tokens_limit, 1..=LONGEST_ANSWER),
            ),
            field(
                "temperature",
                "sampling temperature; 0: greedy",
                Real(&mut self.temperature, 0.0..=100.0),
            ),
            field(
                "seed",
                "seed of the sampling",
                Integer(&mut self.seed, 0..=i64::MAX),
            ),
            field(
                "queue_size",
                "instructions that may wait",
                Integer(&mut self.queue_size, 1..=10_000),
            ),
            field(
                "frame_rate",
                "most frames used per second; 0: all",
                Real(&mut self.frame_rate, FRAME_RATES),
            ),
            field(
                "min_change",
                "picture difference from which a frame is used; 0: any",
                Real(&mut self.min_change, MIN_CHANGES),
            ),
            field(
                "time_jump_threshold",
                "jump of the stamps that starts a new epoch, seconds",
                Real(&mut self.time_jump_threshold, 0.1..=1e6),
            ),
            field(
                "reset_on_time_jump",
                "a new epoch starts with an empty memory",
                Flag(&mut self.reset_on_time_jump),
            ),
            field(
                "max_frame_age",
                "instructions are refused when the newest picture is older, seconds; 0: none is",
                Real(&mut self.max_frame_age, MAX_FRAME_AGES),
            ),
            field(
                "stats_period",
                "time between two CacheStats messages, seconds",
                Real(&mut self.stats_period, 0.01..=3600.0),
            ),
            field(
                "use_sim_time",
                "take the time from /clock",
                Flag(&mut self.use_sim_time),
            ),
        ]);
        fields
    }

    /// The defaults with values from the command line and parameter files, in their order; each is checked, unknown ones are
    /// refused.
    pub fn from_given(given: &[(String, ParameterValue)]) -> Result<Self, NodeError> {
        let mut parameters = Self::default();
        for (name, value) in given {
            parameters.set(name, value)?;
        }
        Ok(parameters)
    }

    fn set(&mut self, name: &str, value: &ParameterValue) -> Result<(), NodeError> {
        let mut fields = self.fields();
        let Some(field) = fields.iter_mut().find(|field| field.name == name) else {
            let names: Vec<_> = fields.iter().map(|field| field.name).collect();
            return Err(NodeError::UnknownParameter {
                name: name.into(),
                expected: names.join(", "),
            });
        };
        field
            .slot
            .set(value)
            .map_err(|expected| NodeError::Parameter {
                name: name.into(),
                value: show(value),
                expected,
            })
    }

    /// From now on system prompts are refused that do not fit, in all copies of these parameters.
    pub fn check_prompts(&self, check: PromptCheck) {
        self.prompts.0.get_or_init(|| check);
    }

    /// Whether compressed images are subscribed.
    pub fn compressed(&self) -> bool {
        self.image_transport == "compressed"
    }

    /// What the engine needs of the parameters.
    pub fn session(&self) -> Result<SessionConfig, NodeError> {
        Ok(SessionConfig {
            model_dir: find_model(&self.model)?,
            device: self
                .device
                .parse()
                .map_err(|e| unknown_choice("device", &self.device, e))?,
            dtype: self
                .dtype
                .parse()
                .map_err(|e| unknown_choice("dtype", &self.dtype, e))?,
            quantization: self
                .quantization
                .parse()
                .map_err(|e| unknown_choice("quantization", &self.quantization, e))?,
            cache: self.cache.config()?,
            standing_instruction: self.standing_instruction.clone(),
            system_prompt: self.system_prompt.clone(),
            max_new_tokens: count(self.max_new_tokens),
            max_new_tokens_limit: count(self.max_new_tokens_limit),
            temperature: self.temperature,
            seed: self.seed.unsigned_abs(),
            queue_size: count(self.queue_size),
            gate: GateConfig {
                frame_rate: self.frame_rate,
                min_change: self.min_change,
                time_jump_threshold: self.time_jump_threshold,
                reset_on_time_jump: self.reset_on_time_jump,
                max_frame_age: self.max_frame_age,
            },
            threads: count(self.threads),
        })
    }
}

fn field<'a>(name: &'static str, about: &'static str, slot: Slot<'a>) -> Field<'a> {
    Field { name, about, slot }
}

/// A count that the range of its parameter has kept at 0 or more.
fn count(value: i64) -> usize {
    usize::try_from(value).unwrap_or_default()
}

/// A choice that the parameters allow and the stream does not know.
fn unknown_choice(name: &str, value: &str, error: impl Display) -> NodeError {
    NodeError::Parameter {
        name: name.into(),
        value: value.into(),
        expected: error.to_string(),
    }
}

/// The one parameter that can be changed while the node runs; it takes effect at the next reset.
pub const SYSTEM_PROMPT: &str = "system_prompt";

/// The parameter services show the values, and change the system prompt only.
impl RosParams for Parameters {
    fn register_parameters(
        &mut self,
        _prefix: &str,
        _parameter: Option<Parameter>,
        registered: &mut IndexMap<String, Parameter>,
    ) -> r2r::Result<()> {
        registered.clear();
        for field in self.fields() {
            let mut parameter = Parameter::new(field.slot.value());
            parameter.description = field.about;
            registered.insert(field.name.into(), parameter);
        }
        Ok(())
    }

    fn get_parameter(&mut self, name: &str) -> r2r::Result<ParameterValue> {
        self.fields()
            .iter()
            .find(|field| field.name == name)
            .map(|field| field.slot.value())
            .ok_or_else(|| r2r::Error::InvalidParameterName { name: name.into() })
    }

    fn set_parameter(&mut self, name: &str, value: &ParameterValue) -> r2r::Result<()> {
        self.check_parameter(name, value)?;
        self.set(name, value).map_err(|error| refusal(name, &error))
    }

    fn check_parameter(&self, name: &str, value: &ParameterValue) -> r2r::Result<()> {
        if name == SYSTEM_PROMPT {
            let mut trial = self.clone();
            trial
                .set(name, value)
                .map_err(|error| refusal(name, &error))?;
            let check = self.prompts.0.get();
            return check
                .map_or(Ok(()), |check| check.check(&trial.system_prompt))
                .map_err(|error| refusal(name, &error));
        }
        Err(r2r::Error::ParameterValueConv {
            name: name.into(),
            msg: "this parameter is read at the start only; set it there and restart the node"
                .into(),
        })
    }
}

fn refusal(name: &str, error: &impl Display) -> r2r::Error {
    r2r::Error::ParameterValueConv {
        name: name.into(),
        msg: error.to_string(),
    }
}
