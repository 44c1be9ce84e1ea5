//! Frames per second into the cache while tokens are decoded.
//!
//! One thread does both by turns: whenever a token is due it is decoded, else the next frame goes into the cache. On a GPU another
//! thread takes pictures through the tower meanwhile, as an engine does; on the CPU the same thread does. So the frames are as many as fit
//! beside the tokens, and tokens that come late are told.

use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use image::RgbImage;
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use serde::Serialize;

use super::built::Built;
use super::device::used_bytes;
use super::spread::Spread;
use super::{About, Bench};
use crate::cache::{FrameId, Mark};
use crate::eval::{parameter, EvalError};
use crate::gpu;
use crate::model::decoder::Embedded;
use crate::model::mllm::image_places;
use crate::model::vision::beside::Beside;
use crate::model::vision::frames::FrameEncoder;
use crate::model::vision::ImageFeatures;
use crate::model::ModelError;

/// Different pictures, one after the other.
const PICTURES: usize = 4;

/// What comes in and what goes out.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Width and height of a picture, pixels.
    pub picture: (usize, usize),
    /// Tokens that are due per second; 0: none.
    pub tokens_per_s: f64,
    pub time: Duration,
}

/// What was done in that time.
#[derive(Debug, Clone, Serialize)]
pub struct Fed {
    #[serde(flatten)]
    pub about: About,
    pub picture: (usize, usize),
    pub tokens_per_frame: usize,
    pub seconds: f64,
    pub frames: usize,
    pub frames_per_s: f64,
    /// Milliseconds from a picture's pixels into the cache.
    pub frame_ms: Spread,
    pub tokens: usize,
    pub tokens_per_s: f64,
    pub asked_tokens_per_s: f64,
    pub token_ms: Spread,
    /// Milliseconds that tokens were late, behind a frame.
    pub late_ms: Spread,
    /// Memory of the device in use at the end, bytes.
    pub memory: Option<u64>,
}

impl Bench {
    /// Feeds frames and decodes for a while, with a cache that is full.
    pub fn frames(&self, load: Load) -> Result<Fed, EvalError> {
        if load.picture.0 == 0 || load.picture.1 == 0 {
            return Err(parameter("size", "0 pixels wide or high", "at least 1x1"));
        }
        self.pool()?.install(|| self.feed(load))
    }

    fn feed(&self, load: Load) -> Result<Fed, EvalError> {
        let mut built = self.build()?;
        let (shape, tower) = (&built.shape, &built.tower);
        let vision = shape.config.vision(&shape.checkpoint, tower)?;
        let vision = Beside::of(vision, tower.device(), &self.device);
        let encoder = FrameEncoder::new(vision, gpu::of(tower.device()), tower.device());
        let pictures = pictures(load.picture);
        let mut token = built.fill(self.cache.budget)?;
        let mut tokens_per_frame = 0;
        for (id, picture) in (0..).zip(&pictures) {
            tokens_per_frame = built.take(Encoded::of(&encoder, picture)?, id)?;
            token = built.step(token)?;
        }
        self.device.synchronize()?;
        let mut pictures = pictures.iter().cycle();
        let mut encode = move || match pictures.next() {
            Some(picture) => Encoded::of(&encoder, picture),
            None => Err(ModelError::Inputs("no pictures".to_string())),
        };
        let measured = match self.device.is_cpu() {
            true => self.by_turns(&mut built, load, token, |_| encode().map(Some))?,
            false => std::thread::scope(|scope| {
                // One frame waits, or is in the making.
                let (sender, encoded) = sync_channel(0);
                scope.spawn(move || while sender.send(encode()).is_ok() {});
                self.by_turns(&mut built, load, token, |wait| {
                    match encoded.recv_timeout(wait) {
                        Ok(encoded) => encoded.map(Some),
                        Err(_) => Ok(None),
                    }
                })
            })?,
        };
        let Measured {
            seconds,
            frame_ms,
            token_ms,
            late_ms,
        } = measured;
        Ok(Fed {
            about: built.about,
            picture: load.picture,
            tokens_per_frame,
            seconds,
            frames: frame_ms.len(),
            frames_per_s: frame_ms.len() as f64 / seconds,
            tokens: token_ms.len(),
            tokens_per_s: token_ms.len() as f64 / seconds,
            asked_tokens_per_s: load.tokens_per_s,
            frame_ms: Spread::of(frame_ms),
            token_ms: Spread::of(token_ms),
            late_ms: Spread::of(late_ms),
            memory: used_bytes(&self.device),
        })
    }

