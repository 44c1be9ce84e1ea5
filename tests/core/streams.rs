//! Goldens of one stream through the bounded cache: scores, kept sets and logits, against a PyTorch reference.

use std::collections::HashMap;
use std::num::NonZeroU16;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use inf_mllm::cache::policy::PlusConfig;
use inf_mllm::cache::{BoundedCache, CacheConfig, CacheShape, Mark, Place, PolicyKind, Video};
use inf_mllm::model::decoder::{Decoder, Embedded};
use serde_json::Value;

use crate::support::{deviation, json, tensors};

/// Absolute, f32: section 5 of the algorithm's description asks for it.
const SCORE_TOLERANCE: f32 = 1e-5;
/// Layers whose scores are compared to that tolerance: deeper ones carry the rounding of the layers before.
const DEEP_SCORE_TOLERANCE: f32 = 3e-5;

/// A decoder and the stream that a folder of goldens feeds it.
struct Stream {
    decoder: Decoder,
    shape: CacheShape,
    input: Embedded,
    marks: Vec<Mark>,
    /// Ids of the standing instruction and the tokens of the stream that it is fed after.
    standing: Option<(Vec<u32>, usize)>,
}

impl Stream {
    fn new(
        (decoder, shape): (Decoder, CacheShape),
        about: &Value,
        tensors: &HashMap<String, Tensor>,
    ) -> Self {
        let input = Embedded {
            x: tensors["embeds"].clone(),
            deep: match tensors.get("deepstack") {
                Some(deep) => (0..deep.dim(0).unwrap())
                    .map(|layer| deep.get(layer).unwrap())
                    .collect(),
                None => Vec::new(),
            },
        };
        let places = |name: &str| -> Vec<u64> {
            serde_json::from_value(about[name].clone()).unwrap_or_default()
        };
        let instructions: Vec<(u64, u64)> =
            serde_json::from_value(about["instruction"].clone()).unwrap_or_default();
        let (boundaries, starts) = (places("boundaries"), places("unit_starts"));
        let images = image_marks(tensors, input.x.dim(0).unwrap());
        let marks = (0..)
            .zip(images)
            .map(|(i, image)| Mark {
                starts_unit: starts.contains(&i),
                boundary: boundaries.contains(&i),
                instruction: instructions.iter().any(|&(from, to)| from <= i && i < to),
                ..image
            })
            .collect();
        let standing = about["standing_after"].as_u64().map(|after| {
            let ids = tensors["standing_ids"].to_vec1::<i64>().unwrap();
            (ids.iter().map(|&id| id as u32).collect(), after as usize)
        });
        Self {
            decoder,
            shape,
            input,
            marks,
            standing,
        }
    }

    fn feed(&self, from: usize, count: usize, cache: &mut BoundedCache) -> Tensor {
        let piece = |x: &Tensor| x.narrow(0, from, count).unwrap();
        let input = Embedded {
            x: piece(&self.input.x),
            deep: self.input.deep.iter().map(piece).collect(),
        };
        let marks = &self.marks[from..from + count];
        self.decoder.append_embedded(&input, marks, cache).unwrap()
    }

    /// Feeds the standing instruction after the beginning of the stream, and forgets both.
    fn capture_standing(&self, cache: &mut BoundedCache) {
        let Some((ids, after)) = &self.standing else {
            return;
        };
        cache.mark();
        self.feed(0, *after, cache);
        let x = self.decoder.embed(ids).unwrap();
        let marks = vec![Mark::default(); ids.len()];
        self.decoder.append(&x, &marks, cache).unwrap();
        let standing = cache.newest_keys(ids.len()).unwrap();
        cache.put_back().unwrap();
        cache.let_go();
        cache.look_for(standing);
    }
}

/// Which image each of the tokens belongs to and where in it it stands, in streams that say so.
fn image_marks(tensors: &HashMap<String, Tensor>, tokens: usize) -> Vec<Mark> {
    let Some(frames) = tensors.get("frames") else {
        return vec![Mark::default(); tokens];
    };
    let frames = frames.to_vec1::<i64>().unwrap();
    let offsets = tensors["offsets"].to_vec2::<i64>().unwrap();
    let extents = tensors["extents"].to_vec1::<i64>().unwrap();
    let numbers = |name: &str| match tensors.get(name) {
        Some(numbers) => numbers.to_vec1::<i64>().unwrap(),
        None => vec![0; tokens],
    };
    let (videos, steps) = (numbers("videos"), numbers("steps"));
    let mark = |token: usize| match u32::try_from(frames[token]) {
        Ok(frame) => Mark {
            place: Place {
                offset: std::array::from_fn(|axis| offsets[token][axis] as u16),
                extent: extents[token] as u16,
                video: NonZeroU16::new(videos[token] as u16).map(|number| Video {
                    number,
                    step: steps[token] as u16,
                }),
            },
            ..Mark::image(frame)
        },
        Err(_) => Mark::default(),
    };
    (0..tokens).map(mark).collect()
}

