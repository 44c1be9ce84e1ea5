//! The archive's parameters.

use crate::cache::parameter::{parameters, TOKENS};
use crate::cache::Side;

/// No archive is larger, bytes.
const LARGEST: i64 = 1 << 44;

parameters! {
    section "Archive";
    /// What is kept beside the cache, and how much of it is fed again for a question.
    #[derive(Debug, Clone, PartialEq)]
    pub struct ArchiveConfig {
        /// Memory that frames and sentences may take, whole, beside the cache; 0: there is no archive, and nothing is recalled.
        archive_bytes: usize = 64 << 20, range 0..=LARGEST, unit "bytes";
        /// A unit at least so like one that is in the archive is nothing new and does not enter: that one has been seen again.
        nothing_new: f64 = 0.999, range 0.0..=1.0, unit "cosine";
        /// A sentence longer than that is cut into several units.
        unit_tokens: usize = 64, range 1..=TOKENS, unit "tokens";
        /// Units fed again for a question at most; as many as a turn has room for.
        recall_units: usize = 8, range 0..=TOKENS, unit "units";
        /// A unit that scores less than this share of the best one's score, which may still be in the cache, is not fed again.
        recall_share: f64 = 0.75, range 0.0..=1.0;
        /// Which of a question's vectors are held against the keys of what is in the archive: its keys, as for a standing instruction, or
        /// its queries.
        recall_by: Side = Side::Keys;
        /// Decoder layers of whose keys that is done, as in 4/8; empty: the one at an eighth of the depth.
        recall_layers: String = String::new();
    }
    parts {}
    others {}
}

impl ArchiveConfig {
    /// The layers by whose keys units are found, of a decoder that has so many; none where one is no number or not there.
    pub fn layers(&self, layers: usize) -> Option<Vec<usize>> {
        if self.recall_layers.is_empty() {
            return Some(vec![layers.div_ceil(8).min(layers.saturating_sub(1))]);
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
