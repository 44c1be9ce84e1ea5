//! Cosmos 3: checkpoints that are pipelines of diffusers, of which only what answers is read.

use std::fs;
use std::path::Path;

use inf_mllm::model::DeviceKind;
use inf_mllm::stream::grammar::{Chat, Grammar};
use inf_mllm::stream::inspect::{Options, Report};
use inf_mllm::stream::SessionConfig;
use tempfile::TempDir;

use crate::support::{golden, json, load, tensors, try_load};
use crate::variants::copy;

fn refused(dir: &Path, words: &[&str]) {
    let error = try_load(dir).err().expect("a damaged checkpoint loads");
    let error = error.to_string();
    for word in words {
        assert!(error.contains(word), "{word:?} is not in: {error}");
    }
}

fn report(dir: &Path) -> Report {
    let mut session = SessionConfig {
        device: DeviceKind::Cpu,
        ..SessionConfig::default()
    };
    session.cache.budget = 512;
    Report::of(
        dir,
        &Options {
            session: &session,
            memory: None,
        },
    )
}

/// The generators are known by their names and told apart from what is strange.
#[test]
fn the_other_parts_are_left_alone_and_told() {
    let dir = copy("cosmos3_omni");
    let whole = report(dir.path());
    assert!(whole.complete(), "{:?}", whole.problems);
    assert_eq!(whole.family, "Cosmos 3");
    let parts = whole.left_alone.iter();
    let parts = parts.map(|(part, amount)| (part.as_str(), amount.tensors));
    let wanted = [
        ("generator of actions", 5),
        ("generator of pictures and videos", 3 * 11 + 1 + 4 + 4),
        ("generator of sound", 5),
    ];
    assert!(parts.eq(wanted), "{:?}", whole.left_alone);
    assert!(whole.unused.is_empty(), "{:?}", whole.unused);
    let told = whole.to_string();
    for word in ["left alone", "generator of sound: 5 tensors"] {
        assert!(told.contains(word), "{word:?} is not in: {told}");
    }

    let shard = dir.path().join("vision_encoder/model.safetensors");
    let mut tower = tensors(&shard);
    tower.insert(
        "blocks.7.strange.weight".to_string(),
        tower["pos_embed.weight"].clone(),
    );
    candle_core::safetensors::save(&tower, &shard).unwrap();
    let strange = report(dir.path());
    assert_eq!(strange.unused, ["model.visual.blocks.7.strange.weight"]);
    assert_eq!(strange.weight_bytes, whole.weight_bytes);
}

/// A pipeline has a folder for each part, and its index names files in them.
#[test]
fn an_index_names_files_in_folders_and_none_outside() {
    let dir = copy("cosmos3_omni");
    let index = "model.safetensors.index.json";
    let whole = json(&dir.path().join(index));
    let place = |file: &str| {
        let mut index = whole.clone();
        index["weight_map"]["pos_embed.weight"] = file.into();
        fs::write(
            dir.path().join("model.safetensors.index.json"),
            index.to_string(),
        )
        .unwrap();
    };
    let tower = "vision_encoder/model.safetensors";
    let outside = TempDir::new().unwrap();
    let copied = outside.path().join("model.safetensors");
    fs::copy(dir.path().join(tower), &copied).unwrap();
    for file in [
        "../model.safetensors",
        "vision_encoder/../../model.safetensors",
        "vision_encoder/..",
        copied.to_str().unwrap(),
        "/",
        "",
        ".",
    ] {
        place(file);
        refused(dir.path(), &[index, "within the folder", file]);
    }
    place("vision_encoder/other.safetensors");
    refused(dir.path(), &["vision_encoder/other.safetensors", "missing"]);
    place("vision_encoder");
    refused(dir.path(), &["vision_encoder", "a folder"]);
    place("./vision_encoder/model.safetensors");
    refused(dir.path(), &["is there twice"]);
    place(tower);
    load(dir.path());
    // What a tensor would be called is no way to another one's place.
    let shard = dir.path().join(tower);
    let mut tower = tensors(&shard);
    let double = tower["pos_embed.weight"].clone();
    tower.insert("model.visual.pos_embed.weight".to_string(), double);
    candle_core::safetensors::save(&tower, &shard).unwrap();
    refused(dir.path(), &["pos_embed.weight", "is there twice"]);
}

/// Older snapshots of Cosmos 3 have the tokenizer in the pipeline's folder alone.
#[test]
fn the_tokenizer_of_a_pipeline_is_found_in_its_folder() {
    let dir = copy("cosmos3_omni");
    let folder = dir.path().join("text_tokenizer");
    fs::create_dir(&folder).unwrap();
    let names = [
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.json",
    ];
    for name in names {
        fs::rename(dir.path().join(name), folder.join(name)).unwrap();
    }
    let prefix = |dir: &Path| {
        let model = load(dir);
        let chat = Chat::of(&model).unwrap();
        let mut grammar = Grammar::new(chat);
        let text = grammar.prefix("Be brief.", &model.tokenizer);
        model.tokenizer.encode(&text).unwrap()
    };
    assert_eq!(prefix(dir.path()), prefix(&golden("families/cosmos3_omni")));
    fs::remove_file(folder.join("tokenizer.json")).unwrap();
    refused(dir.path(), &["tokenizer.json", "missing"]);
}
