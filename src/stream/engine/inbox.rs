//! What waits for the engine thread, and in which order it is taken.

use std::collections::VecDeque;
use std::sync::mpsc::Sender;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ahead::Ahead;
use super::cameras::Cameras;
use super::endings::{Cancelled, Cut, Refusal, Which};
use super::watches::Watches;
use crate::cache::parameter::Value;
use crate::stream::answer::FinishReason;
use crate::stream::frame::{CameraImage, FrameError};
use crate::stream::gate::FrameGate;
use crate::stream::instruction::Instruction;
use crate::stream::lifecycle::{Lifecycle, State};
use crate::stream::session::SessionConfig;
use crate::stream::stats::StreamStats;

/// The longest instruction, bytes: far more than any cache has room for, and little to keep waiting.
pub const MAX_INSTRUCTION_BYTES: usize = 64 * 1024;
/// The longest id of an instruction, bytes; it is echoed in every piece of the answer. A longer one is refused, and not echoed.
pub const MAX_ID_BYTES: usize = 256;

/// Frames of the last this long make up `frames_per_second`.
pub const RATE_WINDOW: Duration = Duration::from_secs(5);

pub struct Inbox {
    pub cameras: Cameras,
    /// A frame that the tower sees, or has seen, ahead of its turn.
    pub ahead: Option<Ahead>,
    /// The engine's thread is at work.
    pub busy: bool,
    /// Those that wait: the highest priority first, of one priority the first that came.
    pub instructions: VecDeque<Instruction>,
    /// Refusals to be sent from the engine's thread, so that all answers come from one place.
    pub refused: VecDeque<Refusal>,
    pub watches: Watches,
    /// Frames that the memory has taken, whatever became of them.
    pub frames_taken: u64,
    pub resets: Vec<Sender<Result<(), String>>>,
    /// The system prompt that the next reset begins with, if it has changed.
    pub system_prompt: Option<String>,
    /// Parameters to be changed before the next frame or instruction.
    pub settings: Vec<(&'static str, Value)>,
    /// What is being answered.
    pub answering: Option<Answering>,
    /// Only in [`State::Active`] is anything taken in.
    pub lifecycle: Lifecycle,
    /// The thread is to end, or has.
    pub stop: bool,
    /// Instructions that may wait.
    queue_size: usize,
    /// The last thing taken was an instruction.
    pub answered_last: bool,
    /// Numbers the instructions that came without an id.
    pub assigned: u64,
    /// When the frames of the last [`RATE_WINDOW`] were used, and of which cameras they were.
    pub used_at: VecDeque<(Instant, usize)>,
}

/// The instruction that is being answered.
pub struct Answering {
    pub id: String,
    /// If it is an asking of watches, theirs.
    pub watches: Vec<String>,
    pub ticket: u64,
    pub priority: i32,
    /// Why the answer is to end where it is.
    pub cut: Option<Cut>,
}

/// What is said of an instruction that was cancelled while it waited.
const CANCELLED: &str = "cancelled while it waited";
/// What is said of a watch that was cancelled.
const WATCH_CANCELLED: &str = "the watch was cancelled";

impl Inbox {
    /// An empty one, unconfigured.
    pub fn new(cameras: Cameras) -> Self {
        Self {
            cameras,
            ahead: None,
            busy: false,
            instructions: VecDeque::new(),
            refused: VecDeque::new(),
            watches: Watches::new(0),
            frames_taken: 0,
            resets: Vec::new(),
            system_prompt: None,
            settings: Vec::new(),
            answering: None,
            lifecycle: Lifecycle::default(),
            stop: false,
            queue_size: 0,
            answered_last: false,
            assigned: 0,
            used_at: VecDeque::new(),
        }
    }

    /// Forgets what was meant for a session of before: its parameters have been read anew.
    pub fn clear(&mut self) {
        self.settings.clear();
        self.system_prompt = None;
    }

    /// Is from now on that of a session of these parameters.
    pub fn begin(&mut self, config: &SessionConfig) {
        self.stop = false;
        self.queue_size = config.queue_size;
        self.watches = Watches::new(config.watches_limit);
        self.frames_taken = 0;
        self.answered_last = false;
        self.cameras.begin(config.gate.time_jump_threshold);
    }

    /// Whether there is a thread that takes what waits.
    pub fn has_thread(&self) -> bool {
        let alive = match self.lifecycle.state() {
            State::Inactive | State::Active | State::Activating | State::Deactivating => true,
            State::Unconfigured
            | State::Configuring
            | State::CleaningUp
            | State::ShuttingDown
            | State::ErrorProcessing
            | State::Finalized => false,
        };
        alive && !self.stop
    }

