//! The bounded KV cache: what is stored, scored and evicted, for any decoder.
//!
//! - `config`: the parameters and the slot arithmetic that follows from them (budget, slack, prefix, recent, relevant)
//! - `layer`: keys, values and slots of one decoder layer; attention over them
//! - `rotary`: the rotary table; a key's position is its slot index
//! - `queries`: the ring of the last raw queries that scores are computed from
//! - `score`: the attention score of every cached key
//! - `compact`: moving the kept rows to the front, in place
//! - `slots`: which token of the stream stands in which slot
//! - `policy`: the eviction policies, one file each
//! - `bounded`: all layers together, the order of a turn, the counters

mod bounded;
mod compact;
mod config;
mod layer;
pub mod policy;
mod queries;
mod rotary;
mod score;
mod slots;

pub use bounded::{BoundedCache, CacheShape, CacheUsage, Snapshot};
pub use config::{CacheConfig, CacheError, Plan, Scope, MIN_BUDGET};
pub use layer::LayerCache;
pub use policy::PolicyKind;
pub use rotary::RotaryTable;
pub use slots::{FrameId, Token};