/// What a run through the stream has seen.
#[derive(Default)]
struct Trace {
    hidden: Vec<Tensor>,
    compactions: Vec<Compaction>,
}

struct Compaction {
    tokens_seen: u64,
    /// `[layers][sets]`, the scores of all tokens just before it, in the order of time.
    scores: Vec<Vec<Vec<f32>>>,
    /// `[layers][sets]`, the stream indices kept.
    kept: Vec<Vec<Vec<u64>>>,
    /// `[layers][sets]`, where these stand.
    positions: Vec<Vec<Vec<[usize; 3]>>>,
}

fn config(params: &Value) -> CacheConfig {
    let count = |name: &str| params[name].as_u64().unwrap_or(0) as usize;
    let text = |name: &str, default: &str| params[name].as_str().unwrap_or(default).to_string();
    let flag = |name: &str| params[name].as_bool().unwrap_or(false);
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
        query_source: text("query_source", "stream").parse().unwrap(),
        h2o_decay: params["h2o_decay"].as_f64().unwrap_or(1.0),
        protect_boundaries: count("protect_boundaries"),
        plus: PlusConfig {
            units: flag("units"),
            pool: count("pool").max(1),
            value_norms: flag("value_norms"),
            novelty_weight: params["novelty_weight"].as_f64().unwrap_or(0.0),
            novelty_bias: params["novelty_bias"].as_f64().unwrap_or(0.0),
            standing_weight: params["standing_weight"].as_f64().unwrap_or(0.5),
            standing_bias: params["standing_bias"].as_f64().unwrap_or(0.0002),
            position_gap: params["position_gap"].as_f64().unwrap_or(0.0),
        },
        ..CacheConfig::default()
    }
}

/// Feeds the stream as the golden's procedure says, token by token where a compaction follows each, and looks at the scores
/// before every compaction.
fn run(stream: &Stream, chunks: &[usize], cache: &mut BoundedCache) -> Trace {
    let mut trace = Trace::default();
    let mut at = 0;
    for (i, &chunk) in chunks.iter().enumerate() {
        let end = at + chunk;
        while at < end {
            reserve(cache, 1, &mut trace);
            let taken = (cache.plan().budget - cache.len()).min(end - at);
            trace.hidden.push(stream.feed(at, taken, cache));
            at += taken;
        }
        reserve(cache, chunks.get(i + 1).copied().unwrap_or(0), &mut trace);
    }
    trace
}

fn reserve(cache: &mut BoundedCache, next: usize, trace: &mut Trace) {
    let before = cache.usage().compactions;
    let layers = 0..cache.layers().len();
    let scores = layers.map(|i| cache.scores(i).unwrap()).collect();
    cache.reserve(next).unwrap();
    if cache.usage().compactions == before {
        return;
    }
    let kept = cache.layers().iter().map(|layer| {
        let sets = layer.sets();
        sets.map(|set| set.iter().map(|token| token.index).collect())
            .collect()
    });
    trace.compactions.push(Compaction {
        tokens_seen: cache.usage().tokens_seen,
        scores,
        kept: kept.collect(),
        positions: (0..cache.layers().len())
            .map(|layer| cache.positions(layer))
            .collect(),
    });
}

