//! What the memory holds of long drives: questions about what was in view seconds to an hour before, on one stream.
//!
//! - `cell`: how long ago: what is summed up together
//! - `drive`: a bag and its questions, checked; its frames through the vision tower, once for all lanes
//! - `lane`: one lane through one drive: a policy, black images, or an oracle
//! - `way`: how much of the way from floor to oracle a lane goes
//! - `report`: all of it summed up

pub mod cell;
pub mod drive;
pub mod lane;
pub mod report;
pub mod way;
