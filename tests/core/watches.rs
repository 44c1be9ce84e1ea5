//! Watches of a running engine.

use std::sync::mpsc::{channel, Receiver, Sender};
use std::time::{Duration, Instant};

use inf_mllm::stream::engine::{Watch, Which};
use inf_mllm::stream::{
    Answer, AnswerDelta, CameraImage, Engine, EngineEvents, Every, FinishReason, GrammarKind,
    ImageData, Instruction, Recall, RecallMode, SessionConfig, TextGrammar, Watching,
};

use crate::support::{instruction, picture, tiny_config, PATIENCE};

struct Collect {
    answers: Sender<Answer>,
    pieces: Sender<AnswerDelta>,
    watches: Sender<Watch>,
}

impl EngineEvents for Collect {
    fn delta(&mut self, delta: AnswerDelta) {
        // The test may have ended; so below.
        let _ = self.pieces.send(delta);
    }

    fn answer(&mut self, answer: Answer) {
        let _ = self.answers.send(answer);
    }

    fn watch(&mut self, watch: Watch) {
        let _ = self.watches.send(watch);
    }
}

/// An engine, and what comes of it.
pub struct Watched {
    pub engine: Engine,
    answers: Receiver<Answer>,
    pieces: Receiver<AnswerDelta>,
    watches: Receiver<Watch>,
}

impl Watched {
    pub fn new(config: SessionConfig) -> Self {
        let ((answer, answers), (piece, pieces)) = (channel(), channel());
        let (watch, watches) = channel();
        let events = Collect {
            answers: answer,
            pieces: piece,
            watches: watch,
        };
        Self {
            engine: Engine::spawn(config, Box::new(events)).unwrap(),
            answers,
            pieces,
            watches,
        }
    }

    pub fn show(&self, stamp_ms: i64) {
        let used = self.engine.stats().frames_used;
        self.engine
            .offer_frame(picture(stamp_ms, [9, 200, 9]))
            .unwrap();
        self.until(|engine| engine.stats().frames_used > used);
    }

