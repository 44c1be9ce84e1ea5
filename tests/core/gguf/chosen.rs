//! Which files are meant, where a place holds several.

use std::fs;
use std::path::Path;

use candle_core::{Device, Tensor};
use inf_mllm::model::checkpoint::{Checkpoint, ChosenFiles};
use inf_mllm::model::mllm::Mllm;
use inf_mllm::model::precision::Precision;
use inf_mllm::model::text::TextModel;
use inf_mllm::model::weights::Quantization;
use inf_mllm::stream::{Session, SessionConfig};
use tempfile::TempDir;

use super::projector::{mmproj, pair, smolvlm, MMPROJ};
use super::writer::{floats, File};
use crate::support::{copy_tiny_to, golden, tiny_config, tiny_copy};

fn open(place: &Path, model: &str, projector: &str) -> Result<Checkpoint, String> {
    let chosen = ChosenFiles {
        model: model.to_string(),
        projector: projector.to_string(),
    };
    Checkpoint::open_chosen(place, &chosen).map_err(|error| error.to_string())
}

fn load(place: &Path, model: &str, projector: &str) -> Result<Mllm, String> {
    let checkpoint = open(place, model, projector)?;
    let loaded = Mllm::load(
        &checkpoint,
        Quantization::Auto,
        Precision::F32,
        &Device::Cpu,
    );
    loaded.map_err(|error| error.to_string())
}

fn refused(place: &Path, model: &str, projector: &str, words: &[&str]) {
    let error = load(place, model, projector).err().expect("it loads");
    for word in words {
        assert!(error.contains(word), "{word:?} is not in: {error}");
    }
}

/// A folder with two quantisations of a decoder and two towers.
fn several() -> TempDir {
    let dir = pair(&smolvlm(), &mmproj("mmproj-smolvlm"));
    let copy = |from: &str, to: &str| fs::copy(dir.path().join(from), dir.path().join(to));
    copy("decoder.gguf", "decoder-Q4_0.gguf").unwrap();
    copy(MMPROJ, "mmproj-other.gguf").unwrap();
    dir
}

#[test]
fn several_are_listed_with_sizes_and_types_and_chosen_by_name() {
    let dir = several();
    fs::write(
        dir.path().join("decoder-Q8_0.gguf"),
        "version https://git-lfs.github.com/spec/v1\n",
    )
    .unwrap();
    let size = |name: &str| fs::metadata(dir.path().join(name)).unwrap().len() as f64 * 1e-6;
    let decoder = format!("(llama, {:.1} MB, F32)", size("decoder.gguf"));
    refused(
        dir.path(),
        "",
        "",
        &[
            "several decoders",
            "model_file",
            &format!("decoder-Q4_0.gguf {decoder}"),
            &format!("decoder.gguf {decoder}"),
            "decoder-Q8_0.gguf (not a GGUF file",
            "git lfs pull",
        ],
    );
    let tower = format!("mmproj-other.gguf (clip, {:.1} MB, ", size(MMPROJ));
    refused(
        dir.path(),
        "decoder-Q4_0.gguf",
        "",
        &["several vision towers", "projector_file", &tower, MMPROJ],
    );
    for projector in ["mmproj-other.gguf", MMPROJ] {
        let checkpoint = open(dir.path(), "decoder-Q4_0.gguf", projector).unwrap();
        assert!(checkpoint
            .path("tokenizer.json")
            .ends_with("decoder-Q4_0.gguf"));
        assert!(checkpoint
            .path("preprocessor_config.json")
            .ends_with(projector));
        load(dir.path(), "decoder-Q4_0.gguf", projector).unwrap();
        // The file of a decoder as the model, and the tower by its name beside it.
        let file = dir.path().join("decoder.gguf");
        let checkpoint = open(&file, "", projector).unwrap();
        assert!(checkpoint
            .path("preprocessor_config.json")
            .ends_with(projector));
    }
    // Where there is one decoder, the tower alone is to be chosen.
    for name in ["decoder-Q4_0.gguf", "decoder-Q8_0.gguf"] {
        fs::remove_file(dir.path().join(name)).unwrap();
    }
    refused(
        dir.path(),
        "",
        "",
        &["several vision towers", "projector_file"],
    );
    load(dir.path(), "", MMPROJ).unwrap();
    // So the parameters of a session.
    let config = |projector: &str| SessionConfig {
        model_dir: dir.path().to_path_buf(),
        model_file: "decoder.gguf".to_string(),
        projector_file: projector.to_string(),
        ..tiny_config()
    };
    assert_eq!(
        Session::new(config(MMPROJ))
            .err()
            .map(|error| error.to_string()),
        None
    );
    assert!(Session::new(config("")).is_err());
}

