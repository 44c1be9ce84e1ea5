//! The bounded KV cache: what is stored, scored and evicted, for any decoder.
//!
//! - `parameter`: what a parameter is, and the macro that defines a configuration by a list of them
//! - `config`: the cache's parameters, and the slot arithmetic that follows from them (budget, slack, prefix, recent, relevant)
//! - `policy`: the eviction policies, one file each
//! - `bounded`: all layers together, the order of a turn, marks to go back to
//! - `shape`: what the cache must know of the decoder
//! - `report`: what can be seen of a cache
//! - `layer`: keys, values and slots of one decoder layer
//! - `evict`: a compaction of one layer: which slots stay, and what moves
//! - `slots`: which token of the stream stands in which slot, and at which position
//! - `compact`: moving rows into the gaps, in place; taking rows out and putting them back
//! - `journal`: what a layer notes under a mark
//! - `likeness`: keys compared by direction, with a standing instruction's and with the mean of the stream
//! - `queries`: the ring of the last raw queries that scores are computed from
//! - `recall`: what finds again what the cache no longer holds: keys as they come by, summaries of them, scores
//! - `scores`: what is known of the slots: attention, likeness, novelty, the length of values
//! - `device_memory`: the memory of a GPU: how much is left, and whether that is what has failed
//! - `host`: tensors into memory of the host
//! - `rope`: what a decoder's rotary embedding is
//! - `rotary`: rotary tables; a key's position is its rank in time among the kept
//! - `axes`: the tables of decoders whose positions have three axes
//! - `attention`: attention over the cached keys, fused or eager
//! - `kernel`: the loops of the fused attention on the CPU
//! - `tensor_error`: errors of the tensor library without backtraces

mod attention;
mod axes;
mod bounded;
mod compact;
mod config;
mod device_memory;
mod evict;
pub mod host;
mod journal;
mod kernel;
mod layer;
mod likeness;
pub mod parameter;
pub mod policy;
mod queries;
mod recall;
mod report;
mod rope;
mod rotary;
mod scores;
mod shape;
mod slots;
mod tensor_error;

pub use attention::{shares, weighted_sums, Kernel};
pub use bounded::{BoundedCache, Standing};
pub use config::{CacheConfig, CacheError, KvStorage, Plan, Scope, MIN_BUDGET};
pub use device_memory::{out_of_memory, told_bytes, DeviceMemory};
pub use layer::{LayerCache, LayerSlots};
pub use policy::PolicyKind;
pub use queries::QuerySource;
pub use recall::{contrast, scores, Heard, Probe, Scores, Side, Summary};
pub use report::{CacheUsage, Retained};
pub use rope::{Rope, RopeAxes, RopeScaling};
pub use shape::CacheShape;
pub use slots::{FrameId, Mark, Place, Token};
pub use tensor_error::TensorError;
