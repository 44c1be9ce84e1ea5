//! Which frames enter the memory: their order in time, their rate, and whether there is anything new in them.
//!
//! Decided by stamps and pixels alone, so that a replay decides as the running node did.

use std::sync::Arc;

use crate::cache::parameter::parameters;
use crate::model::vision::Prepared;

parameters! {
    section "Frames";
    /// What the gate goes by.
    #[derive(Debug, Clone, Copy, PartialEq)]
    pub struct GateConfig {
        /// Most frames used per second, counted by their stamps; 0: all that the model can take.
        frame_rate: f64 = 0.0, range 0.0..=1000.0, unit "1/s", set Running;
        /// A frame that differs less from the last one used is skipped (mean difference of the pixels at the model's input size); 0:
        /// none is. 0.01 keeps a parked robot from filling its memory with one picture.
        min_change: f64 = 0.0, range 0.0..=1.0, unit "full scale", set Running;
        /// Stamps that jump by more than this start a new epoch: a looped bag, a restarted simulation, a long gap. A smaller step back
        /// is an overtaken message, which is refused, unless the next one goes on from there.
        time_jump_threshold: f64 = 10.0, range 0.1..=1e6, unit "s";
        /// A new epoch starts with an empty memory (true), or goes on with the one there is (false).
        reset_on_time_jump: bool = false;
    }
    parts {}
    others {}
}

/// A frame's place in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    InOrder,
    /// Older than the newest frame (its stamp), which a message overtook.
    OutOfOrder {
        newest_ns: i64,
    },
    /// The clock jumped from `newest_ns`: a looped bag, a restarted simulation, a long gap.
    Jump {
        newest_ns: i64,
    },
}

/// Why a good frame was not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skip {
    /// It came sooner than `frame_rate` allows.
    Rate,
    /// It shows what the last one used showed.
    Unchanged,
}

/// The state of the decisions.
#[derive(Debug, Clone)]
pub struct FrameGate {
    config: GateConfig,
    newest_ns: Option<i64>,
    /// The stamp of the frame just refused as out of order.
    overtaken_ns: Option<i64>,
    /// When the next frame may be used.
    due_ns: Option<i64>,
    /// The last frame used, at the model's input size.
    used: Option<Arc<Prepared>>,
}

impl FrameGate {
    pub fn new(config: GateConfig) -> Self {
        Self {
            config,
            newest_ns: None,
            overtaken_ns: None,
            due_ns: None,
            used: None,
        }
    }

    pub fn config(&self) -> &GateConfig {
        &self.config
    }

    /// Goes by other settings from the next frame on.
    pub fn configure(&mut self, config: GateConfig) {
        self.config = config;
    }

    /// Places a frame in time by its stamp.
    ///
    /// A step back of less than the threshold is a message that was overtaken, unless the next one goes on from there: then
    /// the clock was set back.
    pub fn arrive(&mut self, stamp_ns: i64) -> Arrival {
        let Some(newest_ns) = self.newest_ns else {
            self.newest_ns = Some(stamp_ns);
            return Arrival::InOrder;
        };
        let step = stamp_ns.saturating_sub(newest_ns);
        let far = step.unsigned_abs() as f64 > self.config.time_jump_threshold * 1e9;
        let goes_on = self.overtaken_ns.is_some_and(|from| stamp_ns >= from);
        if step < 0 && !far && !goes_on {
            self.overtaken_ns = Some(stamp_ns);
            return Arrival::OutOfOrder { newest_ns };
        }
        self.overtaken_ns = None;
        self.newest_ns = Some(stamp_ns);
        if step < 0 || far {
            self.due_ns = None;
            return Arrival::Jump { newest_ns };
        }
        Arrival::InOrder
    }

    /// Whether the rate allows a frame of this stamp.
    pub fn due(&self, stamp_ns: i64) -> bool {
        self.config.frame_rate <= 0.0 || self.due_ns.is_none_or(|due_ns| stamp_ns >= due_ns)
    }

    /// Counts a frame that was due against the rate; one that is late does not delay those after it.
    pub fn spend(&mut self, stamp_ns: i64) {
        if self.config.frame_rate <= 0.0 {
            return;
        }
        let period_ns = (1e9 / self.config.frame_rate) as i64;
        let on_time = |due_ns: &i64| stamp_ns.saturating_sub(*due_ns) < period_ns;
        let counted_from = self.due_ns.filter(on_time).unwrap_or(stamp_ns);
        self.due_ns = Some(counted_from.saturating_add(period_ns));
    }

    /// Whether a picture at the model's input size (packed bytes) shows nothing new.
    pub fn unchanged(&self, picture: &Prepared) -> bool {
        if self.config.min_change <= 0.0 {
            return false;
        }
        let used = self.used.as_ref();
        used.filter(|used| used.layout == picture.layout)
            .is_some_and(|used| {
                let (mut sum, mut count) = (0, 0);
                for (a, b) in used.tiles.iter().zip(&picture.tiles) {
                    let values = a.rgb.iter().zip(&b.rgb);
                    sum += values.map(|(a, b)| u64::from(a.abs_diff(*b))).sum::<u64>();
                    count += b.rgb.len();
                }
                sum as f64 / count.max(1) as f64 / 255.0 < self.config.min_change
            })
    }

