//! Whether the robot sees: images that do not come, cameras that mix, clocks that differ, images that get lost on their way.
//!
//! Judged once per second; said in the log, on /diagnostics, and to those who ask before anything has been seen.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::graph::Graph;
use super::outputs::RosTime;
use super::publishers::Publishers;
use super::topics::{Subscription, Topics};
use crate::cache::parameter::ParameterError;
use crate::parameters::{ImageTransport, RosConfig};
use crate::stream::stats::CameraStats;
use crate::stream::Engine;

/// Time between two words in the log about the same.
const REPEAT: Duration = Duration::from_secs(60);
/// A node that was killed is listed for up to this long (Fast DDS: 20 s), maybe beside the one that was started in its place.
const LINGERS: Duration = Duration::from_secs(30);
/// Clocks that differ by more than this are worth a word.
const CLOCKS_APART: f64 = 1.0;
/// Stamps before this are none of the calendar's (2001-09-09), seconds; the clocks of robots count from 1970 or from their start.
const CALENDAR: f64 = 1e9;
/// Share of images lost on their way from which it is worth a word.
const MANY_LOST: f32 = 0.5;
/// Messages of up to so many bytes travel in one UDP datagram.
const DATAGRAM: usize = 65_000;
/// What a Linux socket holds of what has arrived, unless it is asked for less.
const SOCKET_BUFFER: &str = "/proc/sys/net/core/rmem_max";

/// What is known of the camera, shared with those who report it.
#[derive(Debug, Clone, Default)]
pub struct Camera {
    pub publishers: Publishers,
    /// No image has come for longer than the parameter `image_timeout` allows, or none ever: since when, and why.
    pub silence: Option<String>,
    /// What else is not as it should be, worst first.
    pub warnings: Vec<String>,
}

/// The camera's state for those who report it.
#[derive(Clone, Default)]
pub struct Shared(Arc<Mutex<Camera>>);

