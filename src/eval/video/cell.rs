//! How long ago an answer was in view: the distances that are summed up together.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A distance of a long drive's questions, as its script names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Cell {
    Now,
    Seconds5,
    Seconds30,
    Minutes2,
    Minutes10,
    Minutes30,
    Minutes60,
    /// Needs the whole past.
    SoFar,
}

impl Cell {
    pub const ALL: [Self; 8] = [
        Self::Now,
        Self::Seconds5,
        Self::Seconds30,
        Self::Minutes2,
        Self::Minutes10,
        Self::Minutes30,
        Self::Minutes60,
        Self::SoFar,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Now => "now",
            Self::Seconds5 => "5s",
            Self::Seconds30 => "30s",
            Self::Minutes2 => "2min",
            Self::Minutes10 => "10min",
            Self::Minutes30 => "30min",
            Self::Minutes60 => "60min",
            Self::SoFar => "so_far",
        }
    }

    /// Whether it is one distance into the past.
    pub fn is_past(self) -> bool {
        !matches!(self, Self::Now | Self::SoFar)
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Cell {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|cell| cell.name() == name);
        found.ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("cell {name:?}, expected one of: {names}")
        })
    }
}

impl TryFrom<String> for Cell {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        name.parse()
    }
}

impl From<Cell> for String {
    fn from(cell: Cell) -> Self {
        cell.name().to_string()
    }
}
