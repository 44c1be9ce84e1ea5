//! The session's parameters.

use std::path::{Path, PathBuf};

use super::recall::no_archive;
use crate::cache::parameter::{parameters, ParameterError};
use crate::cache::{CacheConfig, PolicyKind};
use crate::model::checkpoint::{Checkpoint, ChosenFiles};
use crate::model::mllm::Mllm;
use crate::model::precision::Precision;
use crate::model::vision::{FramePixels, FramePixelsError};
use crate::model::weights::Quantization;
use crate::model::{DeviceKind, ModelError};
use crate::stream::answer::ChosenBy;
use crate::stream::archive::{ArchiveConfig, RecallMode};
use crate::stream::camera::{of_each, CamerasConfig};
use crate::stream::evidence::EvidenceConfig;
use crate::stream::gate::GateConfig;
use crate::stream::grammar::Thinking;

/// No answer is longer, tokens: an hour of writing for a fast model.
const LONGEST_ANSWER: i64 = 65_536;

/// No instruction comes with more pictures, whatever the parameter.
pub const MOST_PICTURES: usize = 64;

/// No frame has more pixels: four times the lines of what is called 4K.
const MOST_PIXELS: i64 = 8192 * 8192;

/// No system prompt is longer, bytes: as long as an instruction may be.
const LONGEST_PROMPT: usize = 64 << 10;

