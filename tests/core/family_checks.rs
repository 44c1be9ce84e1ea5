//! What is asked of every multimodal family alike, of one tiny checkpoint after the other.

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use inf_mllm::cache::PolicyKind;
use inf_mllm::model::vision::{View, Vision};
use inf_mllm::stream::{Answer, FinishReason, Session, SessionConfig};
use serde_json::Value;
use tempfile::TempDir;

use crate::commands::{path, run, succeeded, write_bag};
use crate::support::{deviation, golden, ids, instruction, json, picture, tensors, try_load};
use crate::variants::copy;

pub fn family(name: &str) -> PathBuf {
    golden("families").join(name)
}

/// A copy of a family's checkpoint with another value at `path` of one of its files.
pub fn changed(name: &str, file: &str, path: &str, value: Value) -> TempDir {
    let dir = copy(name);
    let mut edited = json(&dir.path().join(file));
    *edited.pointer_mut(path).unwrap() = value;
    fs::write(dir.path().join(file), edited.to_string()).unwrap();
    dir
}

/// Such a copy does not load, and the error has these words.
pub fn refused(name: &str, file: &str, path: &str, value: Value, words: &[&str]) {
    let dir = changed(name, file, path, value);
    let error = try_load(dir.path()).err().expect("it loads");
    let error = error.to_string();
    for word in words.iter().chain(&[file, "expected"]) {
        assert!(error.contains(word), "{word:?} is not in: {error}");
    }
}

/// The family's checkpoint without the tensor `name`, or with a part of it, does not load, and the error names it.
pub fn check_missing_and_misshapen(checkpoint: &str, name: &str) {
    let dir = copy(checkpoint);
    let file = dir.path().join("model.safetensors");
    let mut weights = tensors(&file);
    let tensor = weights.remove(name).unwrap();
    let mut fails = |replaced: Option<Tensor>| {
        weights.extend(replaced.map(|tensor| (name.to_string(), tensor)));
        candle_core::safetensors::save(&weights, &file).unwrap();
        let error = try_load(dir.path()).err().expect("it loads").to_string();
        assert!(error.contains(name), "{name:?} is not in: {error}");
    };
    fails(None);
    let last = tensor.rank() - 1;
    let short = tensor.narrow(last, 0, tensor.dim(last).unwrap() - 1);
    fails(Some(short.unwrap().contiguous().unwrap()));
}

/// A session answers under every policy, after more frames than the budget holds but for `full`, which gets `whole` tokens. Of a frame at least
/// `frame_tokens` are kept.
pub fn check_every_policy(names: &[&str], whole: usize, frame_tokens: usize) {
    const FRAMES: i64 = 16;
    for name in names {
        for policy in PolicyKind::ALL {
            let mut config = SessionConfig {
                model_dir: family(name),
                max_new_tokens: 6,
                ..SessionConfig::default()
            };
            config.cache.policy = policy;
            let evicts = policy != PolicyKind::Full;
            config.cache.budget = if evicts { 192 } else { whole };
            let budget = config.cache.budget;
            let mut session = Session::new(config).unwrap();
            for i in 0..FRAMES {
                let frame = picture(i * 100, [(i * 12) as u8, 90, 200]);
                session.push_frame(&frame).unwrap();
            }
            let asked = instruction("a", "What is in view?");
            let answer = session.ask(&asked, &|| false, &mut |_| ());
            let about = format!("{name}, {policy:?}: {:?}", answer.error);
            assert_ne!(answer.finish, FinishReason::Error, "{about}");
            assert!(answer.output_tokens > 0, "{about}");
            assert_eq!(answer.frames_seen, FRAMES as u64, "{about}");
            assert!(answer.vision_tokens >= frame_tokens, "{about}");
            assert!(session.usage().used <= budget, "{about}");
        }
    }
}

/// What a session of this configuration answers, which sees frames until it evicts, twice.
fn evicting_conversation(config: SessionConfig) -> Vec<Answer> {
    let policy = config.cache.policy;
    let mut session = Session::new(config).unwrap();
    let mut said = Vec::new();
    for round in 0..2 {
        for i in 0..20 {
            let colour = [(i * 12) as u8, 90, 200];
            let frame = picture((round * 20 + i) * 100, colour);
            session.push_frame(&frame).unwrap();
        }
        let asked = instruction("a", "What is in view?");
        let answer = session.ask(&asked, &|| false, &mut |_| ());
        assert_ne!(answer.finish, FinishReason::Error, "{:?}", answer.error);
        assert!(answer.vision_tokens > 0);
        said.push(answer);
    }
    assert!(policy == PolicyKind::LastFrames || session.usage().compactions > 0);
    said
}

/// Under every policy that evicts, one checkpoint answers as the other does.
pub fn check_same_answers(config: &SessionConfig, models: [&Path; 2]) {
    let evicting = PolicyKind::ALL.into_iter();
    for policy in evicting.filter(|&policy| policy != PolicyKind::Full) {
        let [got, wanted] = models.map(|model| {
            let mut config = config.clone();
            config.model_dir = model.to_path_buf();
            config.cache.policy = policy;
            evicting_conversation(config)
        });
        for (got, wanted) in got.into_iter().zip(wanted) {
            let about = format!("{}, {}", models[0].display(), policy.name());
            assert_eq!(got.token_ids, wanted.token_ids, "{about}");
            assert_eq!(got.vision_tokens, wanted.vision_tokens, "{about}");
            let off = (got.mean_logprob - wanted.mean_logprob).abs();
            assert!(off < 1e-5, "{about}: {off}");
        }
    }
}

