//! The ROS 2 edge: messages in, messages out. Everything that thinks is in `stream`; this folder only translates.
//!
//! - `about`: the help
//! - `params`: the node's parameters: at the start from files and command line, afterwards by service
//! - `names`: the command line's ROS arguments: topic names after remapping, and parameters
//! - `topics`: the topics that the node listens to, with types and QoS, and those that it publishes
//! - `messages`: between ROS messages and the stream's types
//! - `inputs`: the subscriptions, drained on the thread that spins the node
//! - `lifecycle`: the node's states, as services and topics
//! - `services`: the services, whose requests are taken over on that thread
//! - `ask`: the action, whose goals are instructions
//! - `watches`: how the watches stand, for those who ask and those who come late
//! - `publishers`: who publishes on their topics, and who of them cannot be heard
//! - `namesakes`: other nodes of the same name
//! - `graph`: the topics that there are
//! - `sight`: whether the robot sees, and if not, why
//! - `diagnostics`: the state of the node on /diagnostics
//! - `outputs`: the publishers, fed by the engine through a channel
//! - `evidence_image`: the frames that an answer rests on, as a picture
//! - `detections`: the boxes in an answer, where the node is built with vision_msgs
//! - `logging`: the log, through rcl: console, file, /rosout
//! - `app`: start, the loop, and a clean end

mod about;
mod app;
mod ask;
#[cfg(feature = "vision_msgs")]
mod detections;
mod diagnostics;
mod evidence_image;
mod graph;
mod inputs;
mod lifecycle;
mod logging;
mod messages;
mod names;
mod namesakes;
mod outputs;
mod params;
mod publishers;
mod services;
mod sight;
mod topics;
mod watches;

pub use about::asked;
pub use app::run;

use crate::cache::parameter::ParameterError;

/// Name of the package, and of the node unless it is remapped.
pub const NAME: &str = "inf_mllm";

/// Why the node could not start or run.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error("{what}: {source}")]
    Ros {
        what: String,
        #[source]
        source: r2r::Error,
    },
    #[error("ROS context: {0}")]
    Context(String),
    #[error("ROS graph: {0}")]
    Graph(String),
    #[error("command line: {0}")]
    Arguments(String),
    #[error(transparent)]
    Parameter(#[from] ParameterError),
    #[error("{file}, under {nodes}: {error}")]
    ParameterFile {
        file: String,
        nodes: String,
        error: ParameterError,
    },
    #[error("{0}")]
    Engine(#[from] crate::stream::EngineError),
    #[error(transparent)]
    Change(#[from] crate::stream::engine::ChangeError),
    #[error("runtime: {0}")]
    Runtime(#[from] std::io::Error),
}

/// Adds what was being done to an error of the ROS library, which knows only a code.
fn ros<T>(what: impl Into<String>, result: r2r::Result<T>) -> Result<T, NodeError> {
    result.map_err(|source| NodeError::Ros {
        what: what.into(),
        source,
    })
}
