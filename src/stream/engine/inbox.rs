//! What waits for the engine thread, and in which order it is taken.

use std::collections::VecDeque;
use std::sync::mpsc::Sender;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ahead::Ahead;
use crate::cache::parameter::Value;
use crate::stream::answer::Instruction;
use crate::stream::clock::StreamClock;
use crate::stream::frame::{CameraImage, FrameError};
use crate::stream::losses::Losses;
use crate::stream::stats::StreamStats;

/// The longest instruction, bytes: far more than any cache has room for, and little to keep waiting.
pub const MAX_INSTRUCTION_BYTES: usize = 64 * 1024;
/// The longest id of an instruction, bytes; it is echoed in every piece of the answer. A longer one is refused, and not echoed.
pub const MAX_ID_BYTES: usize = 256;

/// Frames of the last this long make up `frames_per_second`.
pub const RATE_WINDOW: Duration = Duration::from_secs(5);

pub struct Inbox {
    /// The newest frame, and since when a frame has been waiting.
    pub frame: Option<(Instant, Arc<CameraImage>)>,
    /// A frame that the tower sees, or has seen, ahead of its turn.
    pub ahead: Option<Ahead>,
    /// The engine's thread is at work.
    pub busy: bool,
    /// Places frames in time as they arrive.
    pub clock: StreamClock,
    /// The stamp that the clock jumped from (last, of several jumps), if it has since a frame was taken: whichever is taken next
    /// begins an epoch.
    pub jumped: Option<i64>,
    pub losses: Losses,
    /// When the last image came.
    pub heard_at: Option<Instant>,
    pub instructions: VecDeque<Instruction>,
    /// Refusals to be sent from the engine's thread, so that all answers come from one place.
    pub refused: VecDeque<(Instruction, String)>,
    pub resets: Vec<Sender<Result<(), String>>>,
    /// The system prompt that the next reset begins with, if it has changed.
    pub system_prompt: Option<String>,
    /// Parameters to be changed before the next frame or instruction.
    pub settings: Vec<(&'static str, Value)>,
    /// Id of the instruction that is being answered.
    pub answering: Option<String>,
    pub paused: bool,
    pub stop: bool,
    /// The last thing taken was an instruction.
    pub answered_last: bool,
    /// Numbers the instructions that came without an id.
    pub assigned: u64,
    /// When the frames of the last [`RATE_WINDOW`] were used.
    pub used_at: VecDeque<Instant>,
}

impl Inbox {
    pub fn new(clock: StreamClock) -> Self {
        Self {
            clock,
            frame: None,
            ahead: None,
            busy: false,
            jumped: None,
            losses: Losses::default(),
            heard_at: None,
            instructions: VecDeque::new(),
            refused: VecDeque::new(),
            resets: Vec::new(),
            system_prompt: None,
            settings: Vec::new(),
            answering: None,
            paused: false,
            stop: false,
            answered_last: false,
            assigned: 0,
            used_at: VecDeque::new(),
        }
    }

    /// Places a good image in time, also while paused, and lets it wait for its turn in the place of the one that waits.
    /// `received_ns` is its receipt on the steady clock.
    pub fn offer(
        &mut self,
        mut image: CameraImage,
        received_ns: i64,
        stats: &mut StreamStats,
    ) -> Result<(), FrameError> {
        if image.date(received_ns) {
            if stats.frames_undated == 0 {
                tracing::warn!("images come without a stamp: the time of their receipt is taken");
            }
            stats.frames_undated += 1;
            stats.ahead_ns = None;
        } else {
            stats.ahead_ns = Some(image.stamp_ns.saturating_sub(image.arrival_ns));
        }
        let arrival = self.clock.arrive(image.stamp_ns, received_ns);
        let jumped = arrival.check(image.stamp_ns)?;
        stats.time_jumps += u64::from(jumped.is_some());
        if jumped.is_some() {
            self.losses = Losses::default();
        }
        self.jumped = jumped.or(self.jumped);
        self.losses.arrive(image.stamp_ns);
        if self.paused {
            stats.frames_skipped.paused += 1;
            return Ok(());
        }
        // A newer frame takes the waiting one's place in the line, not its turn behind every instruction since.
        let since = match self.frame.take() {
            Some((since, _)) => {
                stats.frames_superseded += 1;
                since
            }
            None => Instant::now(),
        };
        self.frame = Some((since, Arc::new(image)));
        Ok(())
    }

