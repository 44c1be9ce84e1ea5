//! Text as units: a running one sentence by sentence, while it is fed in chunks that know nothing of sentences; a conversation turn by turn.

use std::ops::Range;

use candle_core::Result;

use super::unit::{Content, Unit};
use crate::cache::{Heard, Summary};

/// A shorter sentence goes on with the next one, tokens: an empty line, a title before a name.
const SHORTEST: usize = 4;

/// A question, or whatever else was put to the model, and what it said.
#[derive(Debug, Clone, PartialEq)]
pub struct Turn {
    /// As it came, without markup.
    pub asked: Box<str>,
    /// Ids of the answer without its end.
    pub said: Box<[u32]>,
    /// Tokens that it takes in the cache with its markup at most, wherever it stands.
    pub tokens: usize,
}

impl Turn {
    /// Memory beside the struct's own, bytes.
    pub fn bytes(&self) -> usize {
        self.asked.len() + std::mem::size_of_val::<[u32]>(&self.said)
    }
}

/// The sentence that has begun.
#[derive(Debug, Clone, Default)]
pub struct TextUnits {
    /// A longer sentence is cut, tokens; at least 1.
    longest: usize,
    ids: Vec<u32>,
    /// Of the chunks that it has come in.
    parts: Vec<Summary>,
    /// Tokens of the stream so far.
    at: u64,
}

impl TextUnits {
    pub fn new(longest: usize) -> Self {
        Self {
            longest: longest.max(1),
            ..Self::default()
        }
    }

    /// Takes a chunk, whose keys have been heard; the sentences that end in it, with their places in the stream. `ends` says whether a
    /// sentence ends with a token.
    pub fn push(
        &mut self,
        ids: &[u32],
        heard: &[Heard],
        ends: impl Fn(u32) -> bool,
    ) -> Result<Vec<(Unit, Range<u64>)>> {
        let mut units = Vec::new();
        let mut start = 0;
        for (i, &id) in ids.iter().enumerate() {
            self.ids.push(id);
            let length = self.ids.len();
            if length >= SHORTEST && ends(id) || length >= self.longest {
                self.parts.push(Summary::of(heard, start..i + 1)?);
                start = i + 1;
                units.push(self.end(self.at + start as u64));
            }
        }
        if start < ids.len() {
            self.parts.push(Summary::of(heard, start..ids.len())?);
        }
        self.at += ids.len() as u64;
        Ok(units)
    }

    /// The sentence that ends before this token of the stream, which is its time as well.
    fn end(&mut self, to: u64) -> (Unit, Range<u64>) {
        let ids = std::mem::take(&mut self.ids);
        let from = to - ids.len() as u64;
        let summary = match self.parts.len() {
            1 => self.parts.remove(0),
            _ => Summary::joined(&std::mem::take(&mut self.parts)),
        };
        let content = Content::Text(ids.into());
        (Unit::new(from as i64, content, summary), from..to)
    }
}
