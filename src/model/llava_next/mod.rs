//! LLaVA-NeXT (also known as LLaVA-1.6): LLaVA-1.5 with pictures as a grid of tiles behind one of the whole, and a learned row
//! (`image_newline`) behind each row of the grid's features.
//!
//! A frame of the stream is the tile of the whole picture alone, without that row, which the published code puts behind rows of
//! grids only: it has no videos, and a grid would let a frame take four times as much of a bounded memory or more.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::checkpoint::Checkpoint;
use super::family::FamilyConfig;
use super::llava::anyres::{with_newlines, Grids};
use super::llava::processor::Processor;
use super::llava::vision::Arrangement;
use super::llava::{Llava, DEFAULTS};
use super::preprocess::picture::Picture;
use super::vision::{Layout, Tile, View};
use super::ModelError;

/// What checkpoints that name no grids are cut to: height and width, pixels.
const PINPOINTS: [[usize; 2]; 5] = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]];

/// Reads and checks `config.json`.
pub fn open(checkpoint: &Checkpoint) -> std::result::Result<Box<dyn FamilyConfig>, ModelError> {
    Llava::open(checkpoint, &DEFAULTS, |config, vision| {
        Ok(Arc::new(AnyRes {
            grids: Grids::new(config, vision, &PINPOINTS)?,
        }))
    })
}

/// Images as the whole and a grid of tiles; frames as the whole alone.
struct AnyRes {
    grids: Grids,
}

impl Arrangement for AnyRes {
    fn pinpoints(&self) -> Option<&[[usize; 2]]> {
        Some(&self.grids.pinpoints)
    }

    fn grid(&self, picture: (usize, usize), view: View) -> [usize; 3] {
        match view {
            View::Frame => [1, 0, 0],
            View::Image { .. } => {
                let [rows, columns] = self.grids.best(picture);
                [1, rows, columns]
            }
        }
    }

    fn tokens(&self, layout: &Layout) -> usize {
        let whole = self.grids.side.pow(2);
        let [_, rows, columns] = layout.grid;
        match rows {
            0 => whole,
            _ => {
                let [down, across] = self.grids.shown(layout.picture, [rows, columns]);
                whole + down.len() * (across.len() + 1)
            }
        }
    }

    fn tiles(&self, processor: &Processor, picture: &dyn Picture, layout: &Layout) -> Vec<Tile> {
        let [_, rows, columns] = layout.grid;
        match rows {
            0 => vec![processor.stretched(picture)],
            _ => self.grids.tiles(processor, picture, [rows, columns]),
        }
    }

    fn arranged(&self, projected: &Tensor, newline: &Tensor, layout: &Layout) -> Result<Tensor> {
        let whole = projected.get(0)?;
        let [_, rows, columns] = layout.grid;
        if rows == 0 {
            return Ok(whole);
        }
        let grid = self
            .grids
            .joined(projected, layout.picture, [rows, columns])?;
        Tensor::cat(&[whole, with_newlines(&grid, newline)?], 0)
    }
}
