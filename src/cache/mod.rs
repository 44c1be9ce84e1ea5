//! The bounded KV cache: what is stored, scored and evicted, for any decoder.
//!
//! Each layer has a ledger and a store. The ledger is plain data on the host: which token stands in which slot. The store has keys, values
//! and queries on a device, and does as the ledger says.
//!
//! In this order: a file uses those above it, none below.
//!
//! What is spoken of:
//! - `host`: tensors into memory of the host
//! - `tensor_error`: errors of the tensor library without backtraces
//! - `quantised`: rows of 8-bit numbers, and the way there and back
//! - `storage`: what keys and values are stored as, and the buffers that hold them
//! - `slots`: which token of the stream stands in which slot of a kept set, and at which position
//! - `numbering`: where kept tokens stand in decoders whose positions have three axes
//! - `rope`: what a decoder's rotary embedding is
//! - `state`: what layers remember that keep no keys
//! - `shape`: what the cache must know of the decoder
//! - `device_memory`: the memory of a GPU: how much is left, and whether that is what has failed
//!
//! Attention:
//! - `rotary`: rotary tables; a key's position is its rank in time among the kept
//! - `turns`: those of positions on three axes in the memory of a GPU
//! - `axes`: what the tables of decoders whose positions have three axes are put together from
//! - `kernel`: the loops of the fused attention on the CPU
//! - `attention`: attention over the cached keys, fused or eager
//!
//! What is to be kept:
//! - `parameter`: what a parameter is, and the macro that defines a configuration by a list of them
//! - `config`: the cache's parameters
//! - `policy`: the eviction policies, one file each
//! - `plan`: the slot arithmetic that follows from both (budget, slack, prefix, recent, relevant)
//! - `shared`: what all layers share of this
//!
//! One layer:
//! - `queries`: which of the last raw queries the ring holds that scores are computed from
//! - `marks`: what a ledger notes under a mark
//! - `ledger`: which token stands where, what has been counted, what is to be written, saved and moved
//! - `rows`: rows of buffers: moved into gaps in place, taken out and put back
//! - `likeness`: keys compared by direction, with a standing instruction's and with the mean of the stream
//! - `store`: keys, values and the ring of queries
//! - `recall`: what finds again what the cache no longer holds: keys as they come by, summaries of them, scores
//! - `followed`: the newest queries as they come by
//! - `layer`: a ledger and its store
//!
//! Compaction:
//! - `findings`: what is known of the slots: attention, likeness, novelty, the length of values
//! - `scores`: the same, from layers
//! - `shares`: that no camera has less of them than it is sure of
//! - `evict`: which slots stay
//! - `moved`: the rows of all layers, moved and saved at once
//! - `compaction`: dropping the others, of each layer or of several that share one kept set
//! - `chunk`: a chunk at one layer, in pieces where it does not fit
//!
//! The whole:
//! - `bounded`: all layers together, the order of a turn, marks to go back to
//! - `listening`: what is heard of a stream while it comes by
//! - `steps`: tokens that a device's own kernels append, one at a time
//! - `report`: what can be seen of a cache
//! - `beside`: what it takes beside keys and values
//! - `attended`: which frames the newest tokens attend to

mod attended;
mod attention;
mod axes;
mod beside;
mod bounded;
mod chunk;
mod compaction;
mod config;
mod device_memory;
mod evict;
mod findings;
mod followed;
pub mod host;
mod kernel;
mod layer;
mod ledger;
mod likeness;
mod listening;
mod marks;
mod moved;
mod numbering;
pub mod parameter;
mod plan;
pub mod policy;
pub mod quantised;
mod queries;
mod recall;
mod report;
mod rope;
mod rotary;
mod rows;
mod scores;
mod shape;
mod shared;
mod shares;
mod slots;
mod state;
mod steps;
mod storage;
mod store;
mod tensor_error;
mod turns;

pub use attended::Attended;
pub use attention::{shares, weighted_sums, Kernel};
pub use bounded::{BoundedCache, Revision};
pub use chunk::LayerSlots;
pub use config::{CacheConfig, CacheError, KvStorage, PolicyKind, QuerySource, Scope};
pub use device_memory::{out_of_memory, told_bytes, DeviceMemory};
pub use layer::LayerCache;
pub use listening::{Paused, Standing};
pub use plan::{Plan, MIN_BUDGET};
pub use recall::{contrast, scores, Heard, Probe, Scores, Side, Summary};
pub use report::{CacheUsage, Retained};
pub use rope::{Rope, RopeAxes, RopeScaling};
pub use shape::CacheShape;
pub use slots::{FrameId, Mark, Place, Token, Video};
pub use state::{LayerState, StateShape};
pub use steps::{StepLayer, StepTurns};
pub use storage::{KvBuffer, Storage};
pub use tensor_error::TensorError;
