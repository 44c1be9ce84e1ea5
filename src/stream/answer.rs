//! What is answered: whole answers and their pieces.

use std::time::Duration;

use crate::cache::parameter::choice;
use crate::stream::archive::Kind;
use crate::stream::detections::Detections;
use crate::stream::evidence::Evidence;
use crate::stream::instruction::Instruction;

/// What an answer says of the watch that it is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WatchCount {
    /// Times it had been asked.
    pub asked: u64,
    /// This is its last answer.
    pub ended: bool,
}

/// A unit of the archive that was fed again for an answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Recalled {
    pub kind: Kind,
    pub stamp_ns: i64,
    /// When it was last seen to be still so, nanoseconds.
    pub seen_ns: i64,
    /// How well it matches the instruction, 0 to 1.
    pub score: f32,
}

/// The stamp and coordinate frame of a used image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameStamp {
    /// Index of its camera.
    pub camera: usize,
    pub stamp_ns: i64,
    pub frame_id: String,
}

/// How an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended it.
    Stop,
    /// The longest answer was reached.
    Length,
    /// A reset, the end of the node or whoever cancelled it cut it off.
    Cancelled,
    /// An instruction of a higher priority cut it off; `Answer::error` names it.
    Preempted,
    /// The instruction's time limit was reached.
    TimeLimit,
    /// It was not answered, or not to its end; `Answer::error` says why.
    Error,
}

impl FinishReason {
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
            Self::Preempted => "preempted",
            Self::TimeLimit => "time_limit",
            Self::Error => "error",
        }
    }
}

/// Whether a model thought in front of an answer, and how that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThoughtEnd {
    /// It did not think.
    None,
    /// The model ended its thought.
    Ended,
    /// The longest thought was reached, and the thought closed; the answer began behind it.
    Limit,
    /// The answer ended within the thought: none of its text had begun.
    Cut,
    /// The chat template opens a thought, which was closed at once, as an answer of a fixed form has no room for it.
    Skipped,
}

impl ThoughtEnd {
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Ended => "ended",
            Self::Limit => "limit",
            Self::Cut => "cut",
            Self::Skipped => "skipped",
        }
    }
}

/// An answer, with what it rests on and what it cost.
#[derive(Debug, Clone)]
pub struct Answer {
    pub id: String,
    /// The instruction's.
    pub ticket: u64,
    /// The instruction's stamp.
    pub instruction_ns: i64,
    /// Of a watch.
    pub watch: Option<WatchCount>,
    pub text: String,
    /// What the model thought in front of it; no part of the text.
    pub thought: String,
    pub thought_end: ThoughtEnd,
    pub finish: FinishReason,
    pub error: Option<String>,
    /// Tokens of the instruction's turn.
    pub prompt_tokens: usize,
    /// Image tokens in the cache when the answer began, mean over kept sets.
    pub vision_tokens: usize,
    /// Tokens generated, those of a thought in front of the answer and the end token included.
    pub output_tokens: usize,
    /// Of these: those of the thought, with the marks around it that were generated.
    pub thought_tokens: usize,
    pub time_to_first_token: Option<Duration>,
    pub latency: Duration,
    pub newest_frame: Option<FrameStamp>,
    /// Label of the newest frame's camera; empty where there is but one.
    pub camera: String,
    pub oldest_frame_ns: Option<i64>,
    pub frames_seen: u64,
    /// What was fed again for it, in the order of time.
    pub recalled: Vec<Recalled>,
    /// Tokens of what was fed again, that of the newest frame included.
    pub recalled_tokens: usize,
    /// How long finding and feeding again took.
    pub recall_time: Duration,
    /// The frames that its tokens attended to most, the most attended first.
    pub evidence: Vec<Evidence>,
    /// Boxes and points in its text, in the picture of the newest frame; none where the checkpoint's family writes none, or the
    /// instruction brought pictures of its own.
    pub detections: Detections,
    /// Mean natural-log probability of the generated tokens.
    pub mean_logprob: f32,
    /// The generated ids, those of a thought and the end token included.
    pub token_ids: Vec<u32>,
    /// Which of the instruction's choices it is; none if there were none, or none was chosen.
    pub chosen: Option<Chosen>,
}

/// What decides among choices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChosenBy {
    /// The likelihoods of a choice's tokens and of its end, multiplied.
    Sum,
    /// Their geometric mean.
    Mean,
}

