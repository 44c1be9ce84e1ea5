//! The engine thread: one answer for every instruction, one waiting frame, a clean end.

use std::sync::mpsc::{channel, Receiver, Sender};
use std::time::{Duration, Instant};

use inf_mllm::stream::{
    Answer, AnswerDelta, Engine, EngineEvents, FinishReason, GrammarKind, ImageData, Instruction,
    SessionConfig, StreamStats, TextGrammar,
};

use crate::support::{instruction, picture, tiny_config, PATIENCE};

/// Hands on the answers; may be held up at the first piece of text.
struct Collect {
    answers: Sender<Answer>,
    ended: Vec<String>,
    hold: Option<Hold>,
}

/// Tells that an answer has begun, and waits to be told to go on.
struct Hold {
    begun: Sender<()>,
    release: Receiver<()>,
}

impl EngineEvents for Collect {
    fn delta(&mut self, delta: AnswerDelta) {
        if delta.done {
            self.ended.push(delta.id);
        } else if let Some(hold) = self.hold.take() {
            hold.begun.send(()).unwrap();
            hold.release.recv_timeout(PATIENCE).unwrap();
        }
    }

    fn answer(&mut self, answer: Answer) {
        let ends = self.ended.iter().filter(|&id| *id == answer.id).count();
        assert_eq!(ends, 1, "the last piece of {} comes before it", answer.id);
        // The test may have ended.
        let _ = self.answers.send(answer);
    }
}

fn start(config: SessionConfig) -> (Engine, Receiver<Answer>) {
    start_held(config, None)
}

fn start_held(config: SessionConfig, hold: Option<Hold>) -> (Engine, Receiver<Answer>) {
    let (sender, answers) = channel();
    let events = Collect {
        answers: sender,
        ended: Vec::new(),
        hold,
    };
    (Engine::spawn(config, Box::new(events)).unwrap(), answers)
}

/// A configuration for [`endless`] answers, during which no frame is taken in.
fn patient() -> SessionConfig {
    let mut config = tiny_config();
    config.max_new_tokens = 65_536;
    config.max_new_tokens_limit = 65_536;
    config.frames_during_answers = 0;
    config
}

/// An instruction whose answer cannot end before it has 60 000 letters.
fn endless(id: &str) -> Instruction {
    Instruction {
        grammar: Some(TextGrammar {
            kind: GrammarKind::Regex,
            text: "[a-z]{60000}".to_string(),
        }),
        ..instruction(id, "Tell me everything.")
    }
}

/// An engine that has seen a frame and stops at the first piece of its first answer, and what lets that go on.
fn start_stopped(config: SessionConfig) -> (Engine, Receiver<Answer>, Receiver<()>, Sender<()>) {
    let (begun, has_begun) = channel();
    let (go_on, release) = channel();
    let (engine, answers) = start_held(config, Some(Hold { begun, release }));
    engine.offer_frame(picture(0, [200, 0, 0])).unwrap();
    wait_for(&engine, |s| s.frames_used == 1);
    (engine, answers, has_begun, go_on)
}

/// Statistics that meet a condition, which they are to do before long.
pub fn wait_for(engine: &Engine, condition: impl Fn(&StreamStats) -> bool) -> StreamStats {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let stats = engine.stats();
        if condition(&stats) {
            return stats;
        }
        assert!(Instant::now() < deadline, "still {stats:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn every_frame_is_used_superseded_or_rejected() {
    let (engine, _answers) = start(tiny_config());
    for i in 0..50 {
        engine.offer_frame(picture(i * 10, [9, 9, 9])).unwrap();
    }
    let mut bad = picture(600, [0; 3]);
    if let ImageData::Raw { encoding, .. } = &mut bad.data {
        *encoding = "bayer_rggb8".to_string();
    }
    let error = engine.offer_frame(bad).unwrap_err().to_string();
    assert!(error.contains("bayer_rggb8") && error.contains("expected"));
    let mut corrupt = picture(700, [0; 3]);
    corrupt.data = ImageData::Compressed {
        format: "jpeg".to_string(),
        data: vec![0xff, 0xd8, 0xff, 0xe0, 1, 2, 3],
    };
    wait_for(&engine, |s| s.frames_used + s.frames_superseded == 50);
    engine.offer_frame(corrupt).unwrap();
    let stats = wait_for(&engine, |s| s.frames_rejected == 2);
    assert_eq!(stats.frames_received, 52);
    engine.offer_frame(picture(800, [9, 9, 9])).unwrap();
    let used = stats.frames_used;
    wait_for(&engine, |s| s.frames_used == used + 1);
    assert!(engine.stats().frames_per_second > 0.0);
    assert!(engine.shutdown(PATIENCE));
}

#[test]
fn every_instruction_gets_one_answer_also_when_the_queue_overflows() {
    let mut config = tiny_config();
    config.queue_size = 3;
    let (engine, answers, has_begun, go_on) = start_stopped(config);
    const COUNT: usize = 40;
    for i in 0..COUNT {
        let id = if i == 0 {
            String::new()
        } else {
            format!("q{i}")
        };
        engine.instruct(instruction(&id, "What is in view?"));
        if i == 0 {
            has_begun.recv_timeout(PATIENCE).unwrap();
        }
    }
    go_on.send(()).unwrap();
    let got = (0..COUNT)
        .map(|_| answers.recv_timeout(PATIENCE).unwrap())
        .collect::<Vec<_>>();
    let mut ids = got.iter().map(|a| a.id.clone()).collect::<Vec<_>>();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), COUNT, "each id once, none empty");
    assert!(ids.iter().all(|id| !id.is_empty()));
    let refused = got
        .iter()
        .filter(|a| a.finish == FinishReason::Error)
        .collect::<Vec<_>>();
    assert_eq!(refused.len(), COUNT - 1 - 3, "one runs and three wait");
    assert!(refused
        .iter()
        .all(|a| a.error.as_deref().unwrap().contains("queue is full")));
    let stats = engine.stats();
    assert_eq!(stats.instructions_received, COUNT as u64);
    assert_eq!(
        stats.instructions_answered + stats.instructions_failed,
        COUNT as u64
    );
    assert!(engine.shutdown(PATIENCE));
}