    /// Takes note of the picture that was used.
    pub fn took(&mut self, picture: Prepared) {
        self.used = Some(Arc::new(picture));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::vision::{Layout, Tile, View};

    const MS: i64 = 1_000_000;

    fn gate(config: GateConfig) -> FrameGate {
        FrameGate::new(config)
    }

    /// Whether a frame is used by the rate alone.
    fn passes(gate: &mut FrameGate, stamp_ns: i64) -> bool {
        let due = gate.due(stamp_ns);
        if due {
            gate.spend(stamp_ns);
        }
        due
    }

    fn arrivals(stamps_ms: &[i64]) -> Vec<Arrival> {
        let mut gate = gate(GateConfig::default());
        stamps_ms.iter().map(|ms| gate.arrive(ms * MS)).collect()
    }

    #[test]
    fn an_overtaken_message_is_refused_and_the_rest_goes_on() {
        let newest_ns = 200 * MS;
        assert_eq!(
            arrivals(&[100, 200, 150, 300, 250]),
            [
                Arrival::InOrder,
                Arrival::InOrder,
                Arrival::OutOfOrder { newest_ns },
                Arrival::InOrder,
                Arrival::OutOfOrder {
                    newest_ns: 300 * MS
                },
            ]
        );
    }

    #[test]
    fn a_clock_set_back_by_less_than_the_threshold_costs_one_frame() {
        let newest_ns = 5000 * MS;
        assert_eq!(
            arrivals(&[5000, 0, 100, 200]),
            [
                Arrival::InOrder,
                Arrival::OutOfOrder { newest_ns },
                Arrival::Jump { newest_ns },
                Arrival::InOrder,
            ]
        );
    }

    #[test]
    fn far_jumps_in_both_directions_start_an_epoch_at_once() {
        let newest_ns = 60_000 * MS;
        assert_eq!(arrivals(&[60_000, 100])[1], Arrival::Jump { newest_ns });
        assert_eq!(arrivals(&[60_000, 80_000])[1], Arrival::Jump { newest_ns });
        assert_eq!(arrivals(&[60_000, 70_000])[1], Arrival::InOrder);
        let ends = [i64::MIN / MS, i64::MAX / MS];
        assert!(matches!(arrivals(&ends)[1], Arrival::Jump { .. }));
    }

    #[test]
    fn a_camera_without_a_clock_is_always_in_order() {
        assert!(arrivals(&[0; 5]).iter().all(|a| *a == Arrival::InOrder));
    }

    #[test]
    fn a_rate_is_kept_on_average_whatever_the_camera_s_own_rate_and_jitter() {
        for (camera_hz, jitter_ms) in [(30.0, 0), (30.0, 8), (25.0, 5), (12.0, 3)] {
            let mut gate = gate(GateConfig {
                frame_rate: 10.0,
                ..GateConfig::default()
            });
            let frames = (camera_hz * 60.0) as i64;
            let used = (0..frames)
                .filter(|i| {
                    let jitter = (i * 7919 % 17 - 8) * jitter_ms / 8;
                    let stamp_ms = (*i as f64 * 1e3 / camera_hz) as i64 + jitter;
                    passes(&mut gate, stamp_ms * MS)
                })
                .count();
            assert!(
                (595..=601).contains(&used),
                "{camera_hz} Hz: {used} in a minute"
            );
        }
    }

    #[test]
    fn a_late_frame_does_not_bring_a_burst_after_it() {
        let mut gate = gate(GateConfig {
            frame_rate: 10.0,
            ..GateConfig::default()
        });
        let stamps = [0, 1000, 1010, 1020, 1050, 1100, 1150, 1200];
        let used: Vec<_> = stamps
            .into_iter()
            .filter(|ms| passes(&mut gate, ms * MS))
            .collect();
        assert_eq!(used, [0, 1000, 1100, 1200]);
    }

    #[test]
    fn a_still_picture_is_unchanged_until_enough_differs_from_the_one_used() {
        let mut gate = gate(GateConfig {
            min_change: 0.02,
            ..GateConfig::default()
        });
        let grey = |level| Prepared {
            layout: Layout {
                picture: (10, 10),
                view: View::Frame,
                grid: [1, 0, 0],
            },
            tiles: vec![Tile {
                width: 10,
                height: 10,
                rgb: vec![level; 300],
            }],
        };
        assert!(!gate.unchanged(&grey(100)));
        gate.took(grey(100));
        assert!(gate.unchanged(&grey(103)));
        // Slow drift adds up, since the comparison is with the frame in the memory.
        assert!(!gate.unchanged(&grey(106)));
    }
}
