//! The watches: instructions that stand. When each is to be asked, which are asked together, and which answers are published. No thread,
//! no clock and no model: what time it is and how many frames have been taken is told.

use std::cmp::Reverse;
use std::time::{Duration, Instant};

use super::endings::Which;
use crate::stream::answer::{Answer, ChosenBy, FinishReason, WatchCount};
use crate::stream::instruction::{Every, Instruction, Watching};

/// A watch as others see it.
#[derive(Debug, Clone)]
pub struct Watch {
    /// As it was given.
    pub instruction: Instruction,
    /// Times it has been asked.
    pub asked: u64,
    /// Answers that were published.
    pub published: u64,
    /// Times it could not be answered.
    pub failed: u64,
    /// Times it was due and not asked: the model was busy, the node paused, or there was no frame yet.
    pub skipped: u64,
    /// The last answer that was published.
    pub last: Option<Answer>,
}

/// When a watch is to be asked next.
#[derive(Debug, Clone, Copy)]
enum Due {
    At(Instant),
    /// When so many frames have been taken.
    Frames(u64),
}

struct Standing {
    watch: Watch,
    /// It is known that it can be answered.
    checked: bool,
    watching: Watching,
    due: Due,
    /// Which asking of all its last one was; 0: it has not been asked yet.
    turn: u64,
    published_at: Option<Instant>,
}

/// Those that stand, in the order in which they were given.
pub struct Watches {
    limit: usize,
    /// Askings so far.
    turns: u64,
    standing: Vec<Standing>,
}

/// An asking that several watches may share.
#[derive(Debug, Clone)]
pub struct Shared {
    /// What is put to the model.
    pub instruction: Instruction,
    /// Whose question it is.
    pub ids: Vec<String>,
}

impl Watches {
    /// None yet, and never more than `limit`.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            turns: 0,
            standing: Vec::new(),
        }
    }

    /// Why an instruction cannot stand, if it is to: what, its value, what was expected.
    pub fn objection(&self, instruction: &Instruction) -> Option<String> {
        let watching = instruction.watch?;
        let hysteresis = watching.hysteresis;
        match watching.every {
            Every::Period(period) if period.is_zero() => {
                return Some(
                    "watch_period and watch_frames are 0, expected one of them to be more"
                        .to_string(),
                );
            }
            Every::Frames(0) => return Some("watch_frames is 0, expected at least 1".to_string()),
            _ => {}
        }
        if !(0.0..=1.0).contains(&hysteresis) {
            return Some(format!("watch_hysteresis is {hysteresis}, expected 0 to 1"));
        }
        (self.standing.len() >= self.limit).then(|| {
            format!(
                "{} watches stand, expected fewer than {} (watches_limit) before one more",
                self.standing.len(),
                self.limit
            )
        })
    }

    pub fn has(&self, id: &str) -> bool {
        self.standing
            .iter()
            .any(|one| one.watch.instruction.id == id)
    }

    /// Lets an instruction stand; it is due once it has been [`Self::checked`].
    pub fn add(&mut self, instruction: Instruction, watching: Watching, now: Instant, frames: u64) {
        self.standing.push(Standing {
            due: match watching.every {
                Every::Period(_) => Due::At(now),
                Every::Frames(_) => Due::Frames(frames),
            },
            watching,
            checked: false,
            turn: 0,
            published_at: None,
            watch: Watch {
                instruction,
                asked: 0,
                published: 0,
                failed: 0,
                skipped: 0,
                last: None,
            },
        });
    }

    /// The next one of which it is not known whether it can be answered.
    pub fn unchecked(&self) -> Option<&Instruction> {
        let mut standing = self.standing.iter().filter(|one| !one.checked);
        standing.next().map(|one| &one.watch.instruction)
    }

    /// The one of this id can be answered.
    pub fn checked(&mut self, id: &str) {
        let mut standing = self.standing.iter_mut();
        if let Some(one) = standing.find(|one| one.watch.instruction.id == id) {
            one.checked = true;
        }
    }

    /// When the next one is due, of those that go by time.
    pub fn next_at(&self) -> Option<Instant> {
        let checked = self.standing.iter().filter(|one| one.checked);
        let times = checked.filter_map(|one| match one.due {
            Due::At(at) => Some(at),
            Due::Frames(_) => None,
        });
        times.min()
    }

    pub fn is_due(&self, now: Instant, frames: u64) -> bool {
        self.standing.iter().any(|one| one.is_due(now, frames))
    }

    /// The question that is to be asked now: of those that are due the one of the highest priority, of these the one whose turn was longest
    /// ago, and with it all that are due and ask the same.
    pub fn take_due(&mut self, now: Instant, frames: u64) -> Option<Shared> {
        let due = self.standing.iter().filter(|one| one.is_due(now, frames));
        let first = due.min_by_key(|one| (Reverse(one.watch.instruction.priority), one.turn))?;
        let mut instruction = first.watch.instruction.clone();
        let mut ids = Vec::new();
        self.turns += 1;
        for one in &mut self.standing {
            let given = &one.watch.instruction;
            let same = given.id == instruction.id || given.asks_the_same(&instruction);
            if one.is_due(now, frames) && same {
                ids.push(given.id.clone());
                one.turn = self.turns;
                one.schedule(now, frames);
                one.watch.asked += 1;
            }
        }
        instruction.ephemeral = true;
        instruction.ticket = 0;
        let waited = now.saturating_duration_since(instruction.received);
        let waited_ns = i64::try_from(waited.as_nanos()).unwrap_or(i64::MAX);
        let arrival_ns = instruction.arrival_ns;
        instruction.arrival_ns = arrival_ns.map(|ns| ns.saturating_add(waited_ns));
        instruction.received = now;
        Some(Shared { instruction, ids })
    }

    /// What was to be asked was not, or not to its end.
    pub fn not_asked(&mut self, ids: &[String]) {
        for one in self.of(ids) {
            one.watch.asked -= 1;
            one.watch.skipped += 1;
        }
    }

    /// Takes an answer for the watches that asked; returns those that publish it, with the answer as their last one.
    pub fn answered(&mut self, ids: &[String], answer: &Answer, now: Instant) -> Vec<Watch> {
        let mut published = Vec::new();
        for one in self.of(ids) {
            one.watch.failed += u64::from(answer.finish == FinishReason::Error);
            if one.publishes(answer, now) {
                one.watch.published += 1;
                one.published_at = Some(now);
                one.watch.last = Some(Answer {
                    id: one.watch.instruction.id.clone(),
                    instruction_ns: one.watch.instruction.stamp_ns,
                    watch: Some(WatchCount {
                        asked: one.watch.asked,
                        ended: false,
                    }),
                    ..answer.clone()
                });
                published.push(one.watch.clone());
            }
        }
        published
    }

    /// Ends watches.
    pub fn cancel(&mut self, which: Which) -> Vec<Watch> {
        self.end(|one| which.is(&one.watch.instruction.id, one.watch.instruction.ticket))
    }

    /// Ends those that do not survive a reset of the memory.
    pub fn reset(&mut self) -> Vec<Watch> {
        self.end(|one| !one.watching.survives_reset)
    }

    pub fn list(&self) -> Vec<Watch> {
        self.standing.iter().map(|one| one.watch.clone()).collect()
    }

    fn end(&mut self, ends: impl Fn(&Standing) -> bool) -> Vec<Watch> {
        let standing = std::mem::take(&mut self.standing);
        let (ended, standing) = standing.into_iter().partition::<Vec<_>, _>(ends);
        self.standing = standing;
        ended.into_iter().map(|one| one.watch).collect()
    }

    fn of<'a>(&'a mut self, ids: &'a [String]) -> impl Iterator<Item = &'a mut Standing> {
        let standing = self.standing.iter_mut();
        standing.filter(|one| ids.contains(&one.watch.instruction.id))
    }
}

