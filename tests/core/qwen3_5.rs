//! Qwen3.5 beyond its golden files: what its template writes in front of answers, the command line, other spellings, what is refused.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use inf_mllm::cache::{CacheConfig, PolicyKind};
use inf_mllm::stream::grammar::{Chat, Grammar, Thinking};
use inf_mllm::stream::{Answer, Session, SessionConfig};
use serde_json::{json, Map, Value};
use tempfile::TempDir;

use crate::commands::{path, run, succeeded, write_bag};
use crate::family_checks::{check_missing_and_misshapen, refused};
use crate::support::{self, deviation, golden, ids, instruction, load, picture, tensors, try_load};
use crate::variants::copy;

const NAME: &str = "qwen3_5";
const QUESTION: &str = "What is in view?";

fn family() -> PathBuf {
    golden("families").join(NAME)
}

/// A copy of the checkpoint, its `config.json` changed.
fn with_config(change: impl FnOnce(&mut Value)) -> TempDir {
    let dir = copy(NAME);
    let file = dir.path().join("config.json");
    let mut config = support::json(&file);
    change(&mut config);
    fs::write(&file, config.to_string()).unwrap();
    dir
}

fn text_config(config: &mut Value) -> &mut Map<String, Value> {
    config["text_config"].as_object_mut().unwrap()
}

/// A copy of the checkpoint, its weights changed.
fn with_weights(change: impl FnOnce(&mut HashMap<String, Tensor>)) -> TempDir {
    let dir = copy(NAME);
    let file = dir.path().join("model.safetensors");
    let mut weights = tensors(&file);
    change(&mut weights);
    candle_core::safetensors::save(&weights, &file).unwrap();
    dir
}

fn session(dir: &Path) -> Session {
    let config = SessionConfig {
        model_dir: dir.to_path_buf(),
        system_prompt: String::new(),
        max_new_tokens: 6,
        cache: CacheConfig {
            policy: PolicyKind::InfMllm,
            budget: 256,
            ..CacheConfig::default()
        },
        ..SessionConfig::default()
    };
    Session::new(config).unwrap()
}

fn answer(dir: &Path) -> Vec<u32> {
    let answer = ask(dir);
    assert!(!answer.token_ids.is_empty(), "{answer:?}");
    answer.token_ids
}

fn ask(dir: &Path) -> Answer {
    let mut session = session(dir);
    session.push_frame(&picture(0, [40, 90, 200])).unwrap();
    session.ask(&instruction("a", QUESTION), &|| false, &mut |_| ())
}

/// The smaller published models do not think unless they are asked to, the larger ones unless they are asked not to.
#[test]
fn what_the_template_writes_in_front_of_answers_is_in_the_stream_whether_it_thinks_or_not() {
    let thinking = copy(NAME);
    for file in ["chat_template.json", "tokenizer_config.json"] {
        let file = thinking.path().join(file);
        let written = fs::read_to_string(&file).unwrap();
        let changed = written.replace("not enable_thinking", "enable_thinking is false");
        assert_ne!(changed, written);
        fs::write(&file, changed).unwrap();
    }
    for (dir, thought) in [
        (family().as_path(), "<think>\n\n</think>\n\n"),
        (thinking.path(), "<think>\n"),
    ] {
        let model = load(dir);
        let (chat, known) = Chat::find(&model).unwrap();
        assert!(known, "{thought:?}");
        assert_eq!(chat.format.name, "Qwen3-VL");
        let thinks = thought == "<think>\n";
        assert_eq!(chat.thinks(), thinks);
        assert_eq!(chat.remarks(&model, known).len(), usize::from(thinks));
        let mut grammar = Grammar::new(chat);
        assert_eq!(grammar.prefix("", &model.tokenizer), "");
        let asked = grammar.instruction(QUESTION, &model.tokenizer);
        let expected =
            format!("<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n{thought}");
        assert_eq!(asked, expected);
        // Either can be asked for the other.
        let told = |thinking| Chat::find(&model).unwrap().0.thinking(thinking);
        assert!(told(Thinking::Always).thinks());
        assert_eq!(&*told(Thinking::Never).thought, "<think>\n\n</think>\n\n");
    }
    // What is generated behind a thought without words is the answer.
    let answer = ask(&family());
    assert!(!answer.text.is_empty(), "{answer:?}");
}

