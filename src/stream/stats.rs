//! Counters and gauges of a running stream.

use std::collections::BTreeMap;
use std::time::Duration;

use super::engine::Watch;
use super::gate::Skip;
use super::lifecycle::State;
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
    /// The same of each camera, of which these counts of frames are the sums.
    pub cameras: Vec<CameraStats>,
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
    pub state: State,
    /// What the model runs on, as in "cpu, 2 threads"; empty: none is loaded.
    pub hardware: String,
    /// The model's family is published to answer with boxes or points.
    pub detects: bool,
    /// The last frame did not fit beside what is kept for good.
    pub memory_full: bool,
    /// Why nothing is done any more, whatever comes; empty: it is.
    pub failure: String,
    /// Why the last transition failed; empty: it succeeded.
    pub change_error: String,
    /// Instructions in the queue.
    pub instructions_waiting: usize,
    pub instructions_received: u64,
    pub instructions_answered: u64,
    pub instructions_failed: u64,
    /// Boxes and points in answers, and those that were left out as they are not in their picture or are none.
    pub detections: u64,
    pub detections_dropped: u64,
    /// Those that stand.
    pub watches: Vec<WatchStats>,
    /// From the stamp of the last frame used to its arrival, nanoseconds; negative if the clocks differ.
    pub transport_ns: i64,
    /// How long the last frame used, or one that it replaced, waited for its turn.
    pub frame_wait: Duration,
    pub times: StepTimes,
}