#[test]
fn names_lead_to_files_within_the_place_alone() {
    let dir = several();
    let outside = TempDir::new().unwrap();
    fs::copy(
        dir.path().join("decoder.gguf"),
        outside.path().join("out.gguf"),
    )
    .unwrap();
    let out = outside.path().join("out.gguf");
    let way_out = format!(
        "../{}/out.gguf",
        outside.path().file_name().unwrap().to_str().unwrap()
    );
    for name in [
        out.to_str().unwrap(),
        &way_out,
        "a/../../out.gguf",
        "..",
        "a/..",
        "/",
    ] {
        let told = format!(
            "{name:?}, expected the name of a file within {}",
            dir.path().display()
        );
        refused(dir.path(), name, "", &["model_file is", &told]);
        refused(
            dir.path(),
            "decoder.gguf",
            name,
            &["projector_file is", &told],
        );
    }
    // The whole path of a file in it is one of its names.
    let inside = dir.path().join("decoder.gguf");
    load(dir.path(), inside.to_str().unwrap(), MMPROJ).unwrap();
    let absent = "a file within";
    refused(
        dir.path(),
        "decoder-Q5_0.gguf",
        "",
        &[
            "model_file is \"decoder-Q5_0.gguf\"",
            absent,
            "decoder-Q4_0.gguf, decoder.gguf",
        ],
    );
    refused(
        dir.path(),
        "decoder.gguf",
        "mmproj",
        &["projector_file is \"mmproj\"", absent, MMPROJ],
    );
    for name in ["a\0b", "\n", &"a".repeat(5000)] {
        refused(dir.path(), name, "", &["model_file is", absent]);
    }
    fs::create_dir(dir.path().join("folder")).unwrap();
    for (name, reason) in [
        (".", "expected the name of a file within"),
        ("./", "expected the name of a file within"),
        ("folder", "a folder, expected a file"),
    ] {
        refused(dir.path(), name, "", &["model_file is", reason]);
    }
    refused(
        &inside,
        "decoder.gguf",
        "",
        &["model_file is", "none where the model is a file"],
    );
}

#[test]
fn files_in_folders_are_chosen_with_their_folders() {
    let dir = pair(&smolvlm(), &mmproj("mmproj-smolvlm"));
    fs::create_dir(dir.path().join("Q4_0")).unwrap();
    let name = "Q4_0/decoder-00001-of-00002.gguf";
    for (no, file) in smolvlm().split(0, 2).iter().enumerate() {
        let name = format!("Q4_0/decoder-{:05}-of-00002.gguf", no + 1);
        fs::write(dir.path().join(name), file.bytes()).unwrap();
    }
    fs::remove_file(dir.path().join("decoder.gguf")).unwrap();
    refused(dir.path(), "no.gguf", "", &[name, MMPROJ]);
    // The tower is the one of the place, as there is none in the folder.
    load(dir.path(), name, "").unwrap();
    load(dir.path(), "Q4_0/decoder-00002-of-00002.gguf", MMPROJ).unwrap();
}

#[test]
fn a_file_of_another_kind_is_refused_by_what_it_is() {
    let dir = several();
    refused(
        dir.path(),
        MMPROJ,
        "",
        &[MMPROJ, "a vision tower", "expected the file of the decoder"],
    );
    refused(
        dir.path(),
        "decoder.gguf",
        "decoder-Q4_0.gguf",
        &[
            "decoder-Q4_0.gguf",
            "a decoder, expected the file of a vision tower",
        ],
    );
    // A tower of another decoder.
    fs::copy(mmproj("mmproj-llava"), dir.path().join("llava.gguf")).unwrap();
    fs::write(dir.path().join("narrow.gguf"), File::decoder().bytes()).unwrap();
    refused(
        dir.path(),
        "narrow.gguf",
        "llava.gguf",
        &["llava.gguf", "mm.2.weight has 48 rows, expected 32"],
    );
    for (name, text, word) in [
        (
            "pointer.gguf",
            "version https://git-lfs.github.com/spec/v1\n",
            "git lfs pull",
        ),
        ("page.gguf", "<!doctype html><html></html>", "web page"),
        ("model.onnx", "\x08\x07\x12\x07pytorch", "an ONNX graph"),
        ("pytorch_model.bin", "PK\x03\x04", "pickle"),
    ] {
        fs::write(dir.path().join(name), text).unwrap();
        refused(dir.path(), name, "", &[name, word]);
        refused(dir.path(), "decoder.gguf", name, &[name, word]);
    }
}

