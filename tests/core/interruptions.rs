//! What comes before, cuts off and ends the answers of the engine: priorities, cancelling, time limits.

use std::sync::mpsc::{channel, Receiver, Sender};
use std::time::{Duration, Instant};

use inf_mllm::stream::engine::{Cancelled, Which};
use inf_mllm::stream::{
    Answer, AnswerDelta, Engine, EngineEvents, FinishReason, Instruction, SessionConfig,
};

use crate::support::{instruction, picture, tiny_config, PATIENCE};

/// Hands on the answers, and stops at the first pieces of the first one until it is told to go on.
struct Held {
    answers: Sender<Answer>,
    pieces: Sender<AnswerDelta>,
    release: Receiver<()>,
    /// Pieces to stop at.
    stops: usize,
}

impl EngineEvents for Held {
    fn delta(&mut self, delta: AnswerDelta) {
        let stop = !delta.done && self.stops > 0;
        self.stops -= usize::from(stop);
        // The test may have ended.
        let _ = self.pieces.send(delta);
        if stop {
            self.release.recv_timeout(PATIENCE).unwrap();
        }
    }

    fn answer(&mut self, answer: Answer) {
        let _ = self.answers.send(answer);
    }
}

/// An engine that has seen a frame.
struct Asked {
    engine: Engine,
    answers: Receiver<Answer>,
    pieces: Receiver<AnswerDelta>,
    go_on: Sender<()>,
}

impl Asked {
    fn new() -> Self {
        Self::with(tiny_config(), 1)
    }

    /// One that stops at the first pieces. The first answer has 311 tokens if nothing ends it: the untrained model writes what is drawn.
    fn with(mut config: SessionConfig, stops: usize) -> Self {
        config.temperature = 100.0;
        config.seed = 17;
        config.max_new_tokens = 65_536;
        config.max_new_tokens_limit = 65_536;
        let ((answer, answers), (piece, pieces)) = (channel(), channel());
        let (go_on, release) = channel();
        let events = Held {
            answers: answer,
            pieces: piece,
            release,
            stops,
        };
        let engine = Engine::spawn(config, Box::new(events)).unwrap();
        engine.offer_frame(picture(0, [200, 9, 9])).unwrap();
        let deadline = Instant::now() + PATIENCE;
        while engine.stats().frames_used == 0 {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(2));
        }
        Self {
            engine,
            answers,
            pieces,
            go_on,
        }
    }

    /// Asks, and waits until the answer stops at its first piece.
    fn begin(&self, instruction: Instruction) -> AnswerDelta {
        self.engine.instruct(instruction);
        self.pieces.recv_timeout(PATIENCE).unwrap()
    }

    fn go_on(&self) {
        self.go_on.send(()).unwrap();
    }

    fn answer(&self) -> Answer {
        self.answers.recv_timeout(PATIENCE).unwrap()
    }
}

fn of_priority(id: &str, priority: i32) -> Instruction {
    Instruction {
        priority,
        max_new_tokens: 3,
        ..instruction(id, "What is in view?")
    }
}

fn long(id: &str) -> Instruction {
    instruction(id, "Tell me everything.")
}

#[test]
fn the_highest_priority_is_answered_first_and_within_one_the_first_that_came() {
    let asked = Asked::new();
    asked.begin(of_priority("first", 9));
    for (id, priority) in [("a", 0), ("b", 5), ("c", -1), ("d", 5), ("e", 9), ("f", 0)] {
        asked.engine.instruct(of_priority(id, priority));
    }
    asked.go_on();
    let order = (0..7).map(|_| asked.answer()).collect::<Vec<_>>();
    assert!(order.iter().all(|answer| answer.error.is_none()));
    let order = order.iter().map(|answer| answer.id.as_str());
    assert_eq!(order.collect::<String>(), "firstebdafc");
    assert!(asked.engine.shutdown(PATIENCE));
}