/// `forward` gives the numbers of these families' golden files, and `generate` makes their prompts.
pub fn check_command_line(names: &[&str]) {
    let out = TempDir::new().unwrap();
    let out = out.path().join("out.safetensors");
    for name in names {
        let dir = family(name);
        let golden = dir.join("golden");
        let about = json(&golden.join("forward.json"));
        for (scene, about) in about["scenes"].as_object().unwrap() {
            let file = |kind: &str| golden.join(format!("{scene}.{kind}.safetensors"));
            let (model, inputs) = (path(&dir), file("inputs"));
            let mut args = vec![
                "forward",
                "--model",
                model,
                "--inputs",
                path(&inputs),
                "--out",
                path(&out),
            ];
            if scene == "frames" {
                args.push("--frames");
            }
            printed(&args);
            let (got, wanted) = (tensors(&out), tensors(&file("expected")));
            for tensor in ["vision_features", "image_features", "logits"] {
                let off = deviation(&got[tensor], &wanted[tensor]);
                assert!(off <= 1e-4, "{name}, {scene}: {tensor} differ by {off}");
            }
            if scene == "frames" {
                continue;
            }
            let question = about["messages"][0]["content"].as_array().unwrap();
            let question = question
                .iter()
                .find_map(|part| part["text"].as_str())
                .unwrap();
            let mut args = vec!["generate", "--model", model, "--prompt", question, "--json"];
            let pictures = about["images"].as_array().unwrap();
            let pictures = pictures
                .iter()
                .map(|image| golden.join(image.as_str().unwrap()));
            let pictures = pictures.collect::<Vec<_>>();
            for picture in &pictures {
                args.extend(["--image", path(picture)]);
            }
            let answer: Value = serde_json::from_str(&printed(&args)).unwrap();
            let prompt: Vec<u32> = serde_json::from_value(answer["prompt_ids"].clone()).unwrap();
            assert_eq!(
                prompt,
                ids(&tensors(&inputs)["input_ids"]),
                "{name}, {scene}"
            );
            assert!(!answer["generated_ids"].as_array().unwrap().is_empty());
        }
    }
}

/// Of a prompt with a system prompt and a bounded memory.
pub fn check_system_prompt_and_budget(names: &[&str]) {
    for name in names {
        let dir = family(name);
        let picture = dir.join("golden/two0.png");
        let answer = printed(&[
            "generate",
            "--model",
            path(&dir),
            "--image",
            path(&picture),
            "--system",
            "Be brief.",
            "--prompt",
            "What is in view?",
            "--budget",
            "64",
            "--policy",
            "inf_mllm",
            "--json",
        ]);
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert!(!answer["generated_ids"].as_array().unwrap().is_empty());
    }
}

/// `inspect` says that all is there and calls the family so; a recorded bag is replayed, twice with the same answers.
pub fn check_replay(names: &[&str], called: &str) {
    let dir = tempfile::tempdir().unwrap();
    write_bag(dir.path(), 30, None, true);
    let script = dir.path().join("script.yaml");
    let text = "instructions:\n  - {id: a, at: 1.0, text: What is in view?}\n  - {id: b, at: 2.5, text: Where?}\n";
    fs::write(&script, text).unwrap();
    let out = dir.path().join("answers.jsonl");
    for name in names {
        let model = family(name);
        let report = succeeded(&run(&["inspect", path(&model), "--budget", "96"]));
        for line in ["family", called, "complete              yes"] {
            assert!(report.contains(line), "{report}");
        }
        let replayed = || {
            let done = run(&[
                "replay",
                "--model",
                path(&model),
                "--bag",
                path(dir.path()),
                "--instructions",
                path(&script),
                "--out",
                path(&out),
                "--budget",
                "96",
            ]);
            let printed = succeeded(&done);
            assert!(printed.contains("2 answers, 0 errors"), "{printed}");
            let lines = fs::read_to_string(&out).unwrap();
            let lines = lines
                .lines()
                .map(|line| serde_json::from_str::<Value>(line).unwrap());
            let text = lines.filter_map(|line| line["text"].as_str().map(str::to_string));
            text.collect::<Vec<_>>()
        };
        let (first, again) = (replayed(), replayed());
        assert!(!first.is_empty(), "{name}");
        assert_eq!(first, again, "{name}");
    }
}

/// The processor's tensors of a prompt of two images, which are told apart, but not with `changes` made to them: each a tensor, what takes
/// its place, and a part of the error. Without any of `needed` the error names it.
pub fn check_split(
    vision: &dyn Vision,
    dir: &std::path::Path,
    needed: &[&str],
    changes: &[(&str, Tensor, &str)],
) {
    let inputs = tensors(&dir.join("golden/two.inputs.safetensors"));
    let view = View::Image { of: 2 };
    assert_eq!(vision.split(&inputs, view).unwrap().len(), 2);
    for (name, tensor, word) in changes {
        let mut inputs = inputs.clone();
        inputs.insert(name.to_string(), tensor.clone());
        let error = vision.split(&inputs, view).unwrap_err().to_string();
        assert!(error.contains(word), "{word:?} is not in: {error}");
    }
    for name in needed {
        let mut inputs = inputs.clone();
        inputs.remove(*name);
        let error = vision.split(&inputs, view).unwrap_err().to_string();
        assert!(error.contains(name), "{name:?} is not in: {error}");
    }
}

/// What the command line prints, which must succeed with a chat template that is known.
fn printed(args: &[&str]) -> String {
    let output = run(args);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        !error.contains("chat template is none that is known"),
        "{error}"
    );
    succeeded(&output)
}
