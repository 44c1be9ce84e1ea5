//! The sizes that pictures are brought to: the fewest and the most pixels, and whole squares of patches within them.

use serde::Deserialize;

use crate::model::decoder::Unsupported;
use crate::model::preprocess::picture::MAX_ASPECT;
use crate::model::vision::{FramePixels, FramePixelsError};

/// What the fewest and the most pixels of a video processor's configuration count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VideoSizes {
    /// Those of each frame (Qwen2-VL, Qwen2.5-VL).
    EachFrame,
    /// Those of all frames of a video together (Qwen3-VL). A stream has no last frame: it has the limits of the shortest video, which is one
    /// group of frames.
    WholeVideo,
}

impl VideoSizes {
    /// `size` (width, height), where one of them is shorter than `side` with that one at it, as the processors that count whole videos
    /// begin.
    pub fn at_least(side: usize, (width, height): (usize, usize)) -> (f64, f64) {
        let shorter = width.min(height).max(1);
        match shorter < side {
            true => {
                let scale = side as f64 / shorter as f64;
                let scaled = |length: usize| (length as f64 * scale).floor();
                (scaled(width), scaled(height))
            }
            false => (width as f64, height as f64),
        }
    }
}

/// The fewest and the most pixels of a resized picture, whatever the names say.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub struct PixelCounts {
    shortest_edge: Option<usize>,
    longest_edge: Option<usize>,
    /// The same in older files.
    min_pixels: Option<usize>,
    max_pixels: Option<usize>,
}

impl PixelCounts {
    pub fn of(fewest: usize, most: usize) -> Self {
        Self {
            shortest_edge: Some(fewest),
            longest_edge: Some(most),
            ..Self::default()
        }
    }

    /// As limits, where `fewest` and `most` win if they are given.
    pub fn limits(
        &self,
        fewest: Option<usize>,
        most: Option<usize>,
    ) -> Result<Limits, Unsupported> {
        let given = |name, value: Option<usize>| {
            value.ok_or_else(|| Unsupported::new(name, "missing", "a number of pixels"))
        };
        let fewest = fewest.or(self.shortest_edge).or(self.min_pixels);
        let most = most.or(self.longest_edge).or(self.max_pixels);
        let min = given("size.shortest_edge", fewest)?;
        let max = given("size.longest_edge", most)?;
        // No picture is made larger than the fewest; the most only bounds what pictures have anyway.
        Unsupported::too_large(&[("fewest pixels", min)])?;
        if min == 0 || min > max {
            let expected = format!("1 to {max}, the most pixels");
            return Err(Unsupported::new("fewest pixels", min, expected));
        }
        Ok(Limits { min, max })
    }
}

/// The fewest and the most pixels of a resized picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    min: usize,
    max: usize,
}

impl Limits {
    /// Of each of so many pictures that share them.
    pub fn shared(self, among: usize) -> Self {
        let among = among.max(1);
        Self {
            min: self.min.div_ceil(among),
            max: (self.max / among).max(1),
        }
    }

    /// With no more than `most` pixels, unless the fewest are more.
    pub fn capped(self, most: usize) -> Self {
        Self {
            max: self.max.min(most).max(self.min),
            ..self
        }
    }

    /// With what is asked for in their place; `square`: pixels of a square of patches, without which there is no picture.
    pub fn with(self, asked: FramePixels, square: usize) -> Result<Self, FramePixelsError> {
        let (min, max) = asked.instead_of((self.min, self.max), square)?;
        Ok(Self { min, max })
    }

    /// How many squares of `side` pixels a picture of `size` (width, height) has down and across.
    ///
    /// Both sides become multiples of a square's, the nearest if the number of pixels is then within the limits, else with the
    /// aspect ratio kept as well as it can be: the published numbers, which go beyond the most pixels where a shorter side of one square
    /// makes a long picture larger. The published processor (`smart_resize`) refuses pictures more than 200 times as long as wide; here
    /// the longer side of those gives way, so that the most pixels hold.
    pub fn squares(&self, (w, h): (f64, f64), side: usize) -> (usize, usize) {
        let (min, max, unit) = (self.min as f64, self.max as f64, side as f64);
        let pixels = |down: f64, across: f64| down * across * unit * unit;
        let (mut down, mut across) = ((h / unit).round_ties_even(), (w / unit).round_ties_even());
        if pixels(down, across) > max {
            let shrink = (h * w / max).sqrt();
            let fitted = |length: f64| (length / shrink / unit).floor().max(1.0);
            (down, across) = (fitted(h), fitted(w));
        } else if pixels(down, across) < min {
            let grow = (min / (h * w)).sqrt();
            let fitted = |length: f64| (length * grow / unit).ceil();
            (down, across) = (fitted(h), fitted(w));
        }
        if w.max(h) > MAX_ASPECT as f64 * w.min(h) {
            let squares = (max / (unit * unit)).floor().max(1.0);
            let at_most = |this: f64, other: f64| this.min((squares / other).floor()).max(1.0);
            if down > across {
                down = at_most(down, across);
            } else {
                across = at_most(across, down);
            }
        }
        (down as usize, across as usize)
    }
}
