//! Several cameras in one memory: labels, order, gates, times, and what one of them does to the others.

use std::sync::mpsc::{channel, Receiver, Sender};

use inf_mllm::cache::PolicyKind;
use inf_mllm::stream::grammar::{Chat, Grammar, Shot};
use inf_mllm::stream::{
    Answer, AnswerDelta, CameraImage, Engine, EngineEvents, FinishReason, Session, SessionConfig,
    Taken,
};

use crate::engine::wait_for;
use crate::support::{instruction, load, picture, shot, tiny_config, tiny_dir, PATIENCE};

fn config(labels: &[&str]) -> SessionConfig {
    let mut config = tiny_config();
    config.cameras.labels = labels.iter().map(|label| label.to_string()).collect();
    config
}

fn of(camera: usize, stamp_ms: i64) -> CameraImage {
    let shade = (stamp_ms / 7 % 200) as u8;
    CameraImage {
        camera,
        frame_id: format!("link {camera}"),
        ..picture(stamp_ms, [shade, 90, camera as u8 * 150])
    }
}

fn ask(session: &mut Session) -> Answer {
    let answer = session.ask(
        &instruction("q", "What is in view?"),
        &|| false,
        &mut |_| (),
    );
    assert_ne!(answer.finish, FinishReason::Error, "{:?}", answer.error);
    answer
}

/// Frames of two cameras, in the order in which they arrive.
fn show(session: &mut Session) {
    for stamp_ms in (1000..3000).step_by(200) {
        for (camera, late) in [(0, 0), (1, 20)] {
            session.push_frame(&of(camera, stamp_ms - late)).unwrap();
        }
    }
}

#[test]
fn the_label_of_its_camera_is_fed_with_every_frame() {
    let model = load(&tiny_dir());
    let mut grammar = Grammar::new(Chat::of(&model).unwrap());
    let prefix = grammar.prefix("Be brief.", &model.tokenizer);
    let mut stream = model.tokenizer.encode_prompt(&prefix).unwrap();
    let mut session = Session::new(config(&["front", "rear"])).unwrap();
    let markup = |image: &CameraImage| {
        let picture = image.picture().unwrap();
        let size = inf_mllm::model::preprocess::picture::Picture::size(&picture);
        let layout = model
            .vision
            .layout(size, inf_mllm::model::vision::View::Frame);
        model.vision.markup(&layout)
    };
    for (camera, stamp_ms) in [(0, 1000), (1, 1000), (1, 63_000), (0, 63_000)] {
        let image = of(camera, stamp_ms);
        let label = ["front", "rear"][camera];
        let elapsed_ns = (stamp_ms - 1000) * 1_000_000;
        let shot = Shot {
            camera: (camera, Some(label)),
            ..shot(elapsed_ns)
        };
        let text = grammar.frame(&markup(&image), &shot).text;
        assert!(text.contains(&format!(", {label} camera:")), "{text}");
        let last = stream.last().copied();
        stream.extend(model.tokenizer.encode_after(last, &text).unwrap());
        session.push_frame(&image).unwrap();
        assert_eq!(session.usage().tokens_seen, stream.len() as u64, "{label}");
    }
    // The model is told which is which, and not only that there are two.
    let mut said = [["front", "rear"], ["rear", "front"], ["front", "rear"]].map(|labels| {
        let mut session = Session::new(config(&labels)).unwrap();
        show(&mut session);
        ask(&mut session).mean_logprob
    });
    assert_eq!(said[0], said[2]);
    said.sort_by(f32::total_cmp);
    assert!(said[0] < said[2], "{said:?}");
}

#[test]
fn one_camera_is_as_none_that_is_named() {
    let mut answers = [vec![], vec!["front"]].map(|labels: Vec<&str>| {
        let mut session = Session::new(config(&labels)).unwrap();
        for i in 0..20 {
            session.push_frame(&of(0, 1000 + i * 100)).unwrap();
        }
        let answer = ask(&mut session);
        let usage = session.usage();
        (answer.token_ids, answer.mean_logprob, answer.camera, usage)
    });
    assert!(answers[0].2.is_empty());
    assert!(answers[0].3.tokens_evicted > 0);
    answers.sort_by(|a, b| a.1.total_cmp(&b.1));
    assert_eq!(answers[0], answers[1]);
}

