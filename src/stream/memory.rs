//! What is known of the frames in the cache: their stamps, their ages, and which of them are still there.

use std::collections::BTreeMap;

use super::answer::FrameStamp;
use super::frame::CameraImage;
use super::stats::Ages;
use crate::cache::{BoundedCache, FrameId};

/// A frame of which at least half of the slots over all kept sets is kept.
#[derive(Debug, Clone, Copy)]
struct Held {
    stamp_ns: i64,
    /// Its image tokens.
    tokens: usize,
    /// Its time on a clock that goes on from epoch to epoch, nanoseconds.
    stream_ns: i64,
}

/// Stamps of several cameras may be out of order by this much, nanoseconds: images come when they come.
const INTERLEAVED_NS: i64 = 1_000_000_000;

/// How far the stream has come by the frames of one camera.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// Its newest frame's stamp, unless an epoch of it begins.
    stamp_ns: Option<i64>,
    stream_ns: i64,
}

/// The frames since the last reset.
#[derive(Debug, Clone, Default)]
pub struct FrameMemory {
    /// The frames that are still remembered.
    held: BTreeMap<FrameId, Held>,
    newest: Option<FrameStamp>,
    /// When the newest picture that is known to be true was taken, or arrived if that was before, nanoseconds on the node's clock.
    seen_ns: Option<i64>,
    seen: u64,
    /// Stamp of the epoch's first frame, nanoseconds.
    epoch_ns: Option<i64>,
    /// Time from frame to frame of a camera, summed up; a jump adds none. Of several cameras that of the one that has come farthest.
    stream_ns: i64,
    /// By camera.
    paces: BTreeMap<usize, Pace>,
    compactions: u64,
}

impl FrameMemory {
    /// Frames taken.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// The number of the next frame.
    pub fn next_id(&self) -> FrameId {
        self.seen as FrameId
    }

    pub fn newest(&self) -> Option<&FrameStamp> {
        self.newest.as_ref()
    }

    /// How old what the memory shows last was at a time of the node's clock, nanoseconds, at least 0; none before the first frame.
    pub fn age_ns(&self, now_ns: i64) -> Option<i64> {
        self.seen_ns
            .map(|seen_ns| now_ns.saturating_sub(seen_ns).max(0))
    }

    /// The scene still is, at this image, as the memory shows it last.
    pub fn confirm(&mut self, image: &CameraImage) {
        self.seen_ns = Some(image.stamp_ns.min(image.arrival_ns));
    }

    /// Stamp of the oldest frame that is remembered, nanoseconds.
    pub fn oldest_ns(&self) -> Option<i64> {
        self.held.values().next().map(|frame| frame.stamp_ns)
    }

    /// How long ago the remembered frames were taken, counted from the newest one.
    pub fn ages(&self) -> Ages {
        let mut ages = self
            .held
            .values()
            .map(|frame| self.stream_ns - frame.stream_ns)
            .collect::<Vec<_>>();
        ages.sort_unstable();
        let seconds = |ns: Option<&i64>| *ns.unwrap_or(&0) as f32 * 1e-9;
        Ages {
            min: seconds(ages.first()),
            median: seconds(ages.get(ages.len() / 2)),
            max: seconds(ages.last()),
        }
    }

    /// Time since the epoch's first frame, which this one is if there was none, nanoseconds.
    pub fn since_epoch(&mut self, stamp_ns: i64) -> i64 {
        stamp_ns.saturating_sub(*self.epoch_ns.get_or_insert(stamp_ns))
    }

    /// The next frame, which is of this camera, begins an epoch.
    pub fn end_epoch(&mut self, camera: usize) {
        self.epoch_ns = None;
        self.interrupt(camera);
    }

    /// The stamps of this camera go on from somewhere else.
    pub fn interrupt(&mut self, camera: usize) {
        if let Some(pace) = self.paces.get_mut(&camera) {
            pace.stamp_ns = None;
        }
    }

    /// A frame has been seen that enters the cache as part of the next one.
    pub fn pass_over(&mut self) {
        self.seen += 1;
    }

    /// A frame of so many image tokens has entered the cache.
    pub fn remember(&mut self, image: &CameraImage, tokens: usize) {
        self.confirm(image);
        let begun = Pace {
            stamp_ns: None,
            stream_ns: self.stream_ns,
        };
        let pace = self.paces.entry(image.camera).or_insert(begun);
        let before = pace.stamp_ns.replace(image.stamp_ns);
        let step_ns = before.map_or(0, |before| image.stamp_ns.saturating_sub(before));
        pace.stream_ns += step_ns.max(0);
        self.stream_ns = self.stream_ns.max(pace.stream_ns);
        let held = Held {
            stamp_ns: image.stamp_ns,
            tokens,
            stream_ns: self.stream_ns,
        };
        self.held.insert(self.next_id(), held);
        self.seen += 1;
        if self
            .newest
            .as_ref()
            .is_some_and(|newest| outruns(newest, image))
        {
            return;
        }
        self.newest = Some(FrameStamp {
            camera: image.camera,
            stamp_ns: image.stamp_ns,
            frame_id: image.frame_id.clone(),
        });
    }

    /// Forgets all frames but the newest `count`.
    pub fn keep_last(&mut self, count: usize) {
        while self.held.len() > count {
            self.held.pop_first();
        }
    }

    /// Forgets the frames of which compactions have left less than half.
    pub fn follow(&mut self, cache: &BoundedCache) {
        let compactions = cache.usage().compactions;
        if compactions == self.compactions {
            return;
        }
        self.compactions = compactions;
        let retained = cache.retained_frames();
        self.held.retain(|frame, held| {
            let kept = retained.get(frame).copied().unwrap_or_default();
            kept >= 0.5 * held.tokens as f64
        });
    }
}

/// Whether a frame of another camera stays the newest one though this one came later.
fn outruns(newest: &FrameStamp, image: &CameraImage) -> bool {
    let ahead_ns = newest.stamp_ns.saturating_sub(image.stamp_ns);
    newest.camera != image.camera && (1..INTERLEAVED_NS).contains(&ahead_ns)
}
