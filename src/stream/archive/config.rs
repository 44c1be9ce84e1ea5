//! The archive's parameters.

use crate::cache::parameter::{choice, parameters, TOKENS};
use crate::cache::Side;

/// No archive is larger, bytes.
const LARGEST: i64 = 1 << 44;

/// When something is recalled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecallMode {
    /// Where something matches clearly better than all that the cache still holds.
    Auto,
    Always,
    Never,
}

impl RecallMode {
    pub const ALL: [Self; 3] = [Self::Auto, Self::Always, Self::Never];

    /// As parameters name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Always => "always",
            Self::Never => "never",
        }
    }
}

choice!(RecallMode);

/// What units are found by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecallBy {
    Auto,
    Of(Side),
}

impl RecallBy {
    pub const ALL: [Self; 3] = [Self::Auto, Self::Of(Side::Keys), Self::Of(Side::Queries)];

    /// As parameters name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Of(side) => side.name(),
        }
    }

    pub fn of_frames(self) -> Side {
        match self {
            Self::Auto => Side::Queries,
            Self::Of(side) => side,
        }
    }

    pub fn of_text(self) -> Side {
        match self {
            Self::Auto => Side::Keys,
            Self::Of(side) => side,
        }
    }
}

choice!(RecallBy);

parameters! {
    section "Archive";
    /// What is kept beside the cache, and how much of it is fed again for a question.
    #[derive(Debug, Clone, PartialEq)]
    pub struct ArchiveConfig {
        /// Memory that frames and turns of the conversation may take beside the cache, so that they can be fed again once they have left it;
        /// 0: there is no archive, and nothing is recalled. full and last_frames have none.
        archive_bytes: usize = 64 << 20, range 0..=LARGEST, unit "bytes";
        /// A frame more like one that was in view until now than that is nothing new and does not enter: that one is in view still; 1: all
        /// enter. A turn does not enter whose very words are there.
        nothing_new: f64 = 0.999, range 0.0..=1.0, unit "cosine";
        /// When frames and turns are fed again for an instruction that does not say it itself; auto: those of a kind of which one matches it
        /// clearly better than all of the kind that the cache still holds, which score less than three quarters of it, and a turn at
        /// least `recall_share`; never: only where an instruction asks for it.
        recall: RecallMode = RecallMode::Auto, set Running;
        /// Frames and turns fed again for an instruction at most; as many as a turn has room for. Turns may be a quarter of them, or more
        /// where there are fewer frames.
        recall_units: usize = 8, range 0..=TOKENS, unit "units", set Running;
        /// A frame that scores less than this share of the best one's score, which may still be in the cache, is not fed again; likewise a
        /// turn.
        recall_share: f64 = 0.75, range 0.0..=1.0, set Running;
        /// The newest frame is fed once more behind the recalled ones, so that an instruction follows what is in view now.
        recall_newest: bool = true, set Running;
        /// Which of an instruction's vectors are held against the keys of what is in the archive: its keys, as for a standing instruction, or
        /// its queries; auto: queries for frames, keys for turns and the sentences of a text.
        recall_by: RecallBy = RecallBy::Auto;
        /// Decoder layers of whose keys that is done, counted among those that keep keys, as in 4/8; empty: for queries the one at a quarter of the depth, for keys at an eighth.
        recall_layers: String = String::new();
    }
    parts {}
    others {
        /// A sentence of a text longer than that is cut into several units, tokens.
        unit_tokens: usize = 64;
    }
}

impl ArchiveConfig {
    /// The layers by whose keys units are found, of a decoder that has so many; none where one is no number or not there.
    pub fn layers(&self, layers: usize, side: Side) -> Option<Vec<usize>> {
        if self.recall_layers.is_empty() {
            let depth = match side {
                Side::Keys => layers.div_ceil(8),
                Side::Queries => layers.div_ceil(4),
            };
            return Some(vec![depth.min(layers.saturating_sub(1))]);
        }
        let numbers = self
            .recall_layers
            .split('/')
            .map(|part| part.trim().parse());
        let numbers = numbers.collect::<Result<Vec<usize>, _>>().ok()?;
        numbers
            .iter()
            .all(|&layer| layer < layers)
            .then_some(numbers)
    }
}
