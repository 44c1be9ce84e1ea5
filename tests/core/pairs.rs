//! Frames that the tower takes two at a time.

use std::collections::HashMap;
use std::path::PathBuf;

use candle_core::{Device, Tensor};
use image::RgbImage;
use inf_mllm::cache::{BoundedCache, CacheConfig, Mark, PolicyKind};
use inf_mllm::model::mllm::Mllm;
use inf_mllm::model::vision::{ImageFeatures, Pixels, View};
use inf_mllm::stream::grammar::{Chat, Grammar, Shot};
use inf_mllm::stream::{Answer, FinishReason, Instruction, Session, SessionConfig};
use serde_json::Value;

use crate::cache_stream::Seen;
use crate::support::{
    camera_image, deviation, golden, ids, instruction, json, load, picture, shot, tensors,
    tiny_config,
};

const FAMILIES: [&str; 5] = [
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "qwen3_5",
    "cosmos3_omni",
];
/// Those, and one whose videos are of frames one by one.
const OF_VIDEOS: [&str; 6] = [
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "qwen3_5",
    "cosmos3_omni",
    "cosmos3_edge",
];

fn dir(family: &str) -> PathBuf {
    golden("families").join(family)
}

/// What transformers was given and computed (`make_video_pairs.py`).
fn about() -> Value {
    json(&golden("video_pairs/about.json"))
}

/// The frames of the longest video.
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
    let long = about["long"]["frames"].as_u64().unwrap() as u32;
    (0..long).map(shown).collect()
}

fn pixels(model: &Mllm, frame: &RgbImage) -> Pixels {
    let prepared = model.vision.prepare(frame, View::Frame);
    model.vision.pixels(&prepared).unwrap()
}

/// A video that transformers was shown.
struct Shown {
    frames: usize,
    every_ns: i64,
    /// What it said.
    said: Vec<u32>,
    /// What it computed for the prompt.
    expected: HashMap<String, Tensor>,
}

/// Those of a family: one that all have, and where a video is one span of the prompt a longer and slower one.
fn videos(family: &str) -> Vec<Shown> {
    let about = about();
    let shown = |about: &Value, file: String| {
        let said = about["families"][family]["generated_ids"].clone();
        Shown {
            frames: about["frames"].as_u64().unwrap() as usize,
            every_ns: (1e9 / about["rate"].as_f64().unwrap()) as i64,
            said: serde_json::from_value(said).unwrap(),
            expected: tensors(&golden(&format!("video_pairs/{file}.safetensors"))),
        }
    };
    let mut videos = vec![shown(&about, family.to_string())];
    if about["long"]["families"][family].is_object() {
        videos.push(shown(&about["long"], format!("{family}_long")));
    }
    videos
}

/// The values of the pairs of the video's first frames, or of each; a last one that is left over is one with itself.
fn pairs(model: &Mllm, family: &str, count: usize) -> Vec<Pixels> {
    let frames = frames(family);
    let frames = &frames[..count];
    let pair = |pair: &[RgbImage]| match pair {
        [first, second] => {
            let [first, second] = [first, second].map(|frame| pixels(model, frame));
            model.vision.join(&first, &second).unwrap()
        }
        alone => pixels(model, &alone[0]),
    };
    frames.chunks(at_once(model)).map(pair).collect()
}

/// Frames that the tower takes at once.
fn at_once(model: &Mllm) -> usize {
    match model.vision.takes_pairs() {
        true => 2,
        false => 1,
    }
}

/// The published processor's values of a video, in our order.
fn published_values(model: &Mllm, expected: &HashMap<String, Tensor>) -> Tensor {
    let grid = expected["video_grid_thw"]
        .to_vec2::<i64>()
        .unwrap()
        .remove(0);
    let parts = grid[0] as usize;
    let grids = [1, grid[1], grid[2]].repeat(parts);
    let inputs = HashMap::from([
        (
            "pixel_values".to_string(),
            expected["pixel_values_videos"].clone(),
        ),
        (
            "image_grid_thw".to_string(),
            Tensor::from_vec(grids, (parts, 3), &Device::Cpu).unwrap(),
        ),
    ]);
    let parts = model.vision.split(&inputs, View::Frame).unwrap();
    let values = parts.iter().map(|part| &part.values).collect::<Vec<_>>();
    Tensor::cat(&values, 0).unwrap()
}

