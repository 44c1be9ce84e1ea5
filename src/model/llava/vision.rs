//! Tower and connector as the LLaVA families share them; how a picture's tiles are arranged is a family's own.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::Module;

use super::config::VisionConfig;
use super::processor::Processor;
use crate::model::preprocess::picture::{Bounded, Picture};
use crate::model::preprocess::recipe::FrameRecipe;
use crate::model::vision::projector::Projector;
use crate::model::vision::vit::Vit;
use crate::model::vision::working::Working;
use crate::model::vision::{
    processor_tensor, ImageFeatures, Layout, Pixels, Prepared, Tile, TowerOutput, View, Vision,
};
use crate::model::weights::Weights;
use crate::model::ModelError;

/// The text that stands for image features in a prompt.
pub const IMAGE: &str = "<image>";

/// How a family makes tiles of a picture, and tokens of the tiles' features.
pub trait Arrangement: Send + Sync {
    /// Time, rows and columns of tiles, beside one tile of the whole picture (of each frame, if the time is more than 1).
    fn grid(&self, picture: (usize, usize), view: View) -> [usize; 3];

    /// The tokens that such a picture becomes.
    fn tokens(&self, layout: &Layout) -> usize;

    /// The tiles of a layout that [`Self::grid`] gave.
    fn tiles(&self, processor: &Processor, picture: &dyn Picture, layout: &Layout) -> Vec<Tile>;

    /// Whether a frame comes into a square before it is brought to the size of a tile.
    fn frames_in_square(&self, _: &Processor) -> bool {
        false
    }

    /// The sizes that pictures are cut to, as config.json has them, if they are.
    fn pinpoints(&self) -> Option<&[[usize; 2]]> {
        None
    }

    /// `projected` (`[tiles, rows, hidden]`) -> `[tokens, hidden]`. `newline` is `image_newline` (`[hidden]`), which families have
    /// whose pictures are cut; `[0]` for the others.
    fn arranged(&self, projected: &Tensor, newline: &Tensor, layout: &Layout) -> Result<Tensor>;
}

/// The way from pictures to rows of the decoder's input.
pub struct LlavaVision {
    processor: Processor,
    vision_tower: Vit,
    multi_modal_projector: Projector,
    /// `[hidden]`, or `[0]`.
    image_newline: Tensor,
    arrangement: Arc<dyn Arrangement>,
    dtype: DType,
    device: Device,
}

impl LlavaVision {
    /// `hidden` is the decoder's width.
    pub fn new(
        config: &VisionConfig,
        hidden: usize,
        processor: Processor,
        arrangement: Arc<dyn Arrangement>,
        w: &Weights,
    ) -> Result<Self> {
        let w_tower = w.pp("vision_tower").pp("vision_model");
        let joined = config.tower.sizes.hidden * config.layers.len();
        Ok(Self {
            processor,
            vision_tower: Vit::new(&config.tower, &config.layers, config.class_token, &w_tower)?,
            multi_modal_projector: Projector::new(
                [joined, hidden, hidden],
                config.activation,
                config.projector_bias,
                &w.pp("multi_modal_projector"),
            )?,
            image_newline: match arrangement.pinpoints() {
                Some(_) => w.get(hidden, "image_newline")?,
                None => Tensor::zeros(0, w.dtype(), w.device())?,
            },
            arrangement,
            dtype: w.dtype(),
            device: w.device().clone(),
        })
    }

    /// The frames of a video, `[1, frames, 3, size, size]`.
    fn video(&self, frames: &Tensor) -> std::result::Result<Vec<Pixels>, ModelError> {
        let values = self.checked("pixel_values_videos", frames)?;
        if values.dim(0)? != 1 {
            return Err(ModelError::Inputs(format!(
                "pixel_values_videos holds {} videos, expected 1",
                values.dim(0)?
            )));
        }
        let values = values.squeeze(0)?;
        let size = (self.processor.tile, self.processor.tile);
        let mut layout = self.layout(size, View::Frame);
        layout.grid[0] = values.dim(0)?;
        Ok(vec![Pixels { layout, values }])
    }

    /// Values that are tiles of the tower's size, `[images, tiles, 3, size, size]`, f32.
    fn checked(&self, name: &str, values: &Tensor) -> std::result::Result<Tensor, ModelError> {
        let size = self.processor.tile;
        match *values.dims() {
            [_, _, 3, height, width] if (height, width) == (size, size) => Ok(values.clone()),
            [_, 3, height, width] if (height, width) == (size, size) => Ok(values.unsqueeze(1)?),
            _ => Err(ModelError::Inputs(format!(
                "{name} has the shape {:?}, expected [images, tiles, 3, {size}, {size}] or [images, 3, {size}, {size}]",
                values.dims()
            ))),
        }
        .and_then(|values| Ok(values.to_dtype(DType::F32)?))
    }
}

