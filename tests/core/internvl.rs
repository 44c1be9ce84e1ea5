//! InternVL beyond its golden files: pictures of any shape, frames in the stream, every policy, what is refused.

use std::fs;

use candle_core::{DType, Device, Tensor};
use image::RgbImage;
use inf_mllm::model::vision::View;
use inf_mllm::stream::grammar::{Chat, Grammar, Shot};
use serde_json::json;

use crate::commands::{failed, path, run};
use crate::family_checks::{
    changed, check_command_line, check_every_policy, check_missing_and_misshapen, check_replay,
    check_split, check_system_prompt_and_budget, family, refused,
};
use crate::support::{self, load, shot, tensors, try_load};

/// With a Qwen2 decoder and the tower of the small models, and with a Qwen3 decoder and the tower of the large ones.
const BOTH: [&str; 2] = ["internvl", "internvl3_5"];

/// Width and height of pictures, and the tokens that the published processor gives them (`get_number_of_image_patches` of transformers
/// 5.23, times 4), cut into 1 to 12 tiles of 24 pixels, and into 3 to 5.
const TOKENS: [(u32, u32, [usize; 2]); 14] = [
    (1, 1, [4, 20]),
    (1, 5000, [52, 24]),
    (5000, 1, [52, 24]),
    (7, 3, [44, 16]),
    (24, 24, [4, 20]),
    (33, 33, [4, 20]),
    (34, 34, [20, 20]),
    (48, 24, [12, 16]),
    (640, 480, [52, 20]),
    (480, 640, [52, 20]),
    (1920, 1080, [36, 20]),
    (31, 997, [52, 24]),
    (997, 31, [52, 24]),
    (100, 99, [40, 20]),
];

#[test]
fn pictures_of_any_shape_become_the_published_number_of_tokens() {
    let few = changed(
        "internvl",
        "preprocessor_config.json",
        "/min_patches",
        json!(3),
    );
    let file = few.path().join("preprocessor_config.json");
    let mut config = support::json(&file);
    config["max_patches"] = json!(5);
    fs::write(file, config.to_string()).unwrap();
    for (i, dir) in [family("internvl"), few.path().to_path_buf()]
        .iter()
        .enumerate()
    {
        let vision = load(dir).vision;
        for (width, height, tokens) in TOKENS {
            let picture = RgbImage::from_pixel(width, height, image::Rgb([200, 90, 30]));
            for (view, tokens) in [
                (View::Image { of: 1 }, tokens[i]),
                (View::Image { of: 3 }, tokens[i]),
                (View::Frame, 4),
            ] {
                let about = format!("{width} x {height}, {view:?}");
                let prepared = vision.prepare(&picture, view);
                assert_eq!(vision.tokens(&prepared.layout), tokens, "{about}");
                let pixels = vision.pixels(&prepared).unwrap();
                let rows = vision.encode(&pixels).unwrap().rows;
                assert_eq!(rows.dim(0).unwrap(), tokens, "{about}");
                let context = "<IMG_CONTEXT>".repeat(tokens);
                let markup = format!("<img>{context}</img>");
                assert_eq!(vision.markup(&prepared.layout), markup, "{about}");
            }
        }
    }
}

/// The published processor numbers the frames of each video from 1, and a user turn is a video.
#[test]
fn frames_are_numbered_within_their_turn() {
    let model = load(&family("internvl"));
    let mut grammar = Grammar::new(Chat::of(&model).unwrap());
    assert_eq!(grammar.format().name, "InternVL");
    assert_eq!(grammar.prefix("", &model.tokenizer), "");
    let user = "<|im_start|>user\n";
    assert_eq!(
        grammar.frame("X", &shot(0)).text,
        format!("{user}Frame1: X")
    );
    assert_eq!(
        grammar.frame("X", &shot(70_000_000_000)).text,
        "\nFrame2: X"
    );
    let sent = "\nA picture that was sent: X";
    assert_eq!(grammar.sent_picture("X"), sent);
    let rear = "\nFrame3, rear camera: X";
    let from_the_rear = Shot {
        camera: (1, Some("rear")),
        ..shot(0)
    };
    assert_eq!(grammar.frame("X", &from_the_rear).text, rear);
    let asked = "\nwhere?<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(grammar.instruction("where?", &model.tokenizer), asked);
    grammar.answered();
    let again = format!("<|im_end|>\n{user}Frame1: X");
    assert_eq!(grammar.frame("X", &shot(0)).text, again);
}

#[test]
fn sessions_run_under_every_policy() {
    check_every_policy(&BOTH, 512, 4);
}

#[test]
fn the_command_line_runs_it() {
    check_command_line(&BOTH);
    check_system_prompt_and_budget(&BOTH);
    check_replay(&BOTH, "InternVL");
}

/// What no answer holds: `<video>` has no embedding in InternVL3, and what stands around pictures is the processor's.
#[test]
fn answers_hold_nothing_that_stands_for_pictures() {
    for name in BOTH {
        let model = load(&family(name));
        for token in ["<img>", "</img>", "<IMG_CONTEXT>", "<video>"] {
            let id = model.tokenizer.control(token).unwrap();
            assert!(model.placeholders.contains(&id), "{name}, {token}");
        }
    }
    let model = load(&family("internvl"));
    let video = model.tokenizer.control("<video>").unwrap();
    assert_eq!(video as usize, model.config.vocab_size());
}

