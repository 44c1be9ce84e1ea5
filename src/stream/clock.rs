//! The clock of the stamps: which images are in order, late or of another clock, and where the clock was set.
//!
//! It is fed when an image arrives, whatever becomes of the image, and compares two distances: that of the stamps and that
//! of the times of receipt. So it does not matter how long the model takes for a frame or how long the node was paused, and a
//! camera that was silent for a while has not jumped.
//!
//! - A stamp that goes on from the clock that is followed is in order. It may make up for time in which stamps stood still
//!   (a paused simulation, a link that was down), but not run ahead of the receipt by more than the threshold.
//! - A stamp further off than the threshold is strange. A single one is left out, and nothing comes of it; with a second one in a row
//!   that goes on from it the clock has jumped: a looped bag, a restarted simulation.
//! - A stamp that lies back by less was overtaken on its way, unless [`SET_BACK`] in a row go on from there while nothing comes
//!   of the clock that was followed: then that clock was set back.
//! - Stamps that go on from a clock known before, while another one is followed, are of a second clock beside it. One of the
//!   two is followed, and it is the same one until it has been silent for the length of the threshold.
//! - Stamps of which none goes on from another are all strange. Once the clock that is followed has been silent for the length of the
//!   threshold, the newest one of them is followed, so that something is used.

use super::frame::FrameError;

/// Late images in a row, each newer than the one before, that mean that the clock was set back.
pub const SET_BACK: u32 = 3;
/// A clock that was set back has been silent for this many of its images' distances.
const SILENT_DISTANCES: f64 = 2.5;
/// Images that go on from each other make a clock that is worth coming back to.
const ESTABLISHED: u64 = 2;
/// Clocks beside the one that is followed of which something is remembered.
const OTHERS: usize = 3;
/// Stamps that are further apart than this are not of one clock, nanoseconds.
const APART_NS: i64 = 1_000_000_000;

/// An image's place in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// The first one since the start or a reset.
    First,
    InOrder,
    /// Older than the newest image (its stamp), which overtook it.
    Late {
        newest_ns: i64,
    },
    /// Of another clock than the one that is followed (the stamp of its newest image), or of none.
    OtherClock {
        newest_ns: i64,
    },
    /// The clock jumped, from `newest_ns`: an epoch begins.
    Jump {
        newest_ns: i64,
    },
}

impl Arrival {
    /// Whether an image with this stamp may be used; if so, the stamp that the clock jumped from where it did.
    pub fn check(self, stamp_ns: i64) -> Result<Option<i64>, FrameError> {
        match self {
            Self::First | Self::InOrder => Ok(None),
            Self::Jump { newest_ns } => Ok(Some(newest_ns)),
            Self::Late { newest_ns } => Err(FrameError::OutOfOrder {
                stamp_ns,
                newest_ns,
            }),
            Self::OtherClock { newest_ns } => Err(FrameError::OtherClock {
                stamp_ns,
                newest_ns,
            }),
        }
    }
}

/// A clock that stamps have come from.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Track {
    newest_ns: i64,
    /// When the newest image was received.
    received_ns: i64,
    /// The furthest that its stamps have been ahead of the receipt.
    ahead_ns: i64,
    images: u64,
    /// Of these, those since an image of the clock that is followed.
    in_a_row: u32,
}

impl Track {
    fn new(stamp_ns: i64, received_ns: i64) -> Self {
        Self {
            newest_ns: stamp_ns,
            received_ns,
            ahead_ns: stamp_ns.saturating_sub(received_ns),
            images: 1,
            in_a_row: 1,
        }
    }

    fn take(&mut self, stamp_ns: i64, received_ns: i64) {
        self.newest_ns = stamp_ns;
        self.received_ns = received_ns;
        self.ahead_ns = self.ahead_ns.max(stamp_ns.saturating_sub(received_ns));
        self.images += 1;
        self.in_a_row += 1;
    }

    /// Whether a stamp goes on from here without running ahead.
    fn leads_to(&self, stamp_ns: i64, received_ns: i64, threshold_ns: i64) -> bool {
        let ahead_ns = stamp_ns.saturating_sub(received_ns);
        stamp_ns >= self.newest_ns && ahead_ns.saturating_sub(self.ahead_ns) <= threshold_ns
    }

    /// The same of a clock that is not followed, which has to show that it is the one.
    fn is_of(&self, stamp_ns: i64, received_ns: i64, threshold_ns: i64) -> bool {
        let behind_ns = (self.ahead_ns).saturating_sub(stamp_ns.saturating_sub(received_ns));
        self.leads_to(stamp_ns, received_ns, threshold_ns) && behind_ns <= threshold_ns
    }

