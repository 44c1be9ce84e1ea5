//! The engine thread.

use std::sync::{Arc, PoisonError};
use std::time::Instant;

use super::endings::{Cut, Refusal, Which};
use super::inbox::Work;
use super::watches::Watch;
use super::{lock, Shared};
use crate::model::ModelError;
use crate::stream::answer::{Answer, Basis, FinishReason};
use crate::stream::frame::CameraImage;
use crate::stream::instruction::Instruction;
use crate::stream::lifecycle::State;
use crate::stream::session::{AskError, Asking, Meanwhile, Progress, Session, Taken};

/// What the thread owns.
pub struct Worker {
    pub session: Session,
    pub shared: Arc<Shared>,
    /// Frames received and rejected before the memory began.
    pub before: (u64, u64),
}

/// However the thread ends, nobody waits for it any longer.
pub struct Ending(pub Arc<Shared>);

impl Drop for Ending {
    fn drop(&mut self) {
        let asked_to = lock(&self.0.inbox).stop;
        if !asked_to {
            self.0.end_work(FAULT);
        }
        lock(&self.0.inbox).resets.clear();
        self.0.frames.notify_one();
    }
}

/// What is said of a thread that has ended without being asked to.
const FAULT: &str = "the engine's thread has ended by a fault of its own";

impl Worker {
    pub fn run(&mut self) {
        loop {
            let work = self.next_work();
            self.follow_settings();
            match work {
                Work::Stop => {
                    let (ended, state) = {
                        let mut inbox = lock(&self.shared.inbox);
                        let ended = inbox.watches.cancel(Which::All);
                        (ended, inbox.lifecycle.state())
                    };
                    let reason = match state {
                        State::CleaningUp => "the memory was let go (cleanup)",
                        _ => "the node is shutting down",
                    };
                    self.cancel_waiting(reason, ended);
                    return;
                }
                Work::Reset { waiting, dropped } => {
                    for camera in dropped {
                        lock(&self.shared.stats).superseded(camera);
                    }
                    let ended = lock(&self.shared.inbox).watches.reset();
                    self.cancel_waiting("the memory was reset", ended);
                    let outcome = self.reset();
                    self.publish_session();
                    for done in waiting {
                        // The caller may have given up waiting.
                        let _ = done.send(outcome.clone());
                    }
                }
                Work::Refuse(refusal) => self.refuse(refusal),
                Work::Check(instruction) => self.check_watch(&instruction),
                Work::Ask(instruction) => self.ask(instruction),
                Work::Watch(instruction, ids) => self.watch(&instruction, &ids),
                Work::Frame(since, image, jumped) => self.take(since, &image, jumped),
            }
            if let Err(error) = self.session.check() {
                return self.give_up(&error);
            }
        }
    }

    /// Ends the work: what comes next would be wrong, or would fail again and again.
    fn give_up(&mut self, error: &ModelError) {
        let failure = error.to_string();
        self.shared.end_work(&failure);
        let (waiting, ended) = {
            let mut inbox = lock(&self.shared.inbox);
            let waiting = std::mem::take(&mut inbox.instructions);
            (waiting, inbox.watches.cancel(Which::All))
        };
        for instruction in waiting {
            let finish = FinishReason::Error;
            self.refuse(Refusal::new(instruction, finish, failure.clone()));
        }
        for watch in ended {
            let finish = FinishReason::Error;
            self.refuse(Refusal {
                finish,
                ..Refusal::of_watch(watch, &failure)
            });
        }
    }