impl ChosenBy {
    pub const ALL: [Self; 2] = [Self::Sum, Self::Mean];

    /// As parameters name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sum => "sum",
            Self::Mean => "mean",
        }
    }
}

choice!(ChosenBy);

/// One of an instruction's choices, with how likely all of them were.
#[derive(Debug, Clone, PartialEq)]
pub struct Chosen {
    /// Among the instruction's choices.
    pub index: usize,
    pub by: ChosenBy,
    /// Of each choice, given the memory and that the answer is one of them, by the likelihood of its tokens and its end; they sum up to 1.
    pub probabilities: Vec<f32>,
    /// The same by the mean of them over a choice's tokens and its end.
    pub mean_probabilities: Vec<f32>,
}

impl Answer {
    /// One to `instruction` of which nothing is known: as long as nothing else is said of it, it failed.
    pub fn new(instruction: &Instruction) -> Self {
        Self {
            id: instruction.id.clone(),
            ticket: instruction.ticket,
            instruction_ns: instruction.stamp_ns,
            watch: instruction.watch.map(|_| WatchCount {
                asked: 0,
                ended: false,
            }),
            text: String::new(),
            thought: String::new(),
            thought_end: ThoughtEnd::None,
            finish: FinishReason::Error,
            error: None,
            prompt_tokens: 0,
            vision_tokens: 0,
            output_tokens: 0,
            thought_tokens: 0,
            time_to_first_token: None,
            latency: Duration::ZERO,
            newest_frame: None,
            camera: String::new(),
            oldest_frame_ns: None,
            frames_seen: 0,
            recalled: Vec::new(),
            recalled_tokens: 0,
            recall_time: Duration::ZERO,
            evidence: Vec::new(),
            detections: Detections::default(),
            mean_logprob: 0.0,
            token_ids: Vec::new(),
            chosen: None,
        }
    }

    /// The ids of the answer behind the thought.
    pub fn answer_ids(&self) -> &[u32] {
        self.token_ids
            .get(self.thought_tokens..)
            .unwrap_or_default()
    }

    /// The answer to an instruction that is not put to the model, and its only piece.
    pub fn refused(
        instruction: &Instruction,
        basis: &Basis,
        finish: FinishReason,
        reason: String,
    ) -> (AnswerDelta, Self) {
        let mut answer = Self::new(instruction);
        answer.rest_on(basis);
        answer.finish = finish;
        answer.error = Some(reason);
        answer.latency = instruction.received.elapsed();
        // Of a watch that is refused, or that ends, nothing comes after this.
        if let Some(count) = &mut answer.watch {
            count.ended = true;
        }
        (answer.piece(0, false), answer)
    }

    /// All of it in as few pieces as can be: the thought, if there is one, and the text.
    pub fn in_pieces(&self) -> Vec<AnswerDelta> {
        match self.thought.is_empty() {
            true => vec![self.piece(0, false)],
            false => vec![self.piece(0, true), self.piece(1, false)],
        }
    }

    /// All of its thought, or of its text, which is the last piece.
    fn piece(&self, index: u32, thought: bool) -> AnswerDelta {
        let text = match thought {
            true => &self.thought,
            false => &self.text,
        };
        AnswerDelta {
            id: self.id.clone(),
            ticket: self.ticket,
            index,
            text: text.clone(),
            thought,
            done: !thought,
        }
    }

    /// Takes over what it rests on.
    pub fn rest_on(&mut self, basis: &Basis) {
        let basis = basis.clone();
        self.vision_tokens = basis.vision_tokens;
        self.newest_frame = basis.newest_frame;
        self.camera = basis.camera;
        self.oldest_frame_ns = basis.oldest_frame_ns;
        self.frames_seen = basis.frames_seen;
    }
}

/// What of the memory an answer rests on; the fields are those of [`Answer`].
#[derive(Debug, Clone, Default)]
pub struct Basis {
    pub vision_tokens: usize,
    pub newest_frame: Option<FrameStamp>,
    pub camera: String,
    pub oldest_frame_ns: Option<i64>,
    pub frames_seen: u64,
}

/// A piece of an answer while it is generated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnswerDelta {
    pub id: String,
    /// The instruction's.
    pub ticket: u64,
    /// Counts the pieces of one answer, those of its thought among them.
    pub index: u32,
    pub text: String,
    /// The text is the thought's, not the answer's.
    pub thought: bool,
    pub done: bool,
}