#[test]
fn a_higher_priority_cuts_the_answer_off_at_the_next_token_and_an_equal_one_waits() {
    let asked = Asked::new();
    let begun = asked.begin(Instruction {
        ticket: 7,
        ..long("patient")
    });
    assert_eq!((begun.ticket, begun.done), (7, false));
    asked.engine.instruct(of_priority("equal", 0));
    asked.engine.instruct(of_priority("urgent", 3));
    asked.engine.instruct(of_priority("more urgent", 4));
    asked.go_on();
    let cut = asked.answer();
    assert_eq!((cut.id.as_str(), cut.ticket), ("patient", 7));
    assert_eq!(cut.finish, FinishReason::Preempted);
    let told = "instruction urgent of priority 3 came before this one of priority 0";
    assert_eq!(cut.error.as_deref(), Some(told));
    // No token was chosen behind the piece at which it was cut off.
    assert!(cut.text.starts_with(&begun.text) && cut.output_tokens >= 1);
    let rest = asked.pieces.recv_timeout(PATIENCE).unwrap();
    assert!(rest.done, "one piece more: {rest:?}");
    assert_eq!(begun.text + &rest.text, cut.text);
    for id in ["more urgent", "urgent", "equal"] {
        let answer = asked.answer();
        assert_eq!((answer.id.as_str(), answer.error), (id, None));
        assert_ne!(answer.finish, FinishReason::Preempted);
    }
    let stats = asked.engine.stats();
    assert_eq!(
        (stats.instructions_answered, stats.instructions_failed),
        (3, 1)
    );
    assert!(asked.engine.shutdown(PATIENCE));
}

#[test]
fn what_is_cancelled_is_answered_within_a_token_whether_it_waits_or_runs() {
    let asked = Asked::with(tiny_config(), 2);
    let begun = asked.begin(long("runs"));
    for id in ["waits", "waits too", "stays"] {
        asked.engine.instruct(Instruction {
            ticket: id.len() as u64,
            ..of_priority(id, 0)
        });
    }
    let unknown = asked.engine.cancel(Which::Id("unknown"));
    assert_eq!(unknown, Cancelled::default());
    let waiting = Cancelled {
        waiting: 1,
        answering: false,
        watches: 0,
    };
    assert_eq!(asked.engine.cancel(Which::Id("waits")), waiting);
    assert_eq!(asked.engine.cancel(Which::Ticket(9)), waiting);
    asked.go_on();
    // These come while the running answer is being written, from which this is the second piece.
    for id in ["waits", "waits too"] {
        let answer = asked.answer();
        assert_eq!(answer.id, id);
        assert_eq!(answer.finish, FinishReason::Cancelled);
        assert_eq!(answer.error.as_deref(), Some("cancelled while it waited"));
        assert_eq!((answer.output_tokens, answer.frames_seen), (0, 1));
    }
    let second = loop {
        let piece = asked.pieces.recv_timeout(PATIENCE).unwrap();
        if piece.id == "runs" {
            break piece;
        }
    };
    let running = Cancelled {
        waiting: 0,
        answering: true,
        watches: 0,
    };
    assert_eq!(asked.engine.cancel(Which::Id("runs")), running);
    asked.go_on();
    let answer = asked.answer();
    assert_eq!((answer.id.as_str(), answer.error), ("runs", None));
    assert_eq!(answer.finish, FinishReason::Cancelled);
    let last = asked.pieces.recv_timeout(PATIENCE).unwrap();
    assert_eq!((last.index, last.done), (2, true), "no token more");
    assert_eq!(begun.text + &second.text + &last.text, answer.text);
    // The others are as they were.
    let answer = asked.answer();
    assert_eq!((answer.id.as_str(), answer.error), ("stays", None));
    assert!(asked.engine.shutdown(PATIENCE));
}

#[test]
fn all_are_cancelled_at_once_and_those_that_come_later_are_answered() {
    let asked = Asked::new();
    asked.begin(long("runs"));
    asked.engine.instruct(of_priority("waits", 0));
    let all = Cancelled {
        waiting: 1,
        answering: true,
        watches: 0,
    };
    assert_eq!(asked.engine.cancel(Which::All), all);
    asked.engine.instruct(of_priority("later", 0));
    asked.go_on();
    let finishes = (0..3).map(|_| asked.answer()).map(|a| (a.id, a.finish));
    let mut finishes = finishes.collect::<Vec<_>>();
    let (id, finish) = finishes.pop().unwrap();
    assert_eq!(id, "later");
    assert!(matches!(finish, FinishReason::Stop | FinishReason::Length));
    for (id, finish) in finishes {
        assert_eq!(finish, FinishReason::Cancelled, "{id}");
    }
    assert_eq!(asked.engine.cancel(Which::All), Cancelled::default());
    assert!(asked.engine.shutdown(PATIENCE));
}

