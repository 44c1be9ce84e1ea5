//! SmolVLM / SmolVLM2 / Idefics3: SigLIP tower, pixel-shuffle connector, Llama decoder.
//!
//! Names follow the published tensors: `model.vision_model`, `model.connector`, `model.text_model`, `lm_head`.
//!
//! - `config`: the checkpoint's configuration
//! - `processor`: pictures to tiles
//! - `tiles`: which tiles of a prompt belong together
//! - `connector`: from patches to tokens

mod config;
mod connector;
mod processor;
mod tiles;

use std::collections::HashMap;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::Module;

use super::checkpoint::Checkpoint;
use super::decoder;
use super::family::{text_config, FamilyConfig, CONFIG};
use super::preprocess::picture::{Bounded, Picture};
use super::preprocess::recipe::FrameRecipe;
use super::vision::norm::{layer_norm, LayerNorm};
use super::vision::vit::Vit;
use super::vision::working::Working;
use super::vision::{
    processor_tensor, ImageFeatures, Layout, Pixels, Prepared, TowerOutput, View, Vision,
};
use super::weights::Weights;
use super::ModelError;
use config::Config;
use connector::Connector;
use processor::ImageProcessor;

const FAKE_IMAGE: &str = "<fake_token_around_image>";
const GLOBAL_IMAGE: &str = "<global-img>";
const IMAGE: &str = "<image>";

/// A checkpoint's configuration, read and checked.
struct SmolVlm {
    config: Config,
    text: decoder::Config,
}

/// Reads and checks `config.json`.
pub fn open(checkpoint: &Checkpoint) -> std::result::Result<Box<dyn FamilyConfig>, ModelError> {
    let config = Config::load(checkpoint)?;
    config
        .check()
        .map_err(|unsupported| unsupported.of(checkpoint.path(CONFIG)))?;
    let tied = config.tie_word_embeddings;
    let text = text_config(checkpoint, config.text_config.clone(), "llama", tied)?;
    Ok(Box::new(SmolVlm { config, text }))
}

impl FamilyConfig for SmolVlm {
    fn text(&self) -> &decoder::Config {
        &self.text
    }

    fn text_path(&self) -> &str {
        "model.text_model"
    }

    fn head_path(&self) -> &str {
        "lm_head"
    }

    fn image_token(&self) -> (u32, &str) {
        (self.config.image_token_id, IMAGE)
    }

    fn markup_tokens(&self) -> &[&str] {
        &[FAKE_IMAGE, GLOBAL_IMAGE]
    }

    fn vision(
        &self,
        checkpoint: &Checkpoint,
        weights: &Weights,
    ) -> std::result::Result<Box<dyn Vision>, ModelError> {
        let config = &self.config;
        let processor = ImageProcessor::load(checkpoint, config.vision_config.image_size)?;
        let load = || -> Result<SmolVlmVision> {
            let model = weights.pp("model");
            let tower = model.pp("vision_model").wide_on_cpu();
            let shape = config.vision_config.shape();
            Ok(SmolVlmVision {
                processor,
                tower_dtype: tower.dtype(),
                post_layernorm: layer_norm(
                    shape.sizes.hidden,
                    shape.sizes.epsilon,
                    &tower.pp("post_layernorm"),
                )?,
                tower: Vit::new(&shape, &[shape.sizes.layers], false, &tower)?,
                connector: Connector::new(config, self.text.hidden_size(), &model.pp("connector"))?,
                tile: shape.sizes.image,
                tokens_per_tile: config.tokens_per_tile(),
                image_token: config.image_token_id,
                dtype: weights.dtype(),
                device: weights.device().clone(),
            })
        };
        Ok(Box::new(load().map_err(|e| {
            checkpoint.weight_error(e, weights.device())
        })?))
    }
}

struct SmolVlmVision {
    processor: ImageProcessor,
    tower: Vit,
    post_layernorm: LayerNorm,
    /// Side of a tile, pixels.
    tile: usize,
    /// Type of the tower's arithmetic.
    tower_dtype: DType,
    connector: Connector,
    tokens_per_tile: usize,
    image_token: u32,
    dtype: DType,
    device: Device,
}

impl Vision for SmolVlmVision {
    fn layout(&self, picture: (usize, usize), view: View) -> Layout {
        let (rows, columns) = self.processor.grid(picture, view);
        Layout {
            picture,
            view,
            grid: [1, rows, columns],
        }
    }

