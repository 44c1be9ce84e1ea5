//! One stream through the bounded cache: scores, kept sets and logits, against a PyTorch reference.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Tensor};
use inf_mllm::cache::{BoundedCache, CacheConfig, Mark};
use inf_mllm::model::smolvlm::SmolVlm;
use serde_json::Value;

use crate::support::{demo_dir, deviation, golden, json, load, tensors, tiny_dir};

/// Absolute, f32: section 5 of the algorithm's description asks for it.
const SCORE_TOLERANCE: f32 = 1e-5;
/// Layers whose scores are compared to that tolerance: deeper ones carry the rounding of the layers before.
const DEEP_SCORE_TOLERANCE: f32 = 3e-5;

/// What a run through the stream has seen.
#[derive(Default)]
struct Trace {
    hidden: Vec<Tensor>,
    tokens_seen: Vec<u64>,
    /// Per compaction `[layers][sets]`, the scores of all slots just before it.
    scores: Vec<Vec<Vec<Vec<f32>>>>,
    /// Per compaction `[layers][sets]`, the stream indices kept.
    kept: Vec<Vec<Vec<Vec<u64>>>>,
}

fn config(params: &Value) -> CacheConfig {
    let count = |name: &str| params[name].as_u64().unwrap_or(0) as usize;
    let text = |name: &str, default: &str| params[name].as_str().unwrap_or(default).to_string();
    CacheConfig {
        policy: text("policy", "").parse().unwrap(),
        budget: count("budget"),
        slack: count("slack"),
        sinks: count("sinks"),
        n_recent: count("n_recent"),
        query_window: count("query_window").max(1),
        bias: params["bias"].as_f64().unwrap_or(0.0),
        bias_form: text("bias_form", "slope").parse().unwrap(),
        scope: text("scope", "layer").parse().unwrap(),
        ..CacheConfig::default()
    }
}

/// Feeds the stream as the golden's procedure says, stopping before every compaction to look at the scores.
fn run(model: &SmolVlm, embeds: &Tensor, chunks: &[usize], cache: &mut BoundedCache) -> Trace {
    let mut trace = Trace::default();
    let mut at = 0;
    for (i, &chunk) in chunks.iter().enumerate() {
        let end = at + chunk;
        while at < end {
            let before = look(cache);
            cache.reserve(1).unwrap();
            note_compaction(cache, before, &mut trace);
            let taken = (cache.plan().budget - cache.len()).min(end - at);
            let x = embeds.narrow(0, at, taken).unwrap();
            let hidden = model
                .decoder
                .append(&x, &vec![Mark::default(); taken], cache)
                .unwrap();
            trace.hidden.push(hidden);
            at += taken;
        }
        let before = look(cache);
        let next = chunks.get(i + 1).copied().unwrap_or(0);
        cache.reserve(next).unwrap();
        note_compaction(cache, before, &mut trace);
    }
    trace
}

type Scores = Vec<Vec<Vec<f32>>>;

fn look(cache: &BoundedCache) -> (u64, Scores) {
    let scores = (0..cache.layers().len())
        .map(|i| cache.scores(i).unwrap())
        .collect();
    (cache.usage().compactions, scores)
}

fn note_compaction(cache: &BoundedCache, (compactions, scores): (u64, Scores), trace: &mut Trace) {
    if cache.usage().compactions == compactions {
        return;
    }
    trace.tokens_seen.push(cache.usage().tokens_seen);
    trace.scores.push(scores);
    let kept = cache.layers().iter().map(|layer| {
        let sets = layer.sets();
        sets.map(|set| set.iter().map(|token| token.index).collect())
            .collect()
    });
    trace.kept.push(kept.collect());
}

