//! Checkpoints that are not whole or do not fit themselves, with the file and the thing.

use std::fs;
use std::process::Command;

use candle_core::quantized::GgmlDType;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::json;
use tempfile::TempDir;

use super::{complete, edit, path, refused, write, WEIGHTS};
use crate::gguf::writer::{quantised, File, HIDDEN};
use crate::support::tiny_copy;

/// The tiny weights with one matrix of another type.
fn with_element_type(dtype: Dtype) -> TempDir {
    let dir = tiny_copy();
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
    let dir = tiny_copy();
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
    let dir = tiny_copy();
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
    let dir = tiny_copy();
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
    let dir = tiny_copy();
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
    let dir = tiny_copy();
    edit(dir.path(), "config.json", |config| {
        config["text_config"]["num_hidden_layers"] = "two".into();
    });
    refused(
        dir.path(),
        &["config.json: text_config.num_hidden_layers is \"two\", expected a whole number"],
    );
    let dir = tiny_copy();
    let text = fs::read_to_string(dir.path().join("config.json")).unwrap();
    let with_nan = text.replacen('{', "{\"initializer_range\": NaN,", 1);
    write(dir.path(), "config.json", &with_nan);
    refused(
        dir.path(),
        &["config.json: initializer_range is NaN in line 1", "Python"],
    );
    let dir = tiny_copy();
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
