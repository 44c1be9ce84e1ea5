//! What a rendering may cost, and how its end is told.

use std::cell::Cell;
use std::fmt::{self, Display, Formatter};

/// Units that one rendering may spend. A unit is a byte that is made, copied or looked at; it bounds memory and time together, since
/// nothing that has been spent comes back.
const WORK: u64 = 32 << 20;

/// What a step of the evaluation costs whatever it does, and what a list, dict or string costs beside its contents: no less than
/// they take in memory.
pub const STEP: u64 = 64;

/// Levels that expressions, statements, macros and data may be nested in each other while rendering.
const DEPTH: usize = 200;

/// Levels of lists and dicts inside each other.
pub const DATA_DEPTH: u8 = 64;

/// Longest message of an error, characters.
const MESSAGE: usize = 300;

/// Why a template cannot be read or rendered.
#[derive(Debug)]
pub struct Error {
    /// Where in the template, counted from 1.
    line: Option<u32>,
    what: String,
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub fn new(what: impl Into<String>) -> Self {
        let mut what = what.into();
        if let Some((at, _)) = what.char_indices().nth(MESSAGE) {
            what.truncate(at);
            what.push_str(" ...");
        }
        Self { line: None, what }
    }

    /// What went wrong in the filter or test `name`.
    pub fn inside(mut self, name: &str) -> Self {
        self.what = format!("{name}: {}", self.what);
        self
    }

    /// At `line`, unless a line is known already.
    pub fn at(mut self, line: u32) -> Self {
        self.line.get_or_insert(line);
        self
    }
}

impl Display for Error {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}", self.what),
            None => f.write_str(&self.what),
        }
    }
}

/// What a rendering has left.
///
/// Whatever makes, copies or goes through something pays beforehand, so that memory never exceeds what was paid for.
pub struct Meter {
    left: Cell<u64>,
    depth: Cell<usize>,
}

impl Meter {
    pub fn new() -> Self {
        Self {
            left: Cell::new(WORK),
            depth: Cell::new(0),
        }
    }

    /// Pays for `units` bytes.
    pub fn spend(&self, units: u64) -> Result<()> {
        match self.left.get().checked_sub(units) {
            Some(left) => {
                self.left.set(left);
                Ok(())
            }
            None => {
                self.left.set(0);
                Err(Error::new(format!(
                    "the template does too much, expected at most {} MiB of text and data",
                    WORK >> 20
                )))
            }
        }
    }

    /// Pays for `count` things of `each` bytes.
    pub fn spend_many(&self, count: usize, each: u64) -> Result<()> {
        self.spend((count as u64).saturating_mul(each))
    }

    pub fn step(&self) -> Result<()> {
        self.spend(STEP)
    }

    /// Does `work` one level deeper.
    pub fn deeper<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.enter()?;
        let done = work();
        self.leave();
        done
    }

    /// Goes one level deeper; [`Self::leave`] comes back.
    pub fn enter(&self) -> Result<()> {
        self.step()?;
        match self.depth.get() {
            DEPTH => Err(Error::new(format!(
                "the template nests its work deeper than {DEPTH} levels"
            ))),
            depth => {
                self.depth.set(depth + 1);
                Ok(())
            }
        }
    }

    pub fn leave(&self) {
        self.depth.set(self.depth.get() - 1);
    }
}
