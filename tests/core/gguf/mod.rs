//! GGUF files: damaged ones, and those whose numbers are known.
//!
//! - `writer`: files written for a test
//! - `chosen`: which of several files is meant
//! - `converted`: published checkpoints in such files
//! - `damaged`: what is refused, and how
//! - `golden`: decoders with the numbers of transformers and the ids of their tokenizers
//! - `lfm2`: the LFM2-VL families as llama.cpp's converter writes them
//! - `projector`: a vision tower beside a decoder
//! - `published`: published files without their numbers
//! - `qwen_vl`: the Qwen-VL families as llama.cpp's converter writes them
//! - `split`: a model in several files

mod chosen;
mod converted;
mod damaged;
mod golden;
mod lfm2;
mod projector;
mod published;
mod qwen_vl;
mod split;
pub mod writer;
