//! From pictures to rows of the decoder's input.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::Module;

use super::config::Shape;
use super::processor::Processor;
use super::{IMAGE, IMAGE_END, IMAGE_START, THUMBNAIL};
use crate::model::preprocess::picture::{Bounded, Picture};
use crate::model::preprocess::recipe::FrameRecipe;
use crate::model::vision::norm::{layer_norm, LayerNorm};
use crate::model::vision::projector::Projector;
use crate::model::vision::shuffle::grid_shuffle;
use crate::model::vision::siglip2::Siglip2;
use crate::model::vision::vit::parts::BATCH;
use crate::model::vision::vit::CHANNELS;
use crate::model::vision::working::Working;
use crate::model::vision::{
    processor_tensor, FramePixels, FramePixelsError, ImageFeatures, Layout, Pixels, Prepared,
    TowerOutput, View, Vision,
};
use crate::model::weights::Weights;
use crate::model::ModelError;

/// What the projector's norm adds to a variance: the default of torch, which no configuration changes.
const EPSILON: f64 = 1e-5;

#[derive(Clone)]
pub struct Lfm2VlVision {
    processor: Processor,
    vision_tower: Arc<Siglip2>,
    /// In front of the projector, if there is one.
    layer_norm: Option<LayerNorm>,
    multi_modal_projector: Arc<Projector>,
    factor: usize,
    image_token: u32,
    dtype: DType,
    device: Device,
}

impl Lfm2VlVision {
    /// `hidden` is the decoder's width; `w` stands at the model (`vision_tower`, `multi_modal_projector`).
    pub fn new(
        shape: &Shape,
        hidden: usize,
        image_token: u32,
        processor: Processor,
        w: &Weights,
    ) -> Result<Self> {
        let joined = shape.tower.hidden * shape.factor.pow(2);
        let w_tower = w.pp("vision_tower").pp("vision_model");
        let w_projector = w.pp("multi_modal_projector");
        let projector = &shape.projector;
        let w_norm = w_projector.pp("layer_norm");
        Ok(Self {
            processor,
            vision_tower: Arc::new(Siglip2::new(&shape.tower, &w_tower)?),
            layer_norm: match projector.norm {
                true => Some(layer_norm(joined, EPSILON, &w_norm)?),
                false => None,
            },
            multi_modal_projector: Arc::new(Projector::new(
                [joined, projector.inner, hidden],
                projector.activation,
                projector.bias,
                &w_projector,
            )?),
            factor: shape.factor,
            image_token,
            dtype: w.dtype(),
            device: w.device().clone(),
        })
    }

    /// Patches of the parts of a picture (`[patches, _]`), each part with its rows and columns of patches.
    fn apart(&self, values: &Tensor, layout: &Layout) -> Result<Vec<(Tensor, [usize; 2])>> {
        let mut at = 0;
        let parts = self.processor.parts(layout).into_iter();
        parts
            .map(|part @ [rows, columns]| {
                let patches = values.narrow(0, at, rows * columns)?;
                at += rows * columns;
                Ok((patches, part))
            })
            .collect()
    }

    /// The patches of a frame, which comes as one tile, `[1, 3, height, width]`, in the order of the processor.
    fn in_patches(&self, values: &Tensor) -> Result<Tensor> {
        let (_, _, height, width) = values.dims4()?;
        let side = self.processor.patch;
        let (rows, columns) = (height / side, width / side);
        values
            .reshape((CHANNELS, rows, side, columns, side))?
            .permute((1, 3, 2, 4, 0))?
            .reshape((rows * columns, side * side * CHANNELS))
    }

    /// Rows and columns of the tiles of a picture of whose parts `names` are the ids in front: those of a row have numbers that follow one
    /// another.
    fn grid(&self, names: &[u32]) -> [usize; 3] {
        let tiles = match names.len() {
            1 => return [1, 0, 0],
            parts => parts - usize::from(self.processor.has_thumbnail()),
        };
        let rows = names[..tiles].chunk_by(|before, name| before + 1 == *name);
        let rows = rows.count();
        [1, rows, tiles / rows.max(1)]
    }
}