#[test]
fn configurations_that_cannot_be_computed_are_named_with_value_and_expectation() {
    let config = |path: &str, value, words: &[&str]| {
        refused("internvl", "config.json", path, value, words);
    };
    let tower = |field: &str, value, words: &[&str]| {
        let named = format!("vision_config.{field}");
        let words = [&[named.as_str()], words].concat();
        config(&format!("/vision_config/{field}"), value, &words);
    };
    tower("model_type", json!("clip_vision_model"), &["clip"]);
    tower("num_channels", json!(1), &["1"]);
    tower("patch_size", json!(0), &["0"]);
    tower("image_size", json!(5), &["5"]);
    tower("image_size", json!(1_000_000), &["1000000"]);
    tower("hidden_size", json!(0), &["0"]);
    tower("hidden_size", json!(1u64 << 40), &[]);
    tower("intermediate_size", json!(u64::MAX), &[]);
    tower("num_attention_heads", json!(5), &["divisor"]);
    tower("layer_norm_eps", json!(-1.0), &["-1"]);
    tower("hidden_act", json!("swiglu"), &["swiglu"]);
    tower("use_absolute_position_embeddings", json!(false), &["true"]);
    tower("use_mean_pooling", json!(false), &["true"]);
    config(
        "/vision_config/norm_type",
        json!("batch_norm"),
        &["batch_norm"],
    );
    config(
        "/vision_config/image_size",
        json!([24, 30]),
        &["[24,30]", "equal"],
    );
    config(
        "/projector_hidden_act",
        json!("swiglu"),
        &["projector_hidden_act"],
    );
    config(
        "/vision_feature_layer",
        json!(-2),
        &["vision_feature_layer", "-2"],
    );
    let strategy = "vision_feature_select_strategy";
    config(&format!("/{strategy}"), json!("full"), &[strategy, "full"]);
    for ratio in [0.0, -0.5, 0.4, 1.0 / 3.0, 1e-12, 2.0] {
        config(
            "/downsample_ratio",
            json!(ratio),
            &["downsample_ratio", "divisor"],
        );
    }
    config(
        "/text_config/model_type",
        json!("gpt_oss"),
        &["text_config.model_type", "gpt_oss"],
    );
    config(
        "/text_config/rope_scaling/rope_type",
        json!("longrope"),
        &["rope_type", "longrope", "dynamic"],
    );

    let processor = |path: &str, value, words: &[&str]| {
        refused("internvl", "preprocessor_config.json", path, value, words);
    };
    processor("/size/height", json!(30), &["size", "30 x 24"]);
    processor("/do_resize", json!(false), &["do_resize"]);
    processor("/do_rescale", json!(false), &["do_rescale"]);
    processor("/resample", json!(0), &["resample", "0"]);
    for most in [0, 65, 1u64 << 40] {
        processor("/max_patches", json!(most), &["max_patches", "1 to 64"]);
    }
    for least in [0, 13] {
        processor("/min_patches", json!(least), &["min_patches", "1 to"]);
    }
}

/// As many ids as the tokenizer gives, but for `<video>`.
#[test]
fn a_tokenizer_of_more_ids_than_embeddings_is_refused() {
    let tokens = load(&family("internvl")).config.vocab_size() as u64 + 1;
    for fewer in [tokens - 2, 7] {
        let dir = changed(
            "internvl",
            "config.json",
            "/text_config/vocab_size",
            json!(fewer),
        );
        let error = try_load(dir.path()).err().expect("it loads").to_string();
        for word in ["vocab", &fewer.to_string()] {
            assert!(error.contains(word), "{error}");
        }
    }
}

#[test]
fn a_missing_or_misshapen_tensor_of_tower_or_projector_is_named() {
    for name in [
        "vision_tower.embeddings.position_embeddings",
        "vision_tower.embeddings.cls_token",
        "vision_tower.encoder.layer.1.lambda_2",
        "vision_tower.encoder.layer.2.attention.k_norm.weight",
        "multi_modal_projector.layer_norm.bias",
        "language_model.lm_head.weight",
    ] {
        check_missing_and_misshapen("internvl3_5", name);
    }
}

/// Tensors of a processor that do not fit the prompt, or the tower.
#[test]
fn pixel_values_that_are_not_the_prompt_s_are_refused() {
    let dir = family("internvl");
    let vision = load(&dir).vision;
    let inputs = tensors(&dir.join("golden/two.inputs.safetensors"));
    let ids = &inputs["input_ids"];
    let changes = [
        (
            "pixel_values",
            inputs["pixel_values"].narrow(0, 0, 7),
            "[8, 3, 24, 24]",
        ),
        (
            "pixel_values",
            Tensor::zeros((8, 3, 30, 24), DType::F32, &Device::Cpu),
            "[8, 3, 30, 24]",
        ),
        (
            "input_ids",
            ids.narrow(1, 0, ids.dim(1).unwrap() / 2),
            "multiple of 4",
        ),
    ];
    let changes = changes.map(|(name, tensor, word)| (name, tensor.unwrap(), word));
    let needed = ["pixel_values", "input_ids"];
    check_split(vision.as_ref(), &dir, &needed, &changes);
}

/// The layout of the original code is not read, and the error says which repository to take in its place.
#[test]
fn the_original_layout_is_refused_with_what_to_take() {
    let original = changed(
        "internvl",
        "config.json",
        "/model_type",
        json!("internvl_chat"),
    );
    let error = try_load(original.path()).err().expect("it loads");
    let inspected = run(&["inspect", path(original.path())]);
    assert_eq!(inspected.status.code(), Some(1));
    let inspected = String::from_utf8_lossy(&inspected.stdout).into_owned();
    let generated = failed(&run(&[
        "generate",
        "--model",
        path(original.path()),
        "--prompt",
        "What is in view?",
    ]));
    for said in [error.to_string(), inspected, generated] {
        for word in ["internvl_chat", "-hf", "OpenGVLab/InternVL3_5-1B-HF"] {
            assert!(said.contains(word), "{word:?} is not in: {said}");
        }
    }
}
