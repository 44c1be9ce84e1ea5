//! Damaged, incomplete and unsupported checkpoints: an error that names the file and what is wrong, never a panic.

use std::fs;
use std::path::Path;

use inf_mllm::model::mllm::Mllm;
use proptest::prelude::*;
use serde_json::Value;

use crate::support::{self, json, tensors, tiny_copy};

fn try_load(dir: &Path) -> Result<Mllm, String> {
    support::try_load(dir).map_err(|error| error.to_string())
}

fn refused(dir: &Path, words: &[&str]) {
    let error = try_load(dir).err().expect("a damaged checkpoint loads");
    for word in words {
        assert!(error.contains(word), "{word:?} is not in: {error}");
    }
}

fn edit(dir: &Path, name: &str, change: impl FnOnce(&mut Value)) {
    let file = dir.join(name);
    let mut value = json(&file);
    change(&mut value);
    fs::write(file, value.to_string()).unwrap();
}

#[test]
fn a_whole_copy_loads() {
    assert!(try_load(tiny_copy().path()).is_ok());
}

#[test]
fn a_missing_directory_or_file_is_named() {
    refused(
        Path::new("no/such/model"),
        &["no/such/model", "no such file or folder"],
    );
    for name in [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "preprocessor_config.json",
    ] {
        let dir = tiny_copy();
        fs::remove_file(dir.path().join(name)).unwrap();
        refused(dir.path(), &[name, "missing"]);
    }
    let dir = tiny_copy();
    for entry in fs::read_dir(dir.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.to_string_lossy().contains("chat_template") {
            fs::remove_file(path).unwrap();
        }
    }
    edit(dir.path(), "tokenizer_config.json", |config| {
        config.as_object_mut().unwrap().remove("chat_template");
    });
    refused(dir.path(), &["chat template"]);
}

#[test]
fn half_copied_weights_are_refused() {
    let dir = tiny_copy();
    let file = dir.path().join("model.safetensors");
    let bytes = fs::read(&file).unwrap();
    for length in [0, 4, 100, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&file, &bytes[..length]).unwrap();
        refused(
            dir.path(),
            &["model.safetensors", "not a whole safetensors"],
        );
    }
}

#[test]
fn a_missing_or_misshapen_tensor_is_named() {
    let name = "model.text_model.layers.1.self_attn.k_proj.weight";
    let save = |dir: &Path, tensors: &std::collections::HashMap<String, candle_core::Tensor>| {
        candle_core::safetensors::save(tensors, dir.join("model.safetensors")).unwrap();
    };
    let dir = tiny_copy();
    let mut weights = tensors(&dir.path().join("model.safetensors"));
    let tensor = weights.remove(name).unwrap();
    save(dir.path(), &weights);
    refused(dir.path(), &[name]);
    weights.insert(name.to_string(), tensor.narrow(0, 0, 5).unwrap());
    save(dir.path(), &weights);
    refused(dir.path(), &[name, "shape"]);
}

#[test]
fn an_index_that_names_a_missing_shard_is_refused() {
    let dir = tiny_copy();
    fs::rename(
        dir.path().join("model.safetensors"),
        dir.path().join("model-00001-of-00002.safetensors"),
    )
    .unwrap();
    fs::write(
        dir.path().join("model.safetensors.index.json"),
        r#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#,
    )
    .unwrap();
    refused(dir.path(), &["model-00002-of-00002.safetensors", "missing"]);
}

