//! `inf_mllm generate`: one user turn, images first, rendered by the checkpoint's own chat template.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;

use anyhow::{Context, Result};
use candle_core::DType;
use inf_mllm::cache::{host, BoundedCache, CacheConfig, CacheShape, Mark, PolicyKind, MIN_BUDGET};
use inf_mllm::files;
use inf_mllm::gpu;
use inf_mllm::model::chooser::{Chooser, Draws, Limits};
use inf_mllm::model::decoder::step::Stepper;
use inf_mllm::model::mllm::Mllm;
use inf_mllm::model::template::{Content, Message};
use inf_mllm::model::vision::{ImageFeatures, View};
use inf_mllm::stream::frame;
use inf_mllm::stream::grammar::{Chat, Grammar, Parted, Thought};
use inf_mllm::stream::SessionConfig;
use serde_json::json;

use crate::args::{Given, Prompted};
use crate::print;

#[derive(clap::Args)]
pub struct Args {
    /// Model directory, the .gguf file of a decoder, or a name on the hub (ORG/NAME) that is in the local cache.
    #[arg(long)]
    model: PathBuf,
    /// Image file (jpeg or png), read as a compressed image of a camera is; may be given several times.
    #[arg(long)]
    image: Vec<PathBuf>,
    /// The user's text.
    #[arg(long)]
    prompt: String,
    /// System turn in front; none if not given.
    #[arg(long)]
    system: Option<String>,
    /// Write the logits of every prompt position here, tensor `logits`, f32, [tokens, vocab].
    #[arg(long)]
    logits_out: Option<PathBuf>,
    /// Print prompt_ids, generated_ids and text as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    given: Given<Prompted>,
}

pub fn run(args: &Args) -> Result<()> {
    let config = args.given.config()?;
    let device = config.device.open()?;
    let checkpoint = config.checkpoint_in(&args.model)?;
    let mut model = Mllm::load(&checkpoint, config.quantization, config.dtype, &device)?;
    let gpu = gpu::of(&device);
    model.decoder.lay_out_for(gpu.as_ref())?;
    let (own, _) = Chat::find(&model)?;
    let chat = own.clone().thinking(config.thinking);
    let (ids, images) = prompt(&model, args, (&own.thought, &chat.thought))?;
    let system_tokens = match &args.system {
        Some(system) => system_length(&model, system)?,
        None => 1,
    };
    let shape = model.shape;
    let max_new_tokens = config.max_new_tokens;
    // As the published tools generate: whatever the model says, also of tokens that are no text.
    let mut chooser = Chooser::new(0.0, Vec::new());
    chooser.repetition_penalty = model.generation.penalty(config.repetition_penalty);
    let repeats = chooser.repetition_penalty != 1.0;
    let mut said = repeats.then(|| ids.iter().copied().collect::<BTreeSet<_>>());
    let cache = cache_config(&args.given, config, &shape, ids.len());
    let mut cache = BoundedCache::new(shape, &cache, system_tokens, model.dtype(), &device)?;

    let chunk = model.embed(&ids, &images)?;
    let mut marks = chunk.marks();
    for (mark, &id) in marks.iter_mut().zip(&ids) {
        mark.boundary = model.ends.contains(id);
    }
    let hidden = model
        .decoder
        .append_embedded(&chunk.embedded, &marks, &mut cache)?;
    cache.reserve(max_new_tokens)?;
    let logits = model.decoder.logits(&hidden)?.to_dtype(DType::F32)?;
    if let Some(file) = &args.logits_out {
        candle_core::safetensors::save(&HashMap::from([("logits", logits.clone())]), file)
            .with_context(|| format!("writing {}", file.display()))?;
    }

    let mut draws = Draws::new(0);
    let rules = (&chooser, model.ends.ids());
    let mut stepper = Stepper::fitting(&model.decoder, gpu.as_ref(), &cache, rules);
    // Only text reaches the top where visual tokens are withdrawn.
    let mut last = host::floats(&logits.get(logits.dim(0)? - 1)?)?;
    let limits = Limits::new(None, said.as_ref());
    let first = chooser.choose_within(&mut last, limits, &mut draws)?;
    let mut token = first.token;
    let mut generated = Vec::new();
    while generated.len() < max_new_tokens {
        generated.push(token);
        if model.ends.contains(token) || generated.len() == max_new_tokens {
            break;
        }
        if let Some(said) = &mut said {
            said.insert(token);
        }
        let limits = Limits::new(None, said.as_ref());
        token = match &mut stepper {
            Some(stepper) => {
                cache.reserve(1)?;
                let rules = (&chooser, &mut draws);
                stepper.step_within(token, Mark::default(), &mut cache, rules, limits)?
            }
            None => {
                let x = model.decoder.embed(&[token])?;
                let hidden = model.decoder.append(&x, &[Mark::default()], &mut cache)?;
                let logits = model.decoder.logits(&hidden)?.squeeze(0)?;
                let mut logits = logits.to_dtype(DType::F32)?.to_vec1()?;
                chooser.choose_within(&mut logits, limits, &mut draws)?
            }
        }
        .token;
    }
    let (Parted { thought, answer }, cut) = parted(&chat, &model, &generated)?;
    if args.json {
        let said = json!({
            "prompt_ids": ids,
            "generated_ids": generated,
            "text": answer,
            "thought": thought,
        });
        return print(&format!("{said}\n"));
    }
    // Apart from the answer, which others read.
    if !thought.is_empty() {
        eprintln!("{}\n", thought.trim());
    }
    if cut {
        let length = generated.len();
        eprintln!("cut off at {length} tokens within the thought, before an answer had begun (--max-new-tokens)");
    }
    print(&format!("{}\n", answer.trim()))
}

