//! What `generation_config.json` asks of whoever chooses tokens: repetitions made less likely, tokens that are never said.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use inf_mllm::stream::{Session, SessionConfig};
use serde_json::{json, Value};
use tempfile::TempDir;

use crate::failures::show;
use crate::support::{self, golden, instruction, tiny_config};
use crate::variants::copy_of;

const FILE: &str = "generation_config.json";

fn checkpoint() -> PathBuf {
    golden("families/qwen2_5_vl")
}

/// A copy of the checkpoint with other rules.
fn with_rules(rules: &[(&str, Value)]) -> TempDir {
    let copy = copy_of(&checkpoint());
    let mut config = support::json(&copy.path().join(FILE));
    for (name, value) in rules {
        config[name] = value.clone();
    }
    fs::write(copy.path().join(FILE), config.to_string()).unwrap();
    copy
}

#[test]
fn answers_under_a_penalty_are_those_of_transformers() {
    let expected = support::json(&golden("repetition.json"));
    for case in expected["cases"].as_array().unwrap() {
        let model = checkpoint();
        let picture = model.join("golden/small.png");
        let length = expected["new_tokens"].to_string();
        let mut command = Command::new(env!("CARGO_BIN_EXE_inf_mllm"));
        command.args(["generate", "--json", "--max-new-tokens", &length]);
        command.arg("--model").arg(&model);
        command.arg("--image").arg(&picture);
        command.args(["--system", "You are a robot."]);
        command.args(["--prompt", "What is in view?"]);
        if !case["penalty"].is_null() {
            command.args(["--repetition-penalty", &case["penalty"].to_string()]);
        }
        let output = command.output().unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{complaint}");
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        let (got, wanted) = (&said["generated_ids"], &case["generated_ids"]);
        assert_eq!(got, wanted, "penalty {}", case["penalty"]);
    }
}

/// The tokens of an answer.
fn answer(model: &Path, penalty: f64) -> Vec<u32> {
    let config = SessionConfig {
        model_dir: model.to_path_buf(),
        repetition_penalty: penalty,
        max_new_tokens: 40,
        ..tiny_config()
    };
    let mut session = Session::new(config).unwrap();
    show(&mut session, 0, 2);
    let asked = instruction("q", "What is in view?");
    let answer = session.ask(&asked, &|| false, &mut |_| {});
    assert_eq!(answer.error, None);
    answer.token_ids
}

#[test]
fn the_stream_takes_the_published_penalty_unless_another_is_asked_for() {
    let [published, none] = [3.0, 1.0].map(|penalty| {
        let rules = [("repetition_penalty", json!(penalty))];
        with_rules(&rules)
    });
    let repeated = |ids: &[u32]| {
        let again = |i: &usize| ids[..*i].contains(&ids[*i]);
        (0..ids.len()).filter(again).count()
    };
    let (with, without) = (answer(published.path(), 0.0), answer(none.path(), 0.0));
    assert!(
        repeated(&with) < repeated(&without),
        "{with:?}, without {without:?}"
    );
    assert_eq!(answer(none.path(), 3.0), with);
    assert_eq!(answer(published.path(), 1.0), without);
}

#[test]
fn suppressed_tokens_are_never_said() {
    let said = answer(&checkpoint(), 1.0);
    let suppressed = with_rules(&[("suppress_tokens", json!(said[..4]))]);
    let others = answer(suppressed.path(), 1.0);
    assert!(!others.is_empty());
    for id in &said[..4] {
        assert!(!others.contains(id), "{id} is in {others:?}");
    }
}

#[test]
fn rules_that_are_none_are_named_with_file_field_and_value() {
    let penalties = [json!(0), json!(-1.5), json!("1.05"), json!([1.05])];
    let penalties = penalties.map(|value| ("repetition_penalty", value));
    let tokens = [json!(-1), json!([1, "2"]), json!(4_294_967_296_u64)];
    let tokens = tokens.map(|value| ("suppress_tokens", value));
    for (field, value) in penalties.into_iter().chain(tokens) {
        let copy = with_rules(&[(field, value.clone())]);
        let error = support::try_load(copy.path()).err().expect("it loads");
        let error = error.to_string();
        let value = value.to_string();
        for word in [FILE, field, &value, "expected"] {
            assert!(error.contains(word), "{word:?} is not in: {error}");
        }
    }
    // As transformers writes what is not set.
    let unset = ["repetition_penalty", "suppress_tokens"].map(|field| (field, Value::Null));
    let copy = with_rules(&unset);
    assert!(support::try_load(copy.path()).is_ok());
}
