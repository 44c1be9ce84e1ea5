//! What a checkpoint is and what it needs, told from its headers alone: no weight is read.
//!
//! - this file: the report and how it is made
//! - `kept`: what the weights become in memory
//! - `needs`: what running takes in memory
//! - `table`: the report as text

mod kept;
mod needs;
mod table;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device};
use serde::Serialize;

use super::grammar::{Chat, Grammar, Shot};
use super::session::{PromptCheck, SessionConfig};
use crate::model::checkpoint::Checkpoint;
use crate::model::decoder;
use crate::model::family::{model_type, Family, CONFIG};
use crate::model::mllm::Mllm;
use crate::model::text::TextModel;
use crate::model::vision::View;
use crate::model::weights::{arithmetic, Hollow, Source};
use crate::model::{device_name, ModelError};
use kept::Keeping;
use needs::Needs;

/// What the report assumes.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// What the model is to be run with; its folder is not looked at.
    pub session: &'a SessionConfig,
    /// Memory that the model may take, bytes.
    pub memory: Option<u64>,
}

/// Camera pictures that frames are counted for.
const PICTURES: [(usize, usize); 4] = [(320, 240), (640, 480), (1280, 720), (1920, 1080)];

/// A checkpoint at a glance. Sizes are in bytes.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub path: String,
    pub family: String,
    /// `model_type` of the decoder.
    pub decoder: String,
    /// Where it runs, and the type of the arithmetic there.
    pub device: String,
    pub dtype: String,
    pub parameters: Parameters,
    /// How the weights are quantised, where `config.json` says that they are.
    pub quantised: Option<String>,
    /// What is in the files, by element type.
    pub stored: BTreeMap<String, Amount>,
    /// What it becomes in memory, by element or block type.
    pub kept: BTreeMap<String, Amount>,
    /// Matrices whose rows do not fill the blocks asked for, and what they became.
    pub fallbacks: Vec<String>,
    pub frames: Vec<Frame>,
    /// Longest input, tokens.
    pub context: usize,
    pub kv_bytes_per_token: u64,
    pub weight_bytes: u64,
    /// What blocks take beside themselves on the CPU once they have been multiplied with.
    pub repacked_bytes: u64,
    /// About what vocabulary and tokenizer take.
    pub tokenizer_bytes: u64,
    pub budget: usize,
    pub cache_bytes: u64,
    /// What layers remember that keep no keys, whatever the budget.
    pub state_bytes: u64,
    /// What the cache keeps beside those: which token stands where, what keys turn by, what policies score by.
    pub beside_bytes: u64,
    /// The longest chunk that is counted with, tokens: a frame that begins a turn; of a decoder alone, as much as evaluations feed at once.
    pub chunk_tokens: usize,
    /// What it, or the tower for such a frame, is worked with; on the CPU.
    pub working_bytes: u64,
    /// All of it.
    pub memory_bytes: u64,
    /// The largest budget with which all of it fits the memory that was named.
    pub fitting_budget: Option<usize>,
    /// What stands in the way of running it.
    pub problems: Vec<String>,
    /// What runs otherwise than one may think.
    pub notes: Vec<String>,
    /// Parts of the checkpoint that are known to have nothing to do with answers.
    pub left_alone: BTreeMap<String, Amount>,
    /// Other tensors in the files that the model does not use.
    pub unused: Vec<String>,
}

#[derive(Debug, Default, Clone, Copy, Serialize)]
pub struct Parameters {
    pub total: u64,
    pub decoder: u64,
    /// Tower and connector.
    pub vision: u64,
}

#[derive(Debug, Default, Clone, Copy, Serialize)]
pub struct Amount {
    pub tensors: usize,
    pub bytes: u64,
}

/// What a camera's picture becomes as a frame of the stream.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Frame {
    pub width: usize,
    pub height: usize,
    /// All that a frame behind another takes in the stream: its time, its markup and its image.
    pub tokens: usize,
    /// The same of one that begins a turn, with the user's name in front.
    pub opening_tokens: usize,
    /// Those of the image alone.
    pub image_tokens: usize,
    /// How many frames of a camera share them.
    pub frames: usize,
}

impl Report {
    /// Whether everything that is needed is there.
    pub fn complete(&self) -> bool {
        self.problems.is_empty()
    }