#[test]
fn instructions_and_frames_do_not_starve_each_other() {
    let (engine, answers, has_begun, go_on) = start_stopped(tiny_config());
    for i in 0..8 {
        engine.instruct(instruction(&format!("q{i}"), "What is in view?"));
    }
    has_begun.recv_timeout(PATIENCE).unwrap();
    let mut seen = Vec::new();
    let mut stamp = 1;
    // At least one waits behind the first answer.
    engine.offer_frame(picture(stamp, [0, 0, 200])).unwrap();
    go_on.send(()).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while seen.len() < 8 {
        stamp += 1;
        engine.offer_frame(picture(stamp, [0, 0, 200])).unwrap();
        seen.extend(answers.try_iter().map(|answer| answer.frames_seen));
        assert!(Instant::now() < deadline, "{} of 8 answers", seen.len());
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(seen[0], 1, "the frame that came first was taken first");
    assert!(
        seen[1] > 1,
        "the frame that waited was taken between the answers"
    );
    assert!(engine.shutdown(PATIENCE));
}

#[test]
fn a_reset_cuts_the_running_answer_off_and_drops_all_that_waits() {
    let (engine, answers, has_begun, go_on) = start_stopped(patient());
    for i in 0..5 {
        engine.instruct(endless(&format!("q{i}")));
    }
    has_begun.recv_timeout(PATIENCE).unwrap();
    // The first answer is being written; behind it wait four instructions and a frame.
    engine.offer_frame(picture(100, [200, 1, 1])).unwrap();
    go_on.send(()).unwrap();
    engine.reset().unwrap();
    for i in 0..5 {
        let answer = answers.recv_timeout(PATIENCE).unwrap();
        assert_eq!(
            (answer.id, answer.finish),
            (format!("q{i}"), FinishReason::Cancelled)
        );
        assert_eq!(answer.output_tokens > 0, i == 0, "only the first had begun");
    }
    let stats = engine.stats();
    assert_eq!(stats.cache.used, stats.cache.prefix);
    assert_eq!(stats.frames_used, 1, "counters survive a reset");
    assert_eq!(stats.frames_superseded, 1, "the frame that waited is gone");
    engine.instruct(instruction("blind", "What is in view?"));
    let error = answers.recv_timeout(PATIENCE).unwrap().error.unwrap();
    assert!(error.contains("no frame has been seen yet"), "{error}");
    // Frames that come later stay.
    engine.offer_frame(picture(200, [1, 1, 1])).unwrap();
    wait_for(&engine, |s| s.frames_used == 2);
    assert!(engine.shutdown(PATIENCE));
}

#[test]
fn a_system_prompt_that_leaves_no_room_is_refused_when_it_is_set() {
    let (engine, answers) = start(tiny_config());
    let too_long = "You are a robot. ".repeat(200);
    let error = engine.set_system_prompt(too_long).unwrap_err().to_string();
    assert!(error.contains("budget is 256"), "{error}");
    assert!(error.contains("one frame"), "{error}");
    let before = engine.stats().cache.prefix;
    engine.reset().unwrap();
    assert_eq!(engine.stats().cache.prefix, before);
    engine
        .set_system_prompt("You are a mobile robot in a hall. Be brief.".to_string())
        .unwrap();
    engine.reset().unwrap();
    assert!(engine.stats().cache.prefix > before);
    engine.offer_frame(picture(0, [9; 3])).unwrap();
    engine.instruct(instruction("a", "What is in view?"));
    assert_eq!(answers.recv_timeout(PATIENCE).unwrap().error, None);
    assert!(engine.shutdown(PATIENCE));
}

#[test]
fn shutdown_ends_a_running_answer_and_answers_what_waits() {
    let (engine, answers, has_begun, go_on) = start_stopped(patient());
    for i in 0..6 {
        engine.instruct(endless(&format!("q{i}")));
    }
    has_begun.recv_timeout(PATIENCE).unwrap();
    go_on.send(()).unwrap();
    let started = Instant::now();
    assert!(engine.shutdown(Duration::from_secs(2)));
    assert!(started.elapsed() < Duration::from_secs(2));
    let mut cut = (0..6).map(|_| answers.recv_timeout(PATIENCE).unwrap());
    assert!(cut.all(|answer| answer.finish == FinishReason::Cancelled));
    assert!(engine.reset().is_err(), "a stopped engine says so");
}

#[test]
fn while_paused_frames_are_skipped_and_instructions_refused_and_then_it_goes_on() {
    let (engine, answers) = start(tiny_config());
    engine.offer_frame(picture(0, [9; 3])).unwrap();
    wait_for(&engine, |s| s.frames_used == 1);
    engine.pause(true).unwrap();
    for i in 1..4 {
        engine.offer_frame(picture(i * 100, [9; 3])).unwrap();
    }
    engine.instruct(instruction("paused", "What is in view?"));
    let refused = answers.recv_timeout(PATIENCE).unwrap();
    assert_eq!(refused.finish, FinishReason::Error);
    assert!(refused.error.unwrap().contains("paused"));
    let stats = engine.stats();
    assert_eq!((stats.frames_used, stats.frames_skipped.paused), (1, 3));
    engine.pause(false).unwrap();
    engine.offer_frame(picture(500, [9; 3])).unwrap();
    wait_for(&engine, |s| s.frames_used == 2);
    engine.instruct(instruction("running", "What is in view?"));
    assert_ne!(
        answers.recv_timeout(PATIENCE).unwrap().finish,
        FinishReason::Error
    );
    assert!(engine.shutdown(PATIENCE));
}

#[test]
fn the_wait_of_a_frame_behind_an_answer_is_told() {
    let (engine, answers, has_begun, go_on) = start_stopped(tiny_config());
    engine.instruct(instruction("long", "What is in view?"));
    has_begun.recv_timeout(PATIENCE).unwrap();
    let held = Duration::from_millis(50);
    for stamp in 100..103 {
        engine.offer_frame(picture(stamp, [9; 3])).unwrap();
    }
    std::thread::sleep(held);
    go_on.send(()).unwrap();
    answers.recv_timeout(PATIENCE).unwrap();
    let stats = wait_for(&engine, |s| s.frames_used == 2);
    assert_eq!(stats.frames_superseded, 2);
    assert!(stats.frame_wait >= held, "{:?}", stats.frame_wait);
    assert!(engine.shutdown(PATIENCE));
}

#[test]
fn who_asks_before_a_frame_hears_why_there_is_none() {
    let (engine, answers) = start(tiny_config());
    let ask = |id: &str| {
        engine.instruct(instruction(id, "What is in view?"));
        let answer = answers.recv_timeout(PATIENCE).unwrap();
        assert_eq!(answer.finish, FinishReason::Error);
        answer.error.unwrap()
    };
    assert!(ask("nothing known").ends_with(": no image has come"));
    engine.describe_camera(0, "nobody publishes it".to_string());
    assert!(ask("nobody").ends_with(": nobody publishes it"));
    for stamp in 0..3 {
        let mut bad = picture(stamp * 100, [0; 3]);
        if let ImageData::Raw { encoding, .. } = &mut bad.data {
            *encoding = "16UC1".to_string();
        }
        engine.offer_frame(bad).unwrap_err();
    }
    let told = ask("refused");
    assert!(
        told.contains(r#": 3 images came, all refused; the last: image encoding is "16UC1""#),
        "{told}"
    );
    engine.reset().unwrap();
    assert!(ask("after a reset").ends_with(": no image has come since the reset"));
    assert!(engine.shutdown(PATIENCE));
}

#[test]
fn an_instruction_is_refused_when_the_newest_picture_was_too_old_as_it_came() {
    let mut config = tiny_config();
    config.gate.max_frame_age = 2.0;
    let (engine, answers) = start(config);
    // Stamped 10.0 s, and of a clock that is 5 s ahead: it cannot be younger than its arrival says.
    let mut ahead = picture(15_000, [9; 3]);
    ahead.arrival_ns = 10_000_000_000;
    engine.offer_frame(ahead).unwrap();
    wait_for(&engine, |s| s.frames_used == 1);
    for (asked_ms, refused) in [(9_000, false), (12_000, false), (12_100, true)] {
        let mut asked = instruction(&format!("at {asked_ms}"), "What is in view?");
        asked.arrival_ns = Some(asked_ms * 1_000_000);
        asked.stamp_ns = 7;
        engine.instruct(asked);
        let answer = answers.recv_timeout(PATIENCE).unwrap();
        assert_eq!(
            answer.finish == FinishReason::Error,
            refused,
            "at {asked_ms}"
        );
        assert_eq!(answer.instruction_ns, 7);
        if refused {
            let told = "the newest picture is 2.100 s old, expected at most 2 s (max_frame_age)";
            assert_eq!(answer.error.as_deref(), Some(told));
        }
    }
    assert!(engine.shutdown(PATIENCE));
}
