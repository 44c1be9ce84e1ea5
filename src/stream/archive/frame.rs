//! A frame as the archive keeps it: what the connector made of it, to be fed again.

use candle_core::{DType, Device, Result, Tensor};
use half::f16;

use crate::cache::{host, FrameId};
use crate::model::vision::{ImageFeatures, Layout};
use crate::simd::dot;

/// Where a frame stands in the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Its number.
    pub id: FrameId,
    /// Index of its camera.
    pub camera: usize,
    /// Time since its epoch began, nanoseconds: what its label tells.
    pub elapsed_ns: i64,
}

/// What the connector made of a picture, f16: values beyond its range are its largest.
#[derive(Debug, Clone, PartialEq)]
pub struct Frame {
    pub at: Moment,
    pub layout: Layout,
    /// Tokens that it takes in the cache with its label and markup.
    pub tokens: usize,
    /// The rows, and those of earlier layers for deeper layers of the decoder: `[1 + deep, rows, hidden]`.
    values: Box<[f16]>,
    rows: usize,
    deep: usize,
    grid: Option<[usize; 3]>,
}

impl Frame {
    pub fn new(
        at: Moment,
        layout: Layout,
        tokens: usize,
        features: &ImageFeatures,
    ) -> Result<Self> {
        let mut values = Vec::new();
        for rows in [&features.rows].into_iter().chain(&features.deep) {
            let bounded = |x: f32| f16::from_f32(x.clamp(f16::MIN.to_f32(), f16::MAX.to_f32()));
            values.extend(host::floats(rows)?.into_iter().map(bounded));
        }
        Ok(Self {
            at,
            layout,
            tokens,
            values: values.into(),
            rows: features.rows.dim(0)?,
            deep: features.deep.len(),
            grid: features.grid,
        })
    }

    /// As the decoder takes it.
    pub fn features(&self, dtype: DType, device: &Device) -> Result<ImageFeatures> {
        let width = self.width();
        let each = self.values.chunks_exact(self.rows * width);
        let mut tensors = each.map(|values| {
            Tensor::from_slice(values, (self.rows, width), &Device::Cpu)?
                .to_dtype(dtype)?
                .to_device(device)
        });
        let rows = tensors.next().transpose()?;
        Ok(ImageFeatures {
            rows: rows.unwrap_or(Tensor::zeros((0, width), dtype, device)?),
            deep: tensors.collect::<Result<_>>()?,
            grid: self.grid,
        })
    }

    /// Tokens of the picture alone.
    pub fn image_tokens(&self) -> usize {
        self.rows
    }

    fn width(&self) -> usize {
        self.values.len() / ((1 + self.deep) * self.rows).max(1)
    }

    pub fn bytes(&self) -> usize {
        std::mem::size_of_val::<[f16]>(&self.values)
    }

    /// What it is told apart from its like by: the mean of its rows, of length 1, `[hidden]`.
    pub fn gist(&self) -> Box<[f32]> {
        let width = self.width();
        let mut mean = vec![0.0; width];
        for row in self.values.chunks_exact(width.max(1)).take(self.rows) {
            for (mean, value) in mean.iter_mut().zip(row) {
                *mean += value.to_f32();
            }
        }
        let length = dot(&mean, &mean).sqrt().max(1e-12);
        mean.into_iter().map(|x| x / length).collect()
    }
}