impl Standing {
    fn is_due(&self, now: Instant, frames: u64) -> bool {
        let due = match self.due {
            Due::At(at) => at <= now,
            Due::Frames(count) => count <= frames,
        };
        due && self.checked
    }

    /// The next time, on the same beat; beats that have passed are skipped.
    fn schedule(&mut self, now: Instant, frames: u64) {
        match (self.due, self.watching.every) {
            (Due::At(at), Every::Period(period)) => {
                let late = now.saturating_duration_since(at).as_nanos();
                let passed = late / period.as_nanos().max(1);
                self.watch.skipped += passed as u64;
                // What is left of the beat that has begun.
                let begun = (late % period.as_nanos().max(1)) as u64;
                self.due = Due::At(now + period.saturating_sub(Duration::from_nanos(begun)));
            }
            (Due::Frames(count), Every::Frames(every)) => {
                let passed = frames.saturating_sub(count) / every.max(1);
                self.watch.skipped += passed;
                self.due = Due::Frames(count + (passed + 1) * every.max(1));
            }
            _ => {}
        }
    }

    fn publishes(&self, answer: &Answer, now: Instant) -> bool {
        let least = self.watching.min_interval;
        let soon = |at: Instant| now.saturating_duration_since(at) < least;
        if self.published_at.is_some_and(soon) {
            return false;
        }
        let last = self.watch.last.as_ref();
        let hysteresis = self.watching.hysteresis;
        !self.watching.on_change || last.is_none_or(|last| is_another(last, answer, hysteresis))
    }
}

/// Whether an answer says something else than the last one that was published: of choices another one, which is likelier than that by more
/// than `hysteresis`.
fn is_another(last: &Answer, answer: &Answer, hysteresis: f32) -> bool {
    if let (Some(before), Some(now)) = (&last.chosen, &answer.chosen) {
        let probabilities = match now.by {
            ChosenBy::Sum => &now.probabilities,
            ChosenBy::Mean => &now.mean_probabilities,
        };
        let of = |index: usize| probabilities.get(index).copied().unwrap_or(0.0);
        return now.index != before.index && of(now.index) - of(before.index) > hysteresis;
    }
    last.error != answer.error || last.text.trim() != answer.text.trim()
}

#[cfg(test)]
mod tests;
