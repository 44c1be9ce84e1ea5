//! Which token of the stream stands in which slot.

use std::collections::BTreeMap;

/// Number of a frame in the stream, counted from 0 since the last reset.
pub type FrameId = u32;

/// A cached token: its place in the stream, and the frame it is an image token of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// Index in the stream, counted from 0 since the last reset.
    pub index: u64,
    /// The frame that this token shows; none for text.
    pub frame: Option<FrameId>,
}

/// The tokens of one kept set in slot order, which is the order of time.
#[derive(Debug, Clone, Default)]
pub struct SlotMap {
    tokens: Vec<Token>,
    /// Slots after the prefix that the last compaction kept by value.
    relevant: usize,
}

impl SlotMap {
    pub fn with_capacity(budget: usize) -> Self {
        Self {
            tokens: Vec::with_capacity(budget),
            relevant: 0,
        }
    }

    pub fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    pub fn relevant(&self) -> usize {
        self.relevant
    }

    pub fn append(&mut self, tokens: &[Token]) {
        self.tokens.extend_from_slice(tokens);
    }

    /// Keeps the slots `rows` (ascending), of which `relevant` were kept by value.
    pub fn compact(&mut self, rows: &[u32], relevant: usize) {
        for (to, &from) in rows.iter().enumerate() {
            self.tokens[to] = self.tokens[from as usize];
        }
        self.tokens.truncate(rows.len());
        self.relevant = relevant;
    }

    pub fn clear(&mut self) {
        self.tokens.clear();
        self.relevant = 0;
    }

    /// Adds the number of slots that each frame has here to `counts`.
    pub fn count_frames(&self, counts: &mut BTreeMap<FrameId, usize>) {
        for frame in self.tokens.iter().filter_map(|token| token.frame) {
            *counts.entry(frame).or_default() += 1;
        }
    }
}
