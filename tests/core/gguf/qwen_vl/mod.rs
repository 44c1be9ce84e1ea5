//! Qwen2-VL, Qwen2.5-VL and Qwen3-VL as llama.cpp's own converter writes them: the checkpoints of `tests/golden/families`, so that all
//! that is known of these must hold.
//!
//! - this file: numbers, sessions, commands
//! - `types`: decoders and projectors in other types than f32
//! - `refused`: what does not fit, and how it is told

mod refused;
mod types;

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::Value;
use candle_core::{DType, Device, Tensor};
use image::RgbImage;
use inf_mllm::model::mllm::Mllm;
use inf_mllm::model::vision::View;
use inf_mllm::stream::SessionConfig;
use serde_json::Value as Json;
use tempfile::TempDir;

use super::writer::{floats, size, File};
use crate::commands::{self, path, run, succeeded};
use crate::families::model::Model;
use crate::families::{check_bounded_cache, scenes, templates};
use crate::family_checks::check_same_answers;
use crate::support::{self, deviation, golden, json, tiny_config};

const FAMILIES: [(&str, &str); 3] = [
    ("qwen2_vl", "Qwen2-VL"),
    ("qwen2_5_vl", "Qwen2.5-VL"),
    ("qwen3_vl", "Qwen3-VL"),
];
const MODEL: &str = "model-f32.gguf";
const MMPROJ: &str = "mmproj-model-f32.gguf";

/// The converter's files.
fn converted(family: &str) -> PathBuf {
    golden("gguf").join(family)
}

/// The checkpoint that they were made from.
fn published(family: &str) -> PathBuf {
    golden("families").join(family)
}

fn decoder(family: &str) -> File {
    File::read(&converted(family).join(MODEL))
}

fn projector(family: &str) -> File {
    File::read(&converted(family).join(MMPROJ))
}

/// A directory with the two files.
fn pair(decoder: &File, projector: &File) -> TempDir {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join(MODEL), decoder.bytes()).unwrap();
    fs::write(dir.path().join(MMPROJ), projector.bytes()).unwrap();
    dir
}

/// A projector's file with the keys that converters leave out where the checkpoint has the published values, which the tiny ones have
/// not.
fn with_sizes(file: File, family: &str) -> File {
    let processor = json(&published(family).join("preprocessor_config.json"));
    let number = |one: &str, other: &str| {
        let number = processor[one]
            .as_u64()
            .or(processor["size"][other].as_u64());
        size(number.unwrap() as usize)
    };
    let file = file
        .set(
            "clip.vision.image_min_pixels",
            number("min_pixels", "shortest_edge"),
        )
        .set(
            "clip.vision.image_max_pixels",
            number("max_pixels", "longest_edge"),
        );
    let config = json(&published(family).join("config.json"));
    match config["vision_config"]["window_size"].as_u64() {
        Some(window) => file.set("clip.vision.window_size", size(window as usize)),
        None => file,
    }
}

fn sized(family: &str) -> TempDir {
    pair(&decoder(family), &with_sizes(projector(family), family))
}

#[test]
fn the_files_are_of_the_checkpoints_that_the_numbers_are_of() {
    let about = json(&golden("gguf/qwen_vl.json"));
    for (family, _) in FAMILIES {
        let forward = json(&published(family).join("golden/forward.json"));
        let made_from = &about[family]["model_sha256"];
        assert_eq!(*made_from, forward["model_sha256"], "{family}");
    }
}

#[test]
fn the_numbers_are_those_of_transformers() {
    for (family, name) in FAMILIES {
        let dir = sized(family);
        let model = Model::load(dir.path());
        let Model::Multimodal(loaded) = &model else {
            panic!("{family} has no vision")
        };
        assert_eq!(loaded.family.name, name);
        let published = published(family);
        assert_eq!(loaded.ends, support::load(&published).ends, "{family}");
        // Features, deeper features, positions, logits, greedy answers; the same after evictions.
        scenes::check_forward(&model, &published);
        check_bounded_cache(&model, &published);
        // Prompts from template and tokenizer, and pixel values.
        scenes::check_prompts(&model, &published);
        scenes::check_pixels(&model, &published);
        templates::check(&model, &published);
    }
}

fn sketch(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        image::Rgb([(x * 5) as u8, (y * 7) as u8, (x * y) as u8])
    })
}

/// All that a picture becomes.
fn features(model: &Mllm, picture: &RgbImage, view: View) -> Vec<Tensor> {
    let pixels = model.vision.pixels(&model.vision.prepare(picture, view));
    let features = model.vision.encode(&pixels.unwrap()).unwrap();
    let mut all = vec![features.rows];
    all.extend(features.deep);
    all
}

fn check_same_features(one: &Mllm, other: &Mllm, about: &str) {
    for (width, height) in [(130, 60), (8, 8)] {
        let picture = sketch(width, height);
        let pairs = features(one, &picture, View::Frame);
        let pairs = pairs
            .into_iter()
            .zip(features(other, &picture, View::Frame));
        for (one, other) in pairs {
            let off = deviation(&one, &other);
            assert!(off < 1e-5, "{about}, {width} x {height}: off by {off}");
        }
    }
}

