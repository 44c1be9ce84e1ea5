//! LLaVA-OneVision (arXiv 2408.03326): a SigLIP tower, and three ways to lay pictures out.
//!
//! - The only image of a prompt: the whole and a grid of tiles as in LLaVA-NeXT, the grid's features brought to the worth of at most
//!   N tiles (`anyres_max_N`).
//! - One of several images: one tile, the picture in a square of the mean colour, with one row `image_newline` behind it.
//! - A video: the whole of each frame, its features halved in both directions, with one row `image_newline` behind the last frame.
//!
//! A frame of the stream is a video of one frame. So the row stands behind every frame where a published video has one behind the
//! last only: which frame is the last is not known when it comes, and for one frame this is the published layout to the row.

use std::sync::Arc;

use candle_core::{Result, Tensor};
use serde_json::{json, Value};

use super::checkpoint::Checkpoint;
use super::decoder::Unsupported;
use super::family::FamilyConfig;
use super::llava::anyres::{with_newlines, Grids};
use super::llava::config::{Config, Defaults, VisionConfig};
use super::llava::processor::Processor;
use super::llava::vision::Arrangement;
use super::llava::Llava;
use super::preprocess::picture::Picture;
use super::vision::{Layout, Tile, View};
use super::ModelError;

const DEFAULTS: Defaults = Defaults {
    image_token: 151_646,
    video_token: Some(151_647),
    text_type: "qwen2",
    vision_type: "siglip_vision_model",
    vision: siglip_so400m,
    feature_layer: -1,
    select_strategy: "full",
};

/// SigLIP So400m/14 at 384 pixels, without its last layer.
fn siglip_so400m() -> Value {
    json!({
        "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 26, "num_attention_heads": 16,
        "image_size": 384, "patch_size": 14,
    })
}

/// What checkpoints that name no grids are cut to: all up to this many tiles a side.
const MOST_TILES_PER_SIDE: usize = 6;

/// Side of the tiles of these, pixels.
const TILE: usize = 384;

/// Reads and checks `config.json`.
pub fn open(checkpoint: &Checkpoint) -> std::result::Result<Box<dyn FamilyConfig>, ModelError> {
    Llava::open(checkpoint, &DEFAULTS, |config, vision| {
        Ok(Arc::new(OneVision::new(config, vision)?))
    })
}

struct OneVision {
    grids: Grids,
    /// What the features of a grid may be worth, tiles.
    most_tiles: usize,
}

/// Grids may have that much more on a side before their features are interpolated.
const TOLERANCE: f64 = 1.1;

impl OneVision {
    fn new(config: &Config, vision: &VisionConfig) -> std::result::Result<Self, Unsupported> {
        let sides = (1..=MOST_TILES_PER_SIDE).map(|tiles| tiles * TILE);
        let pinpoints = sides
            .clone()
            .flat_map(|height| sides.clone().map(move |width| [height, width]))
            .collect::<Vec<_>>();
        let ratio = config.vision_aspect_ratio.as_deref();
        Ok(Self {
            grids: Grids::new(config, vision, &pinpoints)?,
            most_tiles: most_tiles(ratio.unwrap_or("anyres_max_9"))?,
        })
    }

    /// Rows and columns that the features of a grid are interpolated to, if there are too many.
    fn fewer(&self, rows: usize, columns: usize) -> Option<(usize, usize)> {
        let most = self.most_tiles * self.grids.side.pow(2);
        let ratio = ((rows * columns) as f64 / most as f64).sqrt();
        // The published floor division: of the exact quotient, not of the rounded one.
        let divided = |size: usize| {
            let size = size as f64;
            ((size - size % ratio) / ratio).round() as usize
        };
        (ratio > TOLERANCE).then(|| (divided(rows), divided(columns)))
    }

    /// Features per side of a frame.
    fn halved(&self) -> usize {
        self.grids.side.div_ceil(2)
    }
}

/// N of `anyres_max_N`.
fn most_tiles(ratio: &str) -> std::result::Result<usize, Unsupported> {
    ratio
        .strip_prefix("anyres_max_")
        .and_then(|count| count.parse().ok())
        .filter(|count| (1..=1024).contains(count))
        .ok_or_else(|| {
            let expected = "anyres_max_N with N from 1 to 1024";
            Unsupported::new("vision_aspect_ratio", ratio, expected)
        })
}

impl Arrangement for OneVision {
    fn pinpoints(&self) -> Option<&[[usize; 2]]> {
        Some(&self.grids.pinpoints)
    }

    fn grid(&self, picture: (usize, usize), view: View) -> [usize; 3] {
        match view {
            View::Image { of: 0 | 1 } => {
                let [rows, columns] = self.grids.best(picture);
                [1, rows, columns]
            }
            View::Image { .. } | View::Frame => [1, 0, 0],
        }
    }

    fn tokens(&self, layout: &Layout) -> usize {
        match layout.grid {
            [frames, 0, _] if layout.view == View::Frame => frames * self.halved().pow(2) + 1,
            [_, 0, _] => self.grids.side.pow(2) + 1,
            [_, rows, columns] => {
                let [down, across] = self.grids.shown(layout.picture, [rows, columns]);
                let fewer = self.fewer(down.len(), across.len());
                let (rows, columns) = fewer.unwrap_or((down.len(), across.len()));
                self.grids.side.pow(2) + rows * (columns + 1)
            }
        }
    }

    fn tiles(&self, processor: &Processor, picture: &dyn Picture, layout: &Layout) -> Vec<Tile> {
        match layout.grid {
            [_, 0, _] if layout.view == View::Frame => vec![processor.stretched(picture)],
            [_, 0, _] => vec![processor.padded(picture)],
            [_, rows, columns] => self.grids.tiles(processor, picture, [rows, columns]),
        }
    }

    fn arranged(&self, projected: &Tensor, newline: &Tensor, layout: &Layout) -> Result<Tensor> {
        let hidden = projected.dim(2)?;
        let newline = newline.reshape((1, hidden))?;
        match layout.grid {
            [frames, 0, _] if layout.view == View::Frame => {
                let (side, halved) = (self.grids.side, self.halved());
                let frames = projected.reshape((frames, side, side, hidden))?;
                let rows = interpolated(&frames, (halved, halved))?.flatten_to(2)?;
                Tensor::cat(&[rows, newline], 0)
            }
            [_, 0, _] => Tensor::cat(&[projected.get(0)?, newline], 0),
            [_, rows, columns] => {
                let grids = &self.grids;
                let mut grid = grids.joined(projected, layout.picture, [rows, columns])?;
                if let Some(fewer) = self.fewer(grid.dim(0)?, grid.dim(1)?) {
                    grid = interpolated(&grid.unsqueeze(0)?, fewer)?.squeeze(0)?;
                }
                let whole = projected.get(0)?;
                Tensor::cat(&[whole, with_newlines(&grid, &newline)?], 0)
            }
        }
    }
}

/// `[frames, rows, columns, hidden]` at other numbers of rows and columns, bilinearly as torch does it, corners not aligned.
fn interpolated(x: &Tensor, (rows, columns): (usize, usize)) -> Result<Tensor> {
    x.permute((0, 3, 1, 2))?
        .contiguous()?
        .upsample_bilinear2d(rows, columns, false)?
        .permute((0, 2, 3, 1))?
        .contiguous()
}