    /// The stamps from before a reset have no part in what comes after it.
    pub fn forget_stamps(&mut self) {
        self.jumped = None;
        self.clock.reset();
    }

    /// Gives an instruction an id if it has none.
    pub fn name(&mut self, instruction: &mut Instruction) {
        if instruction.id.is_empty() {
            self.assigned += 1;
            instruction.id = format!("instruction-{}", self.assigned);
        }
    }

    /// Why an instruction cannot be queued: what, its value, what was expected.
    pub fn objection(&self, instruction: &Instruction, queue_size: usize) -> Option<String> {
        let (id, text) = (&instruction.id, &instruction.text);
        if id.len() > MAX_ID_BYTES {
            return Some(format!(
                "instruction id is {} bytes long, expected at most {MAX_ID_BYTES}",
                id.len()
            ));
        }
        if text.len() > MAX_INSTRUCTION_BYTES {
            return Some(format!(
                "instruction text is {} bytes long, expected at most {MAX_INSTRUCTION_BYTES}",
                text.len()
            ));
        }
        let choices = instruction.choices.iter().map(String::len).sum::<usize>();
        if choices > MAX_INSTRUCTION_BYTES {
            return Some(format!(
                "instruction choices are {choices} bytes long together, expected at most {MAX_INSTRUCTION_BYTES}"
            ));
        }
        if self.paused {
            return Some("the node is paused, expected an instruction while it runs".to_string());
        }
        let waiting = self.instructions.iter().map(|waiting| &waiting.id);
        if waiting.chain(&self.answering).any(|taken| taken == id) {
            return Some(format!(
                "instruction id is {id:?}, expected one that no unanswered instruction has"
            ));
        }
        (self.instructions.len() >= queue_size).then(|| {
            format!(
                "instruction queue is full: {} wait, expected at most {queue_size}",
                self.instructions.len()
            )
        })
    }

    /// Answers an instruction with an error, in its turn.
    pub fn refuse(&mut self, mut instruction: Instruction, reason: String) {
        // Only the id is echoed, and a part of one would be the id of something else.
        instruction.text.clear();
        instruction.choices.clear();
        instruction.grammar = None;
        if instruction.id.len() > MAX_ID_BYTES {
            instruction.id.clear();
        }
        self.refused.push_back((instruction, reason));
    }

    pub fn forget_old_frames(&mut self) {
        let old = |at: &Instant| at.elapsed() > RATE_WINDOW;
        while self.used_at.front().is_some_and(old) {
            self.used_at.pop_front();
        }
    }

    /// The next thing to do, if there is any.
    pub fn take_work(&mut self) -> Option<Work> {
        if self.stop {
            return Some(Work::Stop);
        }
        if !self.resets.is_empty() {
            // What waited for the memory of before does not enter the new one.
            return Some(Work::Reset {
                waiting: std::mem::take(&mut self.resets),
                dropped: self.frame.take().is_some(),
            });
        }
        if let Some((instruction, reason)) = self.refused.pop_front() {
            return Some(Work::Refuse(instruction, reason));
        }
        let frame_first = match (&self.frame, self.instructions.front()) {
            (Some((since, _)), Some(instruction)) => {
                self.answered_last || *since <= instruction.received
            }
            (frame, _) => frame.is_some(),
        };
        if let Some((since, image)) = self.frame.take_if(|_| frame_first) {
            self.answered_last = false;
            return Some(Work::Frame(since, image, self.jumped.take()));
        }
        let instruction = self.instructions.pop_front()?;
        self.answered_last = true;
        self.answering = Some(instruction.id.clone());
        Some(Work::Ask(instruction))
    }
}

/// Something to do.
pub enum Work {
    Stop,
    /// For those who wait for it; whether a waiting frame was dropped.
    Reset {
        waiting: Vec<Sender<Result<(), String>>>,
        dropped: bool,
    },
    Refuse(Instruction, String),
    Ask(Instruction),
    /// Since when it waited, the image, and where the clock jumped from if an epoch begins with it.
    Frame(Instant, Arc<CameraImage>, Option<i64>),
}

#[cfg(test)]
mod tests;
