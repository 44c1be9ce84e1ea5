//! Frames that the tower takes two at a time.

use std::path::PathBuf;

use candle_core::{Device, Tensor};
use image::RgbImage;
use inf_mllm::cache::{BoundedCache, CacheConfig, Mark, PolicyKind};
use inf_mllm::model::mllm::Mllm;
use inf_mllm::model::vision::{Pixels, View};
use inf_mllm::stream::{Answer, Instruction, Session, SessionConfig};
use serde_json::Value;

use crate::cache_stream::Seen;
use crate::support::{
    camera_image, deviation, golden, ids, instruction, json, load, picture, tensors, tiny_config,
};

const FAMILIES: [&str; 4] = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "cosmos3_omni"];
/// Those whose prompts have each pair with its time, as the stream has; the older ones have all of a video in one.
const TIMED: [&str; 2] = ["qwen3_vl", "cosmos3_omni"];

fn dir(family: &str) -> PathBuf {
    golden("families").join(family)
}

/// What transformers was given and computed (`make_video_pairs.py`).
fn about() -> Value {
    json(&golden("video_pairs/about.json"))
}

/// The video's frames.
fn frames(family: &str) -> Vec<RgbImage> {
    let about = about();
    let number = |name: &str| about[name].as_u64().unwrap() as u32;
    let small = image::open(dir(family).join("golden/small.png"));
    let small = small.unwrap().to_rgb8();
    let scale = number("scale");
    let [width, height]: [u32; 2] = serde_json::from_value(about["size"].clone()).unwrap();
    let shown = |frame: u32| {
        RgbImage::from_fn(width, height, |x, y| {
            let from = (x + width - frame * number("shift") % width) % width;
            *small.get_pixel(from / scale, y / scale)
        })
    };
    (0..number("frames")).map(shown).collect()
}

fn pixels(model: &Mllm, frame: &RgbImage) -> Pixels {
    let prepared = model.vision.prepare(frame, View::Frame);
    model.vision.pixels(&prepared).unwrap()
}

/// The values of the video's pairs; the last frame is one with itself.
fn pairs(model: &Mllm, family: &str) -> Vec<Pixels> {
    let frames = frames(family);
    let pair = |pair: &[RgbImage]| match pair {
        [first, second] => {
            let [first, second] = [first, second].map(|frame| pixels(model, frame));
            model.vision.join(&first, &second).unwrap()
        }
        alone => pixels(model, &alone[0]),
    };
    frames.chunks(2).map(pair).collect()
}

#[test]
fn pairs_are_those_of_the_published_processor_and_tower() {
    for family in FAMILIES {
        let model = load(&dir(family));
        let expected = tensors(&golden(&format!("video_pairs/{family}.safetensors")));
        let pairs = pairs(&model, family);
        let values = pairs.iter().map(|pair| &pair.values).collect::<Vec<_>>();
        let features = pairs.iter().map(|pair| model.vision.encode(pair).unwrap());
        let rows = features.map(|features| features.rows).collect::<Vec<_>>();
        for (name, got) in [
            ("pixel_values_videos", Tensor::cat(&values, 0).unwrap()),
            ("video_features", Tensor::cat(&rows, 0).unwrap()),
        ] {
            let off = deviation(&got, &expected[name]);
            assert!(off <= 1e-4, "{family}: {name} differ by {off}");
        }
    }
}

#[test]
fn the_logits_of_a_published_video_prompt_are_reproduced() {
    for family in TIMED {
        check_logits(family);
    }
}