#[test]
fn an_answer_says_which_camera_its_newest_image_is_of() {
    let mut session = Session::new(config(&["front", "rear"])).unwrap();
    session.push_frame(&of(0, 1000)).unwrap();
    assert_eq!(ask(&mut session).camera, "front");
    // It came later and is older.
    session.push_frame(&of(1, 980)).unwrap();
    let answer = ask(&mut session);
    let newest = answer.newest_frame.unwrap();
    assert_eq!(
        (answer.camera.as_str(), newest.frame_id.as_str()),
        ("front", "link 0")
    );
    session.push_frame(&of(1, 1080)).unwrap();
    let answer = ask(&mut session);
    let newest = answer.newest_frame.unwrap();
    assert_eq!(
        (answer.camera.as_str(), newest.stamp_ns),
        ("rear", 1_080_000_000)
    );
}

#[test]
fn stamps_of_two_cameras_may_interleave_and_ages_are_counted_once() {
    let mut config = config(&["front", "rear"]);
    config.cache.budget = 512;
    let mut session = Session::new(config).unwrap();
    for stamp_ms in (1000..1800).step_by(200) {
        for (camera, late) in [(0, 0), (1, 20)] {
            session.push_frame(&of(camera, stamp_ms - late)).unwrap();
        }
    }
    assert_eq!(
        (session.memory().seen(), session.usage().compactions),
        (8, 0)
    );
    let ages = session.memory().ages();
    assert!((ages.max - 0.6).abs() < 0.03 && ages.min == 0.0, "{ages:?}");
    // Of one camera an image that comes late is late.
    let error = session.push_frame(&of(1, 1500)).unwrap_err().to_string();
    assert!(error.contains("it was overtaken"), "{error}");
}

#[test]
fn every_camera_has_its_own_rate_and_its_own_last_picture() {
    let mut config = config(&["front", "rear", "top"]);
    config.gate.frame_rate = 2.0;
    config.cameras.rates = vec![5.0, 0.0];
    let mut session = Session::new(config).unwrap();
    let mut used = [0; 3];
    for stamp_ms in (1000..3000).step_by(100) {
        for (camera, used) in used.iter_mut().enumerate() {
            let taken = session.push_frame(&of(camera, stamp_ms)).unwrap();
            *used += usize::from(taken == Taken::Used);
        }
    }
    assert_eq!(used, [10, 20, 4]);

    let mut config = self::config(&["front", "rear"]);
    config.gate.min_change = 0.01;
    let mut session = Session::new(config).unwrap();
    let mut shown = |camera, colour| {
        let stamp_ms = 1000 + session.memory().seen() as i64 * 100;
        let image = CameraImage {
            camera,
            ..picture(stamp_ms, colour)
        };
        session.push_frame(&image).unwrap() == Taken::Used
    };
    let (red, blue) = ([200, 0, 0], [0, 0, 200]);
    let seen = [(0, red), (1, red), (0, red), (1, blue), (0, red), (1, blue)];
    assert_eq!(
        seen.map(|(camera, colour)| shown(camera, colour)),
        [true, true, false, true, false, false]
    );
}

#[test]
fn a_clock_that_all_cameras_share_begins_one_epoch_when_it_is_set() {
    let mut config = config(&["front", "rear"]);
    config.gate.reset_on_time_jump = true;
    let mut session = Session::new(config).unwrap();
    let mut push = |camera, stamp_ms: i64, arrival_ms: i64| {
        let mut image = of(camera, stamp_ms);
        image.arrival_ns = arrival_ms * 1_000_000;
        let _ = session.push_frame(&image);
        session.memory().seen()
    };
    for i in 0..5 {
        push(0, 500_000 + i * 100, i * 100);
        assert_eq!(push(1, 499_980 + i * 100, i * 100), 2 * (i as u64 + 1));
    }
    // The simulation begins anew: the first image of each camera is left out, the second begins the epoch, which is also the other's.
    let seen = [6, 7, 8, 9].map(|i| {
        push(0, 100 + i * 100, i * 100);
        push(1, 80 + i * 100, i * 100)
    });
    assert_eq!(seen, [10, 2, 4, 6]);
}

#[test]
fn labels_with_control_tokens_are_refused_at_the_start() {
    let refused = |labels: &[&str]| Session::new(config(labels)).err().unwrap().to_string();
    let error = refused(&["front", "<end_of_utterance>"]);
    let told = r#"parameter cameras is a list with "<end_of_utterance>", expected labels without control tokens of the model"#;
    assert_eq!(error, told);
    assert!(refused(&["front", "front"]).contains("expected labels that differ"));
    let mut config = config(&["front", "rear"]);
    for (shares, told) in [
        (
            vec![0.0, 0.0],
            "camera_shares is [0.0, 0.0], expected at least one number above 0",
        ),
        (
            vec![1.0],
            "camera_shares is [1.0], expected one for each of cameras, which has 2",
        ),
    ] {
        config.cache.camera_shares = shares;
        let error = config.check().unwrap_err().to_string();
        assert!(error.contains(told), "{error}");
    }
}