fn check_case(
    model: &SmolVlm,
    name: &str,
    case: &Value,
    stream: &HashMap<String, Tensor>,
    about: &Value,
    dir: &Path,
) {
    let chunks: Vec<usize> = serde_json::from_value(about["chunks"].clone()).unwrap();
    let tolerance = about["tolerance"].as_f64().unwrap() as f32;
    let params = &case["params"];
    let config = config(params);
    let expected = tensors(&dir.join(case["file"].as_str().unwrap()));
    let prefix = params["prefix"].as_u64().unwrap() as usize;
    let shape = model.config.text_config.cache_shape();
    let mut cache = BoundedCache::new(shape, &config, prefix, DType::F32, model.device()).unwrap();
    assert_eq!(
        cache.plan().prefix as u64,
        params["protected"].as_u64().unwrap(),
        "{name}: protected prefix"
    );

    let trace = run(model, &stream["embeds"], &chunks, &mut cache);

    let tokens_seen: Vec<u64> = serde_json::from_value(case["tokens_seen"].clone()).unwrap();
    assert!(tokens_seen.len() >= 3, "{name}: too few compactions");
    assert_eq!(trace.tokens_seen, tokens_seen, "{name}: when it compacts");
    for (c, kept) in trace.kept.iter().enumerate() {
        let wanted = expected[&format!("kept.{c}")].to_vec3::<i64>().unwrap();
        for (layer, (got, want)) in kept.iter().zip(&wanted).enumerate() {
            for (set, (got, want)) in got.iter().zip(want).enumerate() {
                let got = got.iter().map(|&index| index as i64).collect::<Vec<_>>();
                assert_eq!(
                    &got, want,
                    "{name}: compaction {c}, layer {layer}, set {set}"
                );
            }
            assert!(want.len() == 1 || want.len() == got.len());
        }
        if let Some(scores) = expected.get(&format!("scores.{c}")) {
            check_scores(name, c, &trace.scores[c], scores, cache.plan().prefix);
        }
    }

    let hidden = Tensor::cat(&trace.hidden, 0).unwrap();
    let rows = expected["rows"].to_dtype(DType::U32).unwrap();
    let logits = model
        .decoder
        .logits(&hidden.index_select(&rows, 0).unwrap())
        .unwrap();
    let off = deviation(&logits, &expected["logits"]);
    assert!(off <= tolerance, "{name}: logits differ by {off}");

    for mistake in ["mask_off_by_one", "absolute_positions", "swapped_groups"] {
        let change = case["perturbed"][mistake].as_f64().unwrap() as f32;
        assert!(
            change >= 100.0 * tolerance,
            "{name}: {mistake} changes the logits by {change} only"
        );
    }
}

fn check_scores(name: &str, c: usize, got: &Scores, want: &Tensor, prefix: usize) {
    for (layer, want) in want.to_vec3::<f32>().unwrap().iter().enumerate() {
        let tolerance = match layer {
            0 => SCORE_TOLERANCE,
            _ => DEEP_SCORE_TOLERANCE,
        };
        for (got, want) in got[layer].iter().zip(want) {
            for (j, (got, want)) in got[prefix..].iter().zip(want).enumerate() {
                assert!(
                    (got - want).abs() <= tolerance,
                    "{name}: compaction {c}, layer {layer}, candidate {j}: score {got}, expected {want}"
                );
            }
        }
    }
}

fn check_all(model_dir: &Path, golden_name: &str, needed: &[&str]) {
    let model = load(model_dir);
    let dir = golden(golden_name);
    let about = json(&dir.join("cases.json"));
    let stream = tensors(&dir.join("stream.safetensors"));
    let cases = about["cases"].as_object().unwrap();
    for policy in needed {
        assert!(
            cases
                .values()
                .any(|case| case["params"]["policy"] == *policy),
            "no case for {policy}"
        );
    }
    for (name, case) in cases {
        check_case(&model, name, case, &stream, &about, &dir);
    }
}

#[test]
fn a_tiny_checkpoint_evicts_and_computes_as_the_reference_does() {
    check_all(
        &tiny_dir(),
        "tiny_cache",
        &["inf_mllm", "streaming_llm", "window"],
    );
}

#[test]
fn the_demo_model_evicts_and_computes_as_the_reference_does() {
    check_all(&demo_dir(), "demo_cache", &["inf_mllm", "streaming_llm"]);
}