impl Shared {
    pub fn get(&self) -> Camera {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Camera> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The judge of one camera.
pub struct Sight {
    /// Its index.
    camera: usize,
    topic: String,
    /// The node's own topics, none of which is a camera's.
    published: Vec<String>,
    raw: bool,
    timeout: Duration,
    simulated: bool,
    clock: RosTime,
    shared: Shared,
    started: Instant,
    /// Silence counts from here: the start, or the end of a pause.
    awake: Instant,
    /// The silence that was said in the log has not ended yet.
    told_silence: bool,
    /// When each kind of thing was said last.
    told: BTreeMap<&'static str, Instant>,
    /// Since when one name stands twice among the publishers.
    twice: Option<Instant>,
    /// How far ahead the camera's clock was at the look before, seconds.
    ahead: Option<f64>,
    /// Images without a stamp at the look before.
    undated: u64,
}

impl Sight {
    /// One for each camera.
    pub fn of_all(
        node: &r2r::Node,
        topics: &Topics,
        config: &RosConfig,
    ) -> Result<Vec<Self>, ParameterError> {
        let images = topics.images.iter().enumerate();
        let sights = images.map(|(camera, image)| {
            let raw = config.transport(camera)? == ImageTransport::Raw;
            let published = topics.published.clone();
            Ok(Self::new(node, (camera, image), published, raw, config))
        });
        sights.collect()
    }

    fn new(
        node: &r2r::Node,
        (camera, image): (usize, &Subscription),
        published: Vec<String>,
        raw: bool,
        config: &RosConfig,
    ) -> Self {
        Self {
            camera,
            topic: image.topic.clone(),
            published,
            raw,
            timeout: Duration::from_secs_f64(config.image_timeout),
            simulated: config.use_sim_time,
            clock: RosTime::of(node),
            shared: Shared::default(),
            started: Instant::now(),
            awake: Instant::now(),
            told_silence: false,
            told: BTreeMap::new(),
            twice: None,
            ahead: None,
            undated: 0,
        }
    }

    /// Where the state of the camera is left.
    pub fn shared(&self) -> Shared {
        self.shared.clone()
    }

    /// Judges, and says what is to be said. `graph` is opened when a camera has been silent for a while, and stays open: a camera that pauses
    /// again and again would have a DDS participant made and taken down each time beside the node's own, which is at work.
    pub fn look(&mut self, engine: &Engine, publishers: &Publishers, graph: &mut Option<Graph>) {
        let stats = engine.stats();
        let Some(camera) = stats.cameras.get(self.camera) else {
            return;
        };
        let camera = Camera {
            publishers: publishers.clone(),
            silence: self.silence(engine, (camera, stats.is_paused()), publishers, graph),
            warnings: self.warnings(camera, publishers),
        };
        *self.shared.lock() = camera;
    }

    fn silence(
        &mut self,
        engine: &Engine,
        (stats, paused): (&CameraStats, bool),
        publishers: &Publishers,
        graph: &mut Option<Graph>,
    ) -> Option<String> {
        if paused {
            self.awake = Instant::now();
            return None;
        }
        let awake = self.awake.elapsed();
        let silent = stats.silence.map_or(awake, |silence| silence.min(awake));
        // What the graph holds is to be known when the time is up.
        if silent > self.timeout / 2 && graph.is_none() {
            match Graph::open() {
                Ok(opened) => *graph = Some(opened),
                Err(error) if self.due("graph") => {
                    tracing::error!("the topics cannot be listed: {error}");
                }
                Err(_) => {}
            }
        }
        let overdue = silent > self.timeout;
        if !overdue && std::mem::take(&mut self.told_silence) {
            tracing::info!("images come again on {}", self.topic);
            // The next silence is another one.
            self.told.remove("silence");
        }
        if !overdue && stats.silence.is_some() {
            engine.describe_camera(self.camera, String::new());
            return None;
        }
        let text = self.why_silent(stats.silence, publishers, overdue, graph.as_ref());
        engine.describe_camera(self.camera, text.clone());
        if overdue && self.due("silence") {
            self.told_silence = true;
            tracing::warn!("{text}");
        }
        Some(text)
    }

    /// Since when no image has come, and why, as far as that is known.
    fn why_silent(
        &self,
        silence: Option<Duration>,
        publishers: &Publishers,
        overdue: bool,
        graph: Option<&Graph>,
    ) -> String {
        let topic = &self.topic;
        let since = match silence {
            None => format!("no image has come on {topic}"),
            Some(silence) => format!("no image for {} s on {topic}", silence.as_secs()),
        };
        let why = match (publishers.count, publishers.unheard.first()) {
            (0, _) => "nobody publishes it".to_string(),
            (_, Some(problem)) => problem.clone(),
            _ if !overdue => return since,
            _ => {
                let lost = if self.raw {
                    "; large raw images can get lost on their way (docs/camera.md)"
                } else {
                    ""
                };
                let who = match publishers.heard.is_empty() {
                    true => "a publisher without a node".to_string(),
                    false => publishers.heard.join(", "),
                };
                format!("{who} would, but sends nothing that arrives{lost}")
            }
        };
        format!("{since}: {why}{}", self.elsewhere(publishers, graph))
    }

    /// Where else there are images.
    fn elsewhere(&self, publishers: &Publishers, graph: Option<&Graph>) -> String {
        let Some(Ok(mut topics)) = graph.map(Graph::image_topics) else {
            return String::new();
        };
        let known = [&self.topic].into_iter().chain(&self.published);
        let known = known.map(|own| format!("{own} ("));
        let known = known.collect::<Vec<_>>();
        topics.retain(|topic| !known.iter().any(|own| topic.starts_with(own)));
        match topics.is_empty() {
            // The newcomer to the graph does not hear of a publisher that has died and is still listed.
            true if publishers.count > 0 => String::new(),
            true => "; there is no topic with images".to_string(),
            false => format!("; topics with images: {}", topics.join(", ")),
        }
    }

    fn warnings(&mut self, stats: &CameraStats, publishers: &Publishers) -> Vec<String> {
        let found = [
            ("publishers", self.mixed(publishers)),
            ("clock", self.clock_apart(stats)),
            ("undated", self.undated(stats)),
            ("lost", self.lost(stats)),
        ];
        let mut warnings = Vec::new();
        for (kind, text) in found {
            let Some(text) = text else { continue };
            let text = match stats.label.as_str() {
                "" => text,
                label => format!("{label}: {text}"),
            };
            // The engine has said it of the first image without a stamp.
            if kind != "undated" && self.due(kind) {
                tracing::warn!("{text}");
            }
            warnings.push(text);
        }
        warnings
    }

    fn mixed(&mut self, publishers: &Publishers) -> Option<String> {
        let mut names = publishers.heard.clone();
        let twice = names.windows(2).any(|pair| pair[0] == pair[1]);
        self.twice = twice.then(|| self.twice.unwrap_or_else(Instant::now));
        if self.twice.is_some_and(|since| since.elapsed() < LINGERS) {
            names.dedup();
        }
        (names.len() > 1).then(|| {
            format!(
                "{} publishers send images on {}: {}; expected one, or their pictures mix",
                names.len(),
                self.topic,
                names.join(", ")
            )
        })
    }

    fn clock_apart(&mut self, stats: &CameraStats) -> Option<String> {
        let settled = self.started.elapsed().as_secs_f64() > CLOCKS_APART;
        if self.simulated && self.clock.now_ns() == 0 {
            return settled.then(|| {
                "no /clock: use_sim_time is true, but no time has come on /clock, so the node's time stands at 0".to_string()
            });
        }
        let fresh = stats.silence.is_some_and(|silence| silence < self.timeout);
        let ahead = stats.ahead_ns.filter(|_| fresh).map(|ns| ns as f64 * 1e-9);
        let before = std::mem::replace(&mut self.ahead, ahead);
        let apart = |ahead: &f64| ahead.abs() > CLOCKS_APART;
        // One image alone may just have been long on its way.
        let (ahead, _) = ahead.filter(apart).zip(before.filter(apart))?;
        let now = self.clock.now_ns() as f64 * 1e-9;
        let than = if self.simulated {
            "/clock"
        } else {
            "the node's clock"
        };
        Some(if ahead > 0.0 {
            format!("camera clock is {ahead:.1} s ahead of {than}")
        } else if now + ahead < CALENDAR && now >= CALENDAR {
            format!(
                "camera clock stands at {:.1} s and not at the time of day: set use_sim_time for a simulation or a bag, else the camera counts from its own start",
                now + ahead
            )
        } else {
            format!(
                "camera clock is {:.1} s behind {than}, or images take that long: a recording needs use_sim_time and a player with --clock",
                -ahead
            )
        })
    }

    fn undated(&mut self, stats: &CameraStats) -> Option<String> {
        let before = std::mem::replace(&mut self.undated, stats.undated);
        (stats.undated > before)
            .then(|| "images come without a stamp: the time of their receipt is taken".to_string())
    }

    fn lost(&self, stats: &CameraStats) -> Option<String> {
        let fresh = stats.silence.is_some_and(|silence| silence < self.timeout);
        if !fresh || stats.lost < MANY_LOST || stats.image_bytes < DATAGRAM {
            return None;
        }
        let held = std::fs::read_to_string(SOCKET_BUFFER).ok();
        let held = held.and_then(|text| text.trim().parse::<usize>().ok());
        let socket = held
            .filter(|held| *held < stats.image_bytes)
            .map(|held| format!(", sysctl net.core.rmem_max above that (it is {held})"));
        let compressed = if self.raw {
            ", or image_transport compressed"
        } else {
            ""
        };
        Some(format!(
            "about {:.0} % of the images on {} get lost on their way, by their stamps; one has {} bytes: use config/fastdds.xml on both sides{}{compressed} (docs/camera.md)",
            stats.lost * 100.0,
            self.topic,
            stats.image_bytes,
            socket.unwrap_or_default(),
        ))
    }

    /// Whether it is time for a word about something.
    fn due(&mut self, kind: &'static str) -> bool {
        let due = self.told.get(kind).is_none_or(|at| at.elapsed() >= REPEAT);
        if due {
            self.told.insert(kind, Instant::now());
        }
        due
    }
}
