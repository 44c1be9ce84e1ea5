//! `/diagnostics`: what an operator's monitor shows of the node, once per second.
//!
//! OK, WARN and ERROR speak of the time since the report before; STALE means that the camera is silent.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use r2r::diagnostic_msgs::msg::{DiagnosticArray, DiagnosticStatus, KeyValue};
use r2r::std_msgs::msg::Header;
use r2r::{Publisher, QosProfile};

use super::messages::{publishable, time};
use super::namesakes;
use super::outputs::{advertise, report, RosTime};
use super::publishers::Publishers;
use super::topics::Subscription;
use super::NodeError;
use crate::parameters::NodeConfig;
use crate::stream::{Engine, StreamStats};

/// Time between two reports.
pub const PERIOD: Duration = Duration::from_secs(1);
/// A camera that has sent nothing for this long is silent.
const SILENCE: Duration = Duration::from_secs(5);

/// Publisher of reports.
pub struct Diagnostics {
    publisher: Publisher<DiagnosticArray>,
    clock: RosTime,
    /// The node's full name.
    node: String,
    image_topic: String,
    cameras: Cameras,
    /// How many other nodes have this node's name.
    namesakes: Arc<AtomicUsize>,
    model: String,
    device: String,
    before: StreamStats,
    /// When an image was last known to have come.
    heard: Option<Instant>,
}

/// What is known of the publishers of images, shared with those who look.
#[derive(Clone, Default)]
pub struct Cameras(Arc<Mutex<Publishers>>);

impl Cameras {
    pub fn set(&self, publishers: &Publishers) {
        self.lock().clone_from(publishers);
    }

    fn lock(&self) -> MutexGuard<'_, Publishers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
const STALE: u8 = DiagnosticStatus::STALE as u8;

impl Diagnostics {
    pub fn advertise(
        node: &mut r2r::Node,
        config: &NodeConfig,
        engine: &Engine,
        image: &Subscription,
    ) -> Result<Self, NodeError> {
        Ok(Self {
            clock: RosTime::of(node),
            node: node.fully_qualified_name().unwrap_or_default(),
            publisher: advertise(node, "/diagnostics", QosProfile::default())?,
            image_topic: image.topic.clone(),
            cameras: Cameras::default(),
            namesakes: Arc::default(),
            model: config.session.model_dir.display().to_string(),
            device: engine.hardware().to_string(),
            before: StreamStats::default(),
            heard: None,
        })
    }

    /// Where to leave word of the publishers of images.
    pub fn cameras(&self) -> Cameras {
        self.cameras.clone()
    }

    /// Where to leave word of how many other nodes have this node's name.
    pub fn namesakes(&self) -> Arc<AtomicUsize> {
        self.namesakes.clone()
    }

    /// Publishes a report; `stats` are those of now.
    pub fn publish(&mut self, stats: StreamStats) {
        if stats.frames_received > self.before.frames_received {
            self.heard = Some(Instant::now());
        }
        let statuses = [
            ("camera", self.camera(&stats)),
            ("memory", self.memory(&stats)),
            ("instructions", self.instructions(&stats)),
        ];
        let status = statuses.map(|(part, status)| DiagnosticStatus {
            level: status.level,
            name: format!("{}: {part}", self.node),
            message: publishable(&status.message),
            hardware_id: publishable(&self.model),
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
            status: status.to_vec(),
        };
        report("/diagnostics", self.publisher.publish(&message));
        self.before = stats;
    }

    fn camera(&self, stats: &StreamStats) -> Status {
        let rejected = stats.frames_rejected - self.before.frames_rejected;
        let used = stats.frames_used - self.before.frames_used;
        let silent = self.heard.map(|heard| heard.elapsed());
        let cameras = self.cameras.lock().clone();
        let (level, message) = match silent {
            Some(silent) if silent <= SILENCE => match (rejected, used) {
                _ if stats.paused => (OK, "paused".to_string()),
                (1.., 0) => (ERROR, "every image is refused".to_string()),
                (1.., _) => (WARN, format!("{rejected} images refused")),
                _ => (OK, format!("{:.1} frames/s", stats.frames_per_second)),
            },
            _ => (STALE, self.silence(silent, &cameras)),
        };
        let mut status = Status::new(level, message)
            .with("topic", &self.image_topic)
            .with("publishers", cameras.count)
            .with("publishers_unheard", cameras.unheard.len())
            .with("silence_s", silent.map_or(-1.0, |t| t.as_secs_f32()))
            .with("frames_per_second", stats.frames_per_second)
            .with("frames_received", stats.frames_received)
            .with("frames_used", stats.frames_used)
            .with("frames_superseded", stats.frames_superseded)
            .with("frames_rejected", stats.frames_rejected)
            .with("frames_skipped_rate", stats.frames_skipped.rate)
            .with("frames_skipped_unchanged", stats.frames_skipped.unchanged)
            .with("frames_skipped_paused", stats.frames_skipped.paused)
            .with("time_jumps", stats.time_jumps)
            .with("frame_wait_ms", stats.frame_wait.as_secs_f32() * 1e3);
        for (reason, count) in &stats.rejected_by_reason {
            status = status.with(&format!("rejected_{reason}"), count);
        }
        status
    }

    /// Since when no image has come, and why, as far as that is known.
    fn silence(&self, silent: Option<Duration>, cameras: &Publishers) -> String {
        let topic = &self.image_topic;
        let since = match silent {
            None => format!("no image has come on {topic}"),
            Some(silent) => format!("no image for {} s on {topic}", silent.as_secs()),
        };
        match (cameras.count, cameras.unheard.first()) {
            (0, _) => format!("{since}: nobody publishes it"),
            (_, Some(problem)) => format!("{since}: {problem}"),
            _ => since,
        }
    }

    fn memory(&self, stats: &StreamStats) -> Status {
        let failures = |stats: &StreamStats| stats.rejected_by_reason.get("model").copied();
        let failed = failures(stats).unwrap_or(0) - failures(&self.before).unwrap_or(0);
        let cache = &stats.cache;
        let (level, message) = if failed > 0 {
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
            .with("model", &self.model)
            .with("device", &self.device)
            .with("policy", stats.policy)
            .with("budget_tokens", cache.budget)
            .with("budget_bytes", cache.bytes)
            .with("used_tokens", cache.used)
            .with("tokens_evicted", cache.tokens_evicted)
            .with("oldest_frame_age_s", stats.ages.max)
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
    }
}
