//! The Qwen-VL families at work: sizes of pictures, commands, and conversations on the bounded cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use candle_core::{Device, Tensor};
use image::RgbImage;
use inf_mllm::cache::PolicyKind;
use inf_mllm::model::template::{Content, Message};
use inf_mllm::model::vision::View;
use inf_mllm::stream::grammar::{Chat, Grammar};
use inf_mllm::stream::{FinishReason, Session, SessionConfig};
use serde_json::{json, Value};

use crate::support::{
    self, deviation, golden, ids, instruction, load, picture, shot, tensors, tiny_config,
};
use crate::variants::copy;

const FAMILIES: [&str; 5] = [
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "qwen3_5",
    "cosmos3_omni",
];

fn dir(family: &str) -> PathBuf {
    golden("families").join(family)
}

#[test]
fn pictures_become_the_published_sizes() {
    for family in FAMILIES {
        let model = load(&dir(family));
        let forward = support::json(&dir(family).join("golden/forward.json"));
        let cases: Vec<[usize; 4]> = serde_json::from_value(forward["resized"].clone()).unwrap();
        let config: Value = support::json(&dir(family).join("config.json"));
        let patch = config["vision_config"]["patch_size"].as_u64().unwrap() as usize;
        for [height, width, down, across] in cases {
            let layout = model.vision.layout((width, height), View::Image { of: 1 });
            let [_, rows, columns] = layout.grid;
            let got = (rows * patch, columns * patch);
            assert_eq!(got, (down, across), "{family}: {height} x {width}");
        }
    }
}

#[test]
fn the_stream_reads_as_the_chat_template_would_write_it() {
    for family in FAMILIES {
        let model = load(&dir(family));
        let tokenizer = &model.tokenizer;
        let chat = Chat::of(&model).unwrap();
        for system in ["Be brief.", ""] {
            let mut grammar = Grammar::new(chat.clone());
            let mut stream = grammar.prefix(system, tokenizer);
            for elapsed_ns in [0, 51_260_000_000] {
                let written = grammar.frame(model.placeholder(), &shot(elapsed_ns));
                stream.push_str(&written.text);
            }
            stream.push_str(&grammar.instruction("What is in view?", tokenizer));
            stream.push_str("a box");
            grammar.answered();
            stream.push_str(&grammar.instruction("And before?", tokenizer));

            let text = |text: &str| Content::Text {
                text: text.to_string(),
            };
            let turn = |role, content| Message { role, content };
            // Before Qwen3-VL frames that follow one another are one video, in the place of one picture.
            let pictures = if family.starts_with("qwen2") { 1 } else { 2 };
            let mut question = vec![Content::Image; pictures];
            question.push(text("What is in view?"));
            let mut messages = vec![
                turn("user", question),
                turn("assistant", vec![text("a box")]),
                turn("user", vec![text("And before?")]),
            ];
            if !system.is_empty() {
                messages.insert(0, turn("system", vec![text(system)]));
            }
            // Only the frames of Qwen3-VL, and of what has come of it, say when they were.
            let labels = ["<0.0 seconds>", "<51.3 seconds>"];
            for label in labels {
                let count = usize::from(!family.starts_with("qwen2"));
                assert_eq!(stream.matches(label).count(), count, "{family}: {stream}");
                stream = stream.replace(label, "");
            }
            // The template takes the thought without words out of answers that have been given; the stream keeps what it has read.
            stream = stream.replacen("<think>\n\n</think>\n\na box", "a box", 1);
            let image = model.placeholder();
            let shown = image.repeat(2 / pictures);
            let rendered = model.template.render(&messages).unwrap();
            assert_eq!(stream, rendered.replace(image, &shown));
        }
    }
}

fn show(session: &mut Session, frames: i64) {
    for i in 0..frames {
        let colour = [(i * 40 % 256) as u8, 90, 200];
        session.push_frame(&picture(i * 100, colour)).unwrap();
    }
}

#[test]
fn a_conversation_goes_on_through_evictions_and_begins_anew() {
    for family in FAMILIES {
        let evicting = PolicyKind::ALL.into_iter();
        for policy in evicting.filter(|&policy| policy != PolicyKind::Full) {
            let mut config = SessionConfig {
                model_dir: dir(family),
                system_prompt: String::new(),
                ..tiny_config()
            };
            config.cache.policy = policy;
            config.cache.plus.position_gap = 0.1;
            let mut session = Session::new(config).unwrap();
            let about = format!("{family}, {}", policy.name());
            let run = |session: &mut Session| {
                show(session, 30);
                let first = session.ask(&instruction("a", "What?"), &|| false, &mut |_| ());
                assert_ne!(first.finish, FinishReason::Error, "{about}: {first:?}");
                assert!(first.vision_tokens > 0, "{about}");
                let mut aside = instruction("b", "And before?");
                aside.ephemeral = true;
                let saved = session.usage();
                session.ask(&aside, &|| false, &mut |_| ());
                if policy != PolicyKind::LastFrames {
                    assert_eq!(session.usage(), saved, "{about}");
                    assert!(
                        saved.compactions > 0 && saved.used <= saved.budget,
                        "{about}"
                    );
                }
                let last = session.ask(&instruction("c", "Now?"), &|| false, &mut |_| ());
                assert!(last.vision_tokens > 0, "{about}");
                (first.token_ids, last.token_ids, last.mean_logprob)
            };
            let first = run(&mut session);
            session.reset().unwrap();
            assert_eq!(run(&mut session), first, "{about}");
        }
    }
}

