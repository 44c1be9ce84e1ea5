//! Frames from their pictures to rows of the decoder's input, on whatever device the tower runs.

use std::sync::Arc;

use candle_core::{Device, Result};

use super::{ImageFeatures, Pixels, Prepared, Tile, View, Vision};
use crate::gpu::Gpu;
use crate::model::preprocess::on_device::{DevicePicture, FrameKernels};
use crate::model::preprocess::picture::{Bounded, Picture};

/// The largest picture that may come up on a device, bytes: its memory, and the host's that stays where it is, are taken from others. Where
/// there is a larger one the CPU prepares the frame, row by row.
const MOST: usize = 64 << 20;

/// The way of frames into the model; it can be used in several threads.
#[derive(Clone)]
pub struct FrameEncoder {
    vision: Arc<dyn Vision>,
    kernels: Option<Arc<FrameKernels>>,
}

/// A frame at the size that the tower takes.
#[derive(Debug)]
pub struct Look {
    /// Without tiles where these are in the memory of a device and nobody wants to see them.
    pub prepared: Prepared,
    resized: Option<DevicePicture>,
}

impl FrameEncoder {
    /// `gpu` runs kernels on the memory of `device`, which is the tower's; none: pictures are prepared on the CPU.
    pub fn new(vision: Arc<dyn Vision>, gpu: Option<Arc<dyn Gpu>>, device: &Device) -> Self {
        let kernels = gpu.map(|gpu| Arc::new(FrameKernels::new(gpu, device)));
        Self { vision, kernels }
    }

    /// A picture at the size that the tower takes. `compared`: its tiles are wanted on the host.
    pub fn look(&self, picture: &dyn Picture, compared: bool) -> Result<Look> {
        let bounded = Bounded::new(picture);
        let recipe = self.vision.frame(picture.size());
        let kernels = self.kernels.as_ref();
        let Some(kernels) = kernels.filter(|_| recipe.largest(bounded.size()) <= MOST) else {
            return Ok(Look {
                prepared: self.vision.prepare(picture, View::Frame),
                resized: None,
            });
        };
        let resized = kernels.resized(&bounded, &recipe)?;
        let mut tiles = Vec::new();
        if compared {
            let (width, height) = resized.size()?;
            let rgb = resized.bytes()?;
            tiles.push(Tile { width, height, rgb });
        }
        let layout = recipe.layout;
        Ok(Look {
            prepared: Prepared { layout, tiles },
            resized: Some(resized),
        })
    }

    /// Its values.
    pub fn pixels(&self, look: &Look) -> Result<Pixels> {
        let (Some(kernels), Some(resized)) = (&self.kernels, &look.resized) else {
            return self.vision.pixels(&look.prepared);
        };
        let layout = look.prepared.layout;
        let recipe = self.vision.frame(layout.picture);
        let values = kernels.values(resized, &recipe)?;
        Ok(Pixels { layout, values })
    }

    /// What tower and connector make of them.
    pub fn encode(&self, pixels: &Pixels) -> Result<ImageFeatures> {
        self.vision.encode(pixels)
    }
}
