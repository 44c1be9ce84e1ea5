//! LFM2-VL and LFM2.5-VL as llama.cpp's own converter writes them: the checkpoints of `tests/golden/families`, so that all that is known of
//! these must hold. What such files do not say, the limits of pictures and their tiles, is as published.

use std::fs;
use std::path::PathBuf;

use candle_core::quantized::gguf_file::Value;
use image::RgbImage;
use inf_mllm::model::mllm::Mllm;
use inf_mllm::model::vision::View;
use inf_mllm::stream::SessionConfig;
use tempfile::TempDir;

use super::writer::{size, text, File};
use crate::commands::{path, run, succeeded};
use crate::family_checks::check_same_answers;
use crate::support::{self, deviation, golden, json, logits, tiny_config, try_load};
use crate::variants::copy;

/// The family's folder, the name of a published checkpoint of it.
const FAMILIES: [(&str, &str); 2] = [("lfm2_vl", "LFM2-VL-450M"), ("lfm2_5_vl", "LFM2.5-VL-450M")];
const MODEL: &str = "model-f32.gguf";
const MMPROJ: &str = "mmproj-model-f32.gguf";

fn converted(family: &str) -> PathBuf {
    golden("gguf").join(family)
}

fn file(family: &str, name: &str) -> File {
    File::read(&converted(family).join(name))
}

/// The checkpoint that they were made from, with the published limits of pictures.
fn published(family: &str, name: &str) -> TempDir {
    let dir = copy(family);
    let about = json(&golden("published").join(format!("{name}.json")));
    let file = dir.path().join("preprocessor_config.json");
    let mut config = json(&file);
    for (field, value) in about["preprocessor_config"].as_object().unwrap() {
        if field != "encoder_patch_size" {
            config[field] = value.clone();
        }
    }
    fs::write(file, config.to_string()).unwrap();
    dir
}

#[test]
fn the_files_are_of_the_checkpoints_that_the_numbers_are_of() {
    let about = json(&golden("gguf/lfm2.json"));
    for (family, _) in FAMILIES {
        let forward = json(&golden("families").join(family).join("golden/forward.json"));
        let made_from = &about[family]["model_sha256"];
        assert_eq!(*made_from, forward["model_sha256"], "{family}");
    }
}

/// The converter's files and the checkpoint with the limits that they are read with.
fn both(family: &str, name: &str) -> ([Mllm; 2], TempDir) {
    let checkpoint = published(family, name);
    let models = [converted(family).as_path(), checkpoint.path()].map(support::load);
    (models, checkpoint)
}

#[test]
fn the_decoder_is_that_of_the_checkpoint() {
    for (family, name) in FAMILIES {
        let (models, _checkpoint) = both(family, name);
        let [one, other] = &models;
        assert_eq!(one.family.name, other.family.name, "{family}");
        let [shape, wanted] = [one, other].map(|it| {
            let shape = it.shape;
            (
                shape.layers,
                shape.kv_heads,
                shape.head_dim,
                shape.states.layers,
            )
        });
        assert_eq!(shape, wanted, "{family}");
        // Of a file the end of all text is one, too.
        let ends = other.ends.ids().iter();
        assert!(ends.clone().all(|&id| one.ends.contains(id)), "{family}");
        assert_eq!(one.placeholders, other.placeholders, "{family}");
        for ids in [vec![1], (3..90).collect::<Vec<u32>>()] {
            let [one, other] = [one, other].map(|it| logits(&it.decoder, it.shape, &ids));
            let off = deviation(&one, &other);
            assert!(off < 1e-5, "{family}: off by {off}");
        }
        let texts = ["What is in view?", "the red box's side", "Grüße, 世界"];
        for text in texts {
            let [one, other] = [one, other].map(|it| it.tokenizer.encode(text).unwrap());
            assert_eq!(one, other, "{family}: {text}");
        }
    }
}

