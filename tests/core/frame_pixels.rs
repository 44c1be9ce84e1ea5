//! How many pixels a frame has at the size that the tower takes: as the video processor's file says, or the parameters.

use std::fs;
use std::path::Path;

use inf_mllm::model::mllm::Mllm;
use inf_mllm::model::vision::View;
use inf_mllm::stream::inspect::{Options, Report};
use inf_mllm::stream::{Session, SessionConfig};
use serde_json::{json, Value};

use crate::support::{camera_image, golden, load, tiny_config, tiny_dir, try_load};
use crate::variants::copy;

const FAMILIES: [&str; 3] = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"];
/// Families whose frames have any size, and the pixels that a token of the tiny ones shows.
const ANY_SIZE: [(&str, usize); 5] = [
    ("qwen2_vl", 36),
    ("qwen2_5_vl", 36),
    ("qwen3_vl", 64),
    ("lfm2_vl", 64),
    ("lfm2_5_vl", 64),
];
const VIDEO: &str = "video_preprocessor_config.json";
const NESTED: &str = "processor_config.json";

/// Pixels of a frame of 640 x 480 when it comes to the tower.
fn frame_pixels(model: &Mllm) -> usize {
    pixels(model, View::Frame)
}

fn pixels(model: &Mllm, view: View) -> usize {
    let layout = model.vision.layout((640, 480), view);
    let prepared = model.vision.prepare(&image::RgbImage::new(640, 480), view);
    let tile = &prepared.tiles[0];
    assert_eq!(prepared.layout, layout);
    tile.width * tile.height
}

fn write(dir: &Path, name: &str, value: &Value) {
    fs::write(dir.join(name), value.to_string()).unwrap();
}

