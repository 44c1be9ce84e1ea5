//! The LLaVA families beyond their golden files: pictures of any shape, several feature layers, configurations that are refused.

use candle_core::{DType, Device, Module, Tensor};
use image::RgbImage;
use inf_mllm::model::checkpoint::Checkpoint;
use inf_mllm::model::llava::NAMES;
use inf_mllm::model::vision::vit::{self, Vit};
use inf_mllm::model::vision::View;
use inf_mllm::model::weights::Quantization;
use inf_mllm::stream::grammar::Chat;
use inf_mllm::stream::{Session, SessionConfig, Taken};
use serde_json::{json, Value};

use crate::family_checks::{
    changed, check_command_line, check_system_prompt_and_budget, family, refused,
};
use crate::support::{self, deviation, instruction, load, picture, tensors};

/// Width and height of pictures, and the tokens that the published processors of LLaVA-NeXT and LLaVA-OneVision give them
/// (`_get_number_of_features` of transformers 5.23, less the class token).
const TOKENS: [(u32, u32, [usize; 2]); 10] = [
    (1, 1, [36, 21]),
    (1, 5000, [20, 15]),
    (5000, 1, [16, 13]),
    (7, 3, [52, 13]),
    (640, 480, [70, 86]),
    (480, 640, [72, 89]),
    (1920, 1080, [52, 87]),
    (31, 997, [28, 45]),
    (997, 31, [16, 28]),
    (100, 99, [88, 81]),
];

#[test]
fn pictures_of_any_shape_become_the_published_number_of_tokens() {
    let view = View::Image { of: 1 };
    for (i, name) in ["llava_next", "llava_onevision"].into_iter().enumerate() {
        let vision = load(&family(name)).vision;
        for (width, height, tokens) in TOKENS {
            let layout = vision.layout((width as usize, height as usize), view);
            assert_eq!(
                vision.tokens(&layout),
                tokens[i],
                "{name}, {width} x {height}"
            );
        }
    }
}

#[test]
fn pictures_of_any_shape_go_through_every_family() {
    for name in ["llava", "llava_next", "llava_onevision"] {
        let vision = load(&family(name)).vision;
        for (width, height, _) in TOKENS {
            let picture = RgbImage::from_pixel(width, height, image::Rgb([200, 90, 30]));
            for view in [View::Image { of: 1 }, View::Image { of: 3 }, View::Frame] {
                let prepared = vision.prepare(&picture, view);
                let pixels = vision.pixels(&prepared).unwrap();
                let rows = vision.encode(&pixels).unwrap().rows;
                let tokens = vision.tokens(&prepared.layout);
                assert_eq!(
                    rows.dim(0).unwrap(),
                    tokens,
                    "{name}, {width} x {height}, {view:?}"
                );
                assert_eq!(vision.markup(&prepared.layout), "<image>".repeat(tokens));
            }
        }
    }
}

/// A picture that is made a square shows its own colour in the middle and the mean above it.
#[test]
fn one_of_several_images_and_a_frame_that_would_be_cut_are_padded_with_the_mean_colour() {
    let mean_of_clip = [122, 116, 104];
    for (name, view, mean) in [
        ("llava_onevision", View::Image { of: 2 }, [127; 3]),
        ("llava", View::Frame, mean_of_clip),
    ] {
        let vision = load(&family(name)).vision;
        let picture = RgbImage::from_pixel(30, 10, image::Rgb([255, 0, 60]));
        let prepared = vision.prepare(&picture, view);
        let [tile] = prepared.tiles.as_slice() else {
            panic!("{name}: {} tiles", prepared.tiles.len());
        };
        let pixel = |x: usize, y: usize| &tile.rgb[(y * tile.width + x) * 3..][..3];
        let middle = tile.width / 2;
        assert_eq!(pixel(middle, middle), [255, 0, 60], "{name}");
        for (x, y) in [(0, 0), (middle, 0), (tile.width - 1, tile.height - 1)] {
            assert_eq!(pixel(x, y), mean, "{name}");
        }
    }
}