    /// Waits for something to do.
    fn next_work(&self) -> Work {
        let mut inbox = lock(&self.shared.inbox);
        loop {
            if let Some(work) = inbox.take_work() {
                inbox.busy = true;
                self.shared.frames.notify_one();
                return work;
            }
            inbox.busy = false;
            let next = inbox.watches.next_at().filter(|_| inbox.is_active());
            let wake = &self.shared.wake;
            inbox = match next {
                Some(at) => {
                    let left = at.saturating_duration_since(Instant::now());
                    let waited = wake.wait_timeout(inbox, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => wake.wait(inbox).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Takes over the parameters that were changed.
    fn follow_settings(&mut self) {
        let settings = std::mem::take(&mut lock(&self.shared.inbox).settings);
        if settings.is_empty() {
            return;
        }
        for (name, value) in settings {
            if let Err(error) = self.session.set_parameter(name, value) {
                tracing::error!("{error}");
            }
        }
        self.publish_session();
    }

    /// Empties the memory. If that fails, all is as it was, and a changed system prompt goes on waiting.
    fn reset(&mut self) -> Result<(), String> {
        let changed = lock(&self.shared.inbox).system_prompt.take();
        let outcome = match changed.clone() {
            Some(text) => self.session.reset_with(text),
            None => self.session.reset(),
        };
        outcome.map_err(|error| {
            if let Some(text) = changed {
                let mut inbox = lock(&self.shared.inbox);
                inbox.system_prompt.get_or_insert(text);
            }
            error.to_string()
        })?;
        lock(&self.shared.inbox).cameras.forget_stamps();
        let mut stats = lock(&self.shared.stats);
        stats.memory_full = false;
        self.before = (stats.frames_received, stats.frames_rejected);
        Ok(())
    }

    fn take(&mut self, since: Instant, image: &Arc<CameraImage>, jumped: Option<i64>) {
        let waited = since.elapsed();
        let seen = self.shared.seen_ahead(image);
        let taken = self.session.take_seen(image, jumped, seen);
        // Who sees the frame counted finds it in the numbers of the memory.
        self.publish_session();
        match taken {
            Ok(Taken::Used) => {
                let mut inbox = lock(&self.shared.inbox);
                inbox.frames_taken += 1;
                inbox.used_at.push_back((Instant::now(), image.camera));
                inbox.forget_old_frames();
                let mut stats = lock(&self.shared.stats);
                stats.used(image.camera);
                stats.memory_full = false;
                stats.frame_wait = waited;
                stats.transport_ns = image.arrival_ns.saturating_sub(image.stamp_ns);
            }
            Ok(Taken::Skipped(skip)) => {
                lock(&self.shared.stats).skipped(image.camera, skip);
            }
            Err(error) => self.shared.reject(image.camera, &error),
        }
    }

    fn ask(&mut self, instruction: Instruction) {
        let shown = self.session.has_seen() || !instruction.images.is_empty();
        if !shown && !instruction.text.trim().is_empty() {
            let reason = format!("{}: {}", AskError::NoFrame, self.why_no_frame());
            let finish = FinishReason::Error;
            return self.refuse(Refusal::new(instruction, finish, reason));
        }
        let mut answer = self.answer(&instruction, true);
        let answering = lock(&self.shared.inbox).answering.take();
        let cut = answering.and_then(|answering| answering.cut);
        if answer.finish == FinishReason::Cancelled {
            if let Some(Cut::Preempted { id, priority }) = cut {
                answer.finish = FinishReason::Preempted;
                answer.error = Some(format!(
                    "instruction {id} of priority {priority} came before this one of priority {}",
                    instruction.priority
                ));
            }
        }
        self.publish_session();
        self.shared.deliver(answer);
    }

    /// Lets a watch be asked that can be answered, and refuses another one as an instruction would be.
    fn check_watch(&mut self, instruction: &Instruction) {
        let wrong = self.session.check_instruction(instruction).err();
        let refused = {
            let watches = &mut lock(&self.shared.inbox).watches;
            match &wrong {
                None => {
                    watches.checked(&instruction.id);
                    Vec::new()
                }
                Some(_) => watches.cancel(Which::Id(&instruction.id)),
            }
        };
        let reason = wrong.map_or_else(String::new, |wrong| wrong.to_string());
        for watch in refused {
            let finish = FinishReason::Error;
            self.refuse(Refusal::new(watch.instruction, finish, reason.clone()));
        }
    }

    /// Asks for watches.
    fn watch(&mut self, instruction: &Instruction, ids: &[String]) {
        let blind = !self.session.has_seen();
        let answer = (!blind).then(|| self.answer(instruction, false));
        let published = {
            let mut inbox = lock(&self.shared.inbox);
            inbox.answering = None;
            match answer {
                Some(answer) if answer.finish != FinishReason::Cancelled => {
                    inbox.watches.answered(ids, &answer, Instant::now())
                }
                _ => {
                    inbox.watches.not_asked(ids);
                    Vec::new()
                }
            }
        };
        self.publish_session();
        for watch in published {
            if let Some(answer) = &watch.last {
                for piece in answer.in_pieces() {
                    lock(&self.shared.events).delta(piece);
                }
                self.shared.deliver(answer.clone());
            }
            lock(&self.shared.events).watch(watch);
        }
    }

    /// Puts an instruction to the model, and frames between its tokens; `aloud`: the pieces of the answer are told.
    fn answer(&mut self, instruction: &Instruction, aloud: bool) -> Answer {
        let mut asking = self.session.begin_answer(instruction);
        loop {
            match self.go_on_answering(instruction, asking, aloud) {
                Progress::Answered(answer) => return *answer,
                Progress::Paused(paused) => asking = *paused,
            }
            let frame = lock(&self.shared.inbox).take_frame();
            if let Some(Work::Frame(since, image, jumped)) = frame {
                self.take(since, &image, jumped);
            }
        }
    }

    /// Answers until a frame can be taken in or the answer ends.
    fn go_on_answering(
        &mut self,
        instruction: &Instruction,
        asking: Asking,
        aloud: bool,
    ) -> Progress {
        let basis = self.session.basis();
        let Self {
            session, shared, ..
        } = self;
        // Between two tokens, those that need no answer of the model do not wait for the end of this one.
        let meanwhile = || loop {
            let refusal = {
                let mut inbox = lock(&shared.inbox);
                match inbox.take_refused() {
                    Some(refusal) => refusal,
                    None if inbox.is_cut_off() => return Meanwhile::CutOff,
                    None if inbox.frame_is_due(&lock(&shared.gates)) => {
                        return Meanwhile::FrameWaits
                    }
                    None => return Meanwhile::Nothing,
                }
            };
            shared.refuse(&refusal, &basis);
        };
        session.go_on_answering(instruction, asking, &meanwhile, &mut |delta| {
            if aloud {
                lock(&shared.events).delta(delta);
            }
        })
    }

    /// What has become of the images since the memory began.
    fn why_no_frame(&self) -> String {
        let stats = lock(&self.shared.stats);
        let received = stats.frames_received - self.before.0;
        let rejected = stats.frames_rejected - self.before.1;
        if received == 0 {
            let mut known = lock(&self.shared.silent).clone();
            known.retain(|known| !known.is_empty());
            return match known.join("; ") {
                none if none.is_empty() && self.before.0 > 0 => {
                    "no image has come since the reset".to_string()
                }
                none if none.is_empty() => "no image has come".to_string(),
                known => known,
            };
        }
        let last = &stats.rejected_last;
        match rejected {
            0 => format!("{received} images came, none was used yet"),
            all if all >= received => {
                format!("{received} images came, all refused; the last: {last}")
            }
            some => format!("{received} images came, {some} refused; the last of these: {last}"),
        }
    }

    fn refuse(&mut self, refusal: Refusal) {
        lock(&self.shared.inbox).answering = None;
        let basis = self.session.basis();
        self.shared.refuse(&refusal, &basis);
    }

    /// Answers all that waits, and the watches that have ended.
    fn cancel_waiting(&mut self, reason: &str, ended: Vec<Watch>) {
        let (waiting, refused) = {
            let mut inbox = lock(&self.shared.inbox);
            (
                std::mem::take(&mut inbox.instructions),
                std::mem::take(&mut inbox.refused),
            )
        };
        let waiting = waiting.into_iter().map(|instruction| {
            Refusal::new(instruction, FinishReason::Cancelled, reason.to_string())
        });
        let ended = ended.into_iter();
        let ended = ended.map(|watch| Refusal::of_watch(watch, reason));
        for refusal in refused.into_iter().chain(waiting).chain(ended) {
            self.refuse(refusal);
        }
    }

    /// Makes the session's state visible: before anything that tells of what has changed it.
    pub fn publish_session(&mut self) {
        let cameras = self.session.state().stream.cameras.iter();
        let gates = cameras.map(|camera| camera.gate.clone());
        *lock(&self.shared.gates) = gates.collect();
        let mut stats = lock(&self.shared.stats);
        stats.policy = self.session.config().cache.policy.name();
        stats.cache = self.session.usage();
        stats.times = self.session.times();
        let memory = self.session.memory();
        stats.frames_seen = memory.seen();
        stats.oldest_frame_ns = memory.oldest_ns();
        stats.ages = memory.ages();
        stats.archive = self.session.archive_stats();
        let slots = self.session.camera_slots();
        for (camera, slots) in stats.cameras.iter_mut().zip(slots) {
            camera.slots = slots;
        }
        if let Some(newest) = memory.newest() {
            stats.frame_id.clone_from(&newest.frame_id);
        }
    }
}

impl Shared {
    /// Answers an instruction that is not put to the model.
    pub fn refuse(&self, refusal: &Refusal, basis: &Basis) {
        let Refusal {
            instruction,
            finish,
            reason,
            watch,
        } = refusal;
        let (delta, mut answer) = Answer::refused(instruction, basis, *finish, reason.clone());
        if let (Some(watch), Some(count)) = (watch, &mut answer.watch) {
            count.asked = watch.asked;
        }
        lock(&self.events).delta(delta);
        self.deliver(answer.clone());
        if let Some(watch) = watch {
            lock(&self.events).watch(Watch {
                last: Some(answer),
                ..(**watch).clone()
            });
        }
    }

    fn deliver(&self, answer: Answer) {
        {
            let mut stats = lock(&self.stats);
            stats.detections += answer.detections.found.len() as u64;
            stats.detections_dropped += answer.detections.dropped as u64;
            match answer.finish {
                FinishReason::Stop | FinishReason::Length | FinishReason::TimeLimit => {
                    stats.instructions_answered += 1;
                }
                FinishReason::Cancelled | FinishReason::Preempted | FinishReason::Error => {
                    stats.instructions_failed += 1;
                }
            }
        }
        lock(&self.events).answer(answer);
    }
}
