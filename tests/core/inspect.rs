//! What `inspect` says of a checkpoint, and of everything that people take for one, as a user of the command line meets it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};

use candle_core::quantized::GgmlDType;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{json, Value};
use tempfile::TempDir;

use crate::gguf::writer::{quantised, File, HIDDEN};
use crate::support::{demo_dir, golden, json, picture, tiny_dir, tiny_session};

const WEIGHTS: &str = "model.safetensors";

/// `inf_mllm inspect ARGS`, with backtraces asked for, as developers have it.
fn inspect(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_inf_mllm"))
        .arg("inspect")
        .args(args)
        .env("RUST_BACKTRACE", "1")
        .output()
        .unwrap()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// What is said of a checkpoint that is whole.
fn complete(args: &[&str]) -> Value {
    let output = inspect(&[args, &["--json"]].concat());
    let report = serde_json::from_slice::<Value>(&output.stdout).unwrap();
    assert!(output.status.success(), "{}", report["problems"]);
    report
}

/// What is said of a checkpoint that is not, which holds all of `words`.
fn refused(model: &Path, words: &[&str]) -> String {
    let output = inspect(&[path(model)]);
    let said = String::from_utf8(output.stdout).unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}{error}");
    let problem = said.lines().find(|line| line.starts_with("PROBLEM"));
    let problem = problem.unwrap_or_else(|| panic!("no problem in {said}"));
    for word in words {
        assert!(problem.contains(word), "{word:?} is not in: {problem}");
    }
    for word in ["panicked", "stack backtrace", " at src/", "Some(", ".rs:"] {
        let all = format!("{said}{error}");
        assert!(!all.contains(word), "{word:?} is in: {all}");
    }
    problem.to_string()
}

fn copy_to(dir: &Path) {
    fs::create_dir_all(dir).unwrap();
    for entry in fs::read_dir(tiny_dir()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), dir.join(entry.file_name())).unwrap();
    }
}

/// A copy of the tiny checkpoint without weights, with files in their place.
fn with_instead(files: &[&str]) -> TempDir {
    let dir = TempDir::new().unwrap();
    copy_to(dir.path());
    fs::remove_file(dir.path().join(WEIGHTS)).unwrap();
    for name in files {
        write(dir.path(), name, "binary");
    }
    dir
}

/// A folder with these files and nothing else.
fn with_only(files: &[(&str, &str)]) -> TempDir {
    let dir = TempDir::new().unwrap();
    for (name, text) in files {
        write(dir.path(), name, text);
    }
    dir
}

fn write(dir: &Path, name: &str, text: &str) {
    let file = dir.join(name);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, text).unwrap();
}

fn edit(dir: &Path, name: &str, change: impl FnOnce(&mut Value)) {
    let mut value = json(&dir.join(name));
    change(&mut value);
    write(dir, name, &value.to_string());
}

fn copy() -> TempDir {
    let dir = TempDir::new().unwrap();
    copy_to(dir.path());
    dir
}

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
            let dir = copy();
            write(dir.path(), name, text);
            refused(dir.path(), &[&words[..], &[name]].concat());
        }
    }
    let dir = copy();
    write(dir.path(), "chat_template.jinja", POINTER);
    refused(dir.path(), &["chat_template.jinja", "git lfs pull"]);
    let dir = copy();
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
    copy_to(&above.path().join("tiny"));
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
    let policy = copy();
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
    for (method, name) in [
        ("awq", "AWQ"),
        ("gptq", "GPTQ"),
        ("compressed-tensors", "compressed-tensors"),
        ("mxfp4", "MXFP4"),
    ] {
        let dir = copy();
        edit(dir.path(), "config.json", |config| {
            config["quantization_config"] = json!({"quant_method": method, "bits": 4});
        });
        refused(
            dir.path(),
            &[
                "config.json: quantization_config",
                name,
                "4 bits",
                "weights as floats",
                "q4_k",
                "GGUF",
            ],
        );
    }
    let dir = copy();
    edit(dir.path(), "config.json", |config| {
        config["quantization"] = json!({"group_size": 64, "bits": 4});
    });
    refused(dir.path(), &["config.json: quantization", "MLX", "4 bits"]);
}

/// The tiny weights with one matrix of another type.
fn with_element_type(dtype: Dtype) -> TempDir {
    let dir = copy();
    let file = dir.path().join(WEIGHTS);
    let bytes = fs::read(&file).unwrap();
    let whole = SafeTensors::deserialize(&bytes).unwrap();
    let narrow = vec![0u8; 1 << 20];
    let tensors = whole.tensors().into_iter().map(|(name, tensor)| {
        let view = match name.as_str() {
            MATRIX => {
                let count = tensor.shape().iter().product::<usize>();
                TensorView::new(dtype, tensor.shape().to_vec(), &narrow[..count]).unwrap()
            }
            _ => TensorView::new(tensor.dtype(), tensor.shape().to_vec(), tensor.data()).unwrap(),
        };
        (name, view)
    });
    let written = safetensors::serialize(tensors.collect::<Vec<_>>(), None).unwrap();
    fs::write(&file, written).unwrap();
    dir
}

