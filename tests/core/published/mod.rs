//! The published checkpoints by their own configurations, tensor names and shapes: whether every one of them is found whole.
//!
//! `tests/golden/published` says what their files hold. Here these are written with holes where the weights would be, beside the
//! tokenizer and the chat template of a tiny checkpoint of the same kind, and inspected: that builds the model, so that every name
//! and shape is asked for, and reads no weight.

pub mod files;
mod known;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use inf_mllm::model::DeviceKind;
use inf_mllm::stream::inspect::{Options, Report};
use inf_mllm::stream::SessionConfig;
use serde_json::Value;

use crate::support::{golden, json};

use files::{holes, names, stands_for, write_directory, Hole};
use known::{Known, COSMOS3, INTERNVL, LFM2, LLAVA, QUANTISED, QWEN, QWEN3_5, SMOLVLM, TEXT};

fn about(name: &str) -> Value {
    json(&golden("published").join(format!("{name}.json")))
}

/// What is said of a checkpoint whose longest input has so many tokens.
fn report(dir: &Path, context: usize) -> Report {
    let mut session = SessionConfig {
        device: DeviceKind::Cpu,
        ..SessionConfig::default()
    };
    session.cache.budget = context.min(4096);
    let options = Options {
        session: &session,
        memory: None,
    };
    Report::of(dir, &options)
}

fn check(known: &Known) -> Report {
    let name = known.name;
    let about = about(name);
    let dir = write_directory(&about);
    // The header holds every name, shape and type.
    if let Some(published) = about["file_bytes"].as_u64() {
        let file = fs::metadata(dir.path().join("model.safetensors")).unwrap();
        assert_eq!(
            file.len(),
            published,
            "{name}: length of the file on the hub"
        );
    }
    let report = report(dir.path(), known.context);
    assert!(report.complete(), "{name}: {:?}", report.problems);
    assert_eq!(
        (report.family.as_str(), report.decoder.as_str()),
        known.kind
    );
    assert_eq!(report.context, known.context, "{name}");
    let [layers, heads, size] = known.cache;
    let key_and_value = 2 * 4 * layers * heads * size;
    assert_eq!(report.kv_bytes_per_token, key_and_value, "{name}");
    let frame = report.frames.iter().find(|frame| frame.width == 640);
    assert_eq!(frame.map(|frame| frame.image_tokens), known.frame, "{name}");

    let holes = holes(&about);
    let left_alone = |hole: &Hole| {
        let mut patterns = about["buffers"].as_object().unwrap().keys();
        let mut unused = known.unused.iter();
        patterns.any(|one| stands_for(one, &hole.name))
            && !unused.any(|one| stands_for(one, &hole.name))
    };
    let (unused, used) = holes
        .iter()
        .filter(|hole| !left_alone(hole))
        .partition::<Vec<_>, _>(|hole| {
            let patterns = known.unused.iter();
            patterns.clone().any(|one| stands_for(one, &hole.name))
        });
    let mut unused = unused.iter().map(|hole| &hole.name).collect::<Vec<_>>();
    unused.sort();
    assert_eq!(report.unused.iter().collect::<Vec<_>>(), unused, "{name}");
    let parameters = about["parameters"].as_u64().unwrap();
    if about["packed"].is_object() {
        assert_eq!(report.parameters.total, parameters, "{name}");
        return report;
    }
    let used = used.iter().map(|hole| hole.elements()).sum::<u64>();
    assert_eq!(report.parameters.total, used, "{name}");
    let buffers = about["buffers"].as_object().unwrap();
    let all = holes.iter().filter(|hole| {
        let patterns = buffers.keys();
        !patterns.clone().any(|one| stands_for(one, &hole.name))
    });
    assert_eq!(all.map(Hole::elements).sum::<u64>(), parameters, "{name}");
    report
}

fn check_all(all: &[Known]) {
    for known in all {
        check(known);
    }
}

#[test]
fn text_decoders_are_complete() {
    check_all(&TEXT);
}

#[test]
fn smolvlm_and_idefics3_are_complete() {
    check_all(&SMOLVLM);
}

#[test]
fn llava_is_complete() {
    check_all(&LLAVA);
}

#[test]
fn internvl_is_complete() {
    check_all(&INTERNVL);
}

#[test]
fn lfm2_vl_is_complete() {
    check_all(&LFM2);
}