/// A line of as many pixels as a large picture has: gigabytes, if its length were taken as it is.
#[test]
fn pictures_longer_than_any_camera_takes_them_are_prepared_all_the_same() {
    const LENGTH: u32 = 9_000_000;
    for (width, height) in [(LENGTH, 1), (1, LENGTH)] {
        let picture = RgbImage::from_pixel(width, height, image::Rgb([9, 9, 9]));
        for name in ["llava", "llava_next", "llava_onevision"] {
            let vision = load(&family(name)).vision;
            for view in [View::Image { of: 1 }, View::Frame] {
                let prepared = vision.prepare(&picture, view);
                let pixels = vision.pixels(&prepared).unwrap();
                let rows = vision.encode(&pixels).unwrap().rows;
                assert_eq!(rows.dim(0).unwrap(), vision.tokens(&prepared.layout));
            }
        }
    }
}

#[test]
fn features_of_several_layers_are_those_of_each_side_by_side() {
    let dir = family("llava");
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let config: Value = checkpoint.json("config.json").unwrap();
    let kind = "clip_vision_model";
    let shape = vit::Config::from_json(config["vision_config"].clone(), kind).unwrap();
    let (quantization, device) = (Quantization::default(), &Device::Cpu);
    let weights = checkpoint.weights(NAMES, quantization, DType::F32, device);
    let weights = weights.unwrap().pp("vision_tower").pp("vision_model");
    let pixels = &tensors(&dir.join("golden/two.inputs.safetensors"))["pixel_values"];
    let features = |layers: &[usize], class_token| {
        let tower = Vit::new(&shape, layers, class_token, &weights).unwrap();
        tower.forward(pixels).unwrap()
    };
    let joined = features(&[2, 0, 2], false);
    let each = [features(&[2], false), features(&[0], false)];
    let wanted = Tensor::cat(&[&each[0], &each[1], &each[0]], 2).unwrap();
    assert_eq!(deviation(&joined, &wanted), 0.0);

    let rows = each[0].dim(1).unwrap();
    let whole = features(&[2], true);
    assert_eq!(whole.dim(1).unwrap(), rows + 1);
    assert_eq!(deviation(&whole.narrow(1, 1, rows).unwrap(), &each[0]), 0.0);
}