    /// Looks at a published directory. What is wrong with it becomes a problem of the report, not an error.
    pub fn of(path: &Path, options: &Options) -> Self {
        let mut report = Self {
            path: path.display().to_string(),
            budget: options.session.cache.budget,
            ..Self::default()
        };
        if let Err(error) = report.fill(path, options) {
            report.problems.push(error.to_string());
        }
        report
    }

    fn fill(&mut self, path: &Path, options: &Options) -> Result<(), ModelError> {
        let device = options.session.device.open()?;
        self.device = device_name(&device);
        let checkpoint = options.session.checkpoint_in(path)?;
        for file in checkpoint.left_alone() {
            self.notes.push(format!(
                "{} is not used, the weights beside it are; give that file to use it",
                file.display()
            ));
        }
        self.quantised = checkpoint.scheme()?.map(|scheme| scheme.to_string());
        let kind = model_type(&checkpoint)?;
        let opened = Opened {
            checkpoint: &checkpoint,
            options,
            device: &device,
        };
        match Family::of(&kind) {
            Some(family) => self.fill_multimodal(&opened, family),
            None => self.fill_text(&opened),
        }
    }

    fn fill_multimodal(
        &mut self,
        opened: &Opened,
        family: &'static Family,
    ) -> Result<(), ModelError> {
        let checkpoint = opened.checkpoint;
        self.family = family.name.to_string();
        let config = (family.open)(checkpoint)?;
        self.decoder = config.text().model_type().to_string();
        let tensors = checkpoint.tensors(family.names, opened.options.session.quantization)?;
        let dtype = self.fill_decoder(config.text(), tensors.as_ref(), opened)?;
        self.fill_stored(tensors.as_ref());
        let hollow = Arc::new(Hollow::new(tensors));
        let mut model = Mllm::build(
            checkpoint,
            family,
            hollow.clone(),
            (opened.built_as(dtype), &Device::Cpu),
        )?;
        let keeping = Keeping {
            dtype,
            on_cpu: opened.device.is_cpu(),
            quantization: opened.options.session.quantization,
            text_path: config.text_path(),
            head_path: config.head_path(),
            other_parts: config.other_parts(),
        };
        self.tokenizer_bytes = model.tokenizer.memory_bytes() as u64;
        let in_panels = self.fill_kept(&hollow, &keeping);
        let streamed = self.fill_stream(&mut model, opened.options.session);
        let working = |size| {
            let layout = model.vision.layout(size, View::Frame);
            model.vision.working(&layout)
        };
        let needs = Needs {
            decoder: config.text(),
            shape: model.shape,
            cache: &opened.options.session.cache,
            dtype,
            on_cpu: opened.device.is_cpu(),
            in_panels,
            pictures: PICTURES.map(working).to_vec(),
        };
        self.fill_memory(&needs, opened.options.memory)?;
        streamed
    }

    /// How the stream of this model is written.
    fn fill_stream(&mut self, model: &mut Mllm, session: &SessionConfig) -> Result<(), ModelError> {
        let (chat, known) = Chat::find(model)?;
        self.notes.extend(chat.remarks(model, known));
        session.limit_frames(model)?;
        self.fill_frames((model, &chat), session)?;
        PromptCheck::new(model, chat, session)?.check(&session.system_prompt)
    }

    fn fill_text(&mut self, opened: &Opened) -> Result<(), ModelError> {
        let checkpoint = opened.checkpoint;
        self.family = "text".to_string();
        let for_text = "it is read for text alone (forward, eval), and the node needs a model with a vision tower";
        self.notes.push(match checkpoint.check_vision() {
            Err(why) => format!("{why}; {for_text}"),
            Ok(()) => for_text.to_string(),
        });
        let about = TextModel::about(checkpoint)?;
        self.decoder = about.config.model_type().to_string();
        let tensors = checkpoint.tensors(about.names, opened.options.session.quantization)?;
        let dtype = self.fill_decoder(&about.config, tensors.as_ref(), opened)?;
        self.fill_stored(tensors.as_ref());
        let hollow = Arc::new(Hollow::new(tensors));
        let paths = (about.text.clone(), about.head.clone());
        let other_parts = about.other_parts;
        let built_as = opened.built_as(dtype);
        let model = TextModel::build(checkpoint, about, hollow.clone(), built_as, &Device::Cpu)?;
        if let Some(template) = &model.template {
            template.try_out(false)?;
        }
        let keeping = Keeping {
            dtype,
            on_cpu: opened.device.is_cpu(),
            quantization: opened.options.session.quantization,
            text_path: &paths.0,
            head_path: &paths.1,
            other_parts,
        };
        self.tokenizer_bytes = model.tokenizer.chat().memory_bytes() as u64;
        let in_panels = self.fill_kept(&hollow, &keeping);
        let cache = &opened.options.session.cache;
        let needs = Needs {
            decoder: &model.config,
            shape: model.shape,
            cache,
            dtype,
            on_cpu: opened.device.is_cpu(),
            in_panels,
            pictures: Vec::new(),
        };
        self.fill_memory(&needs, opened.options.memory)?;
        cache.plan(0, model.shape.max_positions)?;
        Ok(())
    }

