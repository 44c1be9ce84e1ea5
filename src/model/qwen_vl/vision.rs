//! The way from pictures to rows of the decoder's input, for a tower of any of the families.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};

use super::processor::{ImageProcessor, Processing};
use super::{Grid, Measures, IMAGE_PAD};
use crate::model::checkpoint::Checkpoint;
use crate::model::preprocess::picture::{Bounded, Picture};
use crate::model::preprocess::recipe::FrameRecipe;
use crate::model::vision::working::{Widths, Working};
use crate::model::vision::{
    processor_tensor, FramePixels, FramePixelsError, ImageFeatures, Layout, Pixels, Prepared,
    TowerOutput, View, Vision,
};
use crate::model::ModelError;

/// A family's tower.
pub trait Tower: Send + Sync {
    /// What goes through its layers.
    fn widths(&self) -> Widths;

    /// Layers of the decoder that its features are added to later.
    fn deep(&self) -> usize {
        0
    }

    /// What the tower makes of the patches of a picture, `[patches, values]`.
    fn forward(&self, patches: &Tensor, grid: Grid) -> Result<TowerOutput>;

    /// The rows of the decoder's input, `[tokens, hidden]`, and those of its deeper layers.
    fn merge(&self, features: &TowerOutput, grid: Grid) -> Result<(Tensor, Vec<Tensor>)>;
}

/// The processors and the tower of a checkpoint.
#[derive(Clone)]
pub struct QwenVision {
    processor: ImageProcessor,
    tower: Arc<dyn Tower>,
    merge: usize,
    dtype: DType,
    device: Device,
}

impl QwenVision {
    /// Reads the processors' configurations; `tower` makes the tower, for arithmetic in `dtype` on `device`.
    pub fn new(
        checkpoint: &Checkpoint,
        (measures, processing): (&Measures, Processing),
        (dtype, device): (DType, &Device),
        tower: impl FnOnce() -> Result<Box<dyn Tower>>,
    ) -> std::result::Result<Self, ModelError> {
        Ok(Self {
            processor: ImageProcessor::load(checkpoint, measures, processing)?,
            tower: tower()
                .map_err(|error| checkpoint.weight_error(error, device))?
                .into(),
            merge: measures.spatial_merge_size,
            dtype,
            device: device.clone(),
        })
    }

    fn grid(&self, layout: &Layout) -> Grid {
        let [_, height, width] = layout.grid;
        Grid {
            height,
            width,
            merge: self.merge,
        }
    }
}

impl Vision for QwenVision {
    fn layout(&self, picture: (usize, usize), view: View) -> Layout {
        let grid = self.processor.grid(picture, view);
        Layout {
            picture,
            view,
            grid: [1, grid.height, grid.width],
        }
    }

    fn tokens(&self, layout: &Layout) -> usize {
        self.grid(layout).tokens()
    }

    fn markup(&self, layout: &Layout) -> String {
        IMAGE_PAD.repeat(self.tokens(layout))
    }

    fn working(&self, layout: &Layout) -> Working {
        let patches = self.grid(layout).patches();
        Working {
            bytes: self.tower.widths().bytes(patches, self.dtype),
            deep: self.tower.deep(),
        }
    }

    fn prepare(&self, picture: &dyn Picture, view: View) -> Prepared {
        let layout = self.layout(picture.size(), view);
        let tile = self
            .processor
            .resize(&Bounded::new(picture), self.grid(&layout), view);
        Prepared {
            layout,
            tiles: vec![tile],
        }
    }