parameters! {
    section "Model and answers";
    /// Everything that shapes a session.
    #[derive(Debug, Clone)]
    pub struct SessionConfig {
        /// Folder of the checkpoint as published (`docs/checkpoints.md` lists the families), or the .gguf file of a decoder; a relative one is
        /// looked up in the share folder of the installed package, then in the working directory; `~/` is the user's home, `package://NAME/PATH`
        /// lies in the share folder of another package. Where nothing is called so, a model's name on the hub (ORG/NAME or
        /// ORG/NAME@REVISION), taken from the local cache: nothing is downloaded.
        model_dir: PathBuf = PathBuf::from("models/demo"), name "model";
        /// Of several files of weights in `model` the one that is meant, by its name there, which may have folders in it: the .gguf file of a
        /// decoder (of one in several parts any), or safetensors, or an index of several; empty: the only one.
        model_file: String = String::new();
        /// Of several vision towers of GGUF models (mmproj) in `model`, or beside it, the one that is meant, in the same way; empty: the only
        /// one that goes with the decoder.
        projector_file: String = String::new();
        /// Where the model runs; auto: the GPU if there is one.
        device: DeviceKind = DeviceKind::Auto;
        /// Type of the arithmetic; auto: f32 on the CPU, on a GPU what most of the weights are stored as. bf16 on the CPU: weights
        /// rounded to bf16, products in f32.
        dtype: Precision = Precision::Auto;
        /// What becomes of the decoder's matrices when they are loaded; auto: as stored; none: floats; q8_0, q4_k: floats become 8-bit
        /// blocks of 32 or 4-bit blocks of 256 (blocks of 32 with 5 bits where rows do not fill 256).
        quantization: Quantization = Quantization::Auto;
        /// Threads of the model on the CPU; 0: one for a small model (under 64 MB of weights), whose products are over before a second
        /// one has woken up, else one per core.
        threads: usize = 0, range 0..=1024, unit "threads";
        /// The beginning of the stream, never evicted; empty: the checkpoint's own default, if its chat template has one.
        system_prompt: String = "You are a mobile robot. Answer briefly.".to_string(), set Reset;
        /// What matters, best in the form in which it will come, as an example of it: inf_mllm_plus keeps what is like it; empty:
        /// nothing in particular.
        standing_instruction: String = String::new(), read by [InfMllmPlus];
        /// Longest answer, unless the instruction says otherwise; at most `max_new_tokens_limit`.
        max_new_tokens: usize = 32, range 1..=LONGEST_ANSWER, unit "tokens", set Running;
        /// Whether the model thinks in front of an answer; auto: as its chat template has it; always: a thought is opened also where the template
        /// opens none; never: one that the template opens is closed at once.
        thinking: Thinking = Thinking::Auto;
        /// Longest thought of a model that thinks before it answers, unless the instruction says otherwise: then it is closed and the answer
        /// begins. Part of `max_new_tokens`, and smaller than that; 0: no limit of its own.
        max_thought_tokens: usize = 0, range 0..=LONGEST_ANSWER, unit "tokens", set Running;
        /// Thoughts stay in the memory with the answers behind them; false: the memory holds a turn as the chat template writes one that
        /// others have followed, without the thought.
        remember_thoughts: bool = false;
        /// The most that an instruction may ask for as its longest answer; one that asks for more is refused.
        max_new_tokens_limit: usize = 1024, range 1..=LONGEST_ANSWER, unit "tokens", set Running;
        /// Pictures that may come with an instruction; one with more is refused.
        instruction_images_limit: usize = 4, range 0..=MOST_PICTURES as i64, unit "pictures", set Running;
        /// The most choices that an instruction may have; one that has more is refused.
        choices_limit: usize = 64, range 1..=256, unit "choices", set Running;
        /// What decides among an instruction's choices: sum, the likelihood of a choice's tokens and its end, or mean, their geometric mean,
        /// which does not favour short choices. Both are in the answer.
        choices_by: ChosenBy = ChosenBy::Sum, set Running;
        /// The frame that waits is taken in after so many tokens of an answer, again and again: behind what the model has seen before and in
        /// front of the instruction, which is put again with what has been answered so far; 0: only behind the answer.
        frames_during_answers: usize = 64, range 0..=LONGEST_ANSWER, unit "tokens", set Running;
        /// How many frames in a row of one camera become one picture of the memory: 2 halves their tokens for models whose tower was trained on
        /// videos so (Qwen-VL), and the first of two waits for the second, or for a question; 1: each is one; 0: as the model was trained.
        frames_per_group: usize = 0, range 0..=2, unit "frames";
        /// The fewest pixels of a frame as the vision tower takes it: smaller pictures are enlarged. For models whose tower takes frames of any
        /// size (Qwen-VL, LFM2-VL); 0: as the checkpoint's processor has it.
        frame_min_pixels: usize = 0, range 0..=MOST_PIXELS, unit "pixels";
        /// The most in the same way: larger pictures are made smaller, and a frame has fewer tokens. 0: as the checkpoint's processor has it,
        /// and at most 768 tokens.
        frame_max_pixels: usize = 0, range 0..=MOST_PIXELS, unit "pixels";
        /// Sampling temperature; 0: always the most probable token.
        temperature: f64 = 0.0, range 0.0..=100.0, set Running;
        /// Makes the tokens of the instruction and of its answer so far less likely to come again: their logits are divided by this, or
        /// multiplied where they are negative; 1: nothing of the kind; 0: as the checkpoint's generation_config.json has it.
        repetition_penalty: f64 = 0.0, range 0.0..=10.0, set Running;
        /// Seed of the sampling, used when `temperature` is above 0.
        seed: u64 = 0, range 0..=i64::MAX;
        /// Instructions that may wait; one more takes the place of one of a lower priority, or is refused with an answer that says so.
        queue_size: usize = 8, range 1..=10_000, unit "instructions";
        /// Watches that may stand; one more is refused with an answer that says so.
        watches_limit: usize = 16, range 0..=1000, unit "watches", set Start;
    }
    parts {
        cache: CacheConfig;
        /// Which frames are used.
        gate: GateConfig;
        cameras: CamerasConfig;
        archive: ArchiveConfig;
        evidence: EvidenceConfig;
    }
    others {}
}

impl SessionConfig {
    /// The checkpoint with the files that are chosen of it.
    pub fn checkpoint(&self) -> Result<Checkpoint, ModelError> {
        self.checkpoint_in(&self.model_dir)
    }

