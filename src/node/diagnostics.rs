//! `/diagnostics`: what an operator's monitor shows of the node, once per second.
//!
//! OK, WARN and ERROR speak of the time since the report before.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Duration;

use r2r::diagnostic_msgs::msg::{DiagnosticArray, DiagnosticStatus, KeyValue};
use r2r::std_msgs::msg::Header;
use r2r::{Publisher, QosProfile};

use super::messages::{publishable, time};
use super::namesakes;
use super::outputs::{advertise, report, RosTime};
use super::params::Parameters;
use super::sight::Shared;
use super::topics::Subscription;
use super::NodeError;
use crate::stream::stats::CameraStats;
use crate::stream::{State, StreamStats};

/// Time between two reports.
pub const PERIOD: Duration = Duration::from_secs(1);

/// Publisher of reports.
pub struct Diagnostics {
    publisher: Publisher<DiagnosticArray>,
    clock: RosTime,
    /// The node's full name.
    node: String,
    cameras: Vec<Seeing>,
    /// How many other nodes have this node's name.
    namesakes: Arc<AtomicUsize>,
    parameters: Parameters,
    before: StreamStats,
}

/// What is reported of one camera.
pub struct Seeing {
    topic: String,
    state: Shared,
    before: CameraStats,
    /// Of the images decided on last, all were refused.
    all_refused: bool,
}

impl Seeing {
    pub fn new(image: &Subscription, state: Shared) -> Self {
        Self {
            topic: image.topic.clone(),
            state,
            before: CameraStats::default(),
            all_refused: false,
        }
    }
}

/// A status in the making.
struct Status {
    level: u8,
    message: String,
    values: Vec<(String, String)>,
}

impl Status {
    fn new(level: u8, message: String) -> Self {
        Self {
            level,
            message,
            values: Vec::new(),
        }
    }

    fn with(mut self, key: &str, value: impl ToString) -> Self {
        self.values.push((key.to_string(), value.to_string()));
        self
    }
}

const OK: u8 = DiagnosticStatus::OK as u8;
const WARN: u8 = DiagnosticStatus::WARN as u8;
const ERROR: u8 = DiagnosticStatus::ERROR as u8;

impl Diagnostics {
    pub fn advertise(
        node: &mut r2r::Node,
        parameters: Parameters,
        cameras: Vec<Seeing>,
    ) -> Result<Self, NodeError> {
        Ok(Self {
            clock: RosTime::of(node),
            node: node.fully_qualified_name().unwrap_or_default(),
            publisher: advertise(node, "/diagnostics", QosProfile::default())?,
            cameras,
            namesakes: Arc::default(),
            parameters,
            before: StreamStats::default(),
        })
    }

    /// Where to leave word of how many other nodes have this node's name.
    pub fn namesakes(&self) -> Arc<AtomicUsize> {
        self.namesakes.clone()
    }

    /// Publishes a report; `stats` are those of now.
    pub fn publish(&mut self, stats: StreamStats) {
        let model = publishable(&self.parameters.model());
        let cameras = self.cameras.iter_mut().zip(&stats.cameras);
        let cameras = cameras.map(|(seeing, camera)| {
            let part = match camera.label.as_str() {
                "" => "camera".to_string(),
                label => format!("camera {label}"),
            };
            (part, seeing.report(camera, &stats))
        });
        let mut statuses = cameras.collect::<Vec<_>>();
        statuses.push(("memory".to_string(), self.memory(&stats, &model)));
        statuses.push(("instructions".to_string(), self.instructions(&stats)));
        statuses.push(("watches".to_string(), self.watches(&stats)));
        let status = statuses.iter().map(|(part, status)| DiagnosticStatus {
            level: status.level,
            name: publishable(&format!("{}: {part}", self.node)),
            message: publishable(&status.message),
            hardware_id: model.clone(),
            values: status
                .values
                .iter()
                .map(|(key, value)| KeyValue {
                    key: key.clone(),
                    value: publishable(value),
                })
                .collect(),
        });
        let message = DiagnosticArray {
            header: Header {
                stamp: time(self.clock.now_ns()),
                frame_id: String::new(),
            },
            status: status.collect(),
        };
        report("/diagnostics", self.publisher.publish(&message));
        self.before = stats;
    }

    fn memory(&self, stats: &StreamStats, model: &str) -> Status {
        let failures = |stats: &StreamStats| stats.rejected_by_reason.get("model").copied();
        let failed = failures(stats).unwrap_or(0) - failures(&self.before).unwrap_or(0);
        let cache = &stats.cache;
        let (level, message) = if !stats.failure.is_empty() {
            (ERROR, stats.failure.clone())
        } else if !stats.change_error.is_empty() {
            (ERROR, stats.change_error.clone())
        } else if stats.hardware.is_empty() {
            (OK, stats.state.to_string())
        } else if failed > 0 {
            (ERROR, format!("{failed} frames could not be taken"))
        } else if stats.memory_full {
            (
                WARN,
                format!(
                    "full with {} of {} slots: policy {} evicts nothing, so nothing more is taken until ~/reset",
                    cache.used, cache.budget, stats.policy
                ),
            )
        } else {
            (OK, format!("{} of {} slots", cache.used, cache.budget))
        };
        Status::new(level, message)
            .with("state", stats.state)
            .with("model", model)
            .with("device", &stats.hardware)
            .with("policy", stats.policy)
            .with("budget_tokens", cache.budget)
            .with("budget_bytes", cache.bytes)
            .with("used_tokens", cache.used)
            .with("tokens_evicted", cache.tokens_evicted)
            .with("oldest_frame_age_s", stats.ages.max)
            .with("archive_units", stats.archive.units)
            .with("archive_turns", stats.archive.turns)
            .with("archive_bytes", stats.archive.bytes)
            .with("archive_oldest_s", stats.archive.oldest_age)
            .with("archive_nothing_new", stats.archive.nothing_new)
            .with("archive_left", stats.archive.left)
            .with("thumbnail_bytes", stats.archive.thumbnail_bytes)
            .with("vision_ms", stats.times.vision.as_secs_f32() * 1e3)
            .with("prefill_ms", stats.times.prefill.as_secs_f32() * 1e3)
    }