fn command(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_inf_mllm"))
        .args(args)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {errors}");
    assert!(!errors.contains("WARN"), "{args:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn generate_and_forward_give_the_published_numbers() {
    let out = tempfile::tempdir().unwrap();
    for family in FAMILIES {
        let model = dir(family);
        let golden = |name: &str| model.join("golden").join(name);
        let inputs = golden("one.inputs.safetensors");
        let expected = tensors(&golden("one.expected.safetensors"));

        let file = out.path().join(family);
        let args = [
            "forward",
            "--model",
            path(&model),
            "--inputs",
            path(&inputs),
        ];
        command(&[&args[..], &["--out", path(&file)]].concat());
        let got = tensors(&file);
        for name in ["vision_features", "image_features", "logits"] {
            let off = deviation(&got[name], &expected[name]);
            assert!(off <= 1e-4, "{family}: {name} differ by {off}");
        }

        let picture = golden("small.png");
        let args = [
            "generate",
            "--model",
            path(&model),
            "--image",
            path(&picture),
        ];
        let texts = [
            "--system",
            "You are a robot.",
            "--prompt",
            "What is in view?",
        ];
        for bounded in [&[][..], &["--budget", "48", "--slack", "20"]] {
            let args = [&args[..], &texts, &["--json"], bounded].concat();
            let said: Value = serde_json::from_str(&command(&args)).unwrap();
            let prompt: Vec<u32> = serde_json::from_value(said["prompt_ids"].clone()).unwrap();
            assert_eq!(prompt, ids(&tensors(&inputs)["input_ids"]), "{family}");
            assert!(!said["generated_ids"].as_array().unwrap().is_empty());
        }
    }
}

#[test]
fn tensors_of_a_processor_that_do_not_fit_are_refused() {
    let model = load(&dir("qwen2_5_vl"));
    let inputs = tensors(&dir("qwen2_5_vl").join("golden/one.inputs.safetensors"));
    let view = View::Image { of: 1 };
    let refused = |grid: [u32; 3], what: &str| {
        let mut inputs = inputs.clone();
        let grid = Tensor::from_slice(&grid, (1, 3), &Device::Cpu).unwrap();
        inputs.insert("image_grid_thw".to_string(), grid);
        let error = model.vision.split(&inputs, view).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    };
    refused([2, 6, 8], "expected 1 and two multiples of 2");
    refused([1, 5, 8], "multiples of 2");
    refused([1, 0, 8], "multiples of 2");
    refused([1, 60, 80], "fewer than image_grid_thw says");
    refused([1, u32::MAX - 1, u32::MAX - 1], "fewer than");
}

#[test]
fn pictures_of_any_shape_go_through_every_family() {
    for family in FAMILIES {
        let model = load(&dir(family));
        let vision = &model.vision;
        for (width, height) in [(1, 1), (1, 900), (900, 1), (7, 3), (640, 480), (31, 997)] {
            let picture = RgbImage::from_pixel(width, height, image::Rgb([200, 90, 30]));
            for view in [View::Image { of: 1 }, View::Frame] {
                let prepared = vision.prepare(&picture, view);
                let features = vision.encode(&vision.pixels(&prepared).unwrap()).unwrap();
                let tokens = vision.tokens(&prepared.layout);
                let about = format!("{family}, {width} x {height}, {view:?}");
                assert_eq!(features.rows.dim(0).unwrap(), tokens, "{about}");
                assert_eq!(features.grid.unwrap().iter().product::<usize>(), tokens);
                let markup = model.placeholder().repeat(tokens);
                assert_eq!(vision.markup(&prepared.layout), markup, "{about}");
            }
        }
    }
}

#[test]
fn tensors_under_the_names_of_todays_model_are_found() {
    for family in ["qwen2_vl", "qwen2_5_vl"] {
        let copy = copy(family);
        let file = copy.path().join("model.safetensors");
        let renamed = tensors(&file).into_iter().map(|(name, tensor)| {
            let name = match name.split_once('.') {
                Some(("model", rest)) => format!("model.language_model.{rest}"),
                Some(("visual", rest)) => format!("model.visual.{rest}"),
                _ => name,
            };
            (name, tensor)
        });
        let renamed = renamed.collect::<std::collections::HashMap<_, _>>();
        candle_core::safetensors::save(&renamed, &file).unwrap();
        let [published, renamed] = [load(&dir(family)), load(copy.path())].map(|model| {
            let picture = RgbImage::from_pixel(30, 30, image::Rgb([200, 90, 30]));
            let prepared = model.vision.prepare(&picture, View::Frame);
            let pixels = model.vision.pixels(&prepared).unwrap();
            let text = model.decoder.embed(&[1, 2, 3]).unwrap();
            (model.vision.encode(&pixels).unwrap().rows, text)
        });
        assert_eq!(deviation(&published.0, &renamed.0), 0.0);
        assert_eq!(deviation(&published.1, &renamed.1), 0.0);
    }
}

#[test]
fn configurations_that_cannot_be_computed_are_named_with_value_and_expectation() {
    let refused = |family: &str, file: &str, change: &[(&str, Value)], words: &[&str]| {
        let copy = copy(family);
        let file = copy.path().join(file);
        let mut config = support::json(&file);
        for (path, value) in change {
            let (parent, field) = path.rsplit_once('/').unwrap();
            config.pointer_mut(parent).unwrap()[field] = value.clone();
        }
        fs::write(&file, config.to_string()).unwrap();
        let error = support::try_load(copy.path()).err().expect("it loads");
        let error = error.to_string();
        for word in words.iter().chain(&["expected"]) {
            assert!(error.contains(word), "{word:?} is not in: {error}");
        }
    };
    let vision = |family: &str, field: &str, value: Value, words: &[&str]| {
        let path = format!("/vision_config/{field}");
        refused(family, "config.json", &[(&path, value)], words);
    };
    let two_five = "qwen2_5_vl";
    vision(
        two_five,
        "num_heads",
        json!(5),
        &["vision_config.num_heads", "5"],
    );
    vision(
        two_five,
        "num_heads",
        json!(0),
        &["vision_config.num_heads"],
    );
    vision(two_five, "in_chans", json!(4), &["in_channels", "4"]);
    vision(
        two_five,
        "window_size",
        json!(5),
        &["window_size", "5", "6"],
    );
    vision(two_five, "patch_size", json!(0), &["patch_size", "0"]);
    vision(
        two_five,
        "patch_size",
        json!(4),
        &["preprocessor_config.json", "patch_size", "3"],
    );
    vision(
        two_five,
        "patch_size",
        json!(u64::MAX >> 1),
        &["window_size"],
    );
    vision(
        two_five,
        "spatial_merge_size",
        json!(1000),
        &["window_size"],
    );
    vision(
        two_five,
        "hidden_size",
        json!(u64::MAX >> 1),
        &["hidden_size"],
    );
    vision(two_five, "out_hidden_size", json!(61), &["61", "60"]);
    vision(
        two_five,
        "hidden_act",
        json!("relu"),
        &["hidden_act", "relu"],
    );
    vision(
        two_five,
        "rope_parameters",
        json!({ "rope_theta": 0 }),
        &["rope_theta", "0"],
    );
    vision(
        two_five,
        "rope_parameters",
        json!({ "rope_type": "yarn" }),
        &["rope_type", "yarn"],
    );
    vision(
        "qwen2_vl",
        "mlp_ratio",
        json!(u64::MAX >> 1),
        &["intermediate_size"],
    );
    vision(
        "qwen2_vl",
        "spatial_merge_size",
        json!(257),
        &["spatial_merge_size", "257"],
    );
    vision(
        "qwen3_vl",
        "num_position_embeddings",
        json!(24),
        &["24", "square"],
    );
    vision(
        "qwen3_vl",
        "num_position_embeddings",
        json!(0),
        &["num_position_embeddings"],
    );
    vision(
        "qwen3_vl",
        "deepstack_visual_indexes",
        json!([2, 0]),
        &["[2, 0]"],
    );
    vision(
        "qwen3_vl",
        "deepstack_visual_indexes",
        json!([5]),
        &["[5]", "depth (5)"],
    );
    for (family, part, expected) in [
        (two_five, "", "mrope_section"),
        ("qwen3_vl", "/text_config", "mrope_section"),
    ] {
        let path = format!("{part}/rope_scaling");
        refused(family, "config.json", &[(&path, Value::Null)], &[expected]);
    }
    refused(
        "qwen3_vl",
        "config.json",
        &[("/text_config/rope_scaling/mrope_interleaved", json!(false))],
        &["not interleaved", "mrope_interleaved"],
    );
    let processor = |family: &str, change: &[(&str, Value)], words: &[&str]| {
        refused(family, "preprocessor_config.json", change, words);
    };
    processor(
        two_five,
        &[("/do_resize", json!(false))],
        &["do_resize", "false"],
    );
    processor(
        two_five,
        &[("/merge_size", json!(3))],
        &["merge_size", "3", "2"],
    );
    processor(
        two_five,
        &[("/min_pixels", json!(0))],
        &["fewest pixels", "0"],
    );
    processor(
        two_five,
        &[("/max_pixels", json!(600))],
        &["fewest pixels", "700", "600"],
    );
    processor(
        two_five,
        &[
            ("/min_pixels", json!(1u64 << 50)),
            ("/max_pixels", json!(1u64 << 51)),
        ],
        &["fewest pixels", "16777216"],
    );
    processor(two_five, &[("/resample", json!(0))], &["resample", "0"]);
    let size = json!({ "height": 30, "width": 30 });
    processor(
        "qwen3_vl",
        &[("/size", size)],
        &["size.shortest_edge", "missing"],
    );
}
