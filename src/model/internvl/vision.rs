//! From pictures to rows of the decoder's input.

use std::collections::HashMap;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::Module;

use super::config::Shape;
use super::processor::Processor;
use super::tower::InternVit;
use super::{IMAGE, IMAGE_END, IMAGE_START};
use crate::model::preprocess::picture::{Bounded, Picture};
use crate::model::preprocess::recipe::FrameRecipe;
use crate::model::vision::norm::{layer_norm, LayerNorm};
use crate::model::vision::projector::Projector;
use crate::model::vision::working::Working;
use crate::model::vision::{
    processor_tensor, ImageFeatures, Layout, Pixels, Prepared, TowerOutput, View, Vision,
};
use crate::model::weights::Weights;
use crate::model::ModelError;

/// What the projector's norm adds to a variance: the default of torch, which no configuration changes.
const EPSILON: f64 = 1e-5;

pub struct InternVlVision {
    processor: Processor,
    vision_tower: InternVit,
    /// In front of the projector.
    layer_norm: LayerNorm,
    multi_modal_projector: Projector,
    tokens_per_tile: usize,
    image_token: u32,
    dtype: DType,
    device: Device,
}

impl InternVlVision {
    /// `hidden` is the decoder's width.
    pub fn new(
        shape: &Shape,
        hidden: usize,
        image_token: u32,
        processor: Processor,
        w: &Weights,
    ) -> Result<Self> {
        let joined = shape.tower.hidden * shape.scale.pow(2);
        let w_projector = w.pp("multi_modal_projector");
        Ok(Self {
            processor,
            vision_tower: InternVit::new(shape, &w.pp("vision_tower"))?,
            layer_norm: layer_norm(joined, EPSILON, &w_projector.pp("layer_norm"))?,
            multi_modal_projector: Projector::new(
                [joined, hidden, hidden],
                shape.projector_activation,
                true,
                &w_projector,
            )?,
            tokens_per_tile: shape.tokens(),
            image_token,
            dtype: w.dtype(),
            device: w.device().clone(),
        })
    }

    /// The layout of a picture that is cut into so many tiles beside the whole; where these lie does not show in the prompt.
    fn cut(&self, picture: (usize, usize), view: View, tiles: usize) -> Layout {
        Layout {
            picture,
            view,
            grid: match tiles {
                0 | 1 => [1, 0, 0],
                tiles => [1, tiles, 1],
            },
        }
    }

    fn count(&self, layout: &Layout) -> usize {
        let [_, rows, columns] = layout.grid;
        rows * columns + 1
    }
}

impl Vision for InternVlVision {
    fn layout(&self, picture: (usize, usize), view: View) -> Layout {
        let [rows, columns] = match view {
            View::Frame => [1, 1],
            View::Image { .. } => self.processor.grids.best(picture),
        };
        self.cut(picture, view, rows * columns)
    }

    fn tokens(&self, layout: &Layout) -> usize {
        self.count(layout) * self.tokens_per_tile
    }

    fn markup(&self, layout: &Layout) -> String {
        format!(
            "{IMAGE_START}{}{IMAGE_END}",
            IMAGE.repeat(self.tokens(layout))
        )
    }

    fn working(&self, layout: &Layout) -> Working {
        let tiles = self.count(layout);
        Working {
            bytes: self.vision_tower.working_bytes(tiles, self.dtype),
            deep: 0,
        }
    }

    fn prepare(&self, picture: &dyn Picture, view: View) -> Prepared {
        let size = picture.size();
        let layout = self.layout(size, view);
        let picture = Bounded::new(picture);
        let tiles = match layout.grid {
            [_, 0, _] => vec![self.processor.whole(&picture)],
            _ => self
                .processor
                .tiles(&picture, self.processor.grids.best(size)),
        };
        Prepared { layout, tiles }
    }

    fn frame(&self, size: (usize, usize)) -> FrameRecipe<'_> {
        let processor = &self.processor;
        FrameRecipe {
            layout: self.layout(size, View::Frame),
            square: None,
            sizes: vec![(processor.grids.tile, processor.grids.tile)],
            resizer: &processor.resizer,
            normalisation: processor.normalisation,
            patches: None,
            dtype: self.dtype,
            device: &self.device,
        }
    }

    fn pixels(&self, prepared: &Prepared) -> Result<Pixels> {
        Ok(Pixels {
            layout: prepared.layout,
            values: self.processor.normalisation.values(&prepared.tiles)?,
        })
    }

    /// `pixel_values` is `[tiles, 3, size, size]`, the tiles of all images and frames; which belong together is seen from `input_ids`.
    fn split(
        &self,
        tensors: &HashMap<String, Tensor>,
        view: View,
    ) -> std::result::Result<Vec<Pixels>, ModelError> {
        let pixels = processor_tensor(tensors, "pixel_values")?;
        let ids = processor_tensor(tensors, "input_ids")?;
        let ids: Vec<u32> = ids.flatten_all()?.to_dtype(DType::U32)?.to_vec1()?;
        let is_image = |id: &u32| *id == self.image_token;
        let runs = ids.chunk_by(|a, b| is_image(a) == is_image(b));
        let lengths = runs
            .filter(|run| is_image(&run[0]))
            .map(<[u32]>::len)
            .collect::<Vec<_>>();
        let per_tile = self.tokens_per_tile;
        if let Some(odd) = lengths.iter().find(|length| *length % per_tile != 0) {
            return Err(ModelError::Inputs(format!(
                "input_ids holds {odd} image tokens one behind the other, expected a multiple of {per_tile}"
            )));
        }
        let tiles = lengths.iter().map(|length| length / per_tile);
        let (expected, size) = (tiles.clone().sum::<usize>(), self.processor.grids.tile);
        if pixels.dims() != [expected, 3, size, size] {
            return Err(ModelError::Inputs(format!(
                "pixel_values has the shape {:?}, expected [{expected}, 3, {size}, {size}], as input_ids has {expected} tiles",
                pixels.dims()
            )));
        }
        let mut at = 0;
        let mut images = Vec::new();
        for count in tiles {
            images.push(Pixels {
                layout: self.cut((size, size), view, count - 1),
                values: pixels.narrow(0, at, count)?.to_dtype(DType::F32)?,
            });
            at += count;
        }
        Ok(images)
    }

    fn tower(&self, pixels: &Pixels) -> Result<TowerOutput> {
        let values = pixels.values.to_device(&self.device)?;
        Ok(TowerOutput {
            features: self.vision_tower.forward(&values.to_dtype(self.dtype)?)?,
            deep: Vec::new(),
        })
    }

    fn connect(&self, features: &TowerOutput, _: &Layout) -> Result<ImageFeatures> {
        let normed = self.layer_norm.forward(&features.features)?;
        let projected = self.multi_modal_projector.forward(&normed)?;
        Ok(ImageFeatures {
            rows: projected.flatten_to(1)?,
            deep: Vec::new(),
            grid: None,
        })
    }
}
