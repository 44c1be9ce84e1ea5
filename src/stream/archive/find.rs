//! The units that a question asks for.

use std::cmp::{Ordering, Reverse};
use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use super::unit::{Entry, Kind, Unit, RUN_NS};
use super::{Archive, ArchiveConfig};
use crate::cache::{contrast, scores, Probe, Retained, Scores};

/// A contrast from which on a question asks for something.
fn stands_out(kind: Kind) -> f32 {
    match kind {
        Kind::Frame => 0.2,
        Kind::Text => 0.1,
    }
}

/// A unit of which so much is kept is in the cache: to feed it again would bring it twice.
const IN_CACHE: f32 = 0.5;

/// What scores so much of the best and is still in the cache is enough: nothing needs to be brought.
const ENOUGH: f32 = 0.75;

/// What is looked for beside the question itself.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// The only ones that are looked at.
    pub kind: Kind,
    /// Units at most.
    pub units: usize,
    /// Tokens of all of them together at most.
    pub tokens: usize,
    /// Score of a unit over that of the best one, in the cache or not, at least; 0 to 1.
    pub share: f32,
    /// From and to, nanoseconds, both included; what was still so within them counts.
    pub span_ns: Option<(i64, i64)>,
    /// So many of the units by their score, the rest for their recency: the best of each run of frames that follow one another, those of
    /// the newest run first.
    pub best: usize,
    /// Nothing is wanted where the cache still holds what scores so well, nor where the question finds nothing that stands out.
    pub beyond_cache: bool,
}

impl Wanted {
    /// What is wanted of text, at most so many `units` and `tokens` of them: what scores best.
    pub fn text(config: &ArchiveConfig, units: usize, tokens: usize) -> Self {
        Self {
            kind: Kind::Text,
            units,
            tokens,
            share: config.recall_share as f32,
            span_ns: None,
            best: units,
            beyond_cache: false,
        }
    }
}

/// A unit that was found.
#[derive(Debug, Clone)]
pub struct Found {
    pub id: u64,
    pub unit: Arc<Unit>,
    pub seen_ns: i64,
    /// Number of that sighting among all.
    pub seen: u64,
    /// Its tokens in the stream.
    pub extent: Range<u64>,
    /// 0 to 1.
    pub score: f32,
}

type Scored<'a> = (&'a Entry, f32);

/// The higher score first, of equal ones the newer.
fn better((a, x): &Scored<'_>, (b, y): &Scored<'_>) -> Ordering {
    y.total_cmp(x).then(b.id.cmp(&a.id))
}

/// The best of each run of units, the run first that was seen last; `units` are in the order of time.
fn newest_runs<'a>(units: &[Scored<'a>]) -> Vec<Scored<'a>> {
    // By when they came: one that was seen again later would be of a run with all that came in between.
    let near = |(a, _): &Scored<'_>, (b, _): &Scored<'_>| {
        (0..=RUN_NS).contains(&b.unit.stamp_ns.saturating_sub(a.unit.stamp_ns))
    };
    let seen_last = |run: &&[Scored<'a>]| run.iter().map(|(entry, _)| entry.seen).max();
    let mut runs = units.chunk_by(near).collect::<Vec<_>>();
    runs.sort_by_key(|run| Reverse(seen_last(run)));
    let best = runs
        .into_iter()
        .map(|run| run.iter().copied().min_by(better));
    best.flatten().collect()
}

impl Found {
    fn new(entry: &Entry, score: f32) -> Self {
        Self {
            id: entry.id,
            unit: entry.unit.clone(),
            seen_ns: entry.seen_ns,
            seen: entry.seen,
            extent: entry.extent.clone(),
            score,
        }
    }
}

impl Archive {
    /// The units that score highest for the question, of those that the cache no longer holds, in the order of when they were seen last. One that is too
    /// long for the room that is left is passed over.
    ///
    /// What a match is worth is judged by all units of the kind, also those that are not wanted.
    pub fn find(&self, question: &Probe, wanted: &Wanted, retained: &Retained) -> Vec<Found> {
        let entries = self.entries.iter();
        let entries = entries.filter(|entry| entry.unit.kind() == wanted.kind);
        let entries = entries.collect::<Vec<_>>();
        let summaries = entries.iter().map(|entry| &entry.unit.summary);
        let matches = question.matches(&summaries.collect::<Vec<_>>());
        let Scores {
            units,
            contrast: among,
        } = scores(&matches, question.side);
        let contrast = || match wanted.kind {
            Kind::Frame => among,
            // There may be one turn alone, which stands out from no other.
            Kind::Text => contrast(&matches, &question.own()),
        };
        if wanted.beyond_cache && contrast() < stands_out(wanted.kind) {
            return Vec::new();
        }
        let within = |entry: &Entry| wanted.span_ns.is_none_or(|span| entry.within(span));
        let gone = |entry: &Entry| retained.share(entry.extent.clone()) < IN_CACHE;
        let mut candidates = entries.into_iter().zip(units).collect::<Vec<_>>();
        candidates.retain(|(entry, _)| within(entry));
        // Where the best is still in the cache, what is not nearly as good would only be in its way.
        let best = candidates
            .iter()
            .map(|(_, score)| *score)
            .fold(0.0, f32::max);
        // Words of the language are common to many turns: one is asked for that has most of what the question says.
        if wanted.beyond_cache && wanted.kind == Kind::Text && best < wanted.share {
            return Vec::new();
        }
        let held = candidates.iter().filter(|(entry, _)| !gone(entry));
        let held = held.map(|(_, score)| *score).fold(0.0, f32::max);
        if wanted.beyond_cache && held >= best * ENOUGH {
            return Vec::new();
        }
        candidates.retain(|(entry, score)| *score >= best * wanted.share && gone(entry));
        let newest = newest_runs(&candidates);
        // Of equal scores the newer first.
        candidates.sort_by(better);
        let (best, behind) = candidates.split_at(wanted.best.min(candidates.len()));
        // What neither stands out nor is new fills the room that is left.
        let order = best.iter().chain(&newest).chain(behind);
        let mut taken = HashSet::new();
        let mut room = wanted.tokens;
        let mut found = Vec::new();
        for &(entry, score) in order {
            let tokens = entry.unit.content.tokens();
            if found.len() == wanted.units {
                break;
            }
            if tokens > room || !taken.insert(entry.id) {
                continue;
            }
            room -= tokens;
            found.push(Found::new(entry, score));
        }
        found.sort_by_key(|found| found.seen);
        found
    }

    /// The frames nearest these times, each once, in the order of time.
    pub fn nearest(&self, stamps_ns: &[i64]) -> Vec<Found> {
        let frames = || {
            let entries = self.entries.iter();
            entries.filter(|entry| entry.unit.kind() == Kind::Frame)
        };
        let nearest = stamps_ns.iter().filter_map(|&stamp_ns| {
            frames().min_by_key(|entry| entry.unit.stamp_ns.abs_diff(stamp_ns))
        });
        let mut nearest = nearest
            .map(|entry| Found::new(entry, 1.0))
            .collect::<Vec<_>>();
        nearest.sort_by_key(|found| found.id);
        nearest.dedup_by_key(|found| found.id);
        nearest
    }
}