    /// Decodes `token` and what follows it, each when it is due, and else takes what `next` gives within so long, if it gives anything.
    fn by_turns(
        &self,
        built: &mut Built,
        load: Load,
        mut token: u32,
        mut next: impl FnMut(Duration) -> Result<Option<Encoded>, ModelError>,
    ) -> Result<Measured, EvalError> {
        let (mut frame_ms, mut token_ms, mut late_ms) = (Vec::new(), Vec::new(), Vec::new());
        let started = Instant::now();
        while started.elapsed() < load.time {
            let due = Duration::from_secs_f64(match load.tokens_per_s > 0.0 {
                true => token_ms.len() as f64 / load.tokens_per_s,
                false => load.time.as_secs_f64(),
            });
            let clock = Instant::now();
            let elapsed = clock - started;
            if elapsed >= due {
                late_ms.push((elapsed - due).as_secs_f64() * 1e3);
                token = built.step(token)?;
                token_ms.push(clock.elapsed().as_secs_f64() * 1e3);
            } else if let Some(encoded) = next(due.min(load.time).saturating_sub(elapsed))? {
                let id = (PICTURES + frame_ms.len()) as FrameId;
                let begun = encoded.begun;
                built.take(encoded, id)?;
                self.device.synchronize()?;
                frame_ms.push(begun.elapsed().as_secs_f64() * 1e3);
            }
        }
        Ok(Measured {
            seconds: started.elapsed().as_secs_f64(),
            frame_ms,
            token_ms,
            late_ms,
        })
    }
}

/// What took how long.
struct Measured {
    seconds: f64,
    frame_ms: Vec<f64>,
    token_ms: Vec<f64>,
    late_ms: Vec<f64>,
}

/// A picture behind tower and connector.
struct Encoded {
    begun: Instant,
    features: ImageFeatures,
}

impl Encoded {
    fn of(encoder: &FrameEncoder, picture: &RgbImage) -> Result<Self, ModelError> {
        let begun = Instant::now();
        let pixels = encoder.pixels(&encoder.look(picture, false)?)?;
        let features = encoder.encode(&pixels)?;
        Ok(Self { begun, features })
    }
}

impl Built {
    /// A picture into the cache; returns how many tokens it became.
    fn take(&mut self, encoded: Encoded, id: FrameId) -> Result<usize, ModelError> {
        let features = encoded.features;
        let dtype = self.decoder.dtype();
        let chunk = Embedded {
            x: features.rows.to_dtype(dtype)?,
            deep: features
                .deep
                .iter()
                .map(|rows| rows.to_dtype(dtype))
                .collect::<candle_core::Result<_>>()?,
        };
        let mark = |(i, (_, place))| Mark {
            frame: Some(id),
            place,
            starts_unit: i == 0,
            ..Mark::default()
        };
        let places = image_places(std::slice::from_ref(&features))?;
        let marks = places.into_iter().enumerate().map(mark);
        let marks = marks.collect::<Vec<_>>();
        self.append(&chunk, &marks, marks.len())?;
        Ok(marks.len())
    }
}

/// Pictures of noise.
fn pictures((width, height): (usize, usize)) -> Vec<RgbImage> {
    let mut rng = StdRng::seed_from_u64(0);
    (0..PICTURES)
        .map(|_| {
            let mut picture = RgbImage::new(width as u32, height as u32);
            rng.fill_bytes(&mut picture);
            picture
        })
        .collect()
}