fn check_case(stream: &Stream, name: &str, case: &Value, about: &Value, dir: &Path) {
    let chunks = match &case["chunks"] {
        Value::Null => &about["chunks"],
        own => own,
    };
    let chunks: Vec<usize> = serde_json::from_value(chunks.clone()).unwrap();
    let tolerance = about["tolerance"].as_f64().unwrap() as f32;
    let params = &case["params"];
    let config = config(params);
    let expected = tensors(&dir.join(case["file"].as_str().unwrap()));
    let prefix = params["prefix"].as_u64().unwrap() as usize;
    let mut cache =
        BoundedCache::new(stream.shape, &config, prefix, DType::F32, &Device::Cpu).unwrap();
    assert_eq!(
        cache.plan().prefix as u64,
        params["protected"].as_u64().unwrap(),
        "{name}: protected prefix"
    );
    if params["standing"].as_bool().unwrap_or(false) {
        stream.capture_standing(&mut cache);
    }

    let trace = run(stream, &chunks, &mut cache);

    let tokens_seen: Vec<u64> = serde_json::from_value(case["tokens_seen"].clone()).unwrap();
    let count = trace.compactions.len();
    let stored: Vec<usize> = match &case["compaction"] {
        Value::Null => (0..count).collect(),
        stored => serde_json::from_value(stored.clone()).unwrap(),
    };
    let compactions = case["compactions"].as_u64().unwrap_or(count as u64);
    assert_eq!(compactions as usize, count, "{name}: compactions");
    assert!(tokens_seen.len() >= 3, "{name}: too few compactions");
    assert_eq!(tokens_seen.len(), stored.len(), "{name}: when it compacts");
    for (&c, tokens_seen) in stored.iter().zip(tokens_seen) {
        let compaction = &trace.compactions[c];
        assert_eq!(
            compaction.tokens_seen, tokens_seen,
            "{name}: when compaction {c} is"
        );
        check_kept(name, c, &compaction.kept, &expected[&format!("kept.{c}")]);
        if let Some(positions) = expected.get(&format!("positions.{c}")) {
            check_positions(name, c, &compaction.positions, positions);
        }
        // What inf_mllm_plus makes of its scores shows in what it keeps.
        let scores = expected.get(&format!("scores.{c}"));
        if let Some(scores) = scores.filter(|_| config.policy != PolicyKind::InfMllmPlus) {
            let candidates = compaction.scores.iter().map(|sets| {
                let first = cache.plan().prefix;
                sets.iter()
                    .map(|set| set[first..set.len() - cache.plan().recent].to_vec())
                    .map(|set| match config.policy {
                        PolicyKind::SnapKv => max_pooled(&set, 5),
                        _ => set,
                    })
                    .collect()
            });
            check_scores(name, c, &candidates.collect::<Vec<_>>(), scores);
        }
    }

    let hidden = Tensor::cat(&trace.hidden, 0).unwrap();
    let rows = expected["rows"].to_dtype(DType::U32).unwrap();
    let logits = stream
        .decoder
        .logits(&hidden.index_select(&rows, 0).unwrap())
        .unwrap();
    let off = deviation(&logits, &expected["logits"]);
    assert!(off <= tolerance, "{name}: logits differ by {off}");

    let perturbed = case["perturbed"].as_object().unwrap();
    for mistake in ["mask_off_by_one", "absolute_positions", "swapped_groups"] {
        // With one query head per KV head there are no groups to swap, but an order of the heads.
        let change = match perturbed.get(mistake) {
            Some(change) => change,
            None => &perturbed["reversed_groups"],
        };
        let change = change.as_f64().unwrap() as f32;
        assert!(
            change >= 100.0 * tolerance,
            "{name}: {mistake} changes the logits by {change} only"
        );
    }
}

fn check_kept(name: &str, c: usize, kept: &[Vec<Vec<u64>>], want: &Tensor) {
    let want = want.to_vec3::<i64>().unwrap();
    assert_eq!(kept.len(), want.len());
    for (layer, (got, want)) in kept.iter().zip(&want).enumerate() {
        assert_eq!(got.len(), want.len(), "{name}: kept sets");
        for (set, (got, want)) in got.iter().zip(want).enumerate() {
            let got = got.iter().map(|&index| index as i64).collect::<Vec<_>>();
            assert_eq!(
                &got, want,
                "{name}: compaction {c}, layer {layer}, set {set}"
            );
        }
    }
}

/// `want` is `[layers, sets, 3, kept]`.
fn check_positions(name: &str, c: usize, got: &[Vec<Vec<[usize; 3]>>], want: &Tensor) {
    for (layer, sets) in got.iter().enumerate() {
        for (set, got) in sets.iter().enumerate() {
            let want = want.get(layer).unwrap().get(set).unwrap();
            let want = want.t().unwrap().to_vec2::<i64>().unwrap();
            let got = got.iter().map(|place| place.map(|axis| axis as i64));
            assert_eq!(
                got.map(Vec::from).collect::<Vec<_>>(),
                want,
                "{name}: positions after compaction {c}, layer {layer}, set {set}"
            );
        }
    }
}

fn max_pooled(scores: &[f32], width: usize) -> Vec<f32> {
    let reach = width / 2;
    (0..scores.len())
        .map(|j| {
            let around = scores.iter().skip(j.saturating_sub(reach));
            let around = around.take(j.min(reach) + reach + 1);
            around.copied().fold(0.0, f32::max)
        })
        .collect()
}

/// Scores of candidates, `[layers][sets][candidates]`.
fn check_scores(name: &str, c: usize, got: &[Vec<Vec<f32>>], want: &Tensor) {
    for (layer, want) in want.to_vec3::<f32>().unwrap().iter().enumerate() {
        let tolerance = match layer {
            0 => SCORE_TOLERANCE,
            _ => DEEP_SCORE_TOLERANCE,
        };
        assert_eq!(got[layer].len(), want.len());
        for (got, want) in got[layer].iter().zip(want) {
            assert_eq!(got.len(), want.len(), "{name}: candidates");
            for (j, (got, want)) in got.iter().zip(want).enumerate() {
                // A sum over many queries has the rounding of each.
                let tolerance = tolerance * want.max(1.0);
                assert!(
                    (got - want).abs() <= tolerance,
                    "{name}: compaction {c}, layer {layer}, candidate {j}: score {got}, expected {want}"
                );
            }
        }
    }
}

/// Runs every case of a folder of goldens, which must have one of each of the policies `needed`.
pub fn check_all(decoder: (Decoder, CacheShape), dir: &Path, needed: &[&str]) {
    let about = json(&dir.join("cases.json"));
    let stream = tensors(&dir.join("stream.safetensors"));
    let stream = Stream::new(decoder, &about, &stream);
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
        check_case(&stream, name, case, &about, dir);
    }
}
