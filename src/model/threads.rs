//! How many threads the model's products are spread over.

use rayon::{ThreadPool, ThreadPoolBuilder};

use super::checkpoint::Checkpoint;
use super::ModelError;

/// The products of a model with fewer bytes of weights than this are over before a second thread has woken up. A model
/// of 6.6 MB takes a frame in two thirds of the time with one thread; the smallest published SmolVLM has 513 MB.
const SMALL_BYTES: u64 = 64 << 20;

/// Threads to run a model in, as many as `threads` says; 0: one for a small model, else one per core.
///
/// What runs inside [`ThreadPool::install`] uses them.
pub fn thread_pool(threads: usize, checkpoint: &Checkpoint) -> Result<ThreadPool, ModelError> {
    thread_pool_for(threads, checkpoint.weight_bytes()?)
}

/// As [`thread_pool`], for a model with `weight_bytes` bytes of weights.
pub fn thread_pool_for(threads: usize, weight_bytes: u64) -> Result<ThreadPool, ModelError> {
    let threads = match threads {
        0 if weight_bytes < SMALL_BYTES => 1,
        // rayon's own choice is one per core.
        given => given,
    };
    ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|i| format!("model-{i}"))
        .build()
        .map_err(|e| ModelError::Threads(e.to_string()))
}