    pub fn is_active(&self) -> bool {
        self.lifecycle.state() == State::Active
    }

    /// Places a good image in time, also while nothing is taken in, and lets it wait for its turn in the place of the one of its camera that waits.
    /// `received_ns` is its receipt on the steady clock.
    pub fn offer(
        &mut self,
        image: CameraImage,
        received_ns: i64,
        stats: &mut StreamStats,
    ) -> Result<(), FrameError> {
        let paused = !self.is_active();
        self.cameras.offer(image, received_ns, paused, stats)
    }

    /// Frames used per second of late, in all and of one camera.
    pub fn frames_per_second(&self, camera: Option<usize>) -> f32 {
        let used = self.used_at.iter();
        let used = used.filter(|(_, of)| camera.is_none_or(|camera| camera == *of));
        used.count() as f32 / RATE_WINDOW.as_secs_f32()
    }

    /// Gives an instruction an id if it has none.
    pub fn name(&mut self, instruction: &mut Instruction) {
        if instruction.id.is_empty() {
            self.assigned += 1;
            instruction.id = format!("instruction-{}", self.assigned);
        }
    }

    /// Why an instruction cannot be queued: what, its value, what was expected.
    pub fn objection(&self, instruction: &Instruction) -> Option<String> {
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
        if let Some(why) = self.lifecycle.state().objection() {
            return Some(why.to_string());
        }
        let waiting = self.instructions.iter().map(|waiting| &waiting.id);
        let answering = self.answering.iter().map(|answering| &answering.id);
        if waiting.chain(answering).any(|taken| taken == id) || self.watches.has(id) {
            return Some(format!(
                "instruction id is {id:?}, expected one that no unanswered instruction has"
            ));
        }
        if instruction.watch.is_some() {
            return self.watches.objection(instruction);
        }
        let full = self.instructions.len() >= self.queue_size;
        let makes_way = |last: &Instruction| last.priority < instruction.priority;
        (full && !self.instructions.back().is_some_and(makes_way)).then(|| {
            format!(
                "instruction queue is full: {} wait, expected at most {} or one of a lower priority than {} among them",
                self.instructions.len(),
                self.queue_size,
                instruction.priority
            )
        })
    }

    /// Lets an instruction wait for its turn, or stand if it is a watch; [`Self::objection`] has none. In a queue that is full it takes the
    /// place of the last one, which is of a lower priority. One of a higher priority than that of the instruction that is being answered
    /// cuts it off.
    pub fn queue(&mut self, instruction: Instruction) {
        if let Some(watching) = instruction.watch {
            let (now, frames) = (Instant::now(), self.frames_taken);
            return self.watches.add(instruction, watching, now, frames);
        }
        let (id, priority) = (instruction.id.clone(), instruction.priority);
        if self.instructions.len() >= self.queue_size {
            if let Some(last) = self.instructions.pop_back() {
                let reason = format!(
                    "the instruction queue was full, and instruction {id} of priority {priority} took the place of this one of priority {}",
                    last.priority
                );
                let refusal = Refusal::new(last, FinishReason::Preempted, reason);
                self.refused.push_back(refusal);
            }
        }
        let before = |other: &Instruction| other.priority >= priority;
        let place = self.instructions.partition_point(before);
        self.instructions.insert(place, instruction);
        let answering = self.answering.as_mut();
        if let Some(answering) = answering.filter(|answering| answering.priority < priority) {
            answering.cut.get_or_insert(Cut::Preempted { id, priority });
        }
    }

    /// Cancels instructions, whether they wait or are being answered.
    pub fn cancel(&mut self, which: Which) -> Cancelled {
        let mut cancelled = Cancelled::default();
        let waiting = std::mem::take(&mut self.instructions);
        for instruction in waiting {
            if which.is(&instruction.id, instruction.ticket) {
                cancelled.waiting += 1;
                let finish = FinishReason::Cancelled;
                let refusal = Refusal::new(instruction, finish, CANCELLED.to_string());
                self.refused.push_back(refusal);
            } else {
                self.instructions.push_back(instruction);
            }
        }
        let ended = self.watches.cancel(which);
        cancelled.watches = ended.len();
        let ended = ended.into_iter();
        let ended = ended.map(|watch| Refusal::of_watch(watch, WATCH_CANCELLED));
        self.refused.extend(ended);
        if let Some(answering) = &mut self.answering {
            let watched = answering.watches.iter().any(|id| self.watches.has(id));
            let of_watches = !answering.watches.is_empty();
            if (of_watches && !watched)
                || (!of_watches && which.is(&answering.id, answering.ticket))
            {
                // Even one that was about to give way.
                answering.cut = Some(Cut::Cancelled);
                cancelled.answering = !of_watches;
            }
        }
        cancelled
    }