#[test]
fn pairs_are_those_of_the_published_processor_and_tower() {
    for family in OF_VIDEOS {
        let model = load(&dir(family));
        let Shown {
            expected, frames, ..
        } = videos(family).remove(0);
        let pairs = pairs(&model, family, frames);
        let values = pairs.iter().map(|pair| &pair.values).collect::<Vec<_>>();
        let features = pairs.iter().map(|pair| model.vision.encode(pair).unwrap());
        let rows = features.map(|features| features.rows).collect::<Vec<_>>();
        let [values, rows] =
            [values, rows.iter().collect()].map(|all| Tensor::cat(&all, 0).unwrap());
        for (name, got, wanted) in [
            ("pixel values", values, published_values(&model, &expected)),
            ("features", rows, expected["video_features"].clone()),
        ] {
            let off = deviation(&got, &wanted);
            assert!(off <= 1e-4, "{family}: {name} differ by {off}");
        }
    }
}

/// Piece by piece, with a prompt of Qwen3-VL in which each pair has its time, and those of the older ones that have a video in one span.
#[test]
fn a_stream_is_the_published_video_prompt_and_gives_its_logits() {
    for family in OF_VIDEOS {
        for shown in videos(family) {
            let model = load(&dir(family));
            let (prompt, marks, features) = stream(&model, family, &shown);
            let config = json(&dir(family).join("config.json"));
            let video = config["video_token_id"].as_u64().unwrap() as u32;
            let image = model.tokenizer.control(model.placeholder()).unwrap();
            let published = ids(&shown.expected["input_ids"]).into_iter();
            let published = published.map(|id| if id == video { image } else { id });
            assert_eq!(prompt, published.collect::<Vec<_>>(), "{family}");

            let chunk = model.embed(&prompt, &features).unwrap();
            let cache = CacheConfig {
                policy: PolicyKind::Full,
                budget: 512,
                ..CacheConfig::default()
            };
            let mut cache =
                BoundedCache::new(model.shape, &cache, 1, model.dtype(), &Device::Cpu).unwrap();
            let hidden = model
                .decoder
                .append_embedded(&chunk.embedded, &marks, &mut cache)
                .unwrap();
            let wanted = &shown.expected["logits"];
            let kept = wanted.dim(0).unwrap();
            let hidden = hidden.narrow(0, marks.len() - kept, kept).unwrap();
            let off = deviation(&model.decoder.logits(&hidden).unwrap(), wanted);
            assert!(off <= 1e-4, "{family}: logits differ by {off}");
        }
    }
}

/// What a stream of the video and the question is: ids, marks and the features of the pairs.
fn stream(model: &Mllm, family: &str, shown: &Shown) -> (Vec<u32>, Vec<Mark>, Vec<ImageFeatures>) {
    let mut grammar = Grammar::new(Chat::of(model).unwrap());
    let prefix = grammar.prefix("", &model.tokenizer);
    let mut prompt = model.tokenizer.encode_prompt(&prefix).unwrap();
    let mut videos = Vec::new();
    let mut features = Vec::new();
    let of_pairs = pairs(model, family, shown.frames);
    for (number, pair) in of_pairs.iter().enumerate() {
        let first = (at_once(model) * number) as i64;
        let last = (first + at_once(model) as i64).min(shown.frames as i64) - 1;
        let [from_ns, to_ns] = [first, last].map(|frame| frame * shown.every_ns);
        let shot = Shot {
            grid: pair.layout.grid,
            ..shot(grammar.time_of_pair(from_ns, to_ns))
        };
        let written = grammar.frame(&model.vision.markup(&pair.layout), &shot);
        let before = prompt.last().copied();
        prompt.extend(model.tokenizer.encode_after(before, &written.text).unwrap());
        videos.push(written.video);
        features.push(model.vision.encode(pair).unwrap());
    }
    let question = about()["question"].as_str().unwrap().to_string();
    let question = grammar.instruction(&question, &model.tokenizer);
    let before = prompt.last().copied();
    prompt.extend(model.tokenizer.encode_after(before, &question).unwrap());
    let chunk = model.embed(&prompt, &features).unwrap();
    let marks = chunk.images.iter().zip(chunk.marks());
    let marks = marks.map(|(image, mut mark)| {
        mark.place.video = image.and_then(|image| videos[image]);
        mark
    });
    (prompt, marks.collect(), features)
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
    show_every(session, family, count, HALF_A_SECOND_NS);
}