    fn frame(&self, size: (usize, usize)) -> FrameRecipe<'_> {
        let layout = self.layout(size, View::Frame);
        let rules = self.processor.rules(View::Frame);
        FrameRecipe {
            layout,
            square: None,
            sizes: vec![self.processor.size_of(self.grid(&layout))],
            resizer: &rules.resizer,
            normalisation: rules.normalisation,
            patches: Some(self.processor.layout()),
            dtype: self.dtype,
            device: &self.device,
        }
    }

    fn pixels(&self, prepared: &Prepared) -> Result<Pixels> {
        let (grid, view) = (self.grid(&prepared.layout), prepared.layout.view);
        let patches = prepared.tiles.iter();
        let patches = patches.map(|tile| self.processor.patches(tile, grid, view));
        Ok(Pixels {
            layout: prepared.layout,
            values: Tensor::cat(&patches.collect::<Result<Vec<_>>>()?, 0)?,
        })
    }

    fn with_frame_pixels(
        &self,
        asked: FramePixels,
    ) -> std::result::Result<Arc<dyn Vision>, FramePixelsError> {
        Ok(Arc::new(Self {
            processor: self.processor.with_frame_pixels(asked)?,
            ..self.clone()
        }))
    }

    fn takes_pairs(&self) -> bool {
        self.processor.layout().frames == 2
    }

    fn join(&self, first: &Pixels, second: &Pixels) -> Result<Pixels> {
        Ok(Pixels {
            layout: second.layout,
            values: self.processor.join(&first.values, &second.values)?,
        })
    }

    /// `pixel_values` is `[patches, values]` for all pictures, `image_grid_thw` `[pictures, 3]` their grids.
    fn split(
        &self,
        tensors: &HashMap<String, Tensor>,
        view: View,
    ) -> std::result::Result<Vec<Pixels>, ModelError> {
        let values = processor_tensor(tensors, "pixel_values")?.to_dtype(DType::F32)?;
        let grids = processor_tensor(tensors, "image_grid_thw")?;
        let shape = |tensor: &Tensor, name, expected| match tensor.rank() {
            2 => Ok(()),
            _ => Err(ModelError::Inputs(format!(
                "{name} has the shape {:?}, expected {expected}",
                tensor.dims()
            ))),
        };
        shape(&values, "pixel_values", "[patches, values]")?;
        shape(grids, "image_grid_thw", "[pictures, 3]")?;
        let values = self.processor.by_colours(&values)?;
        let mut pictures = Vec::new();
        let mut first = 0;
        for grid in grids.to_dtype(DType::U32)?.to_vec2::<u32>()? {
            let grid = grid.iter().map(|&size| size as usize).collect::<Vec<_>>();
            let whole = |size: usize| size > 0 && size.is_multiple_of(self.merge);
            let (height, width) = match grid.as_slice() {
                &[1, height, width] if whole(height) && whole(width) => (height, width),
                other => {
                    return Err(ModelError::Inputs(format!(
                        "image_grid_thw holds {other:?}, expected 1 and two multiples of {}",
                        self.merge
                    )))
                }
            };
            let patches = height * width;
            if patches > values.dim(0)? - first {
                return Err(ModelError::Inputs(format!(
                    "pixel_values holds {} patches, fewer than image_grid_thw says",
                    values.dim(0)?
                )));
            }
            let picture = (
                width * self.processor.patch(),
                height * self.processor.patch(),
            );
            pictures.push(Pixels {
                layout: Layout {
                    picture,
                    view,
                    grid: [1, height, width],
                },
                values: values.narrow(0, first, patches)?,
            });
            first += patches;
        }
        Ok(pictures)
    }

    fn tower(&self, pixels: &Pixels) -> Result<TowerOutput> {
        let values = pixels.values.to_device(&self.device)?;
        let patches = values.to_dtype(self.dtype)?;
        self.tower.forward(&patches, self.grid(&pixels.layout))
    }

    fn connect(&self, features: &TowerOutput, layout: &Layout) -> Result<ImageFeatures> {
        let grid = self.grid(layout);
        let (rows, deep) = self.tower.merge(features, grid)?;
        let (down, across) = grid.squares();
        Ok(ImageFeatures {
            rows,
            deep,
            grid: Some([1, down, across]),
        })
    }
}
