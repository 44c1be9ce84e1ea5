//! What waits for the engine thread, and in which order it is taken.

use std::collections::VecDeque;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

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
    pub frame: Option<(Instant, CameraImage)>,
    /// Places frames in time as they arrive.
    pub clock: StreamClock,
    /// The stamp that the clock jumped from, if it has since a frame was taken: whichever is taken next begins an epoch.
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
            jumped: None,
            losses: Losses::default(),
            heard_at: None,
            instructions: VecDeque::new(),
            refused: VecDeque::new(),
            resets: Vec::new(),
            system_prompt: None,
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
        } else {
            stats.ahead_ns = Some(image.stamp_ns.saturating_sub(image.arrival_ns));
        }
        let arrival = self.clock.arrive(image.stamp_ns, received_ns);
        let jumped = arrival.check(image.stamp_ns)?;
        stats.time_jumps += u64::from(jumped.is_some());
        self.jumped = self.jumped.or(jumped);
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
        self.frame = Some((since, image));
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
    Frame(Instant, CameraImage, Option<i64>),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::frame::ImageData;
    use crate::stream::gate::{FrameGate, GateConfig};
    use crate::stream::memory::FrameMemory;
    use proptest::prelude::*;

    const MS: i64 = 1_000_000;
    /// Distance of two images, and the longest that the model is busy, milliseconds.
    const PACE: i64 = 100;
    const BUSY: i64 = 30_000;

    fn image(stamp_ms: i64) -> CameraImage {
        let data = ImageData::Compressed {
            format: String::new(),
            data: Vec::new(),
        };
        CameraImage::recorded(stamp_ms * MS, "camera", data)
    }

    /// What happens at a camera's next image.
    #[derive(Debug, Clone, Copy)]
    enum Step {
        /// The model begins whatever it does next, for so long, milliseconds.
        Busy(i64),
        Pause(bool),
        /// The camera sends nothing for so long, milliseconds.
        Silence(i64),
        /// The clock is set on, by milliseconds.
        Jump(i64),
        /// An image that was overtaken comes after this one.
        Overtaken,
        Image,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            2 => (1..BUSY).prop_map(Step::Busy),
            2 => any::<bool>().prop_map(Step::Pause),
            1 => (0..60_000i64).prop_map(Step::Silence),
            1 => (40_000..1_000_000i64).prop_map(Step::Jump),
            3 => Just(Step::Overtaken),
            20 => Just(Step::Image),
        ];
        prop::collection::vec(step, 10..300)
    }

    /// The engine thread without a model: it takes frames as a session does, and each keeps it busy.
    struct Model {
        gate: FrameGate,
        memory: FrameMemory,
        /// When it is free again, milliseconds.
        free_ms: i64,
        epochs: u64,
        /// Stamp of the first frame of the epoch.
        epoch_ns: Option<i64>,
        used: Vec<i64>,
    }

    impl Model {
        fn work(&mut self, inbox: &mut Inbox, now_ms: i64, stats: &mut StreamStats) {
            if now_ms < self.free_ms {
                return;
            }
            let Some(Work::Frame(_, image, jumped)) = inbox.take_work() else {
                return;
            };
            if jumped.is_some() {
                self.gate.begin_epoch();
                self.memory.end_epoch();
                self.epochs += 1;
                self.epoch_ns = None;
            }
            if !self.gate.due(image.stamp_ns) {
                stats.frames_skipped.rate += 1;
                return;
            }
            self.gate.spend(image.stamp_ns);
            let label_ns = self.memory.since_epoch(image.stamp_ns);
            let first_ns = *self.epoch_ns.get_or_insert(image.stamp_ns);
            assert_eq!(label_ns, image.stamp_ns - first_ns, "the label");
            self.memory.remember(&image, 1);
            self.used.push(image.stamp_ns);
            stats.frames_used += 1;
        }
    }

    proptest! {
        /// However long the model is busy, however long the node is paused and the camera silent: the jumps of the camera's clock
        /// are the epochs, the labels advance with the stamps, and every image has become something.
        #[test]
        fn busy_models_pauses_and_silence_are_no_jumps(
            steps in steps(),
            frame_rate in prop_oneof![Just(0.0), 0.5..20.0f64],
        ) {
            let mut inbox = Inbox::new(StreamClock::new(10.0));
            let config = GateConfig { frame_rate, ..GateConfig::default() };
            let mut model = Model {
                gate: FrameGate::new(config),
                memory: FrameMemory::default(),
                free_ms: 0,
                epochs: 0,
                epoch_ns: None,
                used: Vec::new(),
            };
            let mut stats = StreamStats::default();
            let (mut now, mut offset, mut made, mut since_jump) = (0, 100_000, 0, 0);
            for step in steps {
                now += PACE;
                match step {
                    Step::Busy(time) => model.free_ms = now + time,
                    Step::Pause(paused) => inbox.paused = paused,
                    Step::Silence(time) => now += time,
                    // A clock of which only one image came is none yet.
                    Step::Jump(by) if since_jump > 2 => {
                        offset += by;
                        made += 1;
                        since_jump = 0;
                    }
                    _ => {}
                }
                since_jump += 1;
                stats.frames_received += 1;
                inbox.offer(image(offset + now), now * MS, &mut stats).unwrap();
                if matches!(step, Step::Overtaken) && since_jump > 2 {
                    stats.frames_received += 1;
                    let late = inbox.offer(image(offset + now - 1), (now + 1) * MS, &mut stats);
                    let overtaken = matches!(late, Err(FrameError::OutOfOrder { .. }));
                    prop_assert!(overtaken, "{:?}", late);
                    stats.frames_rejected += 1;
                }
                model.work(&mut inbox, now, &mut stats);
                prop_assert_eq!(stats.time_jumps, made);
                prop_assert!(model.epochs <= made);
            }
            // What still waits is taken, and with it the epoch of a jump that nothing was taken after.
            inbox.paused = false;
            now += BUSY + PACE;
            stats.frames_received += 1;
            inbox.offer(image(offset + now), now * MS, &mut stats).unwrap();
            model.work(&mut inbox, now, &mut stats);
            prop_assert!(inbox.frame.is_none() && inbox.jumped.is_none());
            prop_assert_eq!(stats.frames_received, stats.frames_decided() + stats.images_refused());
            // Jumps between two frames taken are one epoch.
            prop_assert!((model.epochs > 0) == (made > 0));
            prop_assert!(model.used.windows(2).all(|pair| pair[0] < pair[1]));
        }
    }

    #[test]
    fn a_jump_at_a_frame_that_is_superseded_is_that_of_the_one_that_replaces_it() {
        let mut inbox = Inbox::new(StreamClock::new(10.0));
        let mut stats = StreamStats::default();
        for (stamp_ms, received_ms) in [(100_000, 0), (100_100, 100), (500, 200), (600, 300)] {
            let image = image(stamp_ms);
            inbox.offer(image, received_ms * MS, &mut stats).unwrap();
        }
        assert_eq!((stats.frames_superseded, stats.time_jumps), (3, 1));
        let Some(Work::Frame(_, image, jumped)) = inbox.take_work() else {
            panic!("a frame waits");
        };
        assert_eq!((image.stamp_ns, jumped), (600 * MS, Some(100_100 * MS)));
        inbox.offer(self::image(700), 400 * MS, &mut stats).unwrap();
        assert!(matches!(inbox.take_work(), Some(Work::Frame(_, _, None))));
    }

    #[test]
    fn images_without_a_stamp_get_the_time_of_their_receipt() {
        let mut inbox = Inbox::new(StreamClock::new(10.0));
        let mut stats = StreamStats::default();
        let mut undated = image(0);
        undated.arrival_ns = 77 * MS;
        inbox.offer(undated.clone(), 5 * MS, &mut stats).unwrap();
        let stamp_ns = |inbox: &Inbox| inbox.frame.as_ref().unwrap().1.stamp_ns;
        assert_eq!(stamp_ns(&inbox), 77 * MS);
        // Simulated time that has not begun tells nothing.
        let mut inbox = Inbox::new(StreamClock::new(10.0));
        undated.arrival_ns = 0;
        inbox.offer(undated, 5 * MS, &mut stats).unwrap();
        assert_eq!(stamp_ns(&inbox), 5 * MS);
        assert_eq!((stats.frames_undated, stats.ahead_ns), (2, None));
    }
}
