//! The numbers of the report, and what stands in the way of running.

use std::fs;

use candle_core::Device;
use inf_mllm::model::checkpoint::Checkpoint;
use inf_mllm::model::mllm::Mllm;
use inf_mllm::model::precision::Precision;
use inf_mllm::model::weights::Quantization;
use safetensors::SafeTensors;
use serde_json::{json, Value};

use super::{complete, inspect, path, WEIGHTS};
use crate::support::{demo_dir, picture, tiny_dir, tiny_session};

#[test]
fn what_the_node_would_refuse_of_the_budget_is_a_problem() {
    let model = tiny_dir();
    let context = complete(&[path(&model)])["context"].as_u64().unwrap();
    complete(&[path(&model), "--budget", &context.to_string()]);
    for (budget, expected) in [
        (context + 1, format!("at most {context}")),
        (20, "at least".to_string()),
    ] {
        let budget = budget.to_string();
        let output = inspect(&[path(&model), "--budget", &budget, "--json"]);
        assert_eq!(output.status.code(), Some(1));
        let report = serde_json::from_slice::<Value>(&output.stdout).unwrap();
        let problem = report["problems"][0].as_str().unwrap();
        let words = ["budget", &budget, &expected];
        assert!(words.iter().all(|word| problem.contains(word)), "{problem}");
        // All else is told too.
        assert_eq!(report["context"], context);
        assert_eq!(report["frames"].as_array().unwrap().len(), 4);
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.contains(problem), "{error}");
        assert!(!error.contains("complete"), "{error}");
    }
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_device_that_is_missing_is_no_fault_of_the_checkpoint() {
    let output = inspect(&[path(&tiny_dir()), "--device", "cuda"]);
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        error.contains("device cuda cannot be used: this build has no CUDA"),
        "{error}"
    );
    assert!(!error.contains("complete"), "{error}");
}

#[test]
fn a_frame_is_counted_with_all_that_it_takes_in_the_stream() {
    let report = complete(&[path(&tiny_dir())]);
    let frames = report["frames"].as_array().unwrap();
    let counted = |field: &str| frames[0][field].as_u64().unwrap() as usize;
    let mut session = tiny_session();
    let mut took = |stamp_ms: i64| {
        let before = session.usage().used;
        session
            .push_frame(&picture(stamp_ms, [9, 90, 200]))
            .unwrap();
        session.usage().used - before
    };
    assert_eq!(took(1000), counted("opening_tokens"));
    assert_eq!(took(1100), counted("tokens"));
    assert!(counted("image_tokens") < counted("tokens"));
    let report = complete(&[path(&demo_dir())]);
    for frame in report["frames"].as_array().unwrap() {
        let counts = ["image_tokens", "tokens", "opening_tokens"].map(|field| &frame[field]);
        assert_eq!(counts, [&json!(9), &json!(19), &json!(21)]);
    }
}

#[test]
fn blocks_take_what_they_are_laid_out_as_for_the_products_of_the_cpu() {
    let told = |quantization: Quantization| {
        let report = complete(&[
            path(&demo_dir()),
            "--quantization",
            quantization.name(),
            "--dtype",
            "f32",
        ]);
        assert_eq!(report["repacked_bytes"], 0, "{quantization}");
        report["weight_bytes"].as_u64().unwrap()
    };
    let taken = |quantization: Quantization| {
        let checkpoint = Checkpoint::open(&demo_dir()).unwrap();
        let mut model =
            Mllm::load(&checkpoint, quantization, Precision::F32, &Device::Cpu).unwrap();
        model.decoder.lay_out_for(None).unwrap();
        model.decoder.weight_bytes() as u64
    };
    let floats = (told(Quantization::None), taken(Quantization::None));
    for quantization in [Quantization::Q8_0, Quantization::Q4K] {
        // What the tower takes is the same in both.
        let saved = floats.0 - told(quantization);
        assert_eq!(saved, floats.1 - taken(quantization), "{quantization}");
        assert!(saved > floats.1 / 2, "{quantization}");
    }
}

#[test]
fn memory_is_that_of_the_type_and_the_blocks_asked_for() {
    let demo = demo_dir();
    let of = |args: &[&str]| complete(&[&[path(&demo)], args].concat());
    let (f32, f16) = (of(&["--dtype", "f32"]), of(&["--dtype", "f16"]));
    let bytes = |report: &Value, field: &str| report[field].as_u64().unwrap();
    assert_eq!(bytes(&f32, "cache_bytes"), 2 * bytes(&f16, "cache_bytes"));
    // Rows of 32 numbers: 32 bytes, a scale of 2 and 2 of padding.
    let q8 = of(&["--kv-storage", "q8"]);
    let row = (4 * 32, 32 + 2 + 2);
    assert_eq!(
        row.1 * bytes(&f32, "cache_bytes"),
        row.0 * bytes(&q8, "cache_bytes")
    );
    // SmolVLM's tower computes in f32 on the CPU whatever the rest does.
    let file = fs::read(demo.join(WEIGHTS)).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let tower = tensors
        .iter()
        .filter(|(name, _)| name.starts_with("model.vision_model."))
        .map(|(_, tensor)| 4 * tensor.shape().iter().product::<usize>() as u64)
        .sum::<u64>();
    assert_eq!(f16["kept"]["f32"]["bytes"], tower);
    assert_eq!(
        bytes(&f32, "weight_bytes") - tower,
        2 * (bytes(&f16, "weight_bytes") - tower)
    );
    assert_eq!(f16["dtype"], "f16");
    // The CPU rounds to bf16 and computes in f32.
    let bf16 = of(&["--dtype", "bf16"]);
    assert_eq!(bf16["weight_bytes"], f32["weight_bytes"]);
    assert_eq!(
        (&bf16["dtype"], &bf16["device"]),
        (&json!("f32"), &json!("cpu"))
    );
    let error = inspect(&[path(&demo), "--dtype", "f8"]);
    assert!(
        String::from_utf8_lossy(&error.stderr).contains("f8"),
        "an unknown type"
    );
}