const MATRIX: &str = "model.text_model.layers.1.mlp.up_proj.weight";

#[test]
fn element_types_are_checked_without_reading_a_weight() {
    let dir = with_element_type(Dtype::F8_E4M3);
    refused(
        dir.path(),
        &[
            MATRIX,
            WEIGHTS,
            "F8_E4M3 (FP8)",
            "expected F32, F16 or BF16",
        ],
    );
    let dir = with_element_type(Dtype::U8);
    refused(dir.path(), &[MATRIX, "U8", "quantised"]);
    // A matrix that the model does not use may be of any type.
    let dir = copy();
    let file = dir.path().join(WEIGHTS);
    let bytes = fs::read(&file).unwrap();
    let whole = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors = whole.tensors();
    let scale = TensorView::new(Dtype::F8_E4M3, vec![2, 4], &[0; 8]).unwrap();
    tensors.push(("model.text_model.extra".to_string(), scale));
    fs::write(&file, safetensors::serialize(tensors, None).unwrap()).unwrap();
    let report = complete(&[path(dir.path())]);
    assert_eq!(report["unused"], json!(["model.text_model.extra"]));
}

#[test]
fn a_template_that_fails_when_it_is_rendered_is_a_problem() {
    let dir = copy();
    write(
        dir.path(),
        "chat_template.jinja",
        "{{ messages.none.at.all }}",
    );
    refused(dir.path(), &["chat_template.jinja", "undefined"]);
    write(
        dir.path(),
        "chat_template.jinja",
        "{{ raise_exception('only for tools') }}",
    );
    refused(dir.path(), &["chat_template.jinja", "only for tools"]);
}

#[test]
fn weights_that_do_not_fit_are_told_without_backtraces() {
    let dir = copy();
    edit(dir.path(), "config.json", |config| {
        config["text_config"]["attention_bias"] = true.into();
    });
    refused(
        dir.path(),
        &["weights do not fit config.json", "q_proj.bias", "missing"],
    );
    // The same where the weights are read.
    let output = Command::new(env!("CARGO_BIN_EXE_inf_mllm"))
        .args(["generate", "--prompt", "hello", "--model", path(dir.path())])
        .env("RUST_BACKTRACE", "1")
        .output()
        .unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(error.trim().lines().count(), 1, "{error}");
    assert!(error.contains("q_proj.bias"), "{error}");
    // What MLX wrote fits no configuration, quantised or not.
    let file = dir.path().join(WEIGHTS);
    let bytes = fs::read(&file).unwrap();
    let whole = SafeTensors::deserialize(&bytes).unwrap();
    let about = [("format".to_string(), "mlx".to_string())].into();
    let written = safetensors::serialize(whole.tensors(), Some(about)).unwrap();
    fs::write(&file, written).unwrap();
    refused(dir.path(), &["q_proj.bias", "written by MLX"]);
}

#[test]
fn half_copied_weights_say_how_much_is_missing() {
    let dir = copy();
    let file = dir.path().join(WEIGHTS);
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() - 1000]).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let (whole, there) = (bytes.len() - 8 - header, bytes.len() - 1008 - header);
    refused(
        dir.path(),
        &[&format!(
            "its tensors take {whole} bytes, but {there} follow the header"
        )],
    );
}

#[test]
fn wrong_fields_and_numbers_of_python_are_named() {
    let dir = copy();
    edit(dir.path(), "config.json", |config| {
        config["text_config"]["num_hidden_layers"] = "two".into();
    });
    refused(
        dir.path(),
        &["config.json: text_config.num_hidden_layers is \"two\", expected a whole number"],
    );
    let dir = copy();
    let text = fs::read_to_string(dir.path().join("config.json")).unwrap();
    let with_nan = text.replacen('{', "{\"initializer_range\": NaN,", 1);
    write(dir.path(), "config.json", &with_nan);
    refused(
        dir.path(),
        &["config.json: initializer_range is NaN in line 1", "Python"],
    );
    let dir = copy();
    edit(dir.path(), "tokenizer.json", |tokenizer| {
        let added = tokenizer["added_tokens"].as_array_mut().unwrap();
        added.retain(|token| token["content"] != "<end_of_utterance>");
    });
    refused(
        dir.path(),
        &[
            "tokenizer.json",
            "the added token",
            "the tokens before it leave it 30",
        ],
    );
}

/// A hub's cache with the tiny model: the folder that holds all models, and that of the model.
fn hub_cache() -> (TempDir, std::path::PathBuf) {
    let cache = TempDir::new().unwrap();
    let root = cache.path().join("models--org--tiny");
    copy_to(&root.join("snapshots/0a1b"));
    write(&root, "refs/main", "0a1b");
    (cache, root)
}