    /// What the decoder needs of the cache; returns the type that weights are kept in.
    fn fill_decoder(
        &mut self,
        config: &decoder::Config,
        tensors: &dyn Source,
        opened: &Opened,
    ) -> Result<DType, ModelError> {
        let shape = config
            .cache_shape()
            .map_err(|unsupported| unsupported.of(opened.checkpoint.path(CONFIG)))?;
        let given = opened.options.session.dtype.dtype(tensors, opened.device);
        let dtype = arithmetic(given, opened.device);
        self.dtype = dtype.as_str().to_string();
        self.context = shape.max_positions;
        let storage = opened.options.session.cache.storage.of(dtype);
        self.kv_bytes_per_token = shape.slot_bytes(storage);
        self.cache_bytes = self.kv_bytes_per_token.saturating_mul(self.budget as u64);
        self.state_bytes = shape.states.bytes(dtype);
        Ok(dtype)
    }

    fn fill_stored(&mut self, source: &dyn Source) {
        for tensor in source.list() {
            let amount = self.stored.entry(tensor.dtype).or_default();
            amount.tensors += 1;
            amount.bytes += tensor.bytes as u64;
        }
        const QUANTISED: [&str; 3] = ["I32", "I8", "F8_E4M3"];
        let stored = QUANTISED.iter().any(|kind| self.stored.contains_key(*kind));
        if let Some(scheme) = self.quantised.as_ref().filter(|_| !stored) {
            self.notes.push(format!(
                "{CONFIG} says that weights are quantised ({scheme}), but none is stored so"
            ));
        }
    }

    /// What frames take in the stream, for which the checkpoint's chat template is rendered.
    fn fill_frames(
        &mut self,
        (model, chat): (&Mllm, &Chat),
        session: &SessionConfig,
    ) -> Result<(), ModelError> {
        session.check_groups(model)?;
        for (width, height) in PICTURES {
            let layout = model.vision.layout((width, height), View::Frame);
            let markup = model.vision.markup(&layout);
            let mut grammar = Grammar::new(chat.clone());
            let mut frame = |elapsed_ns| {
                let shot = Shot {
                    grid: layout.grid,
                    elapsed_ns,
                    camera: (0, None),
                };
                grammar.frame(&markup, &shot).text
            };
            let first = model.tokenizer.encode(&frame(0))?;
            let next = frame(A_SECOND_NS);
            let next = model.tokenizer.encode_after(first.last().copied(), &next)?;
            self.frames.push(Frame {
                width,
                height,
                tokens: next.len(),
                opening_tokens: first.len(),
                image_tokens: model.vision.tokens(&layout),
                frames: session.frames_at_once(model),
            });
        }
        Ok(())
    }
}

/// Between two frames, for the label of their time.
const A_SECOND_NS: i64 = 1_000_000_000;

/// A checkpoint with what it is to be loaded with.
struct Opened<'a> {
    checkpoint: &'a Checkpoint,
    options: &'a Options<'a>,
    device: &'a Device,
}

impl Opened<'_> {
    /// The type that a model without numbers is built of, on the CPU, where the one to be loaded keeps its weights as `dtype`.
    fn built_as(&self, dtype: DType) -> DType {
        match self.device.is_cpu() {
            true => dtype,
            // Shapes are the same for every type, and the CPU has not all that a GPU has.
            false => DType::F32,
        }
    }
}