#[test]
fn the_command_line_runs_it() {
    let dir = tempfile::tempdir().unwrap();
    write_bag(dir.path(), 30, None, true);
    let script = dir.path().join("script.yaml");
    let text = "instructions:\n  - {id: a, at: 1.0, text: What is in view?}\n  - {id: b, at: 2.5, text: Where?}\n";
    fs::write(&script, text).unwrap();
    let (model, out) = (family(), dir.path().join("answers.jsonl"));
    let report = succeeded(&run(&["inspect", path(&model), "--budget", "256"]));
    for told in ["Qwen3.5, decoder qwen3_5_text", "complete              yes"] {
        assert!(report.contains(told), "{told:?} is not in: {report}");
    }
    let replayed = || {
        let args = [
            ["replay", "--model", path(&model)],
            ["--bag", path(dir.path()), "--instructions"],
            [path(&script), "--out", path(&out)],
            ["--budget", "256", "--frame-max-pixels"],
        ];
        let args = [&args.concat()[..], &["1920"]].concat();
        let printed = succeeded(&run(&args));
        assert!(printed.contains("2 answers, 0 errors"), "{printed}");
        let lines = fs::read_to_string(&out).unwrap();
        let lines = lines
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap());
        let text = lines.filter_map(|line| line["text"].as_str().map(str::to_string));
        text.collect::<Vec<_>>()
    };
    let first = replayed();
    assert!(!first.is_empty());
    assert_eq!(replayed(), first);
}

#[test]
fn weights_become_blocks_as_those_of_other_decoders_do() {
    let model = family();
    for quantization in ["q8_0", "q4_k"] {
        let args = ["generate", "--model", path(&model), "--prompt", QUESTION];
        let more = ["--max-new-tokens", "4", "--quantization", quantization];
        assert!(!succeeded(&run(&[&args[..], &more].concat())).is_empty());
    }
}

/// The published files hold a layer that predicts several tokens at once, and some tensors in f32 beside bf16.
#[test]
fn what_predicts_several_tokens_at_once_is_left_alone_and_types_may_differ() {
    let beside = with_weights(|weights| {
        for name in ["mtp.fc.weight", "mtp.layers.0.self_attn.q_proj.weight"] {
            let numbers = Tensor::zeros((4, 4), DType::F32, &Device::Cpu).unwrap();
            weights.insert(name.to_string(), numbers);
        }
    });
    let report = succeeded(&run(&["inspect", path(beside.path()), "--budget", "256"]));
    let told = "prediction of several tokens at once";
    assert!(report.contains(told), "{report}");
    assert!(report.contains("complete              yes"), "{report}");
    assert_eq!(answer(beside.path()), answer(&family()));

    let halves = with_weights(|weights| {
        for (name, tensor) in weights.iter_mut() {
            if !name.ends_with("A_log") && !name.ends_with("linear_attn.norm.weight") {
                *tensor = tensor.to_dtype(DType::BF16).unwrap();
            }
        }
    });
    let dir = halves.path();
    let inputs = tensors(&family().join("golden/one.inputs.safetensors"));
    let prompt = ids(&inputs["input_ids"]);
    let logits = |dir: &Path| {
        let model = load(dir);
        support::logits(&model.decoder, model.shape, &prompt)
    };
    let off = deviation(&logits(dir), &logits(&family()));
    assert!(off > 0.0 && off < 1.0, "{off}");
}

/// The same layers said in other ways.
#[test]
fn other_spellings_of_the_decoder_are_read() {
    let expected = answer(&family());
    let spelled = with_config(|config| {
        let text = text_config(config);
        text.remove("layer_types");
        text.insert("full_attention_interval".to_string(), json!(2));
        let rope = text.remove("rope_parameters").unwrap();
        text.insert("rope_theta".to_string(), rope["rope_theta"].clone());
        text.insert("partial_rotary_factor".to_string(), json!(0.5));
        let scaling = json!({ "type": "default", "mrope_section": rope["mrope_section"] });
        text.insert("rope_scaling".to_string(), scaling);
    });
    assert_eq!(answer(spelled.path()), expected);
}