impl StreamStats {
    /// At the start, with the labels of the cameras.
    pub fn of<'a>(labels: impl Iterator<Item = Option<&'a str>>) -> Self {
        let camera = |label: Option<&str>| CameraStats {
            label: label.unwrap_or_default().to_string(),
            ..CameraStats::default()
        };
        Self {
            cameras: labels.map(camera).collect(),
            ..Self::default()
        }
    }

    /// Whether nothing is taken in.
    pub fn is_paused(&self) -> bool {
        self.state != State::Active
    }

    /// What is known of a session, which is gone; the counters stay.
    pub fn forget_session(&mut self) {
        let of_none = Self::default();
        self.policy = of_none.policy;
        self.cache = of_none.cache;
        self.frames_seen = of_none.frames_seen;
        self.frame_id = of_none.frame_id;
        self.oldest_frame_ns = of_none.oldest_frame_ns;
        self.ages = of_none.ages;
        self.archive = of_none.archive;
        self.hardware = of_none.hardware;
        self.detects = of_none.detects;
        self.memory_full = of_none.memory_full;
        self.times = of_none.times;
        for camera in &mut self.cameras {
            camera.slots = 0;
        }
    }

    /// Counts an image that has come, of so many bytes.
    pub fn received(&mut self, camera: usize, bytes: usize) {
        self.frames_received += 1;
        self.of_camera(camera, |camera| {
            camera.received += 1;
            camera.image_bytes = bytes;
        });
    }

    /// Takes note of how far an image's stamp is ahead of its arrival, nanoseconds, and counts one without; true of the first of its camera.
    pub fn dated(&mut self, camera: usize, ahead_ns: Option<i64>) -> bool {
        let mut first = false;
        self.of_camera(camera, |camera| {
            first = ahead_ns.is_none() && camera.undated == 0;
            camera.undated += u64::from(ahead_ns.is_none());
            camera.ahead_ns = ahead_ns;
        });
        first
    }

    /// Counts a jump of a camera's stamps.
    pub fn jumped(&mut self, camera: usize) {
        self.time_jumps += 1;
        self.of_camera(camera, |camera| camera.time_jumps += 1);
    }

    /// Counts a frame that came while nothing was taken in.
    pub fn paused(&mut self, camera: usize) {
        self.frames_skipped.paused += 1;
        self.of_camera(camera, |camera| camera.skipped.paused += 1);
    }

    /// Counts a frame that gave way to another, or to a reset.
    pub fn superseded(&mut self, camera: usize) {
        self.frames_superseded += 1;
        self.of_camera(camera, |camera| camera.superseded += 1);
    }

    /// Counts a frame that has entered the memory.
    pub fn used(&mut self, camera: usize) {
        self.frames_used += 1;
        self.of_camera(camera, |camera| camera.used += 1);
    }

    /// Counts a frame that a gate has left out.
    pub fn skipped(&mut self, camera: usize, skip: Skip) {
        self.frames_skipped.add(skip);
        self.of_camera(camera, |camera| camera.skipped.add(skip));
    }

    /// Counts a rejected frame.
    pub fn reject(&mut self, camera: usize, error: &PushError) {
        self.frames_rejected += 1;
        self.rejected_last = error.to_string();
        *self.rejected_by_reason.entry(error.reason()).or_default() += 1;
        self.of_camera(camera, |camera| {
            camera.rejected_last = error.to_string();
            *camera.rejected_by_reason.entry(error.reason()).or_default() += 1;
        });
    }

    fn of_camera(&mut self, camera: usize, note: impl FnOnce(&mut CameraStats)) {
        if let Some(camera) = self.cameras.get_mut(camera) {
            note(camera);
        }
    }

    /// Of the rejected frames, those that there was nothing wrong with: the model could not take them, or the memory was full.
    pub fn frames_not_taken(&self) -> u64 {
        not_taken(&self.rejected_by_reason)
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

/// What became of the images of one camera.
#[derive(Debug, Clone, Default)]
pub struct CameraStats {
    /// Empty where there is but one camera.
    pub label: String,
    pub received: u64,
    pub used: u64,
    pub superseded: u64,
    pub skipped: SkippedFrames,
    /// What was wrong with the last rejected one.
    pub rejected_last: String,
    pub rejected_by_reason: BTreeMap<&'static str, u64>,
    /// Jumps of its stamps.
    pub time_jumps: u64,
    /// Since when no image has come, on the steady clock; none before the first one.
    pub silence: Option<Duration>,
    /// Images that came without a stamp.
    pub undated: u64,
    /// By how much the stamp of the newest image that has one is ahead of its arrival, nanoseconds.
    pub ahead_ns: Option<i64>,
    /// Share of the last images that were lost on their way, 0 to 1, as the stamps tell.
    pub lost: f32,
    /// Bytes of the newest image.
    pub image_bytes: usize,
    /// Frames used per second over the last 5 s.
    pub frames_per_second: f32,
    /// Slots of the cache that hold its frames, labels and markup included, mean over kept sets; 0 where there is but one camera.
    pub slots: usize,
}

impl CameraStats {
    pub fn rejected(&self) -> u64 {
        self.rejected_by_reason.values().sum()
    }

    /// Images that were refused for what they are.
    pub fn refused(&self) -> u64 {
        self.rejected() - not_taken(&self.rejected_by_reason)
    }

    /// Good frames that were decided on.
    pub fn decided(&self) -> u64 {
        let skipped = &self.skipped;
        let skipped = skipped.rate + skipped.unchanged + skipped.paused;
        self.used + self.superseded + skipped + not_taken(&self.rejected_by_reason)
    }
}

/// Of the rejected frames, those that there was nothing wrong with.
fn not_taken(rejected: &BTreeMap<&'static str, u64>) -> u64 {
    let count = |reason| rejected.get(reason).copied().unwrap_or(0);
    count("model") + count(PushError::FULL)
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
    /// Memory of the thumbnails and stamps of frames that can be evidence, bytes.
    pub thumbnail_bytes: usize,
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

impl SkippedFrames {
    fn add(&mut self, skip: Skip) {
        match skip {
            Skip::Rate => self.rate += 1,
            Skip::Unchanged => self.unchanged += 1,
        }
    }
}

/// Ages of remembered frames, seconds before the newest one.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Ages {
    pub min: f32,
    pub median: f32,
    pub max: f32,
}