/// Runs of image tokens in a prompt: the id in front of each, by the pictures that they belong to. Between two of one picture there is only
/// the name of the second.
fn pictures(ids: &[u32], image_token: u32) -> Vec<Vec<u32>> {
    let mut pictures: Vec<Vec<u32>> = Vec::new();
    let (mut before, mut others) = (0, usize::MAX);
    for run in ids.chunk_by(|a, b| (*a == image_token) == (*b == image_token)) {
        if run[0] != image_token {
            (before, others) = (run[run.len() - 1], run.len());
            continue;
        }
        match pictures.last_mut().filter(|_| others == 1) {
            Some(picture) => picture.push(before),
            None => pictures.push(vec![before]),
        }
    }
    pictures
}

impl Vision for Lfm2VlVision {
    fn layout(&self, picture: (usize, usize), view: View) -> Layout {
        let [rows, columns] = self.processor.grid(picture, view);
        Layout {
            picture,
            view,
            grid: [1, rows, columns],
        }
    }

    fn tokens(&self, layout: &Layout) -> usize {
        let parts = self.processor.parts(layout).into_iter();
        parts.map(|part| self.processor.tokens(part)).sum()
    }

    /// Each tile behind its place, then the whole behind its name; alone it has none.
    fn markup(&self, layout: &Layout) -> String {
        let [_, _, columns] = layout.grid;
        let parts = self.processor.parts(layout);
        let tiles = layout.grid[1] * columns;
        let parts = parts.iter().enumerate().map(|(i, &part)| {
            let image = IMAGE.repeat(self.processor.tokens(part));
            match i < tiles {
                true => format!(
                    "<|img_row_{}_col_{}|>{image}",
                    i / columns + 1,
                    i % columns + 1
                ),
                false if tiles > 0 => format!("{THUMBNAIL}{image}"),
                false => image,
            }
        });
        format!("{IMAGE_START}{}{IMAGE_END}", parts.collect::<String>())
    }

    fn working(&self, layout: &Layout) -> Working {
        let parts = self.processor.parts(layout);
        let patches = parts.chunk_by(|one, next| one == next);
        let patches = patches.map(|alike| alike.len().min(BATCH) * alike[0][0] * alike[0][1]);
        // As they come, in patches, and in parts of one size.
        let widths = self.vision_tower.widths(3);
        Working {
            bytes: widths.bytes(patches.max().unwrap_or(0), self.dtype),
            deep: 0,
        }
    }

    fn prepare(&self, picture: &dyn Picture, view: View) -> Prepared {
        let layout = self.layout(picture.size(), view);
        Prepared {
            layout,
            tiles: self.processor.tiles(&Bounded::new(picture), &layout),
        }
    }