#[test]
fn the_tower_is_that_of_the_checkpoint() {
    for (family, name) in FAMILIES {
        let (models, _checkpoint) = both(family, name);
        // An image of this size is cut into many tiles, which takes a while to compute.
        let [one, other] = models.each_ref().map(|model| {
            let vision = &model.vision;
            vision.markup(&vision.layout((1400, 300), View::Image { of: 1 }))
        });
        assert!(one.contains("<|img_row_1_col_2|>"), "{one}");
        assert_eq!(one, other, "{family}");
        let sketch = RgbImage::from_fn(200, 130, |x, y| {
            image::Rgb([(x * 5) as u8, (y * 7) as u8, (x * y) as u8])
        });
        for view in [View::Frame, View::Image { of: 1 }] {
            let [one, other] = models.each_ref().map(|model| {
                let prepared = model.vision.prepare(&sketch, view);
                let markup = model.vision.markup(&prepared.layout);
                let pixels = model.vision.pixels(&prepared).unwrap();
                (markup, model.vision.encode(&pixels).unwrap().rows)
            });
            assert_eq!(one.0, other.0, "{family}, {view:?}");
            let off = deviation(&one.1, &other.1);
            assert!(off < 1e-5, "{family}, {view:?}: off by {off}");
        }
    }
}

#[test]
fn every_policy_answers_as_with_the_checkpoint() {
    for (family, name) in FAMILIES {
        let checkpoint = published(family, name);
        let config = SessionConfig {
            frame_max_pixels: 1024,
            ..tiny_config()
        };
        check_same_answers(&config, [&converted(family), checkpoint.path()]);
    }
}

#[test]
fn commands_run_them() {
    for (family, _) in FAMILIES {
        let model = converted(family);
        let args = ["inspect", path(&model), "--budget", "512"];
        let report = succeeded(&run(&[&args[..], &["--frame-max-pixels", "1024"]].concat()));
        for line in ["LFM2-VL, decoder lfm2", "complete              yes"] {
            assert!(report.contains(line), "{report}");
        }
        let args = ["generate", "--model", path(&model), "--prompt", "Where?"];
        let said = succeeded(&run(&[&args[..], &["--max-new-tokens", "4"]].concat()));
        assert!(!said.is_empty(), "{family}");
    }
}

/// Neither file is read as if it were whole: the error names the file and what is wrong.
fn refused(decoder: &File, projector: &File, words: &[&str]) {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join(MODEL), decoder.bytes()).unwrap();
    fs::write(dir.path().join(MMPROJ), projector.bytes()).unwrap();
    let error = try_load(dir.path()).err().expect("it loads").to_string();
    for word in words {
        assert!(error.contains(word), "{word:?} is not in: {error}");
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let decoder = || file("lfm2_vl", MODEL);
    let projector = || file("lfm2_vl", MMPROJ);
    let heads = "lfm2.attention.head_count_kv";
    let of_layers = |numbers: &[i32]| {
        let numbers = numbers.iter().map(|&n| Value::I32(n)).collect();
        decoder().set(heads, Value::Array(numbers))
    };
    for (numbers, words) in [
        (&[0, 2, 0][..], &["length of", "3", "expected 4"][..]),
        (&[0, 2, 0, 3], &["3", "2 or 0"]),
        (&[0, 0, 0, 0], &["0"]),
        (&[0, -2, 0, 2], &["-2", "a whole number"]),
        (&[2, 0, 2, 0], &["has no place"]),
    ] {
        refused(&of_layers(numbers), &projector(), words);
    }
    refused(
        &decoder().set(heads, size(2)),
        &projector(),
        &[heads, "an array"],
    );
    let width = "lfm2.shortconv.l_cache";
    refused(
        &decoder().without(width),
        &projector(),
        &[MODEL, width, "missing"],
    );
    refused(
        &decoder().set(width, size(4)),
        &projector(),
        &["shortconv.conv.weight"],
    );
    refused(
        &decoder().set(width, size(1)),
        &projector(),
        &["1", "2 to 64"],
    );
    for name in [
        "v.patch_embd.weight",
        "v.position_embd.weight",
        "mm.1.weight",
        "mm.input_norm.bias",
    ] {
        refused(&decoder(), &projector().without(name), &[MMPROJ, name]);
    }
    let other = projector().set("clip.projector_type", text("idefics3"));
    refused(&decoder(), &other, &["idefics3", "lfm2"]);
    let factor = "clip.vision.projector.scale_factor";
    refused(
        &decoder(),
        &projector().set(factor, size(4)),
        &["mm.input_norm"],
    );
}
