//! Every family of checkpoints against transformers: each has a directory in tests/golden/families.
//!
//! - this file: the families, and a test for each thing that must be right
//! - `model`: a checkpoint of any kind, loaded
//! - `scenes`: conversations with pictures, from the processor's tensors to the greedy answer
//! - `fresh`: the same checkpoint as today's transformers saves it
//! - `stream`: sessions, and what they write
//! - `templates`: chat templates and tokenizers
//! - `user_text`: what a user types never becomes a control token

mod fresh;
pub mod model;
pub mod scenes;
mod stream;
pub mod templates;
mod user_text;

use std::path::Path;

use crate::streams;
use crate::support::golden;
use model::Model;

/// A module of tests for a family with this directory.
macro_rules! family {
    ($name:ident: $($test:ident),+) => {
        mod $name {
            $(
                #[test]
                fn $test() {
                    super::$test(stringify!($name));
                }
            )+
        }
    };
}

macro_rules! families {
    ($($name:ident: $($test:ident),+;)+) => {
        $(family!($name: $($test),+);)+

        const FAMILIES: &[&str] = &[$(stringify!($name)),+];
    };
}

families! {
    llama: forward, prompt, fresh_save, templates, user_text, bounded_cache;
    llama3: forward, prompt, fresh_save, templates, user_text, bounded_cache;
    mistral: forward, prompt, fresh_save, templates, user_text, bounded_cache;
    qwen2: forward, prompt, fresh_save, templates, user_text, bounded_cache;
    qwen3: forward, prompt, fresh_save, templates, user_text, bounded_cache;
    gpt_neox: forward, prompt, fresh_save, user_text, bounded_cache;
    gpt_neox_serial: forward;
    lfm2: forward, bounded_cache;
    qwen3_5_text: forward, bounded_cache;
    idefics3: forward, prompt, pixels, fresh_save, templates, user_text, bounded_cache;
    llava: forward, prompt, pixels, fresh_save, templates, user_text, bounded_cache, module_names, stream;
    llava_next: forward, prompt, pixels, fresh_save, templates, user_text, bounded_cache, module_names, stream;
    llava_onevision: forward, prompt, pixels, fresh_save, templates, user_text, bounded_cache, module_names, stream, frames;
    internvl: forward, prompt, pixels, fresh_save, templates, user_text, bounded_cache, module_names, video;
    internvl3_5: forward, prompt, pixels, fresh_save, templates, user_text, bounded_cache, module_names, video;
    lfm2_vl: forward, prompt, pixels, fresh_save, templates, user_text, bounded_cache, stream;
    lfm2_5_vl: forward, prompt, pixels, fresh_save, templates, user_text, bounded_cache, stream;
    qwen2_vl: forward, prompt, pixels, fresh_save, templates, user_text, bounded_cache, stream;
    qwen2_5_vl: forward, prompt, pixels, fresh_save, templates, user_text, bounded_cache, bounded_videos, stream;
    qwen3_vl: forward, prompt, pixels, fresh_save, templates, user_text, bounded_cache;
    cosmos3_edge: forward, prompt, pixels, fresh_save, templates, user_text, bounded_cache;
    qwen3_5: forward, prompt, pixels, fresh_save, templates, user_text, bounded_cache;
    cosmos3_omni: forward, prompt, pixels, fresh_save, templates, user_text, bounded_cache;
}

#[test]
fn every_golden_directory_has_its_tests() {
    for entry in std::fs::read_dir(golden("families")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(FAMILIES.contains(&name.as_str()), "{name} has none");
    }
}

/// Features, logits and the greedy answer from the published processor's tensors.
fn forward(family: &str) {
    let dir = golden("families").join(family);
    scenes::check_forward(&Model::load(&dir), &dir);
}

/// Conversations become the published ids.
fn prompt(family: &str) {
    let dir = golden("families").join(family);
    scenes::check_prompts(&Model::load(&dir), &dir);
}

/// Pictures become the published processor's pixel values.
fn pixels(family: &str) {
    let dir = golden("families").join(family);
    scenes::check_pixels(&Model::load(&dir), &dir);
}

/// The same checkpoint, in the spelling of today's transformers, does all the same.
fn fresh_save(family: &str) {
    let dir = golden("families").join(family);
    let fresh = fresh::checkpoint(&dir, str::to_string);
    let model = Model::load(fresh.path());
    scenes::check_forward(&model, &dir);
    scenes::check_prompts(&model, &dir);
    scenes::check_pixels(&model, &dir);
    if model.template().is_some() {
        templates::check(&model, &dir);
    }
}

/// The names that modules of LLaVA and InternVL carry in today's transformers, as its conversion_mapping.py has them, are read as well.
fn module_names(family: &str) {
    let dir = golden("families").join(family);
    let renamed = fresh::checkpoint(&dir, |saved| {
        let text = saved.strip_prefix("language_model.model.");
        match (text, saved.strip_prefix("language_model.")) {
            (Some(rest), _) => format!("model.language_model.{rest}"),
            (_, Some(head)) => head.to_string(),
            _ => format!("model.{saved}"),
        }
    });
    scenes::check_forward(&Model::load(renamed.path()), &dir);
}

/// The chat template writes conversations as the published library does, and the tokenizer reads what it wrote.
fn templates(family: &str) {
    let dir = golden("families").join(family);
    templates::check(&Model::load(&dir), &dir);
}

/// Whatever a user types, no control token comes of it.
fn user_text(family: &str) {
    user_text::check(&golden("families").join(family));
}

/// Frames of a stream are those of a video.
fn frames(family: &str) {
    let dir = golden("families").join(family);
    scenes::check_frames(&Model::load(&dir), &dir);
}

/// Frames and questions as a session takes them.
fn stream(family: &str) {
    let dir = golden("families").join(family);
    stream::check_prompt(&dir);
    stream::check_session(&dir);
}

/// The same of a family whose frames stand in the stream as a published video's do.
fn video(family: &str) {
    let dir = golden("families").join(family);
    stream::check_video(&dir);
    stream::check_session(&dir);
}

/// A stream through the bounded cache.
fn bounded_cache(family: &str) {
    let dir = golden("families").join(family);
    check_bounded_cache(&Model::load(&dir), &dir);
}

/// A stream with videos of several parts, some of which are evicted.
fn bounded_videos(family: &str) {
    let dir = golden("families").join(family);
    let model = Model::load(&dir);
    let decoder = (model.decoder().clone(), model.shape());
    let needed = ["inf_mllm", "streaming_llm", "h2o"];
    streams::check_all(decoder, &dir.join("cache_videos"), &needed);
}

/// The same of a model that is another form of the checkpoint in `dir`.
pub fn check_bounded_cache(model: &Model, dir: &Path) {
    let decoder = (model.decoder().clone(), model.shape());
    let needed = ["inf_mllm", "streaming_llm"];
    streams::check_all(decoder, &dir.join("cache"), &needed);
}
