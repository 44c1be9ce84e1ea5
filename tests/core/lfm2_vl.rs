//! LFM2-VL beyond its golden files: pictures of any shape, frames in the stream, every policy, what is refused.

use std::fs;

use candle_core::{DType, Device, Tensor};
use image::RgbImage;
use inf_mllm::model::vision::View;
use inf_mllm::stream::grammar::{Chat, Grammar};
use inf_mllm::stream::{Session, SessionConfig};
use serde_json::json;

use crate::commands::{path, run, succeeded};
use crate::family_checks::{
    changed, check_command_line, check_every_policy, check_missing_and_misshapen, check_replay,
    check_split, check_system_prompt_and_budget, family, refused,
};
use crate::support::{self, instruction, load, shot, tensors, try_load};
use crate::variants::copy;

/// With a norm in front of the projector and no thumbnail behind tiles, and the other way round.
const BOTH: [&str; 2] = ["lfm2_vl", "lfm2_5_vl"];

/// Width and height of pictures, and the tokens that the published processor gives them (`Lfm2VlProcessor` of transformers 5.23) cut into
/// tiles, cut with a thumbnail, and uncut.
const TOKENS: [(u32, u32, [usize; 3]); 16] = [
    (1, 1, [4, 4, 4]),
    (7, 3, [8, 8, 8]),
    (24, 24, [9, 9, 9]),
    (33, 33, [16, 16, 16]),
    (34, 34, [16, 16, 16]),
    (36, 44, [12, 12, 12]),
    (48, 24, [10, 10, 10]),
    (640, 480, [54, 66, 12]),
    (480, 640, [54, 66, 12]),
    (1920, 1080, [18, 33, 15]),
    (31, 97, [27, 41, 14]),
    (100, 99, [36, 48, 12]),
    (300, 40, [54, 64, 10]),
    (60, 20, [16, 16, 16]),
    (20, 76, [14, 14, 14]),
    (64, 24, [12, 12, 12]),
];

#[test]
fn pictures_of_any_shape_become_the_published_number_of_tokens() {
    for (i, name) in BOTH.into_iter().enumerate() {
        let vision = load(&family(name)).vision;
        for (width, height, tokens) in TOKENS {
            let picture = RgbImage::from_pixel(width, height, image::Rgb([200, 90, 30]));
            for (view, tokens) in [
                (View::Image { of: 1 }, tokens[i]),
                (View::Image { of: 3 }, tokens[i]),
                (View::Frame, tokens[2]),
            ] {
                let about = format!("{name}: {width} x {height}, {view:?}");
                let prepared = vision.prepare(&picture, view);
                assert_eq!(vision.tokens(&prepared.layout), tokens, "{about}");
                let pixels = vision.pixels(&prepared).unwrap();
                let rows = vision.encode(&pixels).unwrap().rows;
                assert_eq!(rows.dim(0).unwrap(), tokens, "{about}");
                let markup = vision.markup(&prepared.layout);
                assert_eq!(markup.matches("<image>").count(), tokens, "{about}");
            }
        }
    }
}

#[test]
fn images_longer_than_any_camera_s_stay_within_the_most_tokens() {
    let vision = load(&family(BOTH[0])).vision;
    for size in [(5000, 1), (1, 5000), (16_384, 3), (40, 16_000)] {
        let layout = vision.layout(size, View::Frame);
        let tokens = vision.tokens(&layout);
        assert!((1..=16).contains(&tokens), "{size:?}: {tokens}");
    }
}