    /// Whether the answer that is being given is to end where it is.
    pub fn is_cut_off(&self) -> bool {
        let cut = |answering: &Answering| answering.cut.is_some();
        self.stop || !self.resets.is_empty() || self.answering.as_ref().is_some_and(cut)
    }

    /// The next refusal; those whose time is over while they wait are refused as well.
    pub fn take_refused(&mut self) -> Option<Refusal> {
        if self.refused.is_empty() {
            let now = Instant::now();
            let late = self
                .instructions
                .iter()
                .position(|waiting| waiting.is_late(now))?;
            let instruction = self.instructions.remove(late)?;
            let limit = instruction.time_limit.unwrap_or_default();
            let reason = format!("its time_limit of {limit:?} was over while it waited");
            let finish = FinishReason::TimeLimit;
            return Some(Refusal::new(instruction, finish, reason));
        }
        self.refused.pop_front()
    }

    /// Answers an instruction with an error, in its turn.
    pub fn refuse(&mut self, mut instruction: Instruction, reason: String) {
        // Only the id is echoed, and a part of one would be the id of something else.
        instruction.text.clear();
        instruction.images.clear();
        instruction.choices.clear();
        instruction.grammar = None;
        if instruction.id.len() > MAX_ID_BYTES {
            instruction.id.clear();
        }
        let refusal = Refusal::new(instruction, FinishReason::Error, reason);
        self.refused.push_back(refusal);
    }

    pub fn forget_old_frames(&mut self) {
        let old = |(at, _): &(Instant, usize)| at.elapsed() > RATE_WINDOW;
        while self.used_at.front().is_some_and(old) {
            self.used_at.pop_front();
        }
    }

    /// Whether the frame that is next would be used; `gates` are those of the cameras.
    pub fn frame_is_due(&self, gates: &[FrameGate]) -> bool {
        let next = self.cameras.next();
        next.is_some_and(|(_, image)| {
            let gate = gates.get(image.camera);
            gate.is_some_and(|gate| gate.due(image.stamp_ns))
        })
    }

    /// The frame that is next, if one waits.
    pub fn take_frame(&mut self) -> Option<Work> {
        let ((since, image), jumped) = self.cameras.take()?;
        self.answered_last = false;
        Some(Work::Frame(since, image, jumped))
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
                dropped: self.cameras.drop_waiting(),
            });
        }
        if let Some(refusal) = self.take_refused() {
            return Some(Work::Refuse(refusal));
        }
        if let Some(watch) = self.watches.unchecked() {
            return Some(Work::Check(Box::new(watch.clone())));
        }
        let now = Instant::now();
        let watch_due = self.is_active() && self.watches.is_due(now, self.frames_taken);
        let frame_first = match (self.cameras.next(), self.instructions.front()) {
            (Some((since, _)), Some(instruction)) => {
                self.answered_last || *since <= instruction.received
            }
            // Where frames always wait, watches come between them.
            (Some(_), None) => self.answered_last || !watch_due,
            (None, _) => false,
        };
        if frame_first {
            return self.take_frame();
        }
        let (instruction, watches) = match self.instructions.pop_front() {
            Some(instruction) => (instruction, Vec::new()),
            None if watch_due => {
                let asking = self.watches.take_due(now, self.frames_taken)?;
                (asking.instruction, asking.ids)
            }
            None => return None,
        };
        self.answered_last = true;
        self.answering = Some(Answering {
            id: instruction.id.clone(),
            watches: watches.clone(),
            ticket: instruction.ticket,
            priority: instruction.priority,
            cut: None,
        });
        Some(match watches.is_empty() {
            true => Work::Ask(instruction),
            false => Work::Watch(instruction, watches),
        })
    }
}

/// Something to do.
pub enum Work {
    Stop,
    /// For those who wait for it; of which cameras frames that waited were dropped.
    Reset {
        waiting: Vec<Sender<Result<(), String>>>,
        dropped: Vec<usize>,
    },
    Refuse(Refusal),
    /// Find out whether this watch can be answered.
    Check(Box<Instruction>),
    Ask(Instruction),
    /// Asked for the watches of these ids.
    Watch(Instruction, Vec<String>),
    /// Since when it waited, the image, and where the clock jumped from if an epoch begins with it.
    Frame(Instant, Arc<CameraImage>, Option<i64>),
}

#[cfg(test)]
mod tests;
