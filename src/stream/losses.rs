//! Images that were lost on their way, as the stamps of those that came tell.
//!
//! A camera stamps at a steady pace. Of the distances between the stamps that come, the short ones are that pace, and a long one
//! has images missing in it. That tells of losses, not of a camera that is slow.

use std::collections::VecDeque;

/// Distances that are looked at.
const DISTANCES: usize = 50;
/// With fewer of them nothing is said.
const ENOUGH: usize = 20;
/// So many of the newest ones count by themselves too: a camera may have become slower, as in the dark.
const NEWEST: usize = 10;
/// A longer distance is a pause of the camera, nanoseconds.
const PAUSE_NS: i64 = 1_000_000_000;

/// The distances of the newest stamps; plain data.
#[derive(Debug, Default, Clone)]
pub struct Losses {
    newest_ns: Option<i64>,
    distances_ns: VecDeque<i64>,
}

impl Losses {
    /// An image has come whose stamp is in order.
    pub fn arrive(&mut self, stamp_ns: i64) {
        let before = self.newest_ns.replace(stamp_ns);
        let distance_ns = before.map_or(0, |before| stamp_ns.saturating_sub(before));
        if !(1..PAUSE_NS).contains(&distance_ns) {
            return;
        }
        if self.distances_ns.len() == DISTANCES {
            self.distances_ns.pop_front();
        }
        self.distances_ns.push_back(distance_ns);
    }

    /// Share of the camera's last images that did not come, 0 to 1; 0 as long as too few have come to tell.
    pub fn share(&self) -> f32 {
        let came = self.distances_ns.len();
        if came < ENOUGH {
            return 0.0;
        }
        let newest = self.distances_ns.range(came - NEWEST..);
        lost(self.distances_ns.iter()).min(lost(newest))
    }
}

/// Share of the images that is missing in these distances, of which the short ones are the camera's pace; 0 to 1.
fn lost<'a>(distances_ns: impl Iterator<Item = &'a i64>) -> f32 {
    let mut sorted: Vec<i64> = distances_ns.copied().collect();
    sorted.sort_unstable();
    let pace_ns = sorted[sorted.len() / 5] as f64;
    let sent: f64 = sorted
        .iter()
        .map(|&distance_ns| (distance_ns as f64 / pace_ns).round().max(1.0))
        .sum();
    (1.0 - sorted.len() as f64 / sent) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE_NS: i64 = 33_333_333;

    /// The share that is told of a camera of which the images for which `comes` come.
    fn share(comes: impl Fn(i64) -> bool, jitter_ns: i64) -> f32 {
        let mut losses = Losses::default();
        for i in (0..400).filter(|&i| comes(i)) {
            losses.arrive(i * PACE_NS + i * 7919 % 17 * jitter_ns / 17);
        }
        losses.share()
    }

    #[test]
    fn a_camera_all_of_whose_images_come_loses_none_whatever_its_jitter() {
        assert_eq!(share(|_| true, 0), 0.0);
        assert!(share(|_| true, PACE_NS / 3) < 0.1);
        // Every other one from the camera itself, as `frame_rate` of a driver does it.
        assert_eq!(share(|i| i % 2 == 0, 0), 0.0);
    }

    #[test]
    fn what_is_missing_between_the_images_is_told() {
        // Two of seven, one after the other.
        let told = share(|i| i % 7 < 2, 0);
        assert!((told - 5.0 / 7.0).abs() < 0.05, "{told}");
    }

    #[test]
    fn a_camera_that_has_become_slower_has_lost_nothing() {
        let mut losses = Losses::default();
        let mut stamp_ns = 0;
        let distances = [PACE_NS; 100].into_iter().chain([200_000_000; 100]);
        let told = distances.map(|distance_ns| {
            stamp_ns += distance_ns;
            losses.arrive(stamp_ns);
            losses.share()
        });
        let wrong = told.filter(|&share| share > 0.0).count();
        assert!(wrong < NEWEST, "{wrong} times");
    }

    #[test]
    fn pauses_jumps_and_stamps_that_stand_still_are_no_losses() {
        let mut losses = Losses::default();
        for i in 0..200 {
            losses.arrive(i * PACE_NS + i / 5 * 2 * PAUSE_NS);
        }
        assert_eq!(losses.share(), 0.0);
        for _ in 0..100 {
            losses.arrive(7);
        }
        assert_eq!(losses.share(), 0.0);
    }

    #[test]
    fn nothing_is_said_of_a_few_images() {
        assert_eq!(share(|i| i < 60 && i % 7 < 2, 0), 0.0);
    }
}