    fn frame(&self, size: (usize, usize)) -> FrameRecipe<'_> {
        FrameRecipe {
            layout: self.layout(size, View::Frame),
            square: None,
            sizes: vec![self.processor.whole(size, View::Frame)],
            resizer: &self.processor.resizer,
            normalisation: self.processor.normalisation,
            patches: None,
            dtype: self.dtype,
            device: &self.device,
        }
    }

    fn pixels(&self, prepared: &Prepared) -> Result<Pixels> {
        let Prepared { layout, tiles } = prepared;
        Ok(Pixels {
            layout: *layout,
            values: match layout.view {
                // As a device has it, which knows tiles.
                View::Frame => self.processor.normalisation.values(tiles)?,
                View::Image { .. } => self.processor.patches(tiles)?,
            },
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

    /// `pixel_values` is `[parts, most patches, values]`, of which `spatial_shapes` (`[parts, 2]`) says what rows and columns of patches are
    /// in use; which parts belong together is seen from `input_ids`.
    fn split(
        &self,
        tensors: &HashMap<String, Tensor>,
        view: View,
    ) -> std::result::Result<Vec<Pixels>, ModelError> {
        let values = processor_tensor(tensors, "pixel_values")?;
        let shapes = processor_tensor(tensors, "spatial_shapes")?;
        let ids = processor_tensor(tensors, "input_ids")?;
        let ids: Vec<u32> = ids.flatten_all()?.to_dtype(DType::U32)?.to_vec1()?;
        let pictures = pictures(&ids, self.image_token);
        let parts = pictures.iter().map(Vec::len).sum::<usize>();
        let wrong = |name: &str, tensor: &Tensor, expected: &str| {
            ModelError::Inputs(format!(
                "{name} has the shape {:?}, expected [{parts}, {expected}], as input_ids has {parts} parts of pictures",
                tensor.dims()
            ))
        };
        if shapes.dims() != [parts, 2] {
            return Err(wrong("spatial_shapes", shapes, "2"));
        }
        let width = CHANNELS * self.processor.patch.pow(2);
        let longest = match *values.dims() {
            [count, longest, values] if count == parts && values == width => longest,
            _ => {
                let expected = format!("patches, {width}");
                return Err(wrong("pixel_values", values, &expected));
            }
        };
        let shapes: Vec<Vec<u32>> = shapes.to_dtype(DType::U32)?.to_vec2()?;
        let mut parts = shapes.iter().zip(0..);
        let mut images = Vec::new();
        for names in &pictures {
            let mut patches = Vec::new();
            let mut picture = (0, 0);
            for (shape, part) in parts.by_ref().take(names.len()) {
                let [rows, columns] = [shape[0] as usize, shape[1] as usize];
                if rows.saturating_mul(columns) > longest {
                    return Err(ModelError::Inputs(format!(
                        "spatial_shapes holds {rows} x {columns}, expected at most {longest} patches"
                    )));
                }
                picture = (columns * self.processor.patch, rows * self.processor.patch);
                patches.push(values.get(part)?.narrow(0, 0, rows * columns)?);
            }
            let layout = Layout {
                picture,
                view,
                grid: self.grid(names),
            };
            let values = Tensor::cat(&patches, 0)?.to_dtype(DType::F32)?;
            let expected = self.processor.parts(&layout);
            let expected = expected.iter().map(|part| part[0] * part[1]).sum::<usize>();
            if values.dim(0)? != expected {
                return Err(ModelError::Inputs(format!(
                    "a picture has {} patches, expected {expected}",
                    values.dim(0)?
                )));
            }
            images.push(Pixels { layout, values });
        }
        Ok(images)
    }

    fn tower(&self, pixels: &Pixels) -> Result<TowerOutput> {
        let values = pixels
            .values
            .to_device(&self.device)?
            .to_dtype(self.dtype)?;
        let values = match values.rank() {
            4 => self.in_patches(&values)?,
            _ => values,
        };
        let mut features = Vec::new();
        let parts = self.apart(&values, &pixels.layout)?;
        // Tiles of one size go through the tower together.
        for alike in parts.chunk_by(|(_, one), (_, next)| one == next) {
            let grid = alike[0].1;
            let patches = alike.iter().map(|(patches, _)| patches).collect::<Vec<_>>();
            let positions = self.vision_tower.positions(grid)?;
            let patches = Tensor::stack(&patches, 0)?;
            let out = self.vision_tower.forward(&patches, &positions)?;
            features.push(out.flatten_to(1)?);
        }
        Ok(TowerOutput {
            features: Tensor::cat(&features, 0)?,
            deep: Vec::new(),
        })
    }

    fn connect(&self, features: &TowerOutput, layout: &Layout) -> Result<ImageFeatures> {
        let parts = self.apart(&features.features, layout)?;
        let joined = parts
            .iter()
            .map(|(patches, grid)| grid_shuffle(patches, *grid, self.factor));
        let joined = Tensor::cat(&joined.collect::<Result<Vec<_>>>()?, 0)?;
        let normed = match &self.layer_norm {
            Some(norm) => norm.forward(&joined)?,
            None => joined,
        };
        Ok(ImageFeatures {
            rows: self.multi_modal_projector.forward(&normed)?,
            deep: Vec::new(),
            grid: None,
        })
    }
}
