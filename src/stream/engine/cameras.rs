//! The cameras before the engine: of each the frame that waits, its place in time, and what was lost on the way.
//!
//! Every camera has a slot of its own, so that none takes another one's place, and one that stops leaves the others alone. The frame that
//! has waited longest is the next one.

use std::sync::Arc;
use std::time::Instant;

use crate::stream::clock::StreamClock;
use crate::stream::frame::{CameraImage, FrameError};
use crate::stream::losses::Losses;
use crate::stream::stats::StreamStats;

/// A frame that waits, and since when a frame of its camera has been waiting.
pub type Waiting = (Instant, Arc<CameraImage>);

/// One camera.
pub struct Slot {
    /// The newest frame.
    pub frame: Option<Waiting>,
    /// Places frames in time as they arrive.
    clock: StreamClock,
    /// The stamp that the clock jumped from (last, of several jumps), if it has since a frame was taken: whichever is taken next
    /// begins an epoch.
    pub jumped: Option<i64>,
    pub losses: Losses,
    /// When the last image came.
    pub heard_at: Option<Instant>,
}

impl Slot {
    /// Places a good image in time, also while `paused`, and lets it wait for its turn in the place of the one that waits.
    fn offer(
        &mut self,
        mut image: CameraImage,
        received_ns: i64,
        paused: bool,
        stats: &mut StreamStats,
    ) -> Result<(), FrameError> {
        let undated = image.date(received_ns);
        let ahead_ns = image.stamp_ns.saturating_sub(image.arrival_ns);
        if stats.dated(image.camera, (!undated).then_some(ahead_ns)) {
            tracing::warn!("images come without a stamp: the time of their receipt is taken");
        }
        let arrival = self.clock.arrive(image.stamp_ns, received_ns);
        let jumped = arrival.check(image.stamp_ns)?;
        if jumped.is_some() {
            stats.jumped(image.camera);
            self.losses = Losses::default();
        }
        self.jumped = jumped.or(self.jumped);
        self.losses.arrive(image.stamp_ns);
        if paused {
            stats.paused(image.camera);
            return Ok(());
        }
        // A newer frame takes the waiting one's place in the line, not its turn behind every instruction since.
        let since = match self.frame.take() {
            Some((since, _)) => {
                stats.superseded(image.camera);
                since
            }
            None => Instant::now(),
        };
        self.frame = Some((since, Arc::new(image)));
        Ok(())
    }
}

/// All of them, by their indices.
pub struct Cameras(Vec<Slot>);

impl Cameras {
    /// So many, whose clocks may differ from the receipt by this, seconds.
    pub fn new(count: usize, threshold_s: f64) -> Self {
        let slot = |_| Slot {
            frame: None,
            clock: StreamClock::new(threshold_s),
            jumped: None,
            losses: Losses::default(),
            heard_at: None,
        };
        Self((0..count).map(slot).collect())
    }

    pub fn slots(&self) -> &[Slot] {
        &self.0
    }

    /// The camera that an image is of.
    pub fn slot(&mut self, camera: usize) -> Result<&mut Slot, FrameError> {
        let count = self.0.len();
        let slot = self.0.get_mut(camera);
        slot.ok_or(FrameError::Camera { camera, count })
    }

    /// As [`super::inbox::Inbox::offer`].
    pub fn offer(
        &mut self,
        image: CameraImage,
        received_ns: i64,
        paused: bool,
        stats: &mut StreamStats,
    ) -> Result<(), FrameError> {
        let slot = self.slot(image.camera)?;
        slot.offer(image, received_ns, paused, stats)
    }

    /// The frame that is to be taken next: the one of the camera that has waited longest, of two the one of the first camera.
    pub fn next(&self) -> Option<&Waiting> {
        let waiting = self.0.iter().filter_map(|slot| slot.frame.as_ref());
        waiting.min_by_key(|(since, _)| *since)
    }

    /// Takes that frame; with the stamp that its camera's clock jumped from if an epoch begins with it.
    pub fn take(&mut self) -> Option<(Waiting, Option<i64>)> {
        let camera = self.next()?.1.camera;
        let slot = self.0.get_mut(camera)?;
        Some((slot.frame.take()?, slot.jumped.take()))
    }

    /// Lets go of the frames that wait; of which cameras these were.
    pub fn drop_waiting(&mut self) -> Vec<usize> {
        let slots = self.0.iter_mut().enumerate();
        let dropped = slots.filter_map(|(camera, slot)| slot.frame.take().map(|_| camera));
        dropped.collect()
    }

    /// A stream begins; clocks may differ from the receipt by this, seconds.
    pub fn begin(&mut self, threshold_s: f64) {
        for slot in &mut self.0 {
            slot.frame = None;
            slot.jumped = None;
            slot.clock = StreamClock::new(threshold_s);
        }
    }

    /// The stamps from before a reset have no part in what comes after it.
    pub fn forget_stamps(&mut self) {
        for slot in &mut self.0 {
            slot.jumped = None;
            slot.clock.reset();
        }
    }
}