/// A video processor's configuration of a tiny checkpoint with this many pixels at most.
fn video(dir: &Path, most: usize) -> Value {
    let images = fs::read_to_string(dir.join("preprocessor_config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&images).unwrap();
    for name in ["min_pixels", "max_pixels"] {
        config.as_object_mut().unwrap().remove(name);
    }
    config["size"] = json!({ "shortest_edge": 64, "longest_edge": most });
    config
}

#[test]
fn frames_have_the_video_processor_s_limits_and_images_have_not() {
    for family in FAMILIES {
        let dir = copy(family);
        let image = pixels(&load(dir.path()), View::Image { of: 1 });
        // What stands in the file of its own counts unless there is a block.
        write(dir.path(), VIDEO, &video(dir.path(), 6400));
        let alone = load(dir.path());
        let block = json!({ "video_processor": video(dir.path(), 3200) });
        write(dir.path(), NESTED, &block);
        let nested = load(dir.path());
        // Of Qwen3-VL it is the sum of the two frames of a group.
        let frames = if family == "qwen3_vl" { 2 } else { 1 };
        for (model, most) in [(&alone, 6400), (&nested, 3200)] {
            let shown = frame_pixels(model) * frames;
            assert!(shown <= most && shown > most / 2, "{family}: {shown}");
            assert_eq!(pixels(model, View::Image { of: 1 }), image, "{family}");
        }
    }
}

#[test]
fn without_a_video_processor_frames_are_resized_as_images() {
    for family in FAMILIES {
        let dir = copy(family);
        fs::remove_file(dir.path().join(VIDEO)).ok();
        let model = load(dir.path());
        let frames = if family == "qwen3_vl" { 2 } else { 1 };
        let [image, frame] = [View::Image { of: 1 }, View::Frame].map(|view| pixels(&model, view));
        assert!(
            frame * frames <= image && frame * frames * 2 > image,
            "{family}"
        );
    }
}

#[test]
fn what_a_video_processor_s_file_may_not_say_is_told_with_it() {
    for (field, value, expected) in [
        ("do_resize", json!(false), "true"),
        ("patch_size", json!(5), "as in vision_config"),
        ("resample", json!(9), "bicubic"),
        ("image_std", json!([0.5, 0.5, 0.0]), "above 0"),
        (
            "size",
            json!({ "shortest_edge": 900, "longest_edge": 100 }),
            "the most pixels",
        ),
        ("size", json!({ "longest_edge": 100 }), "a number of pixels"),
    ] {
        let dir = copy("qwen3_vl");
        let mut config = video(dir.path(), 6400);
        config[field] = value;
        write(dir.path(), VIDEO, &config);
        let error = try_load(dir.path()).err().expect(field).to_string();
        assert!(error.contains(VIDEO), "{error}");
        assert!(error.contains(expected), "{error}");
        write(dir.path(), NESTED, &json!({ "video_processor": config }));
        let error = try_load(dir.path()).err().expect(field).to_string();
        assert!(error.contains("video_processor"), "{error}");
    }
}

#[test]
fn the_size_of_smolvlm2_s_frames_is_checked() {
    let dir = copy("idefics3");
    let file = dir.path().join("preprocessor_config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    for size in [0, 5000] {
        config["video_sampling"] = json!({ "video_size": { "longest_edge": size } });
        fs::write(&file, config.to_string()).unwrap();
        let error = try_load(dir.path()).err().expect("it loads").to_string();
        let field = "video_sampling.video_size.longest_edge";
        for word in [field, &size.to_string(), "1 to 4096"] {
            assert!(error.contains(word), "{word} is not in: {error}");
        }
    }
}

fn config(family: &str, min: usize, max: usize) -> SessionConfig {
    SessionConfig {
        model_dir: golden("families").join(family),
        system_prompt: String::new(),
        frame_min_pixels: min,
        frame_max_pixels: max,
        frames_per_group: 1,
        ..tiny_config()
    }
}

/// Tokens that a frame of this size takes in the stream.
fn tokens(config: SessionConfig, width: u32, height: u32) -> usize {
    let mut session = Session::new(config).unwrap();
    let frame = camera_image(&image::RgbImage::new(width, height), 0);
    session.push_frame(&frame).unwrap();
    session.state().cache.image_tokens()
}

#[test]
fn parameters_bound_what_frames_take_in_the_stream() {
    for (family, square) in ANY_SIZE {
        let published = tokens(config(family, 0, 0), 640, 480);
        let fewer = tokens(config(family, 0, 8 * square), 640, 480);
        assert!(fewer <= 8 && fewer > 4, "{family}: {fewer}");
        assert!(fewer < published, "{family}: {fewer} of {published}");
        // A small picture becomes large, and a large one stays.
        let small = tokens(config(family, 0, 40 * square), 16, 12);
        let raised = tokens(config(family, 30 * square, 40 * square), 16, 12);
        assert!(small < 30, "{family}: {small}");
        assert!((30..=40).contains(&raised), "{family}: {raised}");
        // More than the published most.
        let more = tokens(config(family, 0, 200 * square), 640, 480);
        assert!(more > published && more <= 200, "{family}: {more}");
    }
}

#[test]
fn limits_of_frames_are_none_of_images() {
    for (family, square) in ANY_SIZE {
        let mut model = load(&golden("families").join(family));
        let image = pixels(&model, View::Image { of: 1 });
        let published = frame_pixels(&model);
        config(family, 0, 5 * square)
            .limit_frames(&mut model)
            .unwrap();
        assert!(frame_pixels(&model) < published, "{family}");
        assert_eq!(pixels(&model, View::Image { of: 1 }), image, "{family}");
    }
}

#[test]
fn limits_that_are_none_are_refused_with_what_is_possible() {
    let refused = |config: SessionConfig, words: &[&str]| {
        let error = Session::new(config).err().expect("it begins").to_string();
        for word in words {
            assert!(error.contains(word), "{word} is not in: {error}");
        }
    };
    refused(
        config("qwen2_5_vl", 0, 35),
        &["frame_max_pixels", "35", "at least 36"],
    );
    refused(
        config("qwen2_5_vl", 9000, 8000),
        &["frame_min_pixels", "9000", "0 to 8000 (frame_max_pixels)"],
    );
    refused(
        config("qwen2_5_vl", 2000, 0),
        &["frame_min_pixels", "2000", "0 to 1260"],
    );
    refused(
        config("lfm2_vl", 0, 63),
        &["frame_max_pixels", "63", "at least 64"],
    );
    refused(
        config("lfm2_vl", 2000, 0),
        &["frame_min_pixels", "2000", "0 to 1024"],
    );
    for (family, name) in [("llava", "LLaVA-1.5"), ("internvl", "InternVL")] {
        for (field, min, max) in [("frame_min_pixels", 100, 0), ("frame_max_pixels", 0, 100)] {
            let config = SessionConfig {
                frames_per_group: 0,
                ..config(family, min, max)
            };
            refused(config, &[field, "100", "expected 0", name, "one size"]);
        }
    }
}

#[test]
fn inspect_counts_frames_with_the_limits() {
    let report = |model: &Path, most: usize| {
        let session = SessionConfig {
            frame_max_pixels: most,
            ..tiny_config()
        };
        let options = Options {
            session: &session,
            memory: None,
        };
        Report::of(model, &options)
    };
    let dir = golden("families/qwen3_vl");
    let [published, limited] = [0, 20 * 64].map(|most| report(&dir, most));
    assert!(limited.complete(), "{:?}", limited.problems);
    for (published, limited) in published.frames.iter().zip(&limited.frames) {
        assert!(limited.image_tokens <= 20 && limited.image_tokens > 10);
        assert!(published.image_tokens > limited.image_tokens);
        let text = published.tokens - published.image_tokens;
        assert_eq!(limited.tokens, limited.image_tokens + text);
    }
    let refused = report(&tiny_dir(), 1000);
    assert!(!refused.complete());
    assert!(
        refused.problems[0].contains("frame_max_pixels"),
        "{:?}",
        refused.problems
    );
}
