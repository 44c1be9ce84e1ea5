//! Pictures of any size as a grid of tiles, after LLaVA-NeXT ("anyres"): which grid, its tiles, and which of their features show the
//! picture.

use std::cmp::Reverse;
use std::ops::Range;

use candle_core::{Result, Tensor};

use super::config::{Config, VisionConfig};
use super::processor::Processor;
use crate::model::decoder::Unsupported;
use crate::model::preprocess::picture::Picture;
use crate::model::vision::Tile;

/// The grids that a picture may be cut into.
#[derive(Debug, Clone)]
pub struct Grids {
    /// Height and width, pixels, multiples of a tile's.
    pub pinpoints: Vec<[usize; 2]>,
    /// Side of a tile, pixels.
    tile: usize,
    /// Features per side of a tile.
    pub side: usize,
}

/// The largest side of a grid, pixels.
const MAX_SIDE: usize = 8192;

impl Grids {
    /// Those of a configuration; `default` (height and width, pixels) are those of the family's class.
    pub fn new(
        config: &Config,
        vision: &VisionConfig,
        default: &[[usize; 2]],
    ) -> std::result::Result<Self, Unsupported> {
        if vision.class_token {
            let expected = "default, as features with a class token's form no square";
            let field = "vision_feature_select_strategy";
            return Err(Unsupported::new(field, "full", expected));
        }
        let tile = vision.tower.sizes.image;
        let pinpoints = config.image_grid_pinpoints.as_deref().unwrap_or(default);
        let fits = |side: &usize| (1..=MAX_SIDE).contains(side) && side.is_multiple_of(tile);
        match pinpoints.iter().find(|sides| !sides.iter().all(fits)) {
            None if !pinpoints.is_empty() => Ok(Self {
                pinpoints: pinpoints.to_vec(),
                tile,
                side: vision.tower.sizes.side(),
            }),
            odd => Err(Unsupported::new(
                "image_grid_pinpoints",
                odd.map_or("empty".to_string(), |sides| {
                    format!("{sides:?} in one place")
                }),
                format!("pairs of multiples of image_size ({tile}) up to {MAX_SIDE}"),
            )),
        }
    }

    /// Rows and columns of tiles for a picture (width, height): the grid that shows most pixels of it, and of these the one with the
    /// least padding; of equals the first.
    pub fn best(&self, picture: (usize, usize)) -> [usize; 2] {
        let shown = |&&[height, width]: &&[usize; 2]| {
            let scale = scale_into((width, height), picture);
            let scaled = |side: usize| (side as f64 * scale) as usize;
            let shown = (scaled(picture.0) * scaled(picture.1)).min(picture.0 * picture.1);
            (shown, Reverse((height * width).saturating_sub(shown)))
        };
        // Of equals the last is the maximum.
        let best = self.pinpoints.iter().rev().max_by_key(shown);
        best.map_or([1, 1], |sides| sides.map(|side| side / self.tile))
    }

    /// The whole picture as a tile; then the picture as large as it fits into `grid`, black around it, in tiles row by row.
    pub fn tiles(
        &self,
        processor: &Processor,
        picture: &dyn Picture,
        grid: [usize; 2],
    ) -> Vec<Tile> {
        let [height, width] = grid.map(|tiles| tiles * self.tile);
        let size = picture.size();
        let scale = scale_into((width, height), size);
        let fitted = |side: usize, most: usize| ((side as f64 * scale).ceil() as usize).min(most);
        let to = match width as f64 / (size.0 as f64) < height as f64 / size.1 as f64 {
            true => (width, fitted(size.1, height)),
            false => (fitted(size.0, width), height),
        };
        let resized = processor.resizer.resize(picture, to);
        let (left, top) = ((width - to.0) / 2, (height - to.1) / 2);
        let mut tiles = vec![vec![0; self.tile * self.tile * 3]; grid[0] * grid[1]];
        for (row, y) in resized.chunks_exact(to.0 * 3).zip(top..) {
            let mut rest = row;
            let mut x = left;
            while !rest.is_empty() {
                let count = (self.tile - x % self.tile).min(rest.len() / 3);
                let (piece, after) = rest.split_at(count * 3);
                let tile = &mut tiles[y / self.tile * grid[1] + x / self.tile];
                let at = (y % self.tile * self.tile + x % self.tile) * 3;
                tile[at..at + piece.len()].copy_from_slice(piece);
                (rest, x) = (after, x + count);
            }
        }
        let tiles = tiles.into_iter().map(|rgb| processor.tile_of(rgb));
        std::iter::once(processor.stretched(picture))
            .chain(tiles)
            .collect()
    }

    /// The rows and columns of a grid's features that show a picture (width, height), and not the padding around it.
    pub fn shown(&self, picture: (usize, usize), grid: [usize; 2]) -> [Range<usize>; 2] {
        let [height, width] = grid.map(|tiles| tiles * self.side);
        let (picture_width, picture_height) = (picture.0 as f64, picture.1 as f64);
        // The published code rounds to seven decimals before it truncates.
        let truncated = |size: f64| (size + 0.5e-7) as usize;
        let middle = |whole: usize, size: usize| {
            let padding = whole.saturating_sub(size) / 2;
            padding..whole - padding
        };
        if picture_width / picture_height > width as f64 / height as f64 {
            let shown = truncated(picture_height * (width as f64 / picture_width));
            [middle(height, shown), 0..width]
        } else {
            let shown = truncated(picture_width * (height as f64 / picture_height));
            [0..height, middle(width, shown)]
        }
    }

    /// Of the features of a picture and its grid (`[tiles, side^2, hidden]`) those of the grid that show the picture, `[rows,
    /// columns, hidden]`.
    pub fn joined(
        &self,
        tiles: &Tensor,
        picture: (usize, usize),
        grid: [usize; 2],
    ) -> Result<Tensor> {
        let ([rows, columns], side) = (grid, self.side);
        let hidden = tiles.dim(2)?;
        let [down, across] = self.shown(picture, grid);
        tiles
            .narrow(0, 1, rows * columns)?
            .reshape(&[rows, columns, side, side, hidden])?
            .permute([0, 2, 1, 3, 4])?
            .reshape((rows * side, columns * side, hidden))?
            .narrow(0, down.start, down.len())?
            .narrow(1, across.start, across.len())
    }
}

/// The factor by which a picture (width, height) just fits into `frame`.
fn scale_into(frame: (usize, usize), picture: (usize, usize)) -> f64 {
    (frame.0 as f64 / picture.0 as f64).min(frame.1 as f64 / picture.1 as f64)
}

/// `[rows, columns, hidden]` -> `[rows * (columns + 1), hidden]`, with `newline` (`[hidden]`) at the end of each row.
pub fn with_newlines(x: &Tensor, newline: &Tensor) -> Result<Tensor> {
    let (rows, _, hidden) = x.dims3()?;
    let newlines = newline.broadcast_as((rows, 1, hidden))?;
    Tensor::cat(&[x, &newlines], 1)?.flatten_to(1)
}