impl Vision for LlavaVision {
    fn layout(&self, picture: (usize, usize), view: View) -> Layout {
        Layout {
            picture,
            view,
            grid: self.arrangement.grid(picture, view),
        }
    }

    fn tokens(&self, layout: &Layout) -> usize {
        self.arrangement.tokens(layout)
    }

    fn markup(&self, layout: &Layout) -> String {
        IMAGE.repeat(self.tokens(layout))
    }

    fn working(&self, layout: &Layout) -> Working {
        let [time, rows, columns] = layout.grid;
        let tiles = time + rows * columns;
        Working {
            bytes: self.vision_tower.working_bytes(tiles, self.dtype),
            deep: 0,
        }
    }

    fn prepare(&self, picture: &dyn Picture, view: View) -> Prepared {
        let layout = self.layout(picture.size(), view);
        let picture = Bounded::new(picture);
        Prepared {
            layout,
            tiles: self.arrangement.tiles(&self.processor, &picture, &layout),
        }
    }

    fn frame(&self, size: (usize, usize)) -> FrameRecipe<'_> {
        let processor = &self.processor;
        let in_square = self.arrangement.frames_in_square(processor);
        FrameRecipe {
            layout: self.layout(size, View::Frame),
            square: in_square.then(|| processor.square_colour()),
            sizes: vec![(processor.tile, processor.tile)],
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

    /// `pixel_values` is `[images, 3, size, size]`, or `[images, tiles, 3, size, size]` with `image_sizes` (height and width, pixels) beside
    /// it, filled up with tiles that are none. How many images a prompt has is said by `batch_num_images`; one, if it is not there.
    /// The frames of a video may be `pixel_values_videos`.
    fn split(
        &self,
        tensors: &HashMap<String, Tensor>,
        view: View,
    ) -> std::result::Result<Vec<Pixels>, ModelError> {
        if let (View::Frame, Some(frames)) = (view, tensors.get("pixel_values_videos")) {
            return self.video(frames);
        }
        let pixels = processor_tensor(tensors, "pixel_values")?;
        let pixels = self.checked("pixel_values", pixels)?;
        let (images, tiles, ..) = pixels.dims5()?;
        let sizes = match tensors.get("image_sizes") {
            Some(sizes) => sizes.to_dtype(DType::U32)?.to_vec2::<u32>()?,
            None => vec![[self.processor.tile as u32; 2].to_vec(); images],
        };
        let together = match tensors.get("batch_num_images") {
            Some(counts) => counts.to_dtype(DType::U32)?.to_vec1::<u32>()?,
            None => vec![1; images],
        };
        let together = together
            .into_iter()
            .flat_map(|count| std::iter::repeat_n(count as usize, count as usize));
        let mut split = Vec::new();
        for (i, (size, of)) in sizes.iter().zip(together).enumerate().take(images) {
            let sides = <[u32; 2]>::try_from(size.as_slice());
            let Some([height, width]) = sides.ok().filter(|sides| !sides.contains(&0)) else {
                return Err(ModelError::Inputs(format!(
                    "image_sizes holds {size:?}, expected height and width, at least 1 each"
                )));
            };
            let view = match view {
                View::Frame => View::Frame,
                View::Image { .. } => View::Image { of },
            };
            let layout = self.layout((width as usize, height as usize), view);
            let count = layout.grid[0] + layout.grid[1] * layout.grid[2];
            if count > tiles {
                return Err(ModelError::Inputs(format!(
                    "image {i} of {width} x {height} pixels with {tiles} tiles, expected {count}"
                )));
            }
            let values = pixels.get(i)?.narrow(0, 0, count)?;
            split.push(Pixels { layout, values });
        }
        if split.len() != images {
            return Err(ModelError::Inputs(format!(
                "image_sizes and batch_num_images are of {} images, pixel_values of {images}",
                split.len()
            )));
        }
        Ok(split)
    }

    fn tower(&self, pixels: &Pixels) -> Result<TowerOutput> {
        let values = pixels.values.to_device(&self.device)?;
        Ok(TowerOutput {
            features: self.vision_tower.forward(&values.to_dtype(self.dtype)?)?,
            deep: Vec::new(),
        })
    }

    fn connect(&self, features: &TowerOutput, layout: &Layout) -> Result<ImageFeatures> {
        let projected = self.multi_modal_projector.forward(&features.features)?;
        let arranged = self
            .arrangement
            .arranged(&projected, &self.image_newline, layout)?;
        Ok(ImageFeatures {
            rows: arranged.contiguous()?,
            deep: Vec::new(),
            grid: None,
        })
    }
}
