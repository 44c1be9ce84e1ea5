//! A streaming multimodal LLM for robots whose KV cache is bounded (Inf-MLLM, arXiv 2409.09086).
//!
//! Dependencies point one way: `node` (the ROS edge) -> `stream` (frames, instructions, the loop) -> `model` (vision tower,
//! connector, decoder, checkpoints) -> `cache` (slots, scores, policies). Only `node` knows ROS. Above `stream` stands `eval`
//! (perplexity, recall, cost of the policies on long text; what is remembered of long drives). `parameters` lists what can be
//! set, for the node, the command line and the documents; `paths` says what a path stands for, `files` opens what lies there, and `excerpt` cuts
//! off what is echoed. Below all of them stands `gpu`, which
//! runs the kernels of a GPU.

pub mod cache;
#[cfg(feature = "tools")]
pub mod eval;
pub mod excerpt;
pub mod files;
pub mod gpu;
pub mod model;
#[cfg(feature = "ros")]
pub mod node;
pub mod parameters;
pub mod paths;
mod simd;
pub mod stream;
