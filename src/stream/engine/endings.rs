//! What ends an instruction before its answer is whole: refusals, cancelling, a higher priority.

use std::fmt;

use super::watches::Watch;
use crate::stream::answer::FinishReason;
use crate::stream::instruction::Instruction;

/// An instruction that gets no answer of the model, and why.
pub struct Refusal {
    pub instruction: Instruction,
    pub finish: FinishReason,
    pub reason: String,
    /// The watch that ends, if it was one.
    pub watch: Option<Box<Watch>>,
}

impl Refusal {
    pub fn new(instruction: Instruction, finish: FinishReason, reason: String) -> Self {
        Self {
            instruction,
            finish,
            reason,
            watch: None,
        }
    }

    /// Of a watch that ends.
    pub fn of_watch(watch: Watch, reason: &str) -> Self {
        Self {
            watch: Some(Box::new(watch.clone())),
            ..Self::new(
                watch.instruction,
                FinishReason::Cancelled,
                reason.to_string(),
            )
        }
    }
}

/// What cuts an answer off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cut {
    /// Whoever asked no longer wants to know.
    Cancelled,
    /// The instruction of this id and priority comes first.
    Preempted { id: String, priority: i32 },
}

/// Which instructions are cancelled.
#[derive(Debug, Clone, Copy)]
pub enum Which<'a> {
    All,
    Id(&'a str),
    /// Of this [`Instruction::ticket`].
    Ticket(u64),
}

impl Which<'_> {
    pub fn is(self, id: &str, ticket: u64) -> bool {
        match self {
            Self::All => true,
            Self::Id(wanted) => wanted == id,
            Self::Ticket(wanted) => wanted == ticket,
        }
    }
}

/// What was cancelled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cancelled {
    /// Instructions that waited.
    pub waiting: usize,
    /// The one that was being answered.
    pub answering: bool,
    /// Watches that stood.
    pub watches: usize,
}

impl fmt::Display for Cancelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let waiting = match self.waiting {
            0 => None,
            1 => Some("1 that waited".to_string()),
            more => Some(format!("{more} that waited")),
        };
        let answering = self.answering.then(|| "the one being answered".to_string());
        let watches = match self.watches {
            0 => None,
            1 => Some("1 watch".to_string()),
            more => Some(format!("{more} watches")),
        };
        let parts = [answering, waiting, watches].into_iter().flatten();
        write!(f, "{}", parts.collect::<Vec<_>>().join(" and "))
    }
}
