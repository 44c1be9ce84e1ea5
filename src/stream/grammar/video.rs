//! Frames that stand in one video, as families without labels of time were trained: markup around the first and the last, and positions by
//! their times. A stream's videos have no end that is known; a video takes frames until something else comes.

use std::num::NonZeroU16;

use crate::cache::Video;
use crate::model::family::VideoAxis;

/// A frame further behind the last one begins another video, nanoseconds: what the model attends to should not move farther away with every
/// pause of a camera.
const LONGEST_PAUSE_NS: i64 = 60_000_000_000;

/// What a frame came so much too early for, seconds, counts as its time: stamps are not as regular as a file's frames.
const EARLY: f64 = 0.02;

/// A frame, as far as it matters to what is written around it.
#[derive(Debug, Clone, Copy)]
pub struct Shot<'a> {
    /// Time, height and width, in what its tower takes.
    pub grid: [usize; 3],
    /// Time since the epoch began, nanoseconds.
    pub elapsed_ns: i64,
    /// Index of its camera, and the label where there are several.
    pub camera: (usize, Option<&'a str>),
}

/// The videos of a stream.
#[derive(Debug, Clone)]
pub struct Videos {
    /// None: every frame is a picture of its own.
    axis: Option<VideoAxis>,
    /// Number of the newest.
    number: u16,
    open: Option<Open>,
}

/// A video that further frames may come to.
#[derive(Debug, Clone, Copy)]
struct Open {
    grid: [usize; 3],
    camera: usize,
    first_ns: i64,
    last_ns: i64,
    /// Where the last part stands on the axis of time.
    at: u64,
}

/// Where a frame stands in its video.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    pub video: Video,
    pub begins: bool,
}

impl Videos {
    pub fn new(axis: Option<VideoAxis>) -> Self {
        Self {
            axis,
            number: 0,
            open: None,
        }
    }

    /// Whether frames are parts of videos.
    pub fn any(&self) -> bool {
        self.axis.is_some()
    }

    /// Something else has come.
    pub fn end(&mut self) {
        self.open = None;
    }

    /// Takes the next frame into the video that is open, if it can be of it, or into one that it begins; none where there are no videos.
    pub fn part(&mut self, shot: &Shot) -> Option<Part> {
        let axis = self.axis?;
        let open = self.open.filter(|open| open.takes(shot));
        let (at, step) = match open {
            Some(open) => {
                let at = open.position(axis, shot.elapsed_ns);
                (at, at - open.at)
            }
            None => {
                self.number = self.number.checked_add(1).unwrap_or(1);
                (0, 0)
            }
        };
        self.open = Some(Open {
            grid: shot.grid,
            camera: shot.camera.0,
            first_ns: open.map_or(shot.elapsed_ns, |open| open.first_ns),
            last_ns: shot.elapsed_ns,
            at,
        });
        let video = Video {
            number: NonZeroU16::new(self.number)?,
            step: u16::try_from(step).unwrap_or(u16::MAX),
        };
        Some(Part {
            video,
            begins: open.is_none(),
        })
    }
}

impl Open {
    fn takes(&self, shot: &Shot) -> bool {
        let pause_ns = shot.elapsed_ns.saturating_sub(self.last_ns);
        let alike = self.grid == shot.grid && self.camera == shot.camera.0;
        alike && (0..=LONGEST_PAUSE_NS).contains(&pause_ns)
    }

    /// Where a part of this time stands, which is not before the last one.
    fn position(&self, axis: VideoAxis, elapsed_ns: i64) -> u64 {
        match axis {
            VideoAxis::Parts => self.at + 1,
            VideoAxis::Seconds(per_second) => {
                let seconds = elapsed_ns.saturating_sub(self.first_ns) as f64 * 1e-9;
                // The published models round down too.
                self.at.max(((seconds + EARLY) * per_second) as u64)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shot(seconds: f64) -> Shot<'static> {
        Shot {
            grid: [1, 4, 6],
            elapsed_ns: (seconds * 1e9) as i64,
            camera: (0, None),
        }
    }

    /// Video and step of each frame.
    fn parts(axis: VideoAxis, shots: &[Shot]) -> Vec<(u16, u16)> {
        let mut videos = Videos::new(Some(axis));
        let parts = shots.iter().map(|shot| videos.part(shot).unwrap());
        let parts = parts.map(|part| (part.video.number.get(), part.video.step));
        parts.collect()
    }

    #[test]
    fn frames_stand_by_their_times_or_one_behind_another() {
        let shots = [0.0, 1.0, 1.99, 2.2, 2.49, 60.0].map(shot);
        let two = VideoAxis::Seconds(2.0);
        // Positions 0, 2, 4, 4, 5, 120.
        let steps = [(1, 0), (1, 2), (1, 2), (1, 0), (1, 1), (1, 115)];
        assert_eq!(parts(two, &shots), steps);
        let steps = [(1, 0), (1, 1), (1, 1), (1, 1), (1, 1), (1, 1)];
        assert_eq!(parts(VideoAxis::Parts, &shots), steps);
    }

    #[test]
    fn what_cannot_be_of_a_video_begins_another() {
        let wider = Shot {
            grid: [1, 4, 8],
            ..shot(2.0)
        };
        let rear = Shot {
            camera: (1, Some("rear")),
            ..shot(5.0)
        };
        let shots = [
            shot(1.0),
            wider,
            shot(3.0),
            rear,
            shot(5.0),
            shot(4.0),
            shot(64.1),
            shot(65.0),
        ];
        let numbers = parts(VideoAxis::Parts, &shots).into_iter();
        let numbers = numbers.map(|(number, _)| number).collect::<Vec<_>>();
        assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7, 7]);
    }

    #[test]
    fn a_video_that_has_ended_takes_no_frame() {
        let mut videos = Videos::new(Some(VideoAxis::Parts));
        let mut begins = |time: f64, ends: bool| {
            if ends {
                videos.end();
            }
            videos.part(&shot(time)).unwrap().begins
        };
        assert!(begins(0.0, false));
        assert!(!begins(1.0, false));
        assert!(begins(2.0, true));
        assert_eq!(Videos::new(None).part(&shot(0.0)), None);
    }
}