/// A copy of the published checkpoint with the published sizes of pictures and windows, as the converter's files are read.
fn with_published_sizes(family: &str) -> TempDir {
    let copy = TempDir::new().unwrap();
    for entry in fs::read_dir(published(family)).unwrap() {
        let from = entry.unwrap().path();
        if from.is_file() {
            fs::copy(&from, copy.path().join(from.file_name().unwrap())).unwrap();
        }
    }
    let name = match family {
        "qwen3_vl" => "Qwen3-VL-2B-Instruct",
        _ => "Qwen2.5-VL-3B-Instruct",
    };
    let about = json(&golden("published").join(format!("{name}.json")));
    let edit = |file: &str, change: &dyn Fn(&mut Json)| {
        let file = copy.path().join(file);
        let mut value = json(&file);
        change(&mut value);
        fs::write(file, value.to_string()).unwrap();
    };
    edit("preprocessor_config.json", &|config| {
        for field in ["min_pixels", "max_pixels", "size"] {
            config[field] = about["preprocessor_config"][field].clone();
        }
    });
    if family == "qwen3_vl" {
        edit("video_preprocessor_config.json", &|config| {
            config["size"] = about["video_preprocessor_config"]["size"].clone();
        });
    }
    edit("config.json", &|config| {
        let window = &about["config"]["vision_config"]["window_size"];
        if window.is_number() {
            config["vision_config"]["window_size"] = window.clone();
        }
    });
    copy
}

#[test]
fn what_the_files_leave_out_is_as_published() {
    for (family, _) in FAMILIES {
        let published = with_published_sizes(family);
        let [one, other] = [converted(family).as_path(), published.path()].map(support::load);
        for size in [(1, 1), (20, 300), (640, 480), (4000, 3000)] {
            for view in [View::Image { of: 1 }, View::Frame] {
                let grids = [&one, &other].map(|model| model.vision.layout(size, view).grid);
                assert_eq!(grids[0], grids[1], "{family}, {size:?}, {view:?}");
            }
        }
        check_same_features(&one, &other, family);
    }
}

#[test]
fn every_policy_answers_as_with_the_published_checkpoint() {
    for (family, _) in FAMILIES {
        let dir = sized(family);
        let config = SessionConfig {
            // Which a directory may ask for and a file cannot.
            repetition_penalty: 1.0,
            frame_min_pixels: 800,
            frame_max_pixels: 1600,
            ..tiny_config()
        };
        check_same_answers(&config, [dir.path(), &published(family)]);
    }
}

const SCRIPT: &str = "
bag: test
system_prompt: Be brief.
instructions:
  - {id: a, at: 0.35, text: What is in view?}
";

#[test]
fn commands_run_them() {
    let out = TempDir::new().unwrap();
    commands::write_bag(out.path(), 6, None, true);
    let script = out.path().join("script.yaml");
    fs::write(&script, SCRIPT).unwrap();
    for (family, name) in FAMILIES {
        let dir = sized(family);
        let model = path(dir.path());
        // What such a file cannot say of frames.
        let limit = ["--frame-max-pixels", "1600"];
        let args = ["inspect", model, "--json", "--budget", "512"];
        let report = succeeded(&run(&[&args[..], &limit].concat()));
        let report: Json = serde_json::from_str(&report).unwrap();
        assert_eq!(report["family"], name, "{report}");
        for nothing in ["problems", "unused"] {
            assert_eq!(report[nothing], Json::Array(Vec::new()), "{family}");
        }

        let picture = published(family).join("golden/small.png");
        let said = |model: &Path| {
            let texts = [
                "--system",
                "You are a robot.",
                "--prompt",
                "What is in view?",
            ];
            let args = [
                "generate",
                "--model",
                path(model),
                "--image",
                path(&picture),
                // Which a directory may ask for and a file cannot.
                "--repetition-penalty",
                "1",
            ];
            let said = succeeded(&run(&[&args[..], &texts, &["--json"]].concat()));
            serde_json::from_str::<Json>(&said).unwrap()["generated_ids"].take()
        };
        let wanted = said(&published(family));
        assert!(!wanted.as_array().unwrap().is_empty(), "{family}");
        assert_eq!(said(dir.path()), wanted, "{family}");

        let file = out.path().join(format!("{family}.jsonl"));
        let args = [
            "replay",
            "--bag",
            path(out.path()),
            "--instructions",
            path(&script),
        ];
        let more = ["--model", model, "--out", path(&file), "--budget", "128"];
        succeeded(&run(&[&args[..], &more, &limit].concat()));
        let lines = fs::read_to_string(file).unwrap();
        let line: Json = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
        assert_eq!(line["frames_seen"], 4, "{line}");
        assert!(line["output_tokens"].as_u64().unwrap() > 0, "{line}");
    }
}

/// A projector of Qwen2-VL as the first converter wrote it.
fn by_the_first_converter() -> File {
    let rename = |name: String, tensor| {
        let name = match name.as_str() {
            up if up.contains(".ffn_up.") => up.replace(".ffn_up.", ".ffn_down."),
            down if down.contains(".ffn_down.") => down.replace(".ffn_down.", ".ffn_up."),
            _ => name,
        };
        (name, tensor)
    };
    let zeros = Tensor::zeros((10, 10), DType::F32, &Device::Cpu).unwrap();
    with_sizes(projector("qwen2_vl"), "qwen2_vl")
        .map(rename)
        .with("v.position_embd.weight", floats(&zeros))
        .set("clip.vision.feed_forward_length", size(0))
        .set("clip.has_qwen2vl_merger", Value::Bool(true))
        .set("clip.use_silu", Value::Bool(false))
        .set("clip.use_gelu", Value::Bool(false))
}

#[test]
fn a_file_by_the_first_converter_is_the_same_model() {
    let dir = pair(&decoder("qwen2_vl"), &by_the_first_converter());
    let published = published("qwen2_vl");
    scenes::check_forward(&Model::load(dir.path()), &published);
}
