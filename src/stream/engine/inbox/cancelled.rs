//! Which instructions are cancelled, and what came of that.

use std::fmt;

/// Which instructions are cancelled.
#[derive(Debug, Clone, Copy)]
pub enum Which<'a> {
    All,
    Id(&'a str),
    /// Of this [`crate::stream::Instruction::ticket`].
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