#[test]
fn tiles_are_named_by_their_places_and_the_whole_by_its_name() {
    let expected = |parts: &[&str]| format!("<|image_start|>{}<|image_end|>", parts.concat());
    let tile = "<image>".repeat(9);
    let whole = "<image>".repeat(15);
    for (name, thumbnail) in [(BOTH[0], None), (BOTH[1], Some("<|img_thumbnail|>"))] {
        let vision = load(&family(name)).vision;
        let layout = vision.layout((1920, 1080), View::Image { of: 1 });
        let mut parts = vec!["<|img_row_1_col_1|>", &tile, "<|img_row_1_col_2|>", &tile];
        if let Some(thumbnail) = thumbnail {
            parts.extend([thumbnail, &whole]);
        }
        assert_eq!(vision.markup(&layout), expected(&parts), "{name}");
        let layout = vision.layout((1920, 1080), View::Frame);
        assert_eq!(vision.markup(&layout), expected(&[&whole]), "{name}");
    }
}

#[test]
fn frames_stand_in_the_stream_as_images_of_a_prompt_do() {
    let model = load(&family(BOTH[1]));
    let mut grammar = Grammar::new(Chat::of(&model).unwrap());
    assert_eq!(grammar.format().name, "LFM2-VL");
    let prefix = grammar.prefix("", &model.tokenizer);
    assert_eq!(prefix, "<|startoftext|>");
    let user = "<|im_start|>user\n";
    assert_eq!(grammar.frame("X", &shot(0)).text, format!("{user}X"));
    assert_eq!(grammar.frame("X", &shot(70_000_000_000)).text, "X");
    let asked = "where?<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(grammar.instruction("where?", &model.tokenizer), asked);
    grammar.answered();
    let again = format!("<|im_end|>\n{user}X");
    assert_eq!(grammar.frame("X", &shot(0)).text, again);
}

#[test]
fn sessions_run_under_every_policy() {
    check_every_policy(&BOTH, 500, 9);
}

#[test]
fn the_command_line_runs_it() {
    check_command_line(&BOTH);
    check_system_prompt_and_budget(&BOTH);
    check_replay(&BOTH, "LFM2-VL, decoder lfm2");
}

#[test]
fn weights_become_blocks_as_those_of_other_decoders_do() {
    let model = family(BOTH[1]);
    for quantization in ["q8_0", "q4_k"] {
        let printed = succeeded(&run(&[
            "generate",
            "--model",
            path(&model),
            "--prompt",
            "What is in view?",
            "--max-new-tokens",
            "4",
            "--quantization",
            quantization,
        ]));
        assert!(!printed.is_empty());
    }
}

#[test]
fn answers_hold_nothing_that_stands_for_pictures() {
    let model = load(&family(BOTH[1]));
    for token in [
        "<image>",
        "<|image_start|>",
        "<|image_end|>",
        "<|img_thumbnail|>",
    ] {
        let id = model.tokenizer.control(token).unwrap();
        assert!(model.placeholders.contains(&id), "{token}");
    }
}

