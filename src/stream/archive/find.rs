//! The units that a question asks for.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::unit::{Entry, Unit};
use super::Archive;
use crate::cache::{scores, Probe, Retained};

/// A unit of which so much is kept is in the cache: to feed it again would bring it twice.
const IN_CACHE: f32 = 0.5;

/// What is looked for beside the question itself.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// Units at most.
    pub units: usize,
    /// Tokens of all of them together at most.
    pub tokens: usize,
    /// Score of a unit over that of the best one, in the cache or not, at least; 0 to 1.
    pub share: f32,
    /// From and to, nanoseconds, both included; what was still so within them counts.
    pub span_ns: Option<(i64, i64)>,
}

/// A unit that was found.
#[derive(Debug, Clone)]
pub struct Found {
    pub id: u64,
    pub unit: Arc<Unit>,
    pub seen_ns: i64,
    /// Its tokens in the stream.
    pub extent: Range<u64>,
    /// 0 to 1.
    pub score: f32,
}

impl Archive {
    /// The units that score highest for the question, of those that the cache no longer holds, in the order of time. One that is too
    /// long for the room that is left is passed over.
    ///
    /// What a match is worth is judged by all units, also those that are not wanted.
    pub fn find(&self, question: &Probe, wanted: &Wanted, retained: &Retained) -> Vec<Found> {
        let matches = self.entries.par_iter();
        let matches = matches.map(|entry| question.matches(&entry.unit.summary));
        let scores = scores(&matches.collect::<Vec<_>>());
        let within = |entry: &Entry| {
            wanted.span_ns.is_none_or(|(from, to)| {
                from <= to && entry.unit.stamp_ns <= to && from <= entry.seen_ns
            })
        };
        let gone = |entry: &Entry| retained.share(entry.extent.clone()) < IN_CACHE;
        let mut candidates = self.entries.iter().zip(scores).collect::<Vec<_>>();
        candidates.retain(|(entry, _)| within(entry));
        // Where the best is still in the cache, what is not nearly as good would only be in its way.
        let best = candidates
            .iter()
            .map(|(_, score)| *score)
            .fold(0.0, f32::max);
        candidates.retain(|(entry, score)| *score >= best * wanted.share && gone(entry));
        // Of equal scores the newer first.
        candidates.sort_by(|(a, x), (b, y)| y.total_cmp(x).then(b.id.cmp(&a.id)));
        let mut room = wanted.tokens;
        let mut found = Vec::new();
        for (entry, score) in candidates {
            let tokens = entry.unit.content.tokens();
            if found.len() == wanted.units {
                break;
            }
            if tokens > room {
                continue;
            }
            room -= tokens;
            found.push(Found {
                id: entry.id,
                unit: entry.unit.clone(),
                seen_ns: entry.seen_ns,
                extent: entry.extent.clone(),
                score,
            });
        }
        found.sort_by_key(|found| found.id);
        found
    }
}