#[test]
fn configurations_that_cannot_be_computed_are_named_with_value_and_expectation() {
    let config = |name: &str, path: &str, value: Value, words: &[&str]| {
        refused(name, "config.json", path, value, words);
    };
    config(
        "llava",
        "/vision_config/model_type",
        json!("pixtral"),
        &["vision_config.model_type", "pixtral"],
    );
    config(
        "llava",
        "/vision_config/patch_size",
        json!(0),
        &["vision_config.patch_size", "0"],
    );
    config(
        "llava",
        "/vision_config/image_size",
        json!(5),
        &["vision_config.image_size", "5"],
    );
    config(
        "llava",
        "/vision_config/image_size",
        json!(1_000_000),
        &["vision_config.image_size", "1000000"],
    );
    config(
        "llava",
        "/vision_config/num_attention_heads",
        json!(5),
        &["num_attention_heads", "5", "divisor"],
    );
    config(
        "llava",
        "/vision_config/hidden_size",
        json!(1u64 << 40),
        &["vision_config.hidden_size"],
    );
    config(
        "llava",
        "/projector_hidden_act",
        json!("swiglu"),
        &["projector_hidden_act", "swiglu"],
    );
    config(
        "llava",
        "/vision_feature_layer",
        json!(-5),
        &["vision_feature_layer", "-5", "-4 to 3"],
    );
    config(
        "llava",
        "/vision_feature_layer",
        json!(4),
        &["vision_feature_layer", "4"],
    );
    config(
        "llava",
        "/vision_feature_layer",
        json!([]),
        &["vision_feature_layer", "[]"],
    );
    config(
        "llava",
        "/vision_feature_layer",
        json!(i64::MIN),
        &["vision_feature_layer"],
    );
    config(
        "llava",
        "/vision_feature_select_strategy",
        json!("cls"),
        &["vision_feature_select_strategy", "cls"],
    );
    config(
        "llava_next",
        "/vision_feature_select_strategy",
        json!("full"),
        &["vision_feature_select_strategy", "class token"],
    );
    config(
        "llava_next",
        "/image_grid_pinpoints",
        json!([]),
        &["image_grid_pinpoints", "empty"],
    );
    config(
        "llava_next",
        "/image_grid_pinpoints",
        json!([[24, 30]]),
        &["image_grid_pinpoints", "[24, 30]"],
    );
    config(
        "llava_next",
        "/image_grid_pinpoints",
        json!([[24, 24_000_000]]),
        &["image_grid_pinpoints"],
    );
    config(
        "llava_onevision",
        "/vision_aspect_ratio",
        json!("anyres"),
        &["vision_aspect_ratio", "anyres"],
    );
    config(
        "llava_onevision",
        "/vision_feature_select_strategy",
        json!("default"),
        &["vision_feature_select_strategy", "class token"],
    );

    let processor = |name: &str, path: &str, value: Value, words: &[&str]| {
        refused(name, "preprocessor_config.json", path, value, words);
    };
    processor(
        "llava",
        "/size/shortest_edge",
        json!(20),
        &["size.shortest_edge", "20"],
    );
    processor(
        "llava",
        "/size/shortest_edge",
        json!(1u64 << 40),
        &["size.shortest_edge"],
    );
    processor(
        "llava",
        "/crop_size/height",
        json!(32),
        &["crop_size", "32 x 28"],
    );
    processor(
        "llava",
        "/do_center_crop",
        json!(false),
        &["do_center_crop", "false"],
    );
    processor("llava", "/do_resize", json!(false), &["do_resize", "false"]);
    processor(
        "llava",
        "/do_normalize",
        json!(false),
        &["do_normalize", "false"],
    );
    processor("llava", "/resample", json!(7), &["resample", "7"]);
    processor(
        "llava_next",
        "/size/shortest_edge",
        json!(30),
        &["size.shortest_edge", "30"],
    );
    processor(
        "llava_next",
        "/image_grid_pinpoints/0/0",
        json!(48),
        &["image_grid_pinpoints", "config.json"],
    );
    processor(
        "llava_onevision",
        "/size/width",
        json!(24),
        &["size", "23 x 24"],
    );
}

/// The output layer is the input embedding where either level says so.
#[test]
fn embeddings_are_tied_where_the_text_part_says_so() {
    let dir = family("llava_onevision");
    let config: Value = support::json(&dir.join("config.json"));
    assert_eq!(config["tie_word_embeddings"], false);
    assert!(load(&dir).config.tied());
    let untied = changed(
        "llava_onevision",
        "config.json",
        "/text_config/tie_word_embeddings",
        json!(false),
    );
    let error = support::try_load(untied.path()).err().expect("it loads");
    assert!(
        error.to_string().contains("language_model.lm_head.weight"),
        "{error}"
    );
    assert!(!load(&family("llava")).config.tied());
}

/// A template that writes every turn as `turn`, where `images` stands for its images and `text` for its text.
fn template(turn: &str, prompt: &str) -> Value {
    let source = format!(
        "{{% for message in messages %}}\
         {{% set ns = namespace(images='', text='') %}}\
         {{% for part in message['content'] %}}\
         {{% if part['type'] == 'image' %}}{{% set ns.images = ns.images + IMAGE %}}\
         {{% else %}}{{% set ns.text = part['text'] %}}{{% endif %}}\
         {{% endfor %}}{turn}{{% endfor %}}\
         {{% if add_generation_prompt %}}{{{{ '{prompt}' }}}}{{% endif %}}"
    );
    json!(source)
}