#[test]
fn configurations_that_cannot_be_computed_are_named_with_value_and_expectation() {
    let config = |path: &str, value, words: &[&str]| {
        refused("lfm2_vl", "config.json", path, value, words);
    };
    let part = |part: &str, field: &str, value, words: &[&str]| {
        let named = format!("{part}.{field}");
        let words = [&[named.as_str()], words].concat();
        config(&format!("/{part}/{field}"), value, &words);
    };
    let tower = |field: &str, value, words: &[&str]| part("vision_config", field, value, words);
    tower("model_type", json!("siglip_vision_model"), &["siglip2"]);
    tower("num_channels", json!(1), &["1"]);
    tower("patch_size", json!(0), &["0"]);
    tower("num_patches", json!(63), &["63", "square"]);
    tower("hidden_size", json!(0), &["0"]);
    tower("hidden_size", json!(1u64 << 40), &[]);
    tower("intermediate_size", json!(u64::MAX), &[]);
    tower("num_attention_heads", json!(5), &["divisor"]);
    tower("layer_norm_eps", json!(-1.0), &["-1"]);
    tower("hidden_act", json!("swiglu"), &["swiglu"]);
    let table = "/vision_config/num_patches";
    config(table, json!(1u64 << 40), &["image_size"]);
    config("/downsample_factor", json!(0), &["downsample_factor"]);
    config("/downsample_factor", json!(1u64 << 40), &["1 to 16"]);
    config(
        "/projector_hidden_size",
        json!(0),
        &["projector_hidden_size"],
    );
    config("/projector_hidden_size", json!(1u64 << 40), &["at most"]);
    config(
        "/projector_hidden_act",
        json!("swiglu"),
        &["projector_hidden_act"],
    );

    let text = |field: &str, value, words: &[&str]| part("text_config", field, value, words);
    text("conv_L_cache", json!(1), &["1", "2 to 64"]);
    text("conv_L_cache", json!(1u64 << 40), &["2 to 64"]);
    text(
        "layer_types",
        json!(["conv", "full_attention"]),
        &["2 long", "4"],
    );
    text(
        "layer_types",
        json!(["conv", "conv", "conv", "conv"]),
        &["full_attention"],
    );
    let mamba = json!(["conv", "mamba", "conv", "full_attention"]);
    text("layer_types", mamba, &["mamba", "full_attention or conv"]);
    text("num_key_value_heads", json!(4), &["divisor"]);
    text("num_key_value_heads", json!(0), &["0"]);
    text("norm_eps", json!(-1.0), &["-1"]);
    text("hidden_size", json!(0), &["0"]);
    text("vocab_size", json!(u64::MAX), &["at most"]);
    config(
        "/text_config/block_multiple_of",
        json!(u64::MAX),
        &["intermediate_size"],
    );
    config(
        "/text_config/block_ffn_dim_multiplier",
        json!(1e300),
        &["intermediate_size"],
    );
    config(
        "/text_config/rope_theta",
        json!(0.5),
        &["rope_theta", "0.5"],
    );

    let processor = |path: &str, value, words: &[&str]| {
        refused("lfm2_vl", "preprocessor_config.json", path, value, words);
    };
    processor("/encoder_patch_size", json!(16), &["16", "4"]);
    processor("/downsample_factor", json!(4), &["4", "2"]);
    processor("/do_rescale", json!(false), &["do_rescale"]);
    processor("/resample", json!(0), &["resample", "0"]);
    processor("/tile_size", json!(20), &["tile_size", "multiple of 8"]);
    processor("/tile_size", json!(1u64 << 40), &["tile_size"]);
    for most in [0, 1, 11, 1u64 << 40] {
        processor("/max_tiles", json!(most), &["max_tiles", "2 to 10"]);
    }
    for least in [0, 1, 7] {
        processor("/min_tiles", json!(least), &["min_tiles", "2 to"]);
    }
    for most in [0, 1u64 << 40] {
        processor("/max_image_tokens", json!(most), &["max_image_tokens"]);
    }
    for least in [0, 17] {
        processor("/min_image_tokens", json!(least), &["min_image_tokens"]);
    }
    processor(
        "/max_pixels_tolerance",
        json!(-1.0),
        &["max_pixels_tolerance"],
    );
}

#[test]
fn images_are_not_cut_where_the_processor_does_not_cut_them() {
    let dir = changed(
        "lfm2_vl",
        "preprocessor_config.json",
        "/do_image_splitting",
        json!(false),
    );
    let vision = load(dir.path()).vision;
    for (width, height, tokens) in TOKENS {
        let size = (width as usize, height as usize);
        let layout = vision.layout(size, View::Image { of: 1 });
        assert_eq!(vision.tokens(&layout), tokens[2], "{size:?}");
    }
}

