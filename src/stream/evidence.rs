//! Which frames an answer rests on: those that its tokens attended to most.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::thumbnail::Thumbnail;
use crate::cache::parameter::parameters;
use crate::cache::{Attended, FrameId};

/// More frames than that are no evidence of an answer.
const MOST_FRAMES: i64 = 64;

/// No thumbnail is larger, pixels.
const LARGEST_SIDE: i64 = 1024;

parameters! {
    section "Evidence";
    /// What is told of the frames that an answer rests on.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct EvidenceConfig {
        /// Frames that are named with an answer, at most: those that its tokens attended to most, in the cache or recalled; 0: none, and
        /// nothing is computed for it.
        evidence_frames: usize = 4, range 0..=MOST_FRAMES, unit "frames", set Running;
        /// Longer side of the small pictures that are kept of the frames that can be evidence, for `~/evidence_image`; 0, or
        /// `evidence_frames` 0 at the start: none are kept, and no image is published.
        thumbnail_side: usize = 128, range 0..=LARGEST_SIDE, unit "pixels";
    }
    parts {}
    others {}
}

impl EvidenceConfig {
    /// Longer side of the thumbnails, pixels; 0 where there is no evidence to show.
    pub fn thumbnails(&self) -> usize {
        match self.evidence_frames {
            0 => 0,
            _ => self.thumbnail_side,
        }
    }
}

/// A frame that an answer's tokens attended to.
#[derive(Debug, Clone, PartialEq)]
pub struct Evidence {
    /// Stamp of its image, nanoseconds.
    pub stamp_ns: i64,
    /// Label of its camera; empty where there is but one.
    pub camera: String,
    /// Its share in all attention of the answer's tokens to frames, 0 to 1.
    pub weight: f32,
    /// The frame, small, where thumbnails are kept.
    pub thumbnail: Option<Arc<Thumbnail>>,
}

/// What is known of a frame beyond its tokens.
#[derive(Debug, Clone)]
pub struct Glimpse {
    pub stamp_ns: i64,
    /// Label of its camera; empty where there is but one.
    pub camera: String,
    pub thumbnail: Option<Arc<Thumbnail>>,
}

impl Glimpse {
    /// Memory of it with its place, about, bytes.
    fn bytes(&self) -> usize {
        let thumbnail = self.thumbnail.as_ref();
        size_of::<(FrameId, Self)>() + thumbnail.map_or(0, |thumbnail| thumbnail.bytes())
    }
}

/// Frames beyond those that can be evidence that may be held before they are let go.
const SPARE: usize = 64;

/// What is known of the frames that can still be evidence: those of which the cache holds a token, and those of the archive.
///
/// There are never more than twice as many as can be evidence, and [`SPARE`]. A copy shares them, and costs as much as they are many only
/// when one of the two changes.
#[derive(Debug, Clone, Default)]
pub struct Glimpses {
    frames: Arc<BTreeMap<FrameId, Glimpse>>,
    bytes: usize,
    /// So many are held before it is looked which are still needed.
    limit: usize,
}

impl Glimpses {
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Memory of what is known, bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes what is known of a new frame. Where there are many by now, those are let go that are not `needed`.
    pub fn take(
        &mut self,
        id: FrameId,
        glimpse: Glimpse,
        needed: impl FnOnce() -> BTreeSet<FrameId>,
    ) {
        let frames = Arc::make_mut(&mut self.frames);
        self.bytes += glimpse.bytes();
        if let Some(before) = frames.insert(id, glimpse) {
            self.bytes -= before.bytes();
        }
        if frames.len() <= self.limit.max(SPARE) {
            return;
        }
        let needed = needed();
        frames.retain(|known, _| *known == id || needed.contains(known));
        self.bytes = frames.values().map(Glimpse::bytes).sum();
        self.limit = 2 * frames.len() + SPARE;
    }

    /// The frames that got the most attention, at most `count`, the most attended first; of two that got the same the newer.
    pub fn most(&self, attended: &Attended, count: usize) -> Vec<Evidence> {
        let all = attended.frames.values().sum::<f32>();
        if all <= 0.0 {
            return Vec::new();
        }
        let mut frames = attended.frames.iter().collect::<Vec<_>>();
        frames.sort_by(|(a, x), (b, y)| y.total_cmp(x).then(b.cmp(a)));
        let known = frames.into_iter().filter_map(|(id, share)| {
            let glimpse = self.frames.get(id)?;
            Some(Evidence {
                stamp_ns: glimpse.stamp_ns,
                camera: glimpse.camera.clone(),
                weight: share / all,
                thumbnail: glimpse.thumbnail.clone(),
            })
        });
        known.take(count).collect()
    }
}