    /// The same of another folder than the one in the parameters.
    pub fn checkpoint_in(&self, model: &Path) -> Result<Checkpoint, ModelError> {
        let chosen = ChosenFiles {
            model: self.model_file.clone(),
            projector: self.projector_file.clone(),
        };
        Checkpoint::open_chosen(model, &chosen)
    }

    /// Fails where parameters do not fit each other, which each one's range cannot say.
    pub fn check(&self) -> Result<(), ParameterError> {
        let (longest, limit) = (self.max_new_tokens, self.max_new_tokens_limit);
        if longest > limit {
            return Err(ParameterError::Value {
                name: "max_new_tokens",
                value: longest.to_string(),
                expected: format!("at most {limit} (max_new_tokens_limit)"),
            });
        }
        let thought = self.max_thought_tokens;
        if thought > 0 && thought >= longest {
            return Err(ParameterError::Value {
                name: "max_thought_tokens",
                value: thought.to_string(),
                expected: format!("fewer than {longest} (max_new_tokens), or 0"),
            });
        }
        let length = self.system_prompt.len();
        if length > LONGEST_PROMPT {
            return Err(ParameterError::Value {
                name: "system_prompt",
                value: format!("{length} bytes long"),
                expected: format!("at most {LONGEST_PROMPT}"),
            });
        }
        self.cameras.check()?;
        self.check_shares()?;
        match no_archive(self) {
            Some(why) if self.archive.recall == RecallMode::Always => Err(ParameterError::Value {
                name: "recall",
                value: RecallMode::Always.name().to_string(),
                expected: format!("auto or never, for {why}"),
            }),
            _ => Ok(()),
        }
    }

    /// How many frames in a row of a camera this model takes as one.
    pub fn frames_at_once(&self, model: &Mllm) -> usize {
        match self.frames_per_group != 1 && model.vision.takes_pairs() {
            true => 2,
            false => 1,
        }
    }

    /// Fails where frames cannot be taken as this model's tower takes them.
    pub fn check_groups(&self, model: &Mllm) -> Result<(), ParameterError> {
        match self.frames_per_group > 1 && !model.vision.takes_pairs() {
            false => Ok(()),
            true => Err(ParameterError::Value {
                name: "frames_per_group",
                value: self.frames_per_group.to_string(),
                expected: format!(
                    "0 or 1, for the tower of {} takes frames one by one",
                    model.family.name
                ),
            }),
        }
    }

    /// Gives the model the limits for frames that the parameters ask for; fails where they are none for its tower.
    pub fn limit_frames(&self, model: &mut Mllm) -> Result<(), ParameterError> {
        let (min, max) = (self.frame_min_pixels, self.frame_max_pixels);
        if (min, max) == (0, 0) {
            return Ok(());
        }
        let refusal = |name, value: usize, expected| ParameterError::Value {
            name,
            value: value.to_string(),
            expected,
        };
        let limited = model.vision.with_frame_pixels(FramePixels { min, max });
        model.vision = limited.map_err(|error| match error {
            FramePixelsError::Fewest { min, expected } => {
                refusal("frame_min_pixels", min, expected)
            }
            FramePixelsError::Most { max, expected } => refusal("frame_max_pixels", max, expected),
            FramePixelsError::OneSize => {
                let (name, value) = match max {
                    0 => ("frame_min_pixels", min),
                    max => ("frame_max_pixels", max),
                };
                let family = model.family.name;
                refusal(
                    name,
                    value,
                    format!("0, for all frames of {family} have one size"),
                )
            }
        })?;
        Ok(())
    }

    fn check_shares(&self) -> Result<(), ParameterError> {
        let shares = &self.cache.camera_shares;
        if shares.is_empty() {
            return Ok(());
        }
        of_each("camera_shares", shares, self.cameras.labels.len(), true)?;
        match shares.iter().sum::<f64>() > 0.0 {
            true => Ok(()),
            false => Err(ParameterError::Value {
                name: "camera_shares",
                value: format!("{shares:?}"),
                expected: "at least one number above 0".to_string(),
            }),
        }
    }
}