    fn tokens(&self, layout: &Layout) -> usize {
        let [_, rows, columns] = layout.grid;
        (rows * columns + 1) * self.tokens_per_tile
    }

    /// The rows of tiles, each with its place in front, and the whole picture; the latter alone if there are no tiles.
    fn markup(&self, layout: &Layout) -> String {
        let image = IMAGE.repeat(self.tokens_per_tile);
        let [_, rows, columns] = layout.grid;
        let mut text = String::new();
        for row in 1..=rows {
            for column in 1..=columns {
                text.push_str(&format!("{FAKE_IMAGE}<row_{row}_col_{column}>{image}"));
            }
            text.push('\n');
        }
        if rows > 0 {
            text.push('\n');
        }
        text.push_str(&format!("{FAKE_IMAGE}{GLOBAL_IMAGE}{image}{FAKE_IMAGE}"));
        text
    }

    fn working(&self, layout: &Layout) -> Working {
        let [_, rows, columns] = layout.grid;
        let tiles = rows * columns + 1;
        Working {
            bytes: self.tower.working_bytes(tiles, self.tower_dtype),
            deep: 0,
        }
    }

    fn prepare(&self, picture: &dyn Picture, view: View) -> Prepared {
        let layout = self.layout(picture.size(), view);
        let [_, rows, columns] = layout.grid;
        Prepared {
            layout,
            tiles: self
                .processor
                .tiles(&Bounded::new(picture), (rows, columns), view),
        }
    }

    fn frame(&self, size: (usize, usize)) -> FrameRecipe<'_> {
        FrameRecipe {
            layout: self.layout(size, View::Frame),
            square: None,
            sizes: self.processor.frame_sizes(Bounded::size_of(size)),
            resizer: &self.processor.resizer,
            normalisation: self.processor.normalisation,
            patches: None,
            dtype: self.tower_dtype,
            device: &self.device,
        }
    }

    fn pixels(&self, prepared: &Prepared) -> Result<Pixels> {
        Ok(Pixels {
            layout: prepared.layout,
            values: self.processor.normalisation.values(&prepared.tiles)?,
        })
    }

    /// `pixel_values` is `[1, tiles, 3, size, size]`, the tiles of all pictures; which belong together is seen from `input_ids`.
    fn split(
        &self,
        tensors: &HashMap<String, Tensor>,
        view: View,
    ) -> std::result::Result<Vec<Pixels>, ModelError> {
        let pixels = processor_tensor(tensors, "pixel_values")?;
        let ids = processor_tensor(tensors, "input_ids")?;
        let ids: Vec<u32> = ids.flatten_all()?.to_dtype(DType::U32)?.to_vec1()?;
        let grids = tiles::grids(&ids, self.image_token, self.tokens_per_tile);
        let count = |(rows, columns): (usize, usize)| rows * columns + 1;
        let expected = grids.iter().copied().map(count).sum::<usize>();
        let size = self.tile;
        if pixels.dims() != [1, expected, 3, size, size] {
            return Err(ModelError::Inputs(format!(
                "pixel_values has the shape {:?}, expected [1, {expected}, 3, {size}, {size}], as input_ids has {expected} tiles",
                pixels.dims()
            )));
        }
        let pixels = pixels.squeeze(0)?;
        let mut images = Vec::new();
        let mut at = 0;
        for (rows, columns) in grids {
            let tiles = count((rows, columns));
            images.push(Pixels {
                layout: Layout {
                    picture: (columns.max(1) * size, rows.max(1) * size),
                    view,
                    grid: [1, rows, columns],
                },
                values: pixels.narrow(0, at, tiles)?,
            });
            at += tiles;
        }
        Ok(images)
    }

    fn tower(&self, pixels: &Pixels) -> Result<TowerOutput> {
        let values = pixels.values.to_device(&self.device)?;
        let features = self.tower.forward(&values.to_dtype(self.tower_dtype)?)?;
        Ok(TowerOutput {
            features: self.post_layernorm.forward(&features)?,
            deep: Vec::new(),
        })
    }

    fn connect(&self, features: &TowerOutput, _: &Layout) -> Result<ImageFeatures> {
        let features = features.features.to_dtype(self.dtype)?;
        Ok(ImageFeatures {
            rows: self.connector.forward(&features)?.flatten_to(1)?,
            deep: Vec::new(),
            grid: None,
        })
    }
}