/// Hands on the answers.
struct Collect(Sender<Answer>);

impl EngineEvents for Collect {
    fn delta(&mut self, _: AnswerDelta) {}

    fn answer(&mut self, answer: Answer) {
        // The test may have ended.
        let _ = self.0.send(answer);
    }
}

fn start(config: SessionConfig) -> (Engine, Receiver<Answer>) {
    let (sender, answers) = channel();
    (
        Engine::spawn(config, Box::new(Collect(sender))).unwrap(),
        answers,
    )
}

#[test]
fn of_two_cameras_every_image_becomes_something_and_one_that_stops_blocks_nothing() {
    let (engine, answers) = start(config(&["front", "rear"]));
    for i in 0..40 {
        for camera in 0..2 {
            engine
                .offer_frame(of(camera, 1000 + i * 66 - camera as i64 * 20))
                .unwrap();
        }
    }
    let stats = wait_for(&engine, |stats| stats.frames_decided() == 80);
    for camera in &stats.cameras {
        assert_eq!(
            (camera.received, camera.decided(), camera.rejected()),
            (40, 40, 0)
        );
        assert!(camera.used > 0, "{camera:?}");
    }
    // The rear camera is silent now; the front one and the instructions go on as before.
    for i in 40..60 {
        let used = engine.stats().cameras[0].used;
        engine.offer_frame(of(0, 1000 + i * 66)).unwrap();
        wait_for(&engine, |stats| stats.cameras[0].used == used + 1);
    }
    engine.instruct(instruction("q", "What is in view?"));
    let answer = answers.recv_timeout(PATIENCE).unwrap();
    assert_eq!((answer.error, answer.camera.as_str()), (None, "front"));
    let stats = engine.stats();
    assert!(stats.cameras[1].silence > stats.cameras[0].silence);
    let sums = stats.cameras.iter().map(|camera| camera.used).sum::<u64>();
    assert_eq!((stats.frames_used, stats.frames_received), (sums, 100));
    assert!(engine.shutdown(PATIENCE));
}

#[test]
fn who_asks_before_a_frame_hears_of_every_camera_why_there_is_none() {
    let (engine, answers) = start(config(&["front", "rear"]));
    engine.describe_camera(0, "nobody publishes /front/image".to_string());
    engine.describe_camera(1, "nobody publishes /rear/image".to_string());
    engine.instruct(instruction("q", "What is in view?"));
    let error = answers.recv_timeout(PATIENCE).unwrap().error.unwrap();
    assert!(
        error.ends_with(": nobody publishes /front/image; nobody publishes /rear/image"),
        "{error}"
    );
    assert!(engine.shutdown(PATIENCE));
}

/// What part of the slots that hold frames is the second camera's, the least of all kept sets, right behind compactions of a stream in which
/// it has a tenth of the frames.
fn least_share_of_the_slow(policy: PolicyKind, shares: Vec<f64>) -> f64 {
    let mut config = config(&["fast", "slow"]);
    config.cache.policy = policy;
    config.cache.camera_shares = shares;
    let mut session = Session::new(config).unwrap();
    let (mut least, mut checked) = (1.0f64, 0);
    for i in 0..250 {
        let camera = usize::from(i % 10 == 9);
        let before = session.usage().compactions;
        session.push_frame(&of(camera, 1000 + i * 50)).unwrap();
        // From when the slow camera has had the frames for its share.
        if i < 120 || session.usage().compactions == before {
            continue;
        }
        checked += 1;
        for slots in session.state().cache.camera_slots(2) {
            least = least.min(slots[1] as f64 / (slots[0] + slots[1]) as f64);
        }
    }
    assert!(checked > 10, "{checked} compactions");
    least
}

#[test]
fn a_slow_camera_has_its_share_of_the_slots_under_every_policy_that_keeps_by_value() {
    for policy in [
        PolicyKind::InfMllm,
        PolicyKind::InfMllmPlus,
        PolicyKind::H2o,
        PolicyKind::Tova,
        PolicyKind::SnapKv,
    ] {
        let left_to_it = least_share_of_the_slow(policy, vec![]);
        assert!(left_to_it < 0.2, "{policy}: {left_to_it} without a share");
        let share = 0.4;
        let got = least_share_of_the_slow(policy, vec![1.0 - share, share]);
        // A part of a slot, and what a compaction in the middle of a frame leaves.
        assert!(got > share - 0.03, "{policy}: {got} of {share}");
    }
}
