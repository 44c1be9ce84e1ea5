//! What is no checkpoint, named by what it is.

use std::fs;

use serde_json::json;
use tempfile::TempDir;

use super::{edit, refused, with_instead, with_only, write, WEIGHTS};
use crate::support::{copy_tiny_to, tiny_copy};

#[test]
fn files_that_are_something_else_are_told_by_what_they_are() {
    const POINTER: &str =
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 526904\n";
    const PAGE: &str = "<!DOCTYPE html>\n<html><body>Sign in</body></html>\n";
    for name in [
        WEIGHTS,
        "tokenizer.json",
        "config.json",
        "chat_template.json",
    ] {
        for (text, words) in [
            (POINTER, ["Git LFS pointer", "git lfs pull"]),
            (PAGE, ["a web page", "hf download"]),
            (
                "Entry not found",
                ["a text in place of the file", "\"Entry not found\""],
            ),
        ] {
            let dir = tiny_copy();
            write(dir.path(), name, text);
            refused(dir.path(), &[&words[..], &[name]].concat());
        }
    }
    let dir = tiny_copy();
    write(dir.path(), "chat_template.jinja", POINTER);
    refused(dir.path(), &["chat_template.jinja", "git lfs pull"]);
    let dir = tiny_copy();
    fs::write(dir.path().join(WEIGHTS), b"PK\x03\x04 archive/data.pkl").unwrap();
    refused(dir.path(), &[WEIGHTS, "pickle", "never loaded"]);
}

#[test]
fn other_formats_are_named_with_what_lies_there() {
    for (files, words) in [
        (
            &["pytorch_model.bin"][..],
            &[
                "pytorch_model.bin",
                "pickles",
                "never loaded",
                "save_pretrained",
            ][..],
        ),
        (
            &[
                "pytorch_model-00001-of-00002.bin",
                "pytorch_model.bin.index.json",
            ],
            &["pickles", "00001-of-00002"],
        ),
        (
            &["onnx/decoder_model_merged.onnx", "onnx/vision_encoder.onnx"],
            &["onnx/vision_encoder.onnx", "ONNX"],
        ),
        (&["weights.npz"], &["weights.npz", "MLX"]),
        (&["tf_model.h5"], &["tf_model.h5", "TensorFlow"]),
        (
            &["openvino_model.xml", "openvino_model.bin"],
            &["openvino_model.xml", "OpenVINO"],
        ),
        (
            &["weights-a.safetensors"],
            &[
                "weights-a.safetensors",
                "under other names",
                "expected model.safetensors",
            ],
        ),
        (
            &[".cache/huggingface/download/model.safetensors.4d7a.incomplete"],
            &["incomplete", "not finished"],
        ),
    ] {
        let dir = with_instead(files);
        refused(
            dir.path(),
            &[words, &["model.safetensors is missing"]].concat(),
        );
    }
    // What is neither of these is listed.
    let dir = with_instead(&["notes.txt"]);
    refused(
        dir.path(),
        &[
            "model.safetensors is missing",
            "notes.txt",
            "tokenizer.json",
        ],
    );
    let empty = TempDir::new().unwrap();
    refused(empty.path(), &["config.json is missing", "it is empty"]);
    let above = TempDir::new().unwrap();
    copy_tiny_to(&above.path().join("tiny"));
    refused(
        above.path(),
        &["config.json is missing", "tiny/", "give that"],
    );
}

#[test]
fn adapters_and_policies_are_named_with_the_model_that_they_are_made_from() {
    let adapter = with_only(&[
        (
            "adapter_config.json",
            r#"{"peft_type": "LORA", "base_model_name_or_path": "org/base"}"#,
        ),
        ("adapter_model.safetensors", "binary"),
    ]);
    refused(
        adapter.path(),
        &[
            "adapter_config.json",
            "LoRA",
            "\"org/base\"",
            "merge_and_unload",
        ],
    );
    let policy = tiny_copy();
    let config = json!({
        "type": "smolvla",
        "input_features": {}, "output_features": {"action": {"type": "ACTION", "shape": [6]}},
        "vlm_model_name": "org/vlm",
    });
    write(policy.path(), "config.json", &config.to_string());
    refused(policy.path(), &["LeRobot", "\"smolvla\"", "\"org/vlm\""]);
}

#[test]
fn quantised_weights_are_named_with_what_to_take() {
    for (given, field, name) in [
        (
            json!({"quant_method": "bitsandbytes", "load_in_4bit": true}),
            "",
            "bitsandbytes with 4 bits",
        ),
        (json!({"quant_method": "mxfp4"}), "", "MXFP4"),
        (json!({"quant_method": "eetq"}), "", "EETQ"),
        (json!({"quant_method": "hqq"}), "", "HQQ"),
        (json!({"quant_method": "quanto"}), "", "Quanto"),
        (
            json!({"quant_method": "gptq", "bits": 2}),
            ".bits",
            "GPTQ with 2 bits",
        ),
        (
            json!({"quant_method": "gptq", "bits": 4, "is_marlin_format": true}),
            ".is_marlin_format",
            "GPTQ with 4 bits",
        ),
        (
            json!({"quant_method": "modelopt", "quant_algo": "NVFP4"}),
            ".quant_algo",
            "NVFP4",
        ),
        (
            json!({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}),
            ".format",
            "compressed-tensors",
        ),
    ] {
        let dir = tiny_copy();
        edit(dir.path(), "config.json", |config| {
            config["quantization_config"] = given;
        });
        refused(
            dir.path(),
            &[
                &format!("config.json: quantization_config{field} is"),
                name,
                "weights as floats",
                "q4_k",
                "GGUF",
            ],
        );
    }
    let dir = tiny_copy();
    edit(dir.path(), "config.json", |config| {
        config["quantization"] = json!({"group_size": 64, "bits": 4});
    });
    refused(dir.path(), &["config.json: quantization", "MLX", "4 bits"]);
}