#[test]
fn unsupported_configurations_are_named_with_value_and_expectation() {
    let unsupported = |change: fn(&mut Value), words: &[&str]| {
        let dir = tiny_copy();
        edit(dir.path(), "config.json", change);
        refused(dir.path(), words);
        refused(dir.path(), &["config.json", "expected"]);
    };
    unsupported(|c| c["model_type"] = "blip".into(), &["model_type", "blip"]);
    unsupported(
        |c| c["text_config"]["hidden_act"] = "gelu".into(),
        &["text_config.hidden_act", "gelu"],
    );
    unsupported(
        |c| {
            c["text_config"]["rope_scaling"] =
                serde_json::json!({"rope_type": "longrope", "factor": 2.0})
        },
        &["rope_type", "longrope"],
    );
    unsupported(
        |c| c["text_config"]["rope_scaling"] = serde_json::json!({"rope_type": "yarn"}),
        &["rope factor", "missing"],
    );
    unsupported(
        |c| c["text_config"]["num_key_value_heads"] = 4.into(),
        &["num_key_value_heads", "4", "divisor"],
    );
    unsupported(
        |c| c["text_config"]["rope_scaling"] = serde_json::json!({"type": "linear", "factor": 0.0}),
        &["rope factor", "0", "positive"],
    );
    unsupported(
        |c| c["text_config"]["model_type"] = "gemma".into(),
        &["text_config.model_type", "gemma"],
    );
    unsupported(
        |c| c["text_config"]["rms_norm_eps"] = (-1e-5).into(),
        &["text_config.rms_norm_eps", "-0.00001", "from 0 on"],
    );
    unsupported(
        |c| c["text_config"]["max_position_embeddings"] = 0.into(),
        &["text_config.max_position_embeddings", "0"],
    );
    unsupported(
        |c| c["vision_config"]["layer_norm_eps"] = (-1.0).into(),
        &["vision_config.layer_norm_eps", "-1"],
    );
    unsupported(
        |c| c["vision_config"]["patch_size"] = serde_json::json!([8, 16]),
        &["[8,16]", "equal"],
    );
    unsupported(|c| c["scale_factor"] = 4.into(), &["scale_factor", "4"]);
    unsupported(
        |c| c["vision_config"]["num_attention_heads"] = 0.into(),
        &["num_attention_heads"],
    );
    unsupported(
        |c| c["vision_config"]["image_size"] = 200.into(),
        &["image_size", "200"],
    );
    let dir = tiny_copy();
    edit(dir.path(), "config.json", |c| {
        c["image_token_id"] = 7.into()
    });
    refused(dir.path(), &["<image>", "7"]);
}

#[test]
fn a_tokenizer_of_another_model_is_refused() {
    let dir = tiny_copy();
    edit(dir.path(), "tokenizer.json", |tokenizer| {
        let added = tokenizer["added_tokens"].as_array_mut().unwrap();
        added.retain(|token| token["content"] != "<end_of_utterance>");
    });
    refused(dir.path(), &["tokenizer.json", "<global-img>", "302"]);
    let dir = tiny_copy();
    edit(dir.path(), "tokenizer.json", |tokenizer| {
        tokenizer["added_tokens"].as_array_mut().unwrap().pop();
    });
    refused(dir.path(), &["tokenizer.json", "<global-img>", "missing"]);
    let dir = tiny_copy();
    edit(dir.path(), "config.json", |c| {
        c["text_config"]["vocab_size"] = 100.into()
    });
    refused(dir.path(), &["vocabulary", "100"]);
}

#[test]
fn a_configuration_that_the_weights_do_not_have_is_named() {
    let dir = tiny_copy();
    edit(dir.path(), "config.json", |c| {
        c["text_config"]["attention_bias"] = true.into();
    });
    refused(dir.path(), &["q_proj.bias", "missing"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn damaged_files_never_panic(
        name in prop::sample::select(vec![
            "config.json", "tokenizer.json", "preprocessor_config.json", "chat_template.json", "model.safetensors",
        ]),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let dir = tiny_copy();
        let file = dir.path().join(name);
        let mut bytes = fs::read(&file).unwrap();
        // Only the header of the weights can mislead a parser.
        let reach = bytes.len().min(8192);
        for (at, value) in damage {
            bytes[at.index(reach)] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        fs::write(&file, bytes).unwrap();
        let _ = try_load(dir.path());
    }
}
