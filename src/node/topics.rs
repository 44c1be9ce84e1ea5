//! The topics that the node listens to, with types and QoS, and the full names of those that it publishes and of its services.

use std::fmt;

use r2r::qos::ReliabilityPolicy;
use r2r::QosProfile;

use super::names::RosArguments;
use super::NodeError;
use crate::parameters::{ImageTransport, Reliability, RosConfig};

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
    pub image: Subscription,
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
const PUBLISHED: [&str; 5] = [
    "~/reasoning",
    "~/reasoning_delta",
    "~/reasoning_text",
    STATISTICS,
    "/diagnostics",
];

const SERVICES: [&str; 3] = ["~/reset", "~/pause", "~/cancel"];
const ACTION: &str = "~/ask";

impl Topics {
    /// Those of a node of this name and namespace.
    pub fn of(
        arguments: &RosArguments,
        name: &str,
        namespace: &str,
        config: &RosConfig,
    ) -> Result<Self, NodeError> {
        let resolve = |topic: &str| arguments.resolve(topic, name, namespace);
        let compressed = config.image_transport == ImageTransport::Compressed;
        let image = if compressed {
            arguments.resolve_compressed("image", name, namespace)?
        } else {
            resolve("image")?
        };
        let instruction = |topic: &str, message_type| {
            Ok::<_, NodeError>(Subscription {
                topic: resolve(topic)?,
                message_type,
                reliable: config.instruction_reliability == Reliability::Reliable,
                depth: HELD_INSTRUCTIONS,
                parameter: "instruction_reliability",
            })
        };
        Ok(Self {
            image: Subscription {
                topic: image,
                message_type: if compressed {
                    "sensor_msgs/msg/CompressedImage"
                } else {
                    "sensor_msgs/msg/Image"
                },
                reliable: config.image_reliability == Reliability::Reliable,
                depth: config.image_depth,
                parameter: "image_reliability",
            },
            instruction: instruction("instruction", "inf_mllm/msg/Instruction")?,
            instruction_text: instruction("instruction_text", "std_msgs/msg/String")?,
            statistics: resolve(STATISTICS)?,
            published: PUBLISHED
                .into_iter()
                .map(resolve)
                .collect::<Result<_, _>>()?,
            action: resolve(ACTION)?,
            services: SERVICES
                .into_iter()
                .map(|service| arguments.resolve_service(service, name, namespace))
                .collect::<Result<_, _>>()?,
        })
    }
}