#[test]
fn an_answer_ends_at_its_time_limit_and_an_instruction_whose_time_is_over_is_not_put() {
    let asked = Asked::new();
    let limit = Duration::from_secs(2);
    let limited = |id: &str| Instruction {
        time_limit: Some(limit),
        ..long(id)
    };
    asked.begin(limited("runs"));
    asked.engine.instruct(limited("waits"));
    std::thread::sleep(limit);
    asked.go_on();
    let answers = [asked.answer(), asked.answer()];
    let of = |id: &str| answers.iter().find(|answer| answer.id == id).unwrap();
    for answer in &answers {
        assert_eq!(answer.finish, FinishReason::TimeLimit, "{}", answer.id);
        assert!(answer.latency >= limit);
    }
    assert!(of("runs").output_tokens > 0 && of("runs").error.is_none());
    let pieces = asked.pieces.try_iter().collect::<Vec<_>>();
    assert!(pieces.iter().all(|piece| piece.done), "no token more");
    let told = "its time_limit of 2s was over while it waited";
    assert_eq!(of("waits").error.as_deref(), Some(told));
    assert_eq!(of("waits").output_tokens, 0);
    assert_eq!(asked.engine.stats().instructions_answered, 2);
    assert!(asked.engine.shutdown(PATIENCE));
}

#[test]
fn a_refusal_does_not_wait_for_the_answer_that_is_being_given() {
    let mut config = tiny_config();
    config.queue_size = 1;
    let asked = Asked::with(config, 2);
    asked.begin(long("runs"));
    asked.engine.instruct(of_priority("waits", 0));
    asked.engine.instruct(of_priority("one too many", 0));
    asked.go_on();
    // The first answer stops again before it ends.
    let refused = asked.answer();
    assert_eq!(refused.id, "one too many");
    assert!(refused.error.unwrap().contains("queue is full"));
    asked.go_on();
    asked.engine.cancel(Which::Id("runs"));
    assert_eq!(asked.answer().id, "runs");
    assert_eq!(asked.answer().id, "waits");
    assert!(asked.engine.shutdown(PATIENCE));
}

#[test]
fn in_a_full_queue_a_higher_priority_takes_the_place_of_the_lowest_that_came_last() {
    let mut config = tiny_config();
    config.queue_size = 3;
    let asked = Asked::with(config, 2);
    asked.begin(of_priority("runs", 9));
    for (id, priority) in [("a", 0), ("b", 5), ("c", 0)] {
        asked.engine.instruct(of_priority(id, priority));
    }
    asked.engine.instruct(of_priority("equal", 0));
    asked.engine.instruct(of_priority("urgent", 7));
    asked.engine.instruct(of_priority("more", 6));
    asked.engine.instruct(of_priority("too late", 5));
    asked.go_on();
    let refused = (0..4).map(|_| asked.answer()).collect::<Vec<_>>();
    let told = |id: &str| {
        let answer = refused.iter().find(|answer| answer.id == id).unwrap();
        (answer.finish, answer.error.clone().unwrap())
    };
    for id in ["equal", "too late"] {
        let (finish, error) = told(id);
        assert_eq!(finish, FinishReason::Error);
        assert!(error.starts_with("instruction queue is full: 3 wait, expected at most 3"));
    }
    for (id, taker, priority) in [("c", "urgent", 7), ("a", "more", 6)] {
        let reason = format!(
            "the instruction queue was full, and instruction {taker} of priority {priority} took the place of this one of priority 0"
        );
        assert_eq!(told(id), (FinishReason::Preempted, reason));
    }
    asked.go_on();
    let rest = (0..4).map(|_| asked.answer()).collect::<Vec<_>>();
    assert!(rest.iter().all(|answer| answer.error.is_none()));
    let order = rest.iter().map(|answer| answer.id.as_str());
    assert_eq!(order.collect::<Vec<_>>(), ["runs", "urgent", "more", "b"]);
    assert!(asked.engine.shutdown(PATIENCE));
}

#[test]
fn a_frame_that_comes_during_a_long_answer_is_taken_in_after_so_many_tokens() {
    for (every, frames_seen) in [(0, 1), (16, 2)] {
        let mut config = tiny_config();
        config.frames_during_answers = every;
        let asked = Asked::with(config, 1);
        asked.begin(Instruction {
            max_new_tokens: 40,
            ..long("long")
        });
        asked.engine.offer_frame(picture(500, [9, 9, 200])).unwrap();
        asked.go_on();
        let answer = asked.answer();
        assert_eq!((answer.error, answer.frames_seen), (None, frames_seen));
        assert!(answer.output_tokens > 20);
        assert!(asked.engine.shutdown(PATIENCE));
    }
}