fn show_every(session: &mut Session, family: &str, count: usize, every_ns: i64) {
    for (number, frame) in frames(family).iter().take(count).enumerate() {
        let image = camera_image(frame, number as i64 * every_ns);
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
    // Of a model that thinks it may be cut off within its thought.
    assert_ne!(answer.finish, FinishReason::Error, "{:?}", answer.error);
    answer
}

fn state(session: &Session) -> (Seen, String) {
    let state = session.state();
    (Seen::of(&state.cache), format!("{:?}", state.stream))
}

#[test]
fn a_stream_answers_what_transformers_answers_to_the_same_video() {
    for family in OF_VIDEOS {
        for shown in videos(family) {
            let mut config = config(family);
            config.max_new_tokens = shown.said.len();
            for ephemeral in [true, false] {
                let mut session = session(config.clone());
                show_every(&mut session, family, shown.frames, shown.every_ns);
                let answer = ask(&mut session, ephemeral);
                assert_eq!(answer.token_ids, shown.said, "{family}");
                assert_eq!(answer.frames_seen, shown.frames as u64);
            }
        }
    }
}

#[test]
fn what_is_asked_ends_a_video_and_the_next_frame_begins_another() {
    for (family, between) in [("qwen2_vl", 0), ("qwen2_5_vl", 0), ("qwen3_vl", 2)] {
        let mut session = session(SessionConfig {
            frames_per_group: 1,
            ..config(family)
        });
        let frames = frames(family);
        let grown = |session: &mut Session, number: usize, stamp_ns: i64| {
            let before = session.usage().used;
            let image = camera_image(&frames[number], stamp_ns);
            session.push_frame(&image).unwrap();
            session.usage().used - before
        };
        let [first, second] =
            [0, 1].map(|at| grown(&mut session, at, at as i64 * HALF_A_SECOND_NS));
        assert!(first > second, "{family}");
        let features = session.state().cache.image_tokens() / 2;
        if between == 0 {
            // Nothing but its picture.
            assert_eq!(second, features, "{family}");
        } else {
            assert!(second >= features + between, "{family}");
        }
        ask(&mut session, true);
        assert_eq!(grown(&mut session, 2, 2 * HALF_A_SECOND_NS), second);
        ask(&mut session, false);
        let again = grown(&mut session, 3, 3 * HALF_A_SECOND_NS);
        assert!(again >= first, "{family}: {again}, {first}");
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
fn frames_that_were_encoded_before_are_taken_in_pairs_too() {
    for family in FAMILIES {
        let [mut one, mut twin] = [0; 2].map(|_| session(config(family)));
        show(&mut one, family, 5);
        for (number, frame) in frames(family).iter().take(5).enumerate() {
            let image = camera_image(frame, number as i64 * HALF_A_SECOND_NS);
            let encoded = one.encode_frame(&image).unwrap();
            twin.push_encoded(&encoded).unwrap();
        }
        assert_eq!(one.usage().used, twin.usage().used, "{family}");
        let [answer, other] = [&mut one, &mut twin].map(|session| ask(session, false));
        assert_eq!(answer.token_ids, other.token_ids, "{family}");
        assert_eq!((answer.frames_seen, other.frames_seen), (5, 5), "{family}");
    }
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
