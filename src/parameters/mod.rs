//! All parameters of the node in one list, and the documents that follow from it. Knows no ROS.
//!
//! - this file: those that only the node has, and all together
//! - `document`: the list as Markdown, as a parameter file, as JSON and as plain text
//! - `nodes`: which nodes the names in a parameter file stand for
//! - `unread`: parameters that were given and make no difference

mod document;
mod nodes;
mod unread;

pub use document::{json, markdown, plain, yaml};
pub use nodes::stands_for;
pub use unread::unread;

use crate::cache::parameter::{choice, parameters, ParameterError};
use crate::stream::SessionConfig;

/// Which images are subscribed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageTransport {
    Raw,
    Compressed,
}

impl ImageTransport {
    pub const ALL: [Self; 2] = [Self::Raw, Self::Compressed];

    /// As parameters name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Compressed => "compressed",
        }
    }
}

choice!(ImageTransport);

/// What a subscription asks of publishers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reliability {
    BestEffort,
    Reliable,
}

impl Reliability {
    pub const ALL: [Self; 2] = [Self::BestEffort, Self::Reliable];

    /// As parameters name it, and `ros2 topic info --verbose` but in small letters.
    pub fn name(self) -> &'static str {
        match self {
            Self::BestEffort => "best_effort",
            Self::Reliable => "reliable",
        }
    }
}

choice!(Reliability);

parameters! {
    section "ROS";
    /// What only the node has.
    #[derive(Debug, Clone)]
    pub struct RosConfig {
        /// Which images are subscribed: topic `image` (rgb8, bgr8, rgba8, bgra8, mono8, yuv422, yuv422_yuy2, nv12, nv21), or topic
        /// `image/compressed` (jpeg, png).
        image_transport: ImageTransport = ImageTransport::Raw, set Start;
        /// Topics of the cameras, in the order of `cameras`; for those behind the end of the list, and where it has an empty string, it is
        /// the label with `/image` behind it (`front/image`). A compressed one gets `/compressed` behind it, unless it has that.
        camera_topics: Vec<String> = Vec::new(), set Start;
        /// What `image_transport` says, raw or compressed, of each camera, in the order of `cameras`; `image_transport` holds for those
        /// behind the end of the list.
        camera_transports: Vec<String> = Vec::new(), set Start;
        /// QoS of the image subscription: best_effort hears every publisher; reliable hears reliable ones only, and lost messages are
        /// sent again.
        image_reliability: Reliability = Reliability::BestEffort, set Start;
        /// QoS of the image subscription: images held until the node reads them; of more, the oldest are dropped.
        image_depth: usize = 5, range 1..=1000, unit "messages", set Start;
        /// QoS of both instruction subscriptions: with best_effort they hear every publisher and may lose instructions.
        instruction_reliability: Reliability = Reliability::Reliable, set Start;
        /// Without an image for longer than this the node says in its log and on `/diagnostics` that it sees nothing, and why.
        image_timeout: f64 = 5.0, range 0.1..=3600.0, unit "s", set Start;
        /// Time between two messages on `~/cache_stats`.
        stats_period: f64 = 1.0, range 0.01..=3600.0, unit "s", set Start;
        /// How long the result of a goal of `~/ask` is kept for those who have not asked for it yet.
        goal_result_timeout: f64 = 60.0, range 0.0..=86_400.0, unit "s", set Start;
        /// Results of goals that are kept; of more, the oldest go before their time.
        goal_results_limit: usize = 1000, range 1..=100_000, unit "results", set Start;
        /// Take the time from the topic `/clock` (simulation, bag) instead of the system.
        use_sim_time: bool = false, set Start;
        /// Load the model and begin by itself; else the node waits unconfigured for `~/change_state` (`ros2 lifecycle set`, a lifecycle manager).
        autostart: bool = true, set Start;
    }
    parts {}
    others {}
}

impl RosConfig {
    /// How the images of a camera come.
    pub fn transport(&self, camera: usize) -> Result<ImageTransport, ParameterError> {
        let Some(name) = self.camera_transports.get(camera) else {
            return Ok(self.image_transport);
        };
        name.parse().map_err(|_| ParameterError::Value {
            name: "camera_transports",
            value: format!("a list with {name:?}"),
            expected: ImageTransport::ALL.map(ImageTransport::name).join(" or "),
        })
    }

    /// Fails where there are topics or transports of more cameras than of these labels, or a transport that is none.
    pub fn check(&self, labels: &[String]) -> Result<(), ParameterError> {
        for (name, list) in [
            ("camera_topics", &self.camera_topics),
            ("camera_transports", &self.camera_transports),
        ] {
            if list.len() > labels.len() {
                return Err(ParameterError::Value {
                    name,
                    value: format!("{list:?}"),
                    expected: format!(
                        "at most one for each of cameras, which has {}",
                        labels.len()
                    ),
                });
            }
        }
        (0..labels.len()).try_for_each(|camera| self.transport(camera).map(|_| ()))
    }
}

parameters! {
    section "";
    /// Every parameter of the node.
    #[derive(Debug, Clone)]
    pub struct NodeConfig {}
    parts {
        session: SessionConfig;
        ros: RosConfig;
    }
    others {}
}

impl NodeConfig {
    /// Fails where parameters do not fit each other, which each one's range cannot say.
    pub fn check(&self) -> Result<(), ParameterError> {
        self.session.check()?;
        self.ros.check(&self.session.cameras.labels)
    }
}
