//! Counters and gauges of a running stream.

use std::collections::BTreeMap;
use std::time::Duration;

use super::engine::Watch;
use super::session::PushError;
use crate::cache::CacheUsage;

/// A snapshot; the fields are those of msg/CacheStats.msg.
#[derive(Debug, Clone, Default)]
pub struct StreamStats {
    pub policy: &'static str,
    pub cache: CacheUsage,
    pub frames_received: u64,
    pub frames_used: u64,
    pub frames_superseded: u64,
    /// Frames that the tower saw ahead of their turn, used or not.
    pub frames_ahead: u64,
    pub frames_rejected: u64,
    /// What was wrong with the last one.
    pub rejected_last: String,
    /// Of the rejected frames, how many for which [`super::FrameError::reason`].
    pub rejected_by_reason: BTreeMap<&'static str, u64>,
    /// Frames left out because `frame_rate` allows no more, because they show nothing new, because the node is paused.
    pub frames_skipped: SkippedFrames,
    /// Jumps of the images' stamps.
    pub time_jumps: u64,
    /// Since when no image has come, on the steady clock; none before the first one.
    pub silence: Option<Duration>,
    /// Images that came without a stamp.
    pub frames_undated: u64,
    /// By how much the stamp of the newest image that has one is ahead of its arrival, nanoseconds.
    pub ahead_ns: Option<i64>,
    /// Share of the camera's last images that were lost on their way, 0 to 1, as the stamps tell.
    pub lost: f32,
    /// Bytes of the newest image.
    pub image_bytes: usize,
    /// Frames in the memory since its last reset.
    pub frames_seen: u64,
    /// Frames used per second over the last 5 s.
    pub frames_per_second: f32,
    /// frame_id of the newest image used.
    pub frame_id: String,
    /// Stamp of the oldest frame of which at least half of the slots is kept, nanoseconds.
    pub oldest_frame_ns: Option<i64>,
    /// Ages of the frames of which at least half of the slots is kept.
    pub ages: Ages,
    pub archive: ArchiveStats,
    pub paused: bool,
    /// The last frame did not fit beside what is kept for good.
    pub memory_full: bool,
    /// Why nothing is done any more, whatever comes; empty: it is.
    pub failure: String,
    /// Instructions in the queue.
    pub instructions_waiting: usize,
    pub instructions_received: u64,
    pub instructions_answered: u64,
    pub instructions_failed: u64,
    /// Those that stand.
    pub watches: Vec<WatchStats>,
    /// From the stamp of the last frame used to its arrival, nanoseconds; negative if the clocks differ.
    pub transport_ns: i64,
    /// How long the last frame used, or one that it replaced, waited for its turn.
    pub frame_wait: Duration,
    pub times: StepTimes,
}

impl StreamStats {
    /// Counts a rejected frame.
    pub fn reject(&mut self, error: &PushError) {
        self.frames_rejected += 1;
        self.rejected_last = error.to_string();
        *self.rejected_by_reason.entry(error.reason()).or_default() += 1;
    }

    /// Of the rejected frames, those that there was nothing wrong with: the model could not take them, or the memory was full.
    pub fn frames_not_taken(&self) -> u64 {
        let count = |reason| self.rejected_by_reason.get(reason).copied().unwrap_or(0);
        count("model") + count(PushError::FULL)
    }

    /// Images that were refused for what they are.
    pub fn images_refused(&self) -> u64 {
        self.frames_rejected - self.frames_not_taken()
    }

    /// Good frames that were decided on.
    pub fn frames_decided(&self) -> u64 {
        let skipped = &self.frames_skipped;
        let skipped = skipped.rate + skipped.unchanged + skipped.paused;
        self.frames_used + self.frames_superseded + skipped + self.frames_not_taken()
    }
}

/// How long the last steps took, on the steady clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct StepTimes {
    /// Picture decoding and resizing.
    pub conversion: Duration,
    /// Vision tower and connector.
    pub vision: Duration,
    /// The last chunk (frame or instruction) through the decoder.
    pub prefill: Duration,
    /// Mean per token of the last answer.
    pub decode: Duration,
}

/// What is kept beside the cache.
#[derive(Debug, Clone, Copy, Default)]
pub struct ArchiveStats {
    pub units: usize,
    /// Of these the turns of the conversation.
    pub turns: usize,
    pub bytes: usize,
    /// Stamp of the oldest unit, nanoseconds.
    pub oldest_ns: Option<i64>,
    /// How long before the newest frame that was, seconds; 0: there is none.
    pub oldest_age: f32,
    /// Units that did not enter, since one like them was there.
    pub nothing_new: u64,
    /// Units that have left for others.
    pub left: u64,
}

/// What has become of a watch; see [`Watch`].
#[derive(Debug, Clone)]
pub struct WatchStats {
    pub id: String,
    pub asked: u64,
    pub published: u64,
    pub failed: u64,
    pub skipped: u64,
    /// The text that was published last, or why there was none.
    pub last: String,
}

impl WatchStats {
    pub fn of(watch: &Watch) -> Self {
        let last = watch.last.as_ref();
        let last = last.map(|answer| answer.error.as_ref().unwrap_or(&answer.text).clone());
        Self {
            id: watch.instruction.id.clone(),
            asked: watch.asked,
            published: watch.published,
            failed: watch.failed,
            skipped: watch.skipped,
            last: last.unwrap_or_default(),
        }
    }
}

/// Good frames that were not used, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SkippedFrames {
    pub rate: u64,
    pub unchanged: u64,
    pub paused: u64,
}

/// Ages of remembered frames, seconds before the newest one.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Ages {
    pub min: f32,
    pub median: f32,
    pub max: f32,
}
