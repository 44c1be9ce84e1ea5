//! Fine-tunes as they are published, over the tiny checkpoints of the families that they were made of: prompts, logits and answers are those
//! of transformers.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use inf_mllm::stream::grammar::Chat;
use serde_json::{json as object, Value};
use tempfile::TempDir;

use crate::support::{deviation, golden, ids, json, load, root, tensors};
use crate::variants::copy;

pub const NAMES: [&str; 5] = [
    "cosmos_reason1",
    "cosmos_reason2",
    "mimo_vl",
    "qwen3_vl_thinking",
    "robobrain2",
];

/// The checkpoint of a fine-tune: its family's files with its own over them.
pub fn fine_tune(name: &str) -> TempDir {
    let from = golden("fine_tunes").join(name);
    let base = json(&from.join("golden.json"))["base"].take();
    let dir = copy(base.as_str().unwrap());
    let own = fs::read_dir(&from)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    for file in own {
        let name = file.file_name().unwrap().to_str().unwrap();
        if name.ends_with(".json") && name != "golden.json" {
            fs::copy(&file, dir.path().join(name)).unwrap();
        }
    }
    let changed = from.join("changed.safetensors");
    if changed.is_file() {
        let weights = dir.path().join("model.safetensors");
        let mut all = tensors(&weights);
        all.extend(tensors(&changed));
        candle_core::safetensors::save(&all, weights).unwrap();
    }
    dir
}

/// What transformers made of it.
pub fn about(name: &str) -> Value {
    json(&golden("fine_tunes").join(name).join("golden.json"))
}

#[test]
fn every_fine_tune_is_held_against_transformers() {
    let folders = fs::read_dir(golden("fine_tunes")).unwrap();
    let names = folders.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names = names.collect::<Vec<_>>();
    names.sort();
    assert_eq!(names, NAMES);
}

#[test]
fn conversations_are_written_as_transformers_writes_them() {
    for name in NAMES {
        let dir = fine_tune(name);
        let model = load(dir.path());
        let (_, known) = Chat::find(&model).unwrap();
        assert!(known, "{name}: its template is none that is known");
        for case in about(name)["templates"].as_array().unwrap() {
            let messages = case["messages"].as_array().unwrap();
            let text = model.template.render(messages).unwrap();
            assert_eq!(text, case["text"].as_str().unwrap(), "{name}");
            let ids = model.tokenizer.encode_prompt(&text).unwrap();
            assert_eq!(object!(ids), case["ids"], "{name}: {text:?}");
        }
    }
}

#[test]
fn a_prompt_s_thought_comes_apart_where_its_marks_are_control_tokens() {
    let (dir, about) = (fine_tune("cosmos_reason2"), about("cosmos_reason2"));
    let file = dir.path().join("tokenizer.json");
    let mut tokenizer = json(&file);
    for token in tokenizer["added_tokens"].as_array_mut().unwrap() {
        token["special"] = true.into();
    }
    fs::write(file, tokenizer.to_string()).unwrap();
    let told: Value =
        serde_json::from_slice(&generated(dir.path(), &about, None, true).stdout).unwrap();
    assert_eq!(told["thought"], "Who? it which");
    assert_eq!(told["text"], "You are the bob");
}

#[test]
fn a_prompt_whose_answer_is_cut_off_within_its_thought_says_so() {
    for (longest, cut) in [(3, true), (40, false)] {
        let (dir, mut about) = (fine_tune("qwen3_vl_thinking"), about("qwen3_vl_thinking"));
        about["max_new_tokens"] = longest.into();
        let output = generated(dir.path(), &about, None, false);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(told.contains("within the thought"), cut, "{told}");
        assert_eq!(output.stdout.trim_ascii().is_empty(), cut);
    }
}

fn generated(dir: &Path, about: &Value, logits: Option<&Path>, json: bool) -> Output {
    let base = golden("families").join(about["base"].as_str().unwrap());
    let mut command = Command::new(env!("CARGO_BIN_EXE_inf_mllm"));
    command.arg("generate").arg("--model").arg(dir);
    command.arg("--image");
    command.arg(base.join("golden").join(about["picture"].as_str().unwrap()));
    command
        .args(["--prompt", about["question"].as_str().unwrap()])
        .args(["--max-new-tokens", &about["max_new_tokens"].to_string()])
        .args(["--dtype", "f32"]);
    if json {
        command.arg("--json");
    }
    match about["system"].as_str().unwrap() {
        "" => {}
        system => {
            command.args(["--system", system]);
        }
    }
    if about["opened"] != "" {
        command.args(["--thinking", "always"]);
    }
    if let Some(file) = logits {
        command.arg("--logits-out").arg(file);
    }
    let output = command.current_dir(root()).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    output
}

#[test]
fn prompts_logits_and_answers_are_those_of_transformers_and_thoughts_come_apart() {
    for name in NAMES {
        let (dir, about) = (fine_tune(name), about(name));
        let expected = tensors(&golden("fine_tunes").join(name).join("golden.safetensors"));
        let file = dir.path().join("logits.safetensors");
        let output = generated(dir.path(), &about, Some(&file), true);
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(
            told["prompt_ids"],
            object!(ids(&expected["input_ids"])),
            "{name}"
        );
        let tolerance = about["tolerance"].as_f64().unwrap() as f32;
        let off = deviation(&tensors(&file)["logits"], &expected["logits"]);
        assert!(off < tolerance, "{name}: logits are off by {off}");
        assert_eq!(told["generated_ids"], about["generated_ids"], "{name}");

        let whole = about["generated_text"].as_str().unwrap();
        let (thought, answer) = match whole.split_once("</think>") {
            Some((thought, answer)) => {
                (thought.trim_start_matches("<think>").trim(), answer.trim())
            }
            None => ("", whole),
        };
        assert_eq!(told["thought"], thought, "{name}");
        assert_eq!(
            told["text"].as_str().unwrap().trim(),
            answer.trim(),
            "{name}"
        );
        // For people the thought stands beside the answer, which others read.
        let output = generated(dir.path(), &about, None, false);
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(said.trim(), answer.trim(), "{name}");
        let beside = String::from_utf8_lossy(&output.stderr);
        assert!(beside.contains(thought), "{name}: {beside}");
        assert_eq!(thought.is_empty(), name == "cosmos_reason1");
    }
}
