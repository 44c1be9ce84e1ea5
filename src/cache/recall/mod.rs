//! What finds again what the cache no longer holds.
//!
//! - `heard`: keys and queries as they come by
//! - `summary`: what is kept of the keys of a unit (a frame, a sentence), and of those of a question
//! - `score`: how much each of many units is what a question asks for

mod heard;
mod score;
mod summary;

pub use heard::{Heard, Listening};
pub use score::{contrast, scores, Scores};
pub use summary::{Probe, Side, Summary};