/// The same layers said in other ways: which of them attend, and how wide their MLP is.
#[test]
fn older_spellings_of_the_decoder_s_layers_are_read() {
    let asked = |dir: &std::path::Path| {
        let config = SessionConfig {
            model_dir: dir.to_path_buf(),
            max_new_tokens: 6,
            ..SessionConfig::default()
        };
        let mut session = Session::new(SessionConfig {
            cache: inf_mllm::cache::CacheConfig {
                budget: 160,
                ..config.cache.clone()
            },
            ..config
        })
        .unwrap();
        let answer = session.ask(&instruction("a", "Where?"), &|| false, &mut |_| ());
        answer.token_ids
    };
    let expected = asked(&family("lfm2_vl"));
    let older = copy("lfm2_vl");
    let file = older.path().join("config.json");
    let mut config = support::json(&file);
    let text = config["text_config"].as_object_mut().unwrap();
    text.remove("layer_types");
    text.insert("full_attn_idxs".to_string(), json!([1, 3]));
    text.insert("intermediate_size".to_string(), json!(7));
    text.insert("tie_embedding".to_string(), json!(true));
    fs::write(&file, config.to_string()).unwrap();
    assert_eq!(asked(older.path()), expected);
    // 100 * 2 / 3 = 66, to whole eights.
    let text = config["text_config"].as_object_mut().unwrap();
    text.insert("block_auto_adjust_ff_dim".to_string(), json!(false));
    text.insert("block_ff_dim".to_string(), json!(72));
    fs::write(&file, config.to_string()).unwrap();
    assert_eq!(asked(older.path()), expected);
}

#[test]
fn a_missing_or_misshapen_tensor_is_named() {
    for name in [
        "model.vision_tower.vision_model.embeddings.position_embedding.weight",
        "model.vision_tower.vision_model.embeddings.patch_embedding.bias",
        "model.vision_tower.vision_model.encoder.layers.2.mlp.fc1.weight",
        "model.vision_tower.vision_model.post_layernorm.weight",
        "model.multi_modal_projector.layer_norm.bias",
        "model.multi_modal_projector.linear_1.weight",
        "model.language_model.layers.0.conv.conv.weight",
        "model.language_model.layers.0.conv.in_proj.weight",
        "model.language_model.layers.1.self_attn.k_layernorm.weight",
        "model.language_model.layers.1.feed_forward.w2.weight",
        "model.language_model.embedding_norm.weight",
    ] {
        check_missing_and_misshapen("lfm2_vl", name);
    }
}

/// Tensors of a processor that do not fit the prompt, or the tower.
#[test]
fn pixel_values_that_are_not_the_prompt_s_are_refused() {
    let dir = family(BOTH[1]);
    let vision = load(&dir).vision;
    let inputs = tensors(&dir.join("golden/two.inputs.safetensors"));
    let ids = &inputs["input_ids"];
    let fewer = |name: &str| inputs[name].narrow(0, 0, 7);
    let shapes = |side: i64| Tensor::full(side, (8, 2), &Device::Cpu);
    let changes = [
        ("pixel_values", fewer("pixel_values"), "[8, patches, 48]"),
        ("spatial_shapes", fewer("spatial_shapes"), "[8, 2]"),
        ("spatial_shapes", shapes(1 << 20), "at most 64 patches"),
        ("spatial_shapes", shapes(2), "patches, expected"),
        (
            "pixel_values",
            Tensor::zeros((8, 64, 50), DType::F32, &Device::Cpu),
            "[8, 64, 50]",
        ),
        (
            "input_ids",
            ids.narrow(1, 0, ids.dim(1).unwrap() / 2),
            "parts of pictures",
        ),
    ];
    let changes = changes.map(|(name, tensor, word)| (name, tensor.unwrap(), word));
    let needed = ["pixel_values", "spatial_shapes", "input_ids"];
    check_split(vision.as_ref(), &dir, &needed, &changes);
}

/// The layout of the first revisions is not read, and the error says what to do.
#[test]
fn the_layout_of_first_revisions_is_refused_with_what_to_take() {
    let original = changed("lfm2_vl", "config.json", "/model_type", json!("lfm2-vl"));
    let error = try_load(original.path()).err().expect("it loads");
    let error = error.to_string();
    for word in ["lfm2-vl", "lfm2_vl", "download it again"] {
        assert!(error.contains(word), "{word:?} is not in: {error}");
    }
}
