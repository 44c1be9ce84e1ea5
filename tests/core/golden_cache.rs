//! Streams through the bounded cache of the tiny checkpoints and the demo model.

use std::path::Path;

use inf_mllm::cache::CacheShape;
use inf_mllm::model::decoder::Decoder;

use crate::streams;
use crate::support::{decoder_alone, demo_dir, golden, load, tiny_dir};

/// The decoder of a multimodal checkpoint.
fn multimodal(dir: &Path) -> (Decoder, CacheShape) {
    let model = load(dir);
    let shape = model.shape;
    (model.decoder, shape)
}

fn check_all(decoder: (Decoder, CacheShape), golden_name: &str, needed: &[&str]) {
    streams::check_all(decoder, &golden(golden_name), needed);
}

#[test]
fn a_tiny_checkpoint_evicts_and_computes_as_the_reference_does() {
    let needed = ["inf_mllm", "streaming_llm", "window"];
    check_all(multimodal(&tiny_dir()), "tiny_cache", &needed);
}

#[test]
fn the_demo_model_evicts_and_computes_as_the_reference_does() {
    let needed = ["inf_mllm", "streaming_llm"];
    check_all(multimodal(&demo_dir()), "demo_cache", &needed);
}

/// Policies that score, each with 1, 3 and 9 query heads per KV head.
const SCORING: [&str; 4] = ["h2o", "tova", "snapkv", "inf_mllm"];

#[test]
fn every_policy_is_the_references_with_one_query_head_per_kv_head() {
    check_all(
        decoder_alone(&golden("tiny_llama_g1")),
        "policies_g1",
        &SCORING,
    );
}

#[test]
fn every_policy_is_the_references_with_three_query_heads_per_kv_head() {
    check_all(multimodal(&tiny_dir()), "policies_g3", &SCORING);
}

#[test]
fn every_policy_is_the_references_with_nine_query_heads_per_kv_head() {
    check_all(
        decoder_alone(&golden("tiny_llama_g9")),
        "policies_g9",
        &SCORING,
    );
}

#[test]
fn each_ingredient_of_inf_mllm_plus_is_the_references() {
    check_all(multimodal(&tiny_dir()), "plus_g3", &["inf_mllm_plus"]);
}