/// Formats of published checkpoints whose templates are none of the tiny ones: llava-v1.6-mistral-7b as it was first published,
/// llava-v1.6-34b, llama3-llava-next-8b, llava-onevision today, llava-interleave.
#[test]
fn published_chat_templates_are_recognised() {
    let roles =
        "{% if message['role'] == 'user' %}{{ '[INST] ' + ns.images + ns.text + ' [/INST]' }}\
        {% elif message['role'] == 'assistant' %}{{ ' ' + ns.text + '<\\\\s> ' }}\
        {% else %}{{ raise_exception('no system') }}{% endif %}";
    let chatml = "{{ '<|im_start|>' + message['role'] + '\\n' + ns.images + ns.text + '<|im_end|>' + '\\n' }}";
    let llama3 =
        "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + ns.images }}\
        {{ '\\n' + ns.text + '<|eot_id|>' }}";
    let onevision =
        "{{ '<|im_start|>' + message['role'] + ' ' + ns.images + '\\n' + ns.text + '<|im_end|>' }}";
    let assistant = "<|im_start|>assistant\\n";
    let llama3_assistant = "<|start_header_id|>assistant<|end_header_id|>\\n\\n";
    let (line, none) = ("'<image>\\n'", "'<image>'");
    for (name, turn, prompt, image, format) in [
        (
            "llava_next",
            roles,
            "",
            line,
            "Mistral, the end of an answer misspelt",
        ),
        ("llava_next", chatml, assistant, line, "ChatML"),
        ("llava_next", llama3, llama3_assistant, none, "Llama 3"),
        (
            "llava_onevision",
            onevision,
            assistant,
            line,
            "LLaVA-OneVision",
        ),
        (
            "llava_onevision",
            onevision,
            assistant,
            none,
            "LLaVA-OneVision, no line break behind an image",
        ),
        ("llava", onevision, assistant, line, "LLaVA-OneVision"),
    ] {
        let source = template(turn, prompt);
        let source = source.as_str().unwrap().replace("IMAGE", image);
        let dir = changed(name, "chat_template.json", "/chat_template", json!(source));
        assert_eq!(Chat::of(&load(dir.path())).unwrap().format.name, format);
    }
}

/// With visual tokens withdrawn nothing of a frame reaches the last layer that has no text around its image.
#[test]
fn frames_without_any_text_enter_the_memory_where_visual_tokens_are_withdrawn() {
    let turn =
        "{{ '<|im_start|>' + message['role'] + ' ' + ns.images + '\\n' + ns.text + '<|im_end|>' }}";
    let source = template(turn, "<|im_start|>assistant\\n");
    let source = source.as_str().unwrap().replace("IMAGE", "'<image>'");
    let source = json!(source);
    let dir = changed(
        "llava_onevision",
        "chat_template.json",
        "/chat_template",
        source,
    );
    let mut config = SessionConfig {
        model_dir: dir.path().to_path_buf(),
        max_new_tokens: 6,
        ..SessionConfig::default()
    };
    config.cache.budget = 160;
    config.cache.withdraw_layer = 1;
    let mut session = Session::new(config).unwrap();
    for i in 0..60 {
        let frame = picture(i * 100, [(i * 4) as u8, 90, 200]);
        assert_eq!(
            session.push_frame(&frame).unwrap(),
            Taken::Used,
            "frame {i}"
        );
    }
    assert_eq!(session.memory().seen(), 60);
    assert!(
        session.memory().oldest_ns() > Some(0),
        "the oldest do not fit"
    );
    let asked = instruction("a", "What is in view?");
    let answer = session.ask(&asked, &|| false, &mut |_| ());
    assert_eq!(answer.error, None);
    assert_eq!(answer.newest_frame.unwrap().stamp_ns, 5_900_000_000);
}

#[test]
fn the_command_line_gives_the_numbers_of_transformers() {
    check_command_line(&["llava", "llava_next", "llava_onevision"]);
}

/// A bounded memory keeps the system prompt, which ends with a control token in some formats and with a blank in others.
#[test]
fn generate_takes_a_system_prompt_and_a_budget() {
    check_system_prompt_and_budget(&["llava", "llava_next", "llava_onevision"]);
}