/// What was thought and what was answered, and whether all of it was thought and more would have come.
fn parted(chat: &Chat, model: &Mllm, generated: &[u32]) -> Result<(Parted, bool)> {
    let marks = Thought::control_marks(&model.tokenizer);
    let mark = |id| marks.iter().find(|(mark, _)| *mark == id);
    let mut thought = Thought::new(chat.thinks());
    let mut parts = Vec::new();
    for run in generated.split_inclusive(|&id| mark(id).is_some()) {
        let (last, before) = run.split_last().context("a run of no tokens")?;
        let text = match mark(*last) {
            Some((_, mark)) => model.tokenizer.decode(before)? + mark,
            None => model.tokenizer.decode(run)?,
        };
        parts.push(thought.part(&text));
    }
    let ended = generated.last().is_some_and(|&id| model.ends.contains(id));
    let cut = thought.is_thinking() && !ended;
    parts.push(thought.rest());
    let joined = |of: fn(&Parted) -> &str| parts.iter().map(of).collect::<String>();
    let whole = Parted {
        thought: joined(|part| &part.thought),
        answer: joined(|part| &part.answer),
    };
    Ok((whole, cut))
}

/// Full attention over prompt and answer, unless a policy or a budget is asked for.
fn cache_config(
    given: &Given<Prompted>,
    config: SessionConfig,
    shape: &CacheShape,
    prompt: usize,
) -> CacheConfig {
    let mut cache = config.cache;
    if !given.has("policy") && !given.has("budget") {
        cache.policy = PolicyKind::Full;
        cache.budget = (prompt + config.max_new_tokens).max(MIN_BUDGET);
    } else if !given.has("budget") {
        cache.budget = cache.budget.min(shape.max_positions);
    }
    cache
}

/// The rendered prompt's ids, with each image's placeholder expanded to its tokens, and the images' features.
/// `own` is what the template writes in front of an answer, `wanted` what is to stand there.
fn prompt(
    model: &Mllm,
    args: &Args,
    (own, wanted): (&str, &str),
) -> Result<(Vec<u32>, Vec<ImageFeatures>)> {
    let guarded = |text: &str| Content::Text {
        text: model.tokenizer.guard(text),
    };
    let mut messages = Vec::new();
    if let Some(system) = &args.system {
        messages.push(Message {
            role: "system",
            content: vec![guarded(system)],
        });
    }
    let mut content = vec![Content::Image; args.image.len()];
    content.push(guarded(&args.prompt));
    messages.push(Message {
        role: "user",
        content,
    });
    let view = View::Image {
        of: args.image.len(),
    };
    let (mut layouts, mut features) = (Vec::new(), Vec::new());
    for file in &args.image {
        let about = || format!("image {}", file.display());
        let data = files::bytes(file).with_context(about)?;
        let picture = frame::decode("", &data).with_context(about)?;
        let prepared = model.vision.prepare(&picture, view);
        layouts.push(prepared.layout);
        features.push(model.vision.encode(&model.vision.pixels(&prepared)?)?);
    }
    let mut rendered = model.template.render(&messages)?;
    if let Some(before) = rendered.strip_suffix(own) {
        rendered = format!("{before}{wanted}");
    }
    let expanded = model.expand(&rendered, &layouts)?;
    Ok((model.tokenizer.encode_prompt(&expanded)?, features))
}

/// Length of what stands in front of the user's turn, tokens: the stream's protected beginning.
fn system_length(model: &Mllm, system: &str) -> Result<usize> {
    let mut grammar = Grammar::new(Chat::of(model)?);
    let prefix = grammar.prefix(system, &model.tokenizer);
    Ok(model.tokenizer.encode_prompt(&prefix)?.len())
}
