//! The stream: frames and instructions in, answers and statistics out. Knows nothing of ROS.
//!
//! - `frame`: camera messages to pictures, with every check an untrusted message needs
//! - `clock`: the order of the frames by their stamps, where the clock jumped, and clocks that are not one
//! - `camera`: the cameras of a stream, and what holds for one of them only
//! - `losses`: images that were lost on their way, as their stamps tell
//! - `gate`: which frames are used: rate, change
//! - `grammar`: how frames, instructions and answers are laid out as one conversation (docs/stream.md)
//! - `inspect`: what a checkpoint is and what it needs, from its headers alone
//! - `instruction`: what is asked, once or again and again
//! - `answer`: whole answers and their pieces
//! - `generation`: an answer in the making
//! - `archive`: what has left the cache, whole, to be found and fed again
//! - `memory`: the frames in the cache, their stamps and ages
//! - `evidence`: the frames that an answer rests on
//! - `thumbnail`, `montage`: small pictures of these, and all of them in one
//! - `detections`: boxes and points in an answer's text
//! - `session`: the model, its cache and the conversation; one frame or instruction at a time
//! - `engine`: the thread that owns a session, and the inbox in front of it
//! - `lifecycle`: what a node may be, and what leads from one to another
//! - `goals`: instructions that are followed as goals, with results that are kept for a while
//! - `latest`: the last state of each watch among the last messages of all
//! - `complaints`: what the log says of things that go wrong many times
//! - `stats`: counters and gauges of a running stream
//! - `bag`, `script`, `replay`: recorded frames and instructions through a session, in lock-step

pub mod answer;
pub mod archive;
#[cfg(feature = "tools")]
pub mod bag;
pub mod camera;
pub mod clock;
pub mod complaints;
pub mod detections;
pub mod engine;
pub mod evidence;
pub mod frame;
pub mod gate;
mod generation;
pub mod goals;
pub mod grammar;
pub mod inspect;
pub mod instruction;
pub mod latest;
pub mod lifecycle;
pub mod losses;
pub mod memory;
pub mod montage;
#[cfg(feature = "tools")]
pub mod replay;
#[cfg(feature = "tools")]
pub mod script;
pub mod session;
pub mod stats;
pub mod thumbnail;

pub use crate::model::constraint::{GrammarKind, TextGrammar};
pub use answer::{
    Answer, AnswerDelta, Chosen, ChosenBy, FinishReason, FrameStamp, Recalled, ThoughtEnd,
};
pub use archive::RecallMode;
pub use clock::{Arrival, StreamClock};
pub use engine::{Engine, EngineError, EngineEvents};
pub use evidence::Evidence;
pub use frame::{CameraImage, FrameError, ImageData};
pub use gate::GateConfig;
pub use instruction::{Every, Instruction, Recall, Watching};
pub use lifecycle::State;
pub use session::{Session, SessionConfig, Taken};
pub use stats::StreamStats;