    fn until(&self, condition: impl Fn(&Engine) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition(&self.engine) {
            assert!(Instant::now() < deadline, "{:?}", self.engine.stats());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub fn answer(&self) -> Answer {
        self.answers.recv_timeout(PATIENCE).unwrap()
    }

    fn asked(&self, id: &str) -> u64 {
        let watches = self.engine.watches();
        let watch = watches.iter().find(|watch| watch.instruction.id == id);
        watch.map_or(0, |watch| watch.asked)
    }
}

/// One that watches, asked behind every frame.
pub fn by_frames(id: &str, text: &str) -> Instruction {
    Instruction {
        watch: Some(Watching {
            every: Every::Frames(1),
            on_change: false,
            hysteresis: 0.0,
            min_interval: Duration::ZERO,
            survives_reset: false,
        }),
        ..instruction(id, text)
    }
}

fn changed(mut instruction: Instruction, change: impl Fn(&mut Watching)) -> Instruction {
    change(instruction.watch.as_mut().unwrap());
    instruction
}

#[test]
fn a_watch_is_asked_with_every_frame_and_leaves_no_trace() {
    let watched = Watched::new(tiny_config());
    let twin = Watched::new(tiny_config());
    watched.engine.instruct(by_frames("w", "What is in view?"));
    for frame in 1..=6 {
        watched.show(frame * 100);
        twin.show(frame * 100);
        let answer = watched.answer();
        assert_eq!((answer.id.as_str(), answer.error), ("w", None));
        assert_eq!(answer.frames_seen, frame as u64);
        let count = answer.watch.unwrap();
        assert_eq!((count.asked, count.ended), (frame as u64, false));
        // One piece, which is all of it.
        let piece = watched.pieces.recv_timeout(PATIENCE).unwrap();
        assert_eq!((piece.index, piece.done), (0, true));
        assert_eq!(piece.text, answer.text);
        let watch = watched.watches.recv_timeout(PATIENCE).unwrap();
        assert_eq!(watch.last.unwrap().text, answer.text);
    }
    assert_eq!(
        watched.engine.stats().cache.tokens_seen,
        twin.engine.stats().cache.tokens_seen
    );
    let question = || instruction("q", "What is in view?");
    watched.engine.instruct(question());
    twin.engine.instruct(question());
    assert_eq!(watched.answer().token_ids, twin.answer().token_ids);
    let stats = watched.engine.stats();
    // The watch was given before there was a frame, which is no failure.
    assert_eq!(
        (stats.instructions_answered, stats.instructions_failed),
        (7, 0)
    );
    assert!(watched.engine.shutdown(PATIENCE));
    let last = watched.answer();
    assert_eq!(
        (last.id.as_str(), last.finish),
        ("w", FinishReason::Cancelled)
    );
    assert!(last.watch.unwrap().ended);
    assert!(twin.engine.shutdown(PATIENCE));
}

#[test]
fn watches_by_time_share_an_asking_and_do_not_starve_frames_or_instructions() {
    let watched = Watched::new(tiny_config());
    watched.show(1);
    // So often that one is always due.
    for id in ["a", "b"] {
        let watch = by_frames(id, "What is in view?");
        let often = |watching: &mut Watching| {
            watching.every = Every::Period(Duration::from_micros(1));
            watching.on_change = true;
        };
        watched.engine.instruct(changed(watch, often));
    }
    // The first one may have been asked before there was a second.
    watched.until(|_| watched.asked("b") > 0);
    let apart = |list: &[Watch]| list[0].asked - list[1].asked;
    let alone = apart(&watched.engine.watches());
    for n in 0..20 {
        watched.show(100 + n * 100);
        watched
            .engine
            .instruct(instruction(&format!("q{n}"), "What is in view?"));
    }
    let mut answered = 0;
    while answered < 20 {
        let answer = watched.answer();
        assert_eq!(answer.error, None);
        answered += usize::from(answer.watch.is_none());
    }
    watched.until(|_| watched.asked("b") > 20);
    let list = watched.engine.watches();
    assert_eq!(apart(&list), alone);
    assert!(list
        .iter()
        .all(|watch| watch.skipped > 0 && watch.failed == 0));
    assert!(watched.engine.shutdown(PATIENCE));
}

#[test]
fn watches_end_when_cancelled_and_with_a_reset_unless_they_survive_it() {
    let watched = Watched::new(tiny_config());
    watched.show(1);
    let survives = |watching: &mut Watching| watching.survives_reset = true;
    let long = |watching: &mut Watching| {
        watching.every = Every::Period(Duration::from_secs(3600));
    };
    watched
        .engine
        .instruct(changed(by_frames("survives", "What is in view?"), survives));
    watched
        .engine
        .instruct(changed(by_frames("ends", "Where?"), long));
    watched
        .engine
        .instruct(changed(by_frames("cancelled", "Why?"), long));
    watched.until(|engine| engine.watches().iter().all(|watch| watch.published == 1));
    (0..3).for_each(|_| assert!(!watched.answer().watch.unwrap().ended));
    watched
        .engine
        .instruct(instruction("ends", "What is in view?"));
    let refused = watched.answer();
    assert!(refused
        .error
        .unwrap()
        .contains(r#"instruction id is "ends""#));
    let cancelled = watched.engine.cancel(Which::Id("cancelled"));
    assert_eq!((cancelled.watches, cancelled.waiting), (1, 0));
    let last = watched.answer();
    assert_eq!(last.error.as_deref(), Some("the watch was cancelled"));
    assert_eq!(
        (last.id.as_str(), last.watch.unwrap().asked),
        ("cancelled", 1)
    );
    watched.engine.reset().unwrap();
    let last = watched.answer();
    assert_eq!(last.error.as_deref(), Some("the memory was reset"));
    assert_eq!(
        (last.id.as_str(), last.watch.unwrap().ended),
        ("ends", true)
    );
    // The other goes on with the first frame of the new memory.
    watched.show(200);
    let answer = watched.answer();
    assert_eq!((answer.id.as_str(), answer.frames_seen), ("survives", 1));
    assert_eq!(watched.engine.watches().len(), 1);
    assert!(watched.engine.shutdown(PATIENCE));
}

#[test]
fn a_paused_engine_asks_no_watch_and_a_watch_that_cannot_stand_is_refused() {
    let mut config = tiny_config();
    config.watches_limit = 1;
    let watched = Watched::new(config);
    watched.show(1);
    let often = |watching: &mut Watching| {
        watching.every = Every::Period(Duration::from_millis(5));
    };
    watched
        .engine
        .instruct(changed(by_frames("w", "What is in view?"), often));
    watched.until(|_| watched.asked("w") > 2);
    watched.engine.pause(true).unwrap();
    let asked = watched.asked("w");
    std::thread::sleep(Duration::from_millis(100));
    assert!(watched.asked("w") <= asked + 1, "one may have been begun");
    watched.engine.pause(false).unwrap();
    watched.until(|_| watched.asked("w") > asked + 2);
    watched
        .engine
        .instruct(by_frames("too many", "What is in view?"));
    let refused = loop {
        let answer = watched.answer();
        if answer.id == "too many" {
            break answer;
        }
    };
    assert_eq!(refused.finish, FinishReason::Error);
    assert!(refused.error.unwrap().contains("(watches_limit)"));
    assert!(refused.watch.unwrap().ended);
    assert!(watched.engine.shutdown(PATIENCE));
}

/// Instructions that can never be answered.
fn impossible() -> Vec<Instruction> {
    let asked = |id: &str| instruction(id, "What is in view?");
    let choices = |id: &str, choices: &[&str]| Instruction {
        choices: choices.iter().map(ToString::to_string).collect(),
        ..asked(id)
    };
    let grammar = |id: &str, kind, text: &str| Instruction {
        grammar: Some(TextGrammar {
            kind,
            text: text.to_string(),
        }),
        ..asked(id)
    };
    let no_picture = ImageData::Compressed {
        format: "jpeg".to_string(),
        data: vec![1, 2, 3],
    };
    vec![
        Instruction {
            text: " ".to_string(),
            ..asked("no text")
        },
        Instruction {
            max_new_tokens: 1_000_000,
            ..asked("too much")
        },
        Instruction {
            text: "far ".repeat(5000),
            ..asked("too long")
        },
        choices("empty choice", &["yes", ""]),
        choices("same choices", &["yes", "no", " yes"]),
        choices("long choice", &["yes", &"no ".repeat(5000)]),
        Instruction {
            choices: vec!["yes".to_string()],
            ..grammar("both", GrammarKind::Regex, "yes|no")
        },
        grammar("no regex", GrammarKind::Regex, "(left|right"),
        grammar("no text of regex", GrammarKind::Regex, "a[^\\s\\S]"),
        grammar("no text of lark", GrammarKind::Lark, "start: start"),
        grammar("schema", GrammarKind::JsonSchema, r#"{"type": "metres"}"#),
        Instruction {
            images: vec![CameraImage::recorded(0, "", no_picture)],
            ..asked("picture")
        },
        Instruction {
            recall: Recall {
                span_ns: Some((5, 3)),
                ..Recall::default()
            },
            ..asked("backwards")
        },
        Instruction {
            recall: Recall {
                mode: Some(RecallMode::Never),
                span_ns: Some((3, 5)),
                ..Recall::default()
            },
            ..asked("never")
        },
    ]
}

#[test]
fn a_watch_that_can_never_be_answered_is_refused_when_it_comes_as_an_instruction_would_be() {
    let mut config = tiny_config();
    config.queue_size = 100;
    config.archive.archive_bytes = 1 << 20;
    let asked = Watched::new(config.clone());
    asked.show(1);
    let watching = [true, false].map(|shown| {
        let watched = Watched::new(config.clone());
        if shown {
            watched.show(1);
        }
        watched
    });
    for instruction in impossible() {
        asked.engine.instruct(instruction.clone());
        for watched in &watching {
            let watch = by_frames(&instruction.id, &instruction.text).watch;
            let instruction = instruction.clone();
            watched.engine.instruct(Instruction {
                watch,
                ..instruction
            });
        }
    }
    for _ in impossible() {
        let expected = asked.answer();
        let [refused, blind] = watching.each_ref().map(Watched::answer);
        assert_eq!(refused.error, expected.error, "{}", refused.id);
        for refused in [refused, blind] {
            assert_eq!(refused.id, expected.id);
            assert_eq!(refused.finish, FinishReason::Error, "{}", refused.id);
            assert!(refused.error.is_some() && refused.watch.unwrap().ended);
        }
    }
    let [shown, blind] = watching;
    assert!(shown.engine.watches().is_empty() && blind.engine.watches().is_empty());
    // One that only lacks a frame stands.
    blind.engine.instruct(by_frames("fine", "What is in view?"));
    blind.show(1);
    assert_eq!(blind.answer().error, None);
    assert_eq!(blind.asked("fine"), 1);
    for ended in [asked, shown, blind] {
        assert!(ended.engine.shutdown(PATIENCE));
    }
}