fn check_logits(family: &str) {
    let model = load(&dir(family));
    let expected = tensors(&golden(&format!("video_pairs/{family}.safetensors")));
    let config = json(&dir(family).join("config.json"));
    let video = config["video_token_id"].as_u64().unwrap() as u32;
    let image = model.tokenizer.control(model.placeholder()).unwrap();
    let prompt = ids(&expected["input_ids"]).into_iter();
    let prompt = prompt.map(|id| if id == video { image } else { id });
    let features = pairs(&model, family);
    let features = features.iter().map(|pair| model.vision.encode(pair));
    let features = features.collect::<Result<Vec<_>, _>>().unwrap();
    let chunk = model.embed(&prompt.collect::<Vec<_>>(), &features).unwrap();
    let cache = CacheConfig {
        policy: PolicyKind::Full,
        budget: 512,
        ..CacheConfig::default()
    };
    let mut cache = BoundedCache::new(model.shape, &cache, 1, model.dtype(), &Device::Cpu).unwrap();
    let marks: Vec<Mark> = chunk.marks();
    let hidden = model
        .decoder
        .append_embedded(&chunk.embedded, &marks, &mut cache)
        .unwrap();
    let wanted = &expected["logits"];
    let kept = wanted.dim(0).unwrap();
    let hidden = hidden.narrow(0, marks.len() - kept, kept).unwrap();
    let off = deviation(&model.decoder.logits(&hidden).unwrap(), wanted);
    assert!(off <= 1e-4, "{family}: logits differ by {off}");
}

fn config(family: &str) -> SessionConfig {
    let mut config = tiny_config();
    config.model_dir = dir(family);
    config.system_prompt = String::new();
    config.repetition_penalty = 1.0;
    config.cache.budget = 1024;
    config
}

fn session(config: SessionConfig) -> Session {
    Session::new(config).unwrap()
}

const HALF_A_SECOND_NS: i64 = 500_000_000;

/// The first frames of the video, half a second apart.
fn show(session: &mut Session, family: &str, count: usize) {
    for (number, frame) in frames(family).iter().take(count).enumerate() {
        let image = camera_image(frame, number as i64 * HALF_A_SECOND_NS);
        session.push_frame(&image).unwrap();
    }
}

fn asked(ephemeral: bool) -> Instruction {
    let mut asked = instruction("q", about()["question"].as_str().unwrap());
    asked.ephemeral = ephemeral;
    asked
}

fn ask(session: &mut Session, ephemeral: bool) -> Answer {
    let answer = session.ask(&asked(ephemeral), &|| false, &mut |_| {});
    assert_eq!(answer.error, None);
    answer
}

fn state(session: &Session) -> (Seen, String) {
    let state = session.state();
    (Seen::of(&state.cache), format!("{:?}", state.stream))
}

#[test]
fn a_stream_answers_what_transformers_answers_to_the_same_video() {
    let about = about();
    for (family, ephemeral) in TIMED
        .iter()
        .flat_map(|name| [(*name, true), (*name, false)])
    {
        let wanted = about["families"][family]["generated_ids"].clone();
        let wanted: Vec<u32> = serde_json::from_value(wanted).unwrap();
        let mut config = config(family);
        config.max_new_tokens = wanted.len();
        let mut session = session(config.clone());
        show(
            &mut session,
            family,
            about["frames"].as_u64().unwrap() as usize,
        );
        let answer = ask(&mut session, ephemeral);
        assert_eq!(answer.token_ids, wanted);
        assert_eq!(answer.frames_seen, 5);
    }
}

#[test]
fn pairs_halve_what_frames_take_and_say_the_newest_frame() {
    for family in FAMILIES {
        let used = [1, 2, 0].map(|frames_per_group| {
            let mut session = session(SessionConfig {
                frames_per_group,
                ..config(family)
            });
            let before = session.usage().used;
            show(&mut session, family, 4);
            let used = session.usage().used - before;
            let answer = ask(&mut session, true);
            assert_eq!(answer.frames_seen, 4, "{family}");
            assert_eq!(answer.vision_tokens, session.state().cache.image_tokens());
            let stamp = answer.newest_frame.unwrap().stamp_ns;
            assert_eq!(stamp, 3 * HALF_A_SECOND_NS, "{family}");
            used
        });
        let [alone, pairs, published] = used;
        assert_eq!(pairs, published, "{family}");
        // All but the words that begin the turn.
        let opening = (2 * pairs).checked_sub(alone);
        assert!(
            opening.is_some_and(|words| words < 10),
            "{family}: {used:?}"
        );
    }
}

