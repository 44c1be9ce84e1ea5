//! A unit of the archive: what can be fed to the model again, and what it is found by.

use std::ops::Range;
use std::sync::Arc;

use super::frame::Frame;
use super::text::Turn;
use crate::cache::Summary;
use crate::simd::dot;

/// The two counts of an [`Arc`], bytes.
const COUNTS: usize = 2 * size_of::<usize>();

/// Frames with no more time between them are of one run, nanoseconds.
pub(super) const RUN_NS: i64 = 3_000_000_000;

/// What is fed again.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// Ids of a stretch of text.
    Text(Box<[u32]>),
    Turn(Turn),
    Frame(Arc<Frame>),
}

/// Units of one kind are held against each other: their scores and their gists are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Frame,
    Text,
}

impl Content {
    pub fn kind(&self) -> Kind {
        match self {
            Self::Text(_) | Self::Turn(_) => Kind::Text,
            Self::Frame(_) => Kind::Frame,
        }
    }

    /// Tokens that it takes in the cache.
    pub fn tokens(&self) -> usize {
        match self {
            Self::Text(ids) => ids.len(),
            Self::Turn(turn) => turn.tokens,
            Self::Frame(frame) => frame.tokens,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Text(ids) => std::mem::size_of_val::<[u32]>(ids),
            Self::Turn(turn) => turn.bytes(),
            Self::Frame(frame) => COUNTS + size_of::<Frame>() + frame.bytes(),
        }
    }
}

/// A frame or a stretch of text, whole. It does not change once it is in the archive.
#[derive(Debug, Clone, PartialEq)]
pub struct Unit {
    /// Time of it, nanoseconds of the stream's clock, or whatever else orders the stream.
    pub stamp_ns: i64,
    pub content: Content,
    pub summary: Summary,
    /// What it is told apart from its like by, a vector of length 1.
    pub gist: Box<[f32]>,
}

impl Unit {
    /// One whose gist is that of its picture or, of a text, the mean direction of its keys.
    pub fn new(stamp_ns: i64, content: Content, summary: Summary) -> Self {
        Self {
            stamp_ns,
            gist: match &content {
                Content::Text(_) | Content::Turn(_) => summary.mean(),
                Content::Frame(frame) => frame.gist(),
            },
            content,
            summary,
        }
    }

    pub fn kind(&self) -> Kind {
        self.content.kind()
    }

    /// How like another it is, -1 to 1: the cosine of their gists; -1 where these are no two of a kind.
    #[inline(always)]
    pub fn likeness(&self, other: &Self) -> f32 {
        let of_a_kind = self.kind() == other.kind() && self.gist.len() == other.gist.len();
        if !of_a_kind || self.gist.is_empty() {
            return -1.0;
        }
        dot(&self.gist, &other.gist).clamp(-1.0, 1.0)
    }

    /// The same where it is to be known whether one of the two is enough: a turn of other words may say the opposite, however like it is.
    pub fn sameness(&self, other: &Self) -> f32 {
        match (&self.content, &other.content) {
            (Content::Turn(turn), Content::Turn(other)) if turn == other => 1.0,
            (Content::Turn(_), _) | (_, Content::Turn(_)) => -1.0,
            // What two cameras see is not the same, however like it is.
            (Content::Frame(a), Content::Frame(b)) if a.at.camera != b.at.camera => -1.0,
            _ => self.likeness(other),
        }
    }

    /// Memory of it, with what it takes to share it, bytes.
    pub fn bytes(&self) -> usize {
        COUNTS
            + size_of::<Self>()
            + self.content.bytes()
            + self.summary.bytes()
            + std::mem::size_of_val::<[f32]>(&self.gist)
    }
}

/// A unit at its place in the archive.
#[derive(Debug, Clone)]
pub struct Entry {
    pub unit: Arc<Unit>,
    /// Number of the unit among all that have ever entered.
    pub id: u64,
    /// When it was last seen to be still so, nanoseconds, not before its stamp; at first that.
    pub seen_ns: i64,
    /// Number of that sighting among all of all units: the order of time, also where stamps jump back.
    pub seen: u64,
    /// Its tokens in the stream, by which it is known whether the cache still holds it.
    pub extent: Range<u64>,
    /// How like the more like of its neighbours in time it is.
    pub(super) explained: f32,
}

impl Entry {
    /// Whether it was so at some time from and to these, nanoseconds, both included. A text was at its times and not between them.
    pub fn within(&self, (from_ns, to_ns): (i64, i64)) -> bool {
        let (first, last) = (self.unit.stamp_ns, self.seen_ns);
        match self.unit.kind() {
            Kind::Frame => from_ns <= to_ns && first <= to_ns && from_ns <= last,
            Kind::Text => [first, last]
                .iter()
                .any(|time| (from_ns..=to_ns).contains(time)),
        }
    }

    /// Whether a unit that comes now and is enough like this one is the same still: a frame that comes again after others is a sighting of
    /// its own, for what was in view in between was not it.
    pub(super) fn goes_on(&self, unit: &Unit, newest: bool) -> bool {
        let since_ns = unit.stamp_ns.saturating_sub(self.seen_ns);
        match unit.kind() {
            Kind::Frame => since_ns >= 0 && (newest || since_ns <= RUN_NS),
            Kind::Text => true,
        }
    }
}
