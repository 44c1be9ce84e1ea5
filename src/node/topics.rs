//! The topics that the node listens to, with types and QoS, and the full names of those that it publishes and of its services.

use std::fmt;

use r2r::qos::ReliabilityPolicy;
use r2r::QosProfile;

use super::names::RosArguments;
use super::NodeError;
use crate::cache::parameter::ParameterError;
use crate::parameters::{ImageTransport, NodeConfig, Reliability, RosConfig};

/// Instructions that the middleware holds until they are read. It drops the oldest of more than this, unanswered, so it is more
/// than a user sends in the time that one spin takes.
const HELD_INSTRUCTIONS: usize = 1000;

/// A topic that the node listens to.
#[derive(Debug, Clone)]
pub struct Subscription {
    /// Full name, after remapping.
    pub topic: String,
    /// As in `sensor_msgs/msg/Image`.
    pub message_type: &'static str,
    /// Asks for reliable publishers; else best-effort ones do as well.
    pub reliable: bool,
    /// Messages held until the node reads them.
    pub depth: usize,
    /// The parameter that sets the reliability.
    pub parameter: &'static str,
}

impl Subscription {
    /// The profile to subscribe with.
    pub fn qos(&self) -> QosProfile {
        QosProfile::default()
            .keep_last(self.depth)
            .reliability(if self.reliable {
                ReliabilityPolicy::Reliable
            } else {
                ReliabilityPolicy::BestEffort
            })
    }
}

impl fmt::Display for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reliability = match self.reliable {
            true => Reliability::Reliable,
            false => Reliability::BestEffort,
        };
        write!(
            f,
            "{} ({}, keep last {})",
            self.topic,
            reliability.name(),
            self.depth
        )
    }
}

/// All of them.
#[derive(Debug, Clone)]
pub struct Topics {
    /// One for each camera, in the order of the parameter `cameras`.
    pub images: Vec<Subscription>,
    pub instruction: Subscription,
    pub instruction_text: Subscription,
    /// Full names of what the node publishes, after remapping.
    pub published: Vec<String>,
    /// Of these, where the statistics are published.
    pub statistics: String,
    /// Full names of the node's own services, after remapping.
    pub services: Vec<String>,
    /// Full name of its action; what this is made of is remapped by its own names.
    pub action: String,
}

const STATISTICS: &str = "~/cache_stats";
const PUBLISHED: &[&str] = &[
    "~/reasoning",
    "~/reasoning_delta",
    "~/reasoning_text",
    "~/watch",
    super::evidence_image::TOPICS[0],
    super::evidence_image::TOPICS[1],
    #[cfg(feature = "vision_msgs")]
    super::detections::TOPIC,
    "~/status",
    "~/transition_event",
    STATISTICS,
    "/diagnostics",
];

const SERVICES: [&str; 9] = [
    "~/reset",
    "~/pause",
    "~/cancel",
    "~/watches",
    "~/change_state",
    "~/get_state",
    "~/get_available_states",
    "~/get_available_transitions",
    "~/get_transition_graph",
];
const ACTION: &str = "~/ask";

impl Topics {
    /// Those of a node of this name and namespace.
    pub fn of(
        arguments: &RosArguments,
        name: &str,
        namespace: &str,
        config: &NodeConfig,
    ) -> Result<Self, NodeError> {
        let NodeConfig { session, ros, .. } = config;
        let resolve = |topic: &str| arguments.resolve(topic, name, namespace);
        let mut images: Vec<Subscription> = Vec::new();
        for camera in 0..session.cameras.count() {
            let topic = image_topic(&session.cameras.labels, ros, camera)?;
            let transport = ros.transport(camera)?;
            let resolved = match transport {
                ImageTransport::Raw => resolve(&topic)?,
                ImageTransport::Compressed => {
                    arguments.resolve_compressed(&topic, name, namespace)?
                }
            };
            if images.iter().any(|image| image.topic == resolved) {
                return Err(twice(resolved).into());
            }
            images.push(image(resolved, transport, ros));
        }
        let instruction = |topic: &str, message_type| {
            Ok::<_, NodeError>(Subscription {
                topic: resolve(topic)?,
                message_type,
                reliable: ros.instruction_reliability == Reliability::Reliable,
                depth: HELD_INSTRUCTIONS,
                parameter: "instruction_reliability",
            })
        };
        Ok(Self {
            images,
            instruction: instruction("instruction", "inf_mllm/msg/Instruction")?,
            instruction_text: instruction("instruction_text", "std_msgs/msg/String")?,
            statistics: resolve(STATISTICS)?,
            published: PUBLISHED
                .iter()
                .map(|topic| resolve(topic))
                .collect::<Result<_, _>>()?,
            action: resolve(ACTION)?,
            services: SERVICES
                .into_iter()
                .map(|service| arguments.resolve_service(service, name, namespace))
                .collect::<Result<_, _>>()?,
        })
    }
}

/// The name of a camera's topic before it is remapped.
fn image_topic(
    labels: &[String],
    ros: &RosConfig,
    camera: usize,
) -> Result<String, ParameterError> {
    let Some(label) = labels.get(camera) else {
        return Ok("image".to_string());
    };
    let given = ros
        .camera_topics
        .get(camera)
        .filter(|topic| !topic.is_empty());
    if let Some(given) = given {
        return match is_topic(given) {
            true => Ok(given.clone()),
            false => Err(ParameterError::Value {
                name: "camera_topics",
                value: format!("a list with {given:?}"),
                expected: "names of topics: letters, digits and _ between slashes, no digit behind a slash"
                    .to_string(),
            }),
        };
    }
    match is_part(label) {
        true => Ok(format!("{label}/image")),
        false => Err(ParameterError::Value {
            name: "camera_topics",
            value: format!("{:?}", ros.camera_topics),
            expected: format!(
                "a topic for the camera {label:?}, whose label is no name of a topic"
            ),
        }),
    }
}

/// Whether a topic may be called so, before it is remapped.
fn is_topic(name: &str) -> bool {
    let own = name.strip_prefix("~/").or_else(|| name.strip_prefix('/'));
    own.unwrap_or(name).split('/').all(is_part)
}

/// Whether this may stand between two slashes of a topic's name.
fn is_part(name: &str) -> bool {
    let may_stand = |c: char| c.is_ascii_alphanumeric() || c == '_';
    name.chars().all(may_stand)
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && !name.is_empty()
}

fn image(topic: String, transport: ImageTransport, ros: &RosConfig) -> Subscription {
    Subscription {
        topic,
        message_type: match transport {
            ImageTransport::Raw => "sensor_msgs/msg/Image",
            ImageTransport::Compressed => "sensor_msgs/msg/CompressedImage",
        },
        reliable: ros.image_reliability == Reliability::Reliable,
        depth: ros.image_depth,
        parameter: "image_reliability",
    }
}

fn twice(topic: String) -> ParameterError {
    ParameterError::Value {
        name: "camera_topics",
        value: format!("twice {topic}, after remapping"),
        expected: "a topic of its own for each camera".to_string(),
    }
}