#[test]
fn a_question_sees_the_frame_that_waits_and_an_ephemeral_one_leaves_it_waiting() {
    for family in FAMILIES {
        let [mut one, mut twin] = [0; 2].map(|_| session(config(family)));
        for session in [&mut one, &mut twin] {
            show(session, family, 3);
        }
        let before = state(&one);
        let answer = ask(&mut one, true);
        let stamp = answer.newest_frame.as_ref().unwrap().stamp_ns;
        assert_eq!((stamp, answer.frames_seen), (2 * HALF_A_SECOND_NS, 3));
        assert_eq!(state(&one), before, "{family}");
        // The tower has seen that frame.
        let vision = one.times().vision;
        ask(&mut one, true);
        assert_eq!(one.times().vision, vision, "{family}");
        // The one that follows goes with it as if nobody had asked.
        let frame = camera_image(&frames(family)[3], 3 * HALF_A_SECOND_NS);
        for session in [&mut one, &mut twin] {
            session.push_frame(&frame).unwrap();
        }
        assert_eq!(state(&one), state(&twin), "{family}");

        let answer = ask(&mut one, false);
        assert_eq!(answer.frames_seen, 4);
        assert_eq!(ask(&mut twin, true).token_ids, answer.token_ids);
    }
}

#[test]
fn a_first_frame_that_waits_can_be_asked_about() {
    for ephemeral in [true, false] {
        let mut session = session(config("qwen2_vl"));
        show(&mut session, "qwen2_vl", 1);
        assert!(session.has_seen());
        assert_eq!(ask(&mut session, ephemeral).frames_seen, 1);
    }
}

#[test]
fn frames_that_do_not_belong_together_are_one_each() {
    let family = "qwen3_vl";
    let frames = frames(family);
    let half = image::imageops::resize(
        &frames[1],
        frames[1].width() / 2,
        frames[1].height(),
        image::imageops::FilterType::Triangle,
    );
    let later = |seconds: f64| (seconds * 1e9) as i64;
    let units = |second: &RgbImage, stamp_ns: i64| {
        let mut session = session(config(family));
        session.push_frame(&camera_image(&frames[0], 0)).unwrap();
        let waiting = session.usage().used;
        session.push_frame(&camera_image(second, stamp_ns)).unwrap();
        let grown = session.usage().used - waiting;
        (grown, ask(&mut session, true).frames_seen)
    };
    let (pair, seen) = units(&frames[1], HALF_A_SECOND_NS);
    assert_eq!(seen, 2);
    // What has entered so far is the first frame, which takes what a pair takes.
    assert_eq!(units(&frames[1], later(2.1)), (pair, 2));
    assert_eq!(units(&half, HALF_A_SECOND_NS), (pair, 2));
}

#[test]
fn each_camera_has_pairs_of_its_own() {
    let family = "qwen2_5_vl";
    let mut config = config(family);
    config.cameras.labels = vec!["front".to_string(), "rear".to_string()];
    let mut session = session(config);
    let frames = frames(family);
    let mut used = vec![session.usage().used];
    for (number, frame) in frames.iter().enumerate().take(4) {
        let mut image = camera_image(frame, number as i64 * HALF_A_SECOND_NS / 2);
        image.camera = number % 2;
        session.push_frame(&image).unwrap();
        used.push(session.usage().used);
    }
    // Nothing enters before the third, which is the second of the front camera.
    assert_eq!(used[0], used[2]);
    assert!(used[2] < used[3] && used[3] < used[4], "{used:?}");
    assert_eq!(ask(&mut session, true).camera, "rear");
}

#[test]
fn a_tower_that_takes_frames_one_by_one_is_not_asked_for_pairs() {
    let config = SessionConfig {
        frames_per_group: 2,
        ..tiny_config()
    };
    let error = Session::new(config).err().expect("it begins").to_string();
    for word in ["frames_per_group", "2", "0 or 1", "SmolVLM"] {
        assert!(error.contains(word), "{word} is not in: {error}");
    }
    let mut session = session(tiny_config());
    let before = session.usage().used;
    session.push_frame(&picture(0, [9; 3])).unwrap();
    assert!(session.usage().used > before);
}