#[test]
fn a_missing_or_misshapen_tensor_is_named() {
    let linear = "model.language_model.layers.0.linear_attn";
    let attending = "model.language_model.layers.1.self_attn";
    let of_linear = [
        "in_proj_qkv.weight",
        "in_proj_z.weight",
        "in_proj_a.weight",
        "in_proj_b.weight",
        "conv1d.weight",
        "A_log",
        "dt_bias",
        "norm.weight",
        "out_proj.weight",
    ];
    let of_attending = ["q_proj.weight", "o_proj.weight", "q_norm.weight"];
    let names = of_linear.map(|name| format!("{linear}.{name}"));
    let others = of_attending.map(|name| format!("{attending}.{name}"));
    let last = "model.language_model.norm.weight".to_string();
    let tower = "model.visual.merger.norm.weight".to_string();
    for name in names.into_iter().chain(others).chain([last, tower]) {
        check_missing_and_misshapen(NAME, &name);
    }
}

#[test]
fn layers_that_the_weights_are_not_of_are_refused() {
    let swapped = with_config(|config| {
        let types = ["full_attention", "linear_attention"].repeat(2);
        text_config(config).insert("layer_types".to_string(), json!(types));
    });
    let error = try_load(swapped.path()).err().expect("it loads");
    let missing = "model.language_model.layers.0.self_attn";
    assert!(error.to_string().contains(missing), "{error}");
}

#[test]
fn configurations_that_cannot_be_computed_are_named_with_value_and_expectation() {
    let config = |path: &str, value, words: &[&str]| {
        refused(NAME, "config.json", path, value, words);
    };
    let text = |field: &str, value, words: &[&str]| {
        let named = format!("text_config.{field}");
        let words = [&[named.as_str()], words].concat();
        config(&format!("/text_config/{field}"), value, &words);
    };
    const HUGE: u64 = 1 << 40;
    let types = |changed: &str| json!(["linear_attention", changed, "linear_attention", changed]);
    text(
        "layer_types",
        types("sliding_attention"),
        &["sliding_attention", "linear_attention"],
    );
    text(
        "layer_types",
        types("linear_attention"),
        &["full_attention"],
    );
    // What is echoed of a file is short, however long what it says.
    let long = "x".repeat(100_000);
    text("layer_types", types(&long), &["xxx... (100000 bytes)"]);
    text("layer_types", json!(["full_attention"]), &["1 long", "4"]);
    text("layer_types", json!([]), &["0 long", "4"]);
    text("hidden_act", json!("gelu"), &["gelu", "silu"]);
    text("attention_bias", json!(true), &["true", "false"]);
    text("num_key_value_heads", json!(4), &["4", "divisor"]);
    text("num_key_value_heads", json!(0), &["0"]);
    text("linear_num_key_heads", json!(4), &["4", "divisor"]);
    for field in [
        "linear_num_key_heads",
        "linear_num_value_heads",
        "linear_key_head_dim",
        "linear_value_head_dim",
        "num_attention_heads",
        "intermediate_size",
        "hidden_size",
        "vocab_size",
        "num_hidden_layers",
        "head_dim",
        "max_position_embeddings",
    ] {
        text(field, json!(0), &["0"]);
    }
    text("hidden_size", json!(HUGE), &["at most"]);
    text("vocab_size", json!(u64::MAX), &["at most"]);
    text("num_hidden_layers", json!(u64::MAX), &["at most"]);
    for field in ["linear_key_head_dim", "linear_value_head_dim"] {
        for value in [HUGE, u64::MAX] {
            config(
                &format!("/text_config/{field}"),
                json!(value),
                &["linear attention", "at most"],
            );
        }
    }
    config(
        "/text_config/head_dim",
        json!(u64::MAX),
        &["head_dim", "at most"],
    );
    text("head_dim", json!(15), &["15", "even"]);
    for width in [0, 1, 65, u64::MAX] {
        text("linear_conv_kernel_dim", json!(width), &["2 to 64"]);
    }
    text("rms_norm_eps", json!(-1.0), &["-1"]);
    let rope = |field: &str, value, words: &[&str]| {
        config(
            &format!("/text_config/rope_parameters/{field}"),
            value,
            words,
        );
    };
    rope(
        "partial_rotary_factor",
        json!(0.0),
        &["rotary width", "0", "16"],
    );
    rope("partial_rotary_factor", json!(1.5), &["rotary", "16"]);
    rope(
        "mrope_section",
        json!([4, 2, 2]),
        &["mrope_section", "add up to 4"],
    );
    rope("rope_theta", json!(0.5), &["rope_theta", "0.5"]);
    config(
        "/vision_config/num_position_embeddings",
        json!(24),
        &["24", "square"],
    );
    config("/vision_config/out_hidden_size", json!(41), &["41", "40"]);
}
