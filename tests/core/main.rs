//! Tests of everything below the ROS edge, on the library's public interface.

mod cache_attention;
mod cache_axes;
mod cache_model;
mod cache_properties;
mod checkpoints;
mod commands;
mod conversation;
mod engine;
mod eval;
mod families;
mod freezing;
mod gguf;
mod golden_cache;
mod golden_forward;
mod llava;
mod loading;
mod preprocess;
mod published;
mod qwen_vl;
mod smollm2;
mod streams;
mod support;
mod untrusted;
mod variants;
mod withdrawal;