#[test]
fn qwen_vl_is_complete() {
    check_all(&QWEN);
}

/// What they hold beside is left alone, and known by its names.
#[test]
fn cosmos3_and_qwen3_5_are_complete() {
    for known in COSMOS3.iter().chain(&QWEN3_5) {
        let about = about(known.name);
        let beside = about["buffers"].as_object().unwrap();
        let report = check(known);
        let left_alone = report.left_alone.values().map(|amount| amount.tensors);
        let all = beside.keys().map(|pattern| names(pattern).len());
        assert_eq!(
            left_alone.sum::<usize>(),
            all.sum::<usize>(),
            "{}",
            known.name
        );
    }
}

/// Quantised ones: what stands for a matrix is known, and what becomes of it.
#[test]
fn quantised_checkpoints_are_complete() {
    for (known, told, kept) in [
        (
            &QUANTISED[0],
            "AWQ, integers of 4 bits in groups of 128",
            Some("Q4_1"),
        ),
        (
            &QUANTISED[1],
            "compressed-tensors, integers of 4 bits in groups of 128",
            Some("Q4_0"),
        ),
        (
            &QUANTISED[2],
            "FP8, floats of 8 bits in blocks of 128 x 128",
            None,
        ),
    ] {
        let report = check(known);
        let name = known.name;
        assert_eq!(report.quantised.as_deref(), Some(told), "{name}");
        let layers = known.cache[0] as usize;
        let blocks = kept.and_then(|kept| report.kept.get(kept));
        assert_eq!(
            blocks.map(|blocks| blocks.tensors),
            kept.map(|_| 7 * layers),
            "{name}"
        );
        // On the CPU floats are f32, but for the matrices of the tower, which stay of 16 bits.
        let (floats, parameters) = (4 * report.parameters.total, &report.parameters);
        let tower = 2 * parameters.vision..=parameters.vision * 21 / 10;
        let decoder = match kept {
            Some(_) => parameters.decoder / 2..=floats,
            None => 4 * parameters.decoder..=4 * parameters.decoder,
        };
        assert!(
            (decoder.start() + tower.start()..=decoder.end() + tower.end())
                .contains(&report.weight_bytes),
            "{name}: {}",
            report.weight_bytes
        );
        assert!(
            kept.is_none() || report.weight_bytes < floats / 2,
            "{name}: {}",
            report.weight_bytes
        );
    }
}

/// A matrix that is missing in one layer is found although nothing is read.
#[test]
fn a_layer_that_is_missing_is_named() {
    let mut about = about("SmolLM2-135M");
    let missing = "model.layers.{0..29}.mlp.up_proj.weight";
    let tensors = about["tensors"].as_object_mut().unwrap();
    let shape = tensors.remove(missing).unwrap();
    tensors.insert("model.layers.{0..28}.mlp.up_proj.weight".into(), shape);
    let report = report(write_directory(&about).path(), 8192);
    let problem = report.problems.join("\n");
    assert!(
        problem.contains("model.layers.29.mlp.up_proj.weight"),
        "{problem}"
    );
}

/// The largest of each kind, 16 GB and more, are inspected in a small part of that.
#[test]
fn inspecting_takes_little_memory() {
    const LARGEST: [&str; 5] = [
        "vicuna-7b-v1.5",
        "Idefics3-8B-Llama3",
        "llava-onevision-qwen2-7b-ov-hf",
        "InternVL3_5-8B-HF",
        "Qwen2.5-VL-7B-Instruct",
    ];
    for name in LARGEST {
        let dir = write_directory(&about(name));
        let peak = peak_of_inspecting(dir.path());
        assert!(
            (1..256 << 10).contains(&peak),
            "{name}: {peak} KiB at the peak"
        );
    }
}

/// The most memory that `inf_mllm inspect` takes, KiB.
fn peak_of_inspecting(dir: &Path) -> u64 {
    let mut command = Command::new(env!("CARGO_BIN_EXE_inf_mllm"));
    command.args(["inspect", "--json"]).arg(dir);
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    let exit = loop {
        // The high-water mark only rises: the last one seen is that of almost the whole run.
        peak = peak.max(peak_kib(&status).unwrap_or(0));
        match child.try_wait().unwrap() {
            Some(exit) => break exit,
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    assert!(exit.success());
    peak
}

fn peak_kib(status: &str) -> Option<u64> {
    let status = fs::read_to_string(status).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}