#[test]
fn the_root_of_a_hub_cache_is_its_snapshot() {
    let (cache, root) = hub_cache();
    assert_eq!(complete(&[path(&root)])["family"], "SmolVLM");
    refused(cache.path(), &["models--org--tiny", "a hub's cache"]);
    // Of several the one that the branch main is, else none.
    fs::create_dir(root.join("snapshots/ffff")).unwrap();
    complete(&[path(&root)]);
    fs::remove_file(root.join("refs/main")).unwrap();
    refused(
        &root,
        &["several snapshots", "snapshots/0a1b", "snapshots/ffff"],
    );
}

#[test]
fn links_to_nothing_are_told() {
    let (_cache, root) = hub_cache();
    let snapshot = root.join("snapshots/0a1b");
    for name in [WEIGHTS, "config.json", "tokenizer.json"] {
        let file = snapshot.join(name);
        let kept = fs::read(&file).unwrap();
        fs::remove_file(&file).unwrap();
        symlink("../../blobs/4d7a", &file).unwrap();
        refused(&root, &[name, "a link to ../../blobs/4d7a", "not there"]);
        fs::remove_file(&file).unwrap();
        fs::write(&file, kept).unwrap();
    }
    complete(&[path(&root)]);
    let link = root.join("gone");
    symlink("elsewhere", &link).unwrap();
    refused(&link, &["gone", "a link to elsewhere"]);
}

#[test]
fn a_tilde_is_the_home() {
    let home = TempDir::new().unwrap();
    copy_to(&home.path().join("models/tiny"));
    let output = Command::new(env!("CARGO_BIN_EXE_inf_mllm"))
        .args(["inspect", "~/models/tiny"])
        .env("HOME", home.path())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("complete"), "{said}");
}

fn gguf(name: &str) -> Vec<u8> {
    fs::read(golden("gguf").join(format!("{name}.gguf"))).unwrap()
}

#[test]
fn gguf_files_are_found_whatever_their_names_are_written_in() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("MODEL-Q8_0.GGUF"), gguf("llama")).unwrap();
    let report = complete(&[path(dir.path())]);
    assert_eq!(report["decoder"], "llama");
    // A folder of the same ending is none.
    fs::create_dir(dir.path().join("old.gguf")).unwrap();
    complete(&[path(dir.path())]);
    // Beside a config.json without weights it is the model.
    copy_to(dir.path());
    fs::remove_file(dir.path().join(WEIGHTS)).unwrap();
    assert_eq!(complete(&[path(dir.path())])["family"], "text");
    // Beside published weights it is not, which is said.
    copy_to(dir.path());
    let report = complete(&[path(dir.path())]);
    assert_eq!(report["family"], "SmolVLM");
    let note = report["notes"][0].as_str().unwrap();
    assert!(note.contains("MODEL-Q8_0.GGUF is not used"), "{note}");
}

#[test]
fn several_decoders_are_listed_and_one_of_them_can_be_given() {
    let dir = TempDir::new().unwrap();
    for (name, model) in [("a-Q4_0.gguf", "llama"), ("b-Q8_0.gguf", "qwen3")] {
        fs::write(dir.path().join(name), gguf(model)).unwrap();
    }
    refused(
        dir.path(),
        &[
            "several decoders",
            "a-Q4_0.gguf, b-Q8_0.gguf",
            "give the file",
        ],
    );
    let one = dir.path().join("b-Q8_0.gguf");
    assert_eq!(complete(&[path(&one)])["decoder"], "qwen3");
    let towers = TempDir::new().unwrap();
    fs::write(towers.path().join("mmproj-f16.gguf"), gguf("mmproj-llava")).unwrap();
    refused(
        towers.path(),
        &["mmproj-f16.gguf", "the decoder is missing"],
    );
    let tower = towers.path().join("mmproj-f16.gguf");
    refused(
        &tower,
        &[
            "mmproj-f16.gguf",
            "a vision tower",
            "expected the file of the decoder",
        ],
    );
    let weights = tiny_dir().join(WEIGHTS);
    refused(
        &weights,
        &[WEIGHTS, "expected the folder", path(&tiny_dir())],
    );
}

#[test]
fn types_of_ggml_that_are_not_read_are_called_by_name() {
    let name = "blk.0.ffn_up.weight";
    let matrix = quantised(64, HIDDEN, GgmlDType::Q4_0);
    let mut bytes = File::decoder().with(name, matrix).bytes();
    let at = bytes
        .windows(name.len())
        .position(|it| it == name.as_bytes())
        .unwrap();
    // After the name: rank (4 bytes), two dimensions (8 each), element type.
    bytes[at + name.len() + 20] = 20;
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("tiny.gguf"), bytes).unwrap();
    refused(
        dir.path(),
        &[name, "element type is IQ4_NL (20)", "expected F32"],
    );
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
fn memory_is_that_of_the_type_and_the_blocks_asked_for() {
    let demo = demo_dir();
    let of = |args: &[&str]| complete(&[&[path(&demo)], args].concat());
    let (f32, f16) = (of(&["--dtype", "f32"]), of(&["--dtype", "f16"]));
    let bytes = |report: &Value, field: &str| report[field].as_u64().unwrap();
    assert_eq!(bytes(&f32, "cache_bytes"), 2 * bytes(&f16, "cache_bytes"));
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