#[test]
fn weights_of_a_published_directory_are_chosen_too() {
    let dir = tiny_copy();
    let (usual, other) = (
        dir.path().join("model.safetensors"),
        dir.path().join("model.fp16.safetensors"),
    );
    fs::rename(&usual, &other).unwrap();
    load(dir.path(), "model.fp16.safetensors", "").unwrap();
    fs::write(&usual, "broken").unwrap();
    load(dir.path(), "model.fp16.safetensors", "").unwrap();
    refused(
        dir.path(),
        "",
        "",
        &["model.safetensors", "not a whole safetensors"],
    );
    fs::write(
        dir.path().join("fp16.safetensors.index.json"),
        r#"{"weight_map": {"lm_head.weight": "model.fp16.safetensors"}}"#,
    )
    .unwrap();
    let checkpoint = open(dir.path(), "fp16.safetensors.index.json", "").unwrap();
    assert_eq!(
        checkpoint.weight_bytes().unwrap(),
        fs::metadata(&other).unwrap().len()
    );
    fs::create_dir(dir.path().join("below")).unwrap();
    fs::rename(&other, dir.path().join("below/a.safetensors")).unwrap();
    refused(
        dir.path(),
        "below/a.safetensors",
        "",
        &["model_file", "beside the config.json"],
    );
    // GGUF files beside safetensors are left alone, unless one is chosen.
    let dir = pair(&smolvlm(), &mmproj("mmproj-smolvlm"));
    copy_tiny_to(dir.path());
    refused(
        dir.path(),
        "",
        MMPROJ,
        &[
            "projector_file",
            "none for safetensors",
            "model_file chooses",
        ],
    );
    let checkpoint = open(dir.path(), "decoder.gguf", "").unwrap();
    assert!(checkpoint.path("tokenizer.json").ends_with("decoder.gguf"));
}

#[test]
fn a_decoder_for_text_is_chosen_without_a_tower() {
    let dir = TempDir::new().unwrap();
    for name in ["llama", "qwen3"] {
        fs::copy(
            golden("gguf").join(format!("{name}.gguf")),
            dir.path().join(format!("{name}.gguf")),
        )
        .unwrap();
    }
    let checkpoint = open(dir.path(), "qwen3.gguf", "").unwrap();
    let model = TextModel::of(
        &checkpoint,
        Quantization::Auto,
        Precision::F32,
        &Device::Cpu,
    )
    .unwrap();
    assert_eq!(model.config.model_type(), "qwen3");
}

#[test]
fn what_is_chosen_is_what_is_loaded() {
    let dir = TempDir::new().unwrap();
    let zeros = floats(
        &Tensor::zeros(super::writer::HIDDEN, candle_core::DType::F32, &Device::Cpu).unwrap(),
    );
    fs::write(dir.path().join("a.gguf"), File::decoder().bytes()).unwrap();
    let other = File::decoder().with("output_norm.weight", zeros);
    fs::write(dir.path().join("b.gguf"), other.bytes()).unwrap();
    let norm = |name: &str| {
        let checkpoint = open(dir.path(), name, "").unwrap();
        let tensors = checkpoint
            .tensors(Default::default(), Quantization::Auto)
            .unwrap();
        let norm = tensors.tensor(
            "model.norm.weight",
            None,
            candle_core::DType::F32,
            &Device::Cpu,
        );
        norm.unwrap().to_vec1::<f32>().unwrap()[0]
    };
    assert_eq!((norm("a.gguf"), norm("b.gguf")), (1.0, 0.0));
}
