//! Counters and gauges of a running stream.

use std::time::Duration;

use crate::cache::CacheUsage;

/// A snapshot; the fields are those of msg/CacheStats.msg.
#[derive(Debug, Clone, Default)]
pub struct StreamStats {
    pub policy: &'static str,
    pub cache: CacheUsage,
    pub frames_received: u64,
    pub frames_used: u64,
    pub frames_superseded: u64,
    pub frames_rejected: u64,
    /// Frames used per second over the last 5 s.
    pub frames_per_second: f32,
    /// frame_id of the newest image used.
    pub frame_id: String,
    /// Stamp of the oldest frame of which at least half of the slots is kept, nanoseconds.
    pub oldest_frame_ns: Option<i64>,
    pub instructions_received: u64,
    pub instructions_answered: u64,
    pub instructions_failed: u64,
    pub times: StepTimes,
}

/// How long the last steps took, on the steady clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct StepTimes {
    /// Picture decoding, preprocessing, vision tower and connector.
    pub vision: Duration,
    /// The last chunk (frame or instruction) through the decoder.
    pub prefill: Duration,
    /// Mean per token of the last answer.
    pub decode: Duration,
}