    /// Whether it goes on while another clock does.
    fn is_beside(&self) -> bool {
        self.images > u64::from(self.in_a_row)
    }

    fn established(&self) -> bool {
        self.images >= ESTABLISHED
    }
}

/// The state of the decisions; plain data.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamClock {
    threshold_ns: i64,
    followed: Option<Track>,
    /// At most [`OTHERS`].
    others: Vec<Track>,
    /// Mean distance in receipt of the images that were followed, nanoseconds.
    distance_ns: f64,
    /// Images since the last one of the clock that is followed.
    strange: u32,
}

impl StreamClock {
    /// `threshold_s`: by how much stamps and receipt may differ, seconds.
    pub fn new(threshold_s: f64) -> Self {
        Self {
            threshold_ns: (threshold_s * 1e9) as i64,
            followed: None,
            others: Vec::new(),
            distance_ns: 0.0,
            strange: 0,
        }
    }

    /// Forgets every image.
    pub fn reset(&mut self) {
        *self = Self {
            threshold_ns: self.threshold_ns,
            ..Self::new(0.0)
        };
    }

    /// Places an image by its stamp and the time of its receipt, nanoseconds; the latter on any clock that does not jump (the
    /// steady one; of a recording the times of its log).
    pub fn arrive(&mut self, stamp_ns: i64, received_ns: i64) -> Arrival {
        let Some(followed) = &mut self.followed else {
            self.followed = Some(Track::new(stamp_ns, received_ns));
            return Arrival::First;
        };
        let newest_ns = followed.newest_ns;
        if followed.leads_to(stamp_ns, received_ns, self.threshold_ns) {
            let distance_ns = received_ns.saturating_sub(followed.received_ns).max(0) as f64;
            self.distance_ns = match self.distance_ns {
                0.0 => distance_ns,
                mean => mean + (distance_ns - mean) / 8.0,
            };
            followed.take(stamp_ns, received_ns);
            self.strange = 0;
            for other in &mut self.others {
                other.in_a_row = 0;
            }
            return Arrival::InOrder;
        }
        let followed = *followed;
        self.strange = self.strange.saturating_add(1);
        let at = self.of_another(stamp_ns, received_ns);
        if !self.takes_over(&followed, &self.others[at], received_ns) {
            let apart_ns = stamp_ns.saturating_sub(newest_ns).saturating_abs();
            let known = self.others[at].is_beside() && apart_ns > APART_NS;
            return match known || apart_ns > self.threshold_ns {
                true => Arrival::OtherClock { newest_ns },
                false => Arrival::Late { newest_ns },
            };
        }
        let other = std::mem::replace(&mut self.others[at], followed);
        self.others[at].in_a_row = 0;
        self.strange = 0;
        self.followed = Some(other);
        Arrival::Jump { newest_ns }
    }

    /// Index of the clock, other than the one that is followed, that a stamp is of; a new one if of none.
    fn of_another(&mut self, stamp_ns: i64, received_ns: i64) -> usize {
        let threshold_ns = self.threshold_ns;
        // One that has been silent for so long does not go on beside the followed one: if it comes again, the clock went back to it.
        // One that has not been interrupted may be where the clock went, however slow the camera.
        self.others.retain(|other| {
            !other.is_beside() || received_ns.saturating_sub(other.received_ns) <= threshold_ns
        });
        let is_of = |other: &Track| other.is_of(stamp_ns, received_ns, threshold_ns);
        if let Some(at) = self.others.iter().position(is_of) {
            self.others[at].take(stamp_ns, received_ns);
            return at;
        }
        if self.others.len() == OTHERS {
            let least = (0..OTHERS).min_by_key(|&at| {
                let other = &self.others[at];
                (other.established(), other.received_ns)
            });
            self.others.swap_remove(least.unwrap_or_default());
        }
        self.others.push(Track::new(stamp_ns, received_ns));
        self.others.len() - 1
    }

    /// Whether the clock of the newest image, `other`, is the one to follow from now on.
    fn takes_over(&self, followed: &Track, other: &Track, received_ns: i64) -> bool {
        let silent_ns = received_ns.saturating_sub(followed.received_ns);
        let step_ns = other.newest_ns.saturating_sub(followed.newest_ns);
        if !other.is_beside() && (-self.threshold_ns..0).contains(&step_ns) {
            return other.in_a_row >= SET_BACK
                && silent_ns as f64 >= SILENT_DISTANCES * self.distance_ns;
        }
        let gone = silent_ns > self.threshold_ns;
        match other.established() {
            true => gone || !other.is_beside(),
            false => gone && self.strange > 1,
        }
    }
}

#[cfg(test)]
mod tests;
