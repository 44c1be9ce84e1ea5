//! Frames through the tower while the engine's thread is at something else: an answer, or the frame before.
//!
//! Only the frame that is next is taken, and it stays where it is: which frames are used, and in which order, is decided as without
//! this thread, which only spares the engine's the wait for the tower.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::{lock, Shared};
use crate::model::vision::frames::FrameEncoder;
use crate::stream::frame::CameraImage;
use crate::stream::session::{PushError, Seen};
use crate::stream::thumbnail::Thumbnails;

/// After a frame that was replaced before its turn the GPU is left to others for so many times as long as it took.
const REST: u32 = 3;

/// A frame that has been taken ahead of its turn.
pub struct Ahead {
    image: Arc<CameraImage>,
    stage: Stage,
}

enum Stage {
    Running,
    Done(Box<Result<Seen, PushError>>),
}

/// However the work on a frame ends, nobody waits for it any longer.
struct Running<'a>(&'a Shared);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let ahead = &mut lock(&self.0.inbox).ahead;
        if let Some(Ahead {
            stage: Stage::Running,
            ..
        }) = ahead
        {
            *ahead = None;
        }
        self.0.ready.notify_all();
    }
}

/// The thread: until the engine stops.
pub fn run(encoder: &FrameEncoder, thumbnails: &Thumbnails, shared: &Shared) {
    let mut rest = Instant::now();
    while let Some(image) = next(shared, rest) {
        let started = Instant::now();
        let running = Running(shared);
        let gate = lock(&shared.gates)[image.camera].clone();
        let seen = Seen::of(encoder, &image, &gate, thumbnails, true);
        let stage = Stage::Done(Box::new(seen));
        lock(&shared.inbox).ahead = Some(Ahead { image, stage });
        drop(running);
        lock(&shared.stats).frames_ahead += 1;
        rest = Instant::now() + REST * started.elapsed();
    }
}

/// Waits for a frame that waits itself; none once the engine has stopped. Not before `rest` if the last one was taken in vain.
fn next(shared: &Shared, rest: Instant) -> Option<Arc<CameraImage>> {
    let mut inbox = lock(&shared.inbox);
    loop {
        if inbox.stop {
            return None;
        }
        let waiting = inbox.cameras.next().filter(|_| inbox.busy);
        let waiting = waiting.map(|(_, image)| image.clone()).filter(|image| {
            let known = inbox.ahead.as_ref().map(|ahead| &ahead.image);
            !known.is_some_and(|known| Arc::ptr_eq(known, image))
                && lock(&shared.gates)[image.camera].due(image.stamp_ns)
        });
        let left = match inbox.ahead {
            Some(_) => rest.saturating_duration_since(Instant::now()),
            None => Duration::ZERO,
        };
        inbox = match waiting {
            Some(image) if left.is_zero() => {
                let stage = Stage::Running;
                inbox.ahead = Some(Ahead {
                    image: image.clone(),
                    stage,
                });
                return Some(image);
            }
            Some(_) => {
                let waited = shared.frames.wait_timeout(inbox, left);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
            None => {
                let waited = shared.frames.wait(inbox);
                waited.unwrap_or_else(PoisonError::into_inner)
            }
        };
    }
}

impl Shared {
    /// What has been made of a frame ahead of its turn, which has come; none if nothing has.
    pub fn seen_ahead(&self, image: &Arc<CameraImage>) -> Option<Result<Seen, PushError>> {
        let mut inbox = lock(&self.inbox);
        loop {
            match inbox
                .ahead
                .take_if(|ahead| Arc::ptr_eq(&ahead.image, image))
            {
                None => return None,
                Some(Ahead {
                    stage: Stage::Done(seen),
                    ..
                }) => return Some(*seen),
                running => {
                    inbox.ahead = running;
                    let waited = self.ready.wait(inbox);
                    inbox = waited.unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }
}