    fn instructions(&self, stats: &StreamStats) -> Status {
        let failed = stats.instructions_failed - self.before.instructions_failed;
        let namesakes = self.namesakes.load(Ordering::Relaxed);
        let (level, message) = if namesakes > 0 {
            (WARN, namesakes::warning(namesakes, &self.node))
        } else if failed > 0 {
            (WARN, format!("{failed} refused or cancelled"))
        } else {
            (OK, format!("{} wait", stats.instructions_waiting))
        };
        Status::new(level, message)
            .with("waiting", stats.instructions_waiting)
            .with("received", stats.instructions_received)
            .with("answered", stats.instructions_answered)
            .with("failed", stats.instructions_failed)
            .with("detections", stats.detections)
            .with("detections_dropped", stats.detections_dropped)
    }

    fn watches(&self, stats: &StreamStats) -> Status {
        let skipped = |stats: &StreamStats| -> BTreeMap<String, u64> {
            let watches = stats.watches.iter();
            watches.map(|w| (w.id.clone(), w.skipped)).collect()
        };
        let before = skipped(&self.before);
        let now = skipped(stats).into_iter();
        let late = now.filter(|(id, skipped)| before.get(id).is_some_and(|then| skipped > then));
        let late = late.map(|(id, _)| id).collect::<Vec<_>>();
        let (level, message) = match late.is_empty() || stats.is_paused() {
            true => (OK, format!("{} stand", stats.watches.len())),
            false => (
                WARN,
                format!("not asked as often as wanted: {}", late.join(", ")),
            ),
        };
        let status = Status::new(level, message).with("standing", stats.watches.len());
        stats.watches.iter().fold(status, |status, watch| {
            let counts = format!(
                "asked {}, published {}, failed {}, skipped {}",
                watch.asked, watch.published, watch.failed, watch.skipped
            );
            let last = &watch.last;
            status.with(&publishable(&watch.id), format!("{counts}; last: {last}"))
        })
    }
}

impl Seeing {
    /// The status of the camera since the one before; `camera` are its statistics of now, `stats` those of all.
    fn report(&mut self, camera: &CameraStats, stats: &StreamStats) -> Status {
        let refused = camera.refused() - self.before.refused();
        let good = camera.decided() - self.before.decided();
        let received = camera.received - self.before.received;
        if good > 0 || refused > 0 {
            self.all_refused = good == 0 && refused >= received;
        }
        self.before = camera.clone();
        let state = self.state.get();
        let last = &camera.rejected_last;
        let (level, message) = if stats.state == State::Inactive {
            (OK, "paused".to_string())
        } else if stats.is_paused() {
            (OK, stats.state.to_string())
        } else if let Some(silence) = state.silence {
            (WARN, silence)
        } else if self.all_refused {
            (ERROR, format!("every image is refused; the last: {last}"))
        } else if let Some(warning) = state.warnings.first() {
            (WARN, warning.clone())
        } else if refused > 0 {
            (WARN, format!("{refused} images refused; the last: {last}"))
        } else {
            (OK, format!("{:.1} frames/s", camera.frames_per_second))
        };
        let silence = camera.silence;
        let mut status = Status::new(level, message)
            .with("topic", &self.topic)
            .with("publishers", state.publishers.count)
            .with("publishers_unheard", state.publishers.unheard.len())
            .with("warnings", state.warnings.join("; "))
            .with("silence_s", silence.map_or(-1.0, |t| t.as_secs_f32()))
            .with("clock_ahead_s", camera.ahead_ns.unwrap_or(0) as f64 * 1e-9)
            .with("lost_share", camera.lost)
            .with("frames_per_second", camera.frames_per_second)
            .with("frames_received", camera.received)
            .with("frames_used", camera.used)
            .with("frames_superseded", camera.superseded)
            .with("frames_rejected", camera.rejected())
            .with("frames_undated", camera.undated)
            .with("frames_skipped_rate", camera.skipped.rate)
            .with("frames_skipped_unchanged", camera.skipped.unchanged)
            .with("frames_skipped_paused", camera.skipped.paused)
            .with("cache_slots", camera.slots)
            .with("time_jumps", camera.time_jumps)
            .with("frames_ahead", stats.frames_ahead)
            .with("frame_wait_ms", stats.frame_wait.as_secs_f32() * 1e3);
        for (reason, count) in &camera.rejected_by_reason {
            status = status.with(&format!("rejected_{reason}"), count);
        }
        status
    }
}
