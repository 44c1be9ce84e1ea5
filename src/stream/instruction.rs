//! What is asked: instructions, and those that stand.

use std::time::{Duration, Instant};

use crate::model::constraint::TextGrammar;
use crate::stream::archive::RecallMode;
use crate::stream::frame::CameraImage;

/// An instruction, free of ROS types.
#[derive(Debug, Clone)]
pub struct Instruction {
    /// Echoed in the answer; the engine assigns one if empty.
    pub id: String,
    pub text: String,
    /// Longest answer, tokens; 0: the session's default.
    pub max_new_tokens: usize,
    /// Longest thought in front of the answer, tokens of those of the answer; 0: the session's default.
    pub max_thought_tokens: usize,
    /// Question and answer leave no trace in memory.
    pub ephemeral: bool,
    /// The stamp that it came with, echoed in the answer, nanoseconds; 0: none.
    pub stamp_ns: i64,
    /// When it arrived, nanoseconds on the clock of [`super::CameraImage::arrival_ns`]; none where there is no such clock.
    pub arrival_ns: Option<i64>,
    /// When it arrived, for latencies.
    pub received: Instant,
    pub recall: Recall,
    /// The answer is one of these; empty: any text.
    pub choices: Vec<String>,
    /// The answer is text of this grammar; not beside choices.
    pub grammar: Option<TextGrammar>,
    /// Of those that wait the highest is taken first.
    pub priority: i32,
    /// From its arrival to the end of the answer, if that is limited.
    pub time_limit: Option<Duration>,
    /// Echoed in every piece of the answer: whom it is for, in numbers of the one who asks; 0: nobody in particular.
    pub ticket: u64,
    /// What is shown in front of it, and forgotten with it.
    pub images: Vec<CameraImage>,
    /// How it is asked again and again, if it stands.
    pub watch: Option<Watching>,
}

/// How an instruction that stands is asked, and which of its answers are published.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Watching {
    pub every: Every,
    /// Only answers that are others than the last that was published.
    pub on_change: bool,
    /// By how much the probability of another choice must exceed that of the one published last, 0 to 1.
    pub hysteresis: f32,
    /// Least time from one published answer to the next.
    pub min_interval: Duration,
    /// It goes on after a reset.
    pub survives_reset: bool,
}

/// The distance of one asking to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Every {
    Period(Duration),
    /// Frames taken into the memory.
    Frames(u64),
}

impl Instruction {
    /// One that has just arrived, wants nothing in particular and has no id, stamp or arrival of its own.
    pub fn new(text: impl Into<String>) -> Self {
        Self {
            id: String::new(),
            text: text.into(),
            max_new_tokens: 0,
            max_thought_tokens: 0,
            ephemeral: false,
            stamp_ns: 0,
            arrival_ns: None,
            received: Instant::now(),
            recall: Recall::default(),
            choices: Vec::new(),
            grammar: None,
            priority: 0,
            time_limit: None,
            ticket: 0,
            images: Vec::new(),
            watch: None,
        }
    }

    /// Whether an answer to the one is one to the other, if both are asked now and leave no trace.
    pub fn asks_the_same(&self, other: &Self) -> bool {
        // Every field is named, so that one that is added is thought of.
        let Self {
            id: _,
            text,
            max_new_tokens: _,
            max_thought_tokens: _,
            ephemeral: _,
            stamp_ns: _,
            arrival_ns: _,
            received: _,
            recall,
            choices,
            grammar,
            priority: _,
            time_limit,
            ticket: _,
            images,
            watch: _,
        } = self;
        // Of choices the longest answer is none. Pictures are not compared.
        let longest = |one: &Self| match one.choices.is_empty() {
            true => (one.max_new_tokens, one.max_thought_tokens),
            false => (0, 0),
        };
        let no_images = images.is_empty() && other.images.is_empty();
        let alike = (text, longest(self), recall, time_limit)
            == (
                &other.text,
                longest(other),
                &other.recall,
                &other.time_limit,
            );
        alike && no_images && (choices, grammar) == (&other.choices, &other.grammar)
    }

    /// Whether the answer is due to end by its time limit.
    pub fn is_late(&self, now: Instant) -> bool {
        let spent = now.saturating_duration_since(self.received);
        self.time_limit.is_some_and(|limit| spent >= limit)
    }
}

/// What an instruction wants recalled.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recall {
    /// None: as the session's parameter says.
    pub mode: Option<RecallMode>,
    /// Only what was so at some time from and to these stamps, nanoseconds, both included.
    pub span_ns: Option<(i64, i64)>,
    /// The frames nearest these stamps, nanoseconds, instead of what matches; empty: what matches.
    pub stamps_ns: Vec<i64>,
}
