//! How many threads the model's products are spread over.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::{hint, thread};

use rayon::{ThreadPool, ThreadPoolBuilder, Yield};

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

/// Keeps the threads of a pool awake, until it is dropped, so that each takes its share of a short product at once.
///
/// Between two products of a step the others have nothing to do for some microseconds. Left alone they fall asleep, and waking up takes
/// them longer than their share of a product. They look for work meanwhile, whoever it is from, and let other programs have the
/// processor now and then.
pub struct Awake {
    over: Arc<AtomicBool>,
}

/// How often a thread looks for work before it lets other programs in.
const LOOKS: usize = 64;

impl Awake {
    /// For the pool that it is called in; none outside of a pool, and where there is but one thread.
    pub fn here() -> Option<Self> {
        let own = rayon::current_thread_index()?;
        if rayon::current_num_threads() == 1 {
            return None;
        }
        let over = Arc::new(AtomicBool::new(false));
        let told = over.clone();
        rayon::spawn_broadcast(move |context| {
            if context.index() != own {
                look_for_work(&told);
            }
        });
        Some(Self { over })
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

fn look_for_work(over: &AtomicBool) {
    let mut looks = 0;
    while !over.load(Ordering::Relaxed) {
        if rayon::yield_now() == Some(Yield::Executed) {
            looks = 0;
            continue;
        }
        looks += 1;
        match looks % LOOKS {
            0 => thread::yield_now(),
            _ => hint::spin_loop(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn threads_that_are_kept_awake_do_the_work_of_others_and_go_to_sleep_again() {
        for threads in 1..4 {
            let pool = ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| {
                for _ in 0..100 {
                    let awake = Awake::here();
                    assert_eq!(awake.is_some(), threads > 1);
                    let (a, b) = rayon::join(|| 1, || rayon::join(|| 2, || 3));
                    assert_eq!((a, b), (1, (2, 3)));
                }
                // Every thread is free again: each takes a part that waits for all of them.
                let barrier = Barrier::new(threads);
                rayon::broadcast(|_| barrier.wait());
            });
        }
        // Outside of a pool there is nobody to keep awake.
        assert!(Awake::here().is_none());
    }
}
