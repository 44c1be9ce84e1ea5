//! The rows of kept sets of all layers, moved and saved at once.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

use super::layer::LayerCache;
use super::ledger::Part;
use super::rows::SavedRows;
use super::slots::Move;
use crate::gpu::{address, address_words, Gpu, Launch};

/// What moves in one kept set.
#[derive(Debug)]
pub struct SetMoves {
    /// Among the layers at hand.
    pub layer: usize,
    pub set: usize,
    pub moves: Vec<Move>,
}

/// Threads of a block: a row has a few hundred bytes.
const BLOCK: u32 = 32;

/// Moves rows, of which those that are overwritten are saved where a mark wants them back.
pub fn move_rows(
    layers: &mut [&mut LayerCache],
    moved: &[SetMoves],
    gpu: Option<&Arc<dyn Gpu>>,
) -> Result<()> {
    let Some(gpu) = gpu else {
        let mut moved = moved.iter();
        return moved
            .try_for_each(|SetMoves { layer, set, moves }| layers[*layer].move_rows(*set, moves));
    };
    save(layers, moved, gpu)?;
    let rows = moved.iter().flat_map(|SetMoves { layer, set, moves }| {
        let row = |&(from, to): &Move| [*layer as u32, *set as u32, from, to];
        moves.iter().map(row)
    });
    let rows = rows.collect::<Vec<_>>();
    if rows.is_empty() {
        return Ok(());
    }
    let launch = Rows::of(layers)?.launch("move_rows", &rows, &[])?;
    // Safety: the arguments are those of `move_rows` in kernels/rows.cu.
    unsafe { gpu.launch(launch) }
}

/// Saves what moves will overwrite.
fn save(layers: &mut [&mut LayerCache], moved: &[SetMoves], gpu: &Arc<dyn Gpu>) -> Result<()> {
    let marks = layers.first().map_or(0, |layer| layer.ledger.marks());
    for mark in 0..marks {
        let unsaved = moved.iter().map(|SetMoves { layer, set, moves }| {
            let targets = moves.iter().map(|&(_, to)| to);
            let unsaved = layers[*layer]
                .ledger
                .unsaved(mark, Part::Set(*set), targets);
            (*layer, *set, unsaved)
        });
        let unsaved = unsaved.filter(|(_, _, slots)| !slots.is_empty());
        let unsaved = unsaved.collect::<Vec<_>>();
        let rows = unsaved.iter().flat_map(|(layer, set, slots)| {
            let row = |&slot| [*layer as u32, *set as u32, slot, 0];
            slots.iter().map(row)
        });
        let rows = rows.collect::<Vec<_>>();
        if rows.is_empty() {
            continue;
        }
        let all = Rows::of(layers)?;
        let copies = all.copies(rows.len())?;
        let launch = all.launch("take_rows", &rows, &copies)?;
        // Safety: the arguments are those of `take_rows` in kernels/rows.cu.
        unsafe { gpu.launch(launch)? };
        let mut first = 0;
        for (layer, set, slots) in unsaved {
            let layer = &mut layers[layer];
            let of_set = |copies: &Tensor| copies.narrow(0, first, slots.len())?.transpose(0, 1);
            let rows = copies.iter().map(of_set).collect::<Result<Vec<_>>>()?;
            first += slots.len();
            let part = Part::Set(set);
            layer.ledger.note_saved(mark, part, &slots);
            let saved = SavedRows::of(layer.ledger.heads_of(set), slots, rows);
            layer.store.note_saved(mark, saved);
        }
    }
    Ok(())
}

/// The buffers of layers, for the kernels of rows.
struct Rows<'a> {
    /// Of each layer as many.
    buffers: Vec<&'a Tensor>,
    layers: usize,
    /// KV heads of a kept set.
    heads: usize,
}

impl<'a> Rows<'a> {
    fn of(layers: &'a [&mut LayerCache]) -> Result<Self> {
        let buffers = layers.iter().flat_map(|layer| layer.store.buffers());
        Ok(Self {
            buffers: buffers.collect(),
            layers: layers.len(),
            heads: layers[0].ledger.heads_of(0).len(),
        })
    }

    /// Of each buffer of a layer room for so many rows, `[rows, heads, width]`.
    fn copies(&self, rows: usize) -> Result<Vec<Tensor>> {
        let of_layer = &self.buffers[..self.buffers.len() / self.layers];
        let room = of_layer.iter().map(|buffer| {
            let shape = (rows, self.heads, buffer.dim(2)?);
            Tensor::zeros(shape, buffer.dtype(), buffer.device())
        });
        room.collect()
    }

    /// A launch of `kernel` for `rows`: layer, set, slot and the slot that it goes to.
    fn launch(&self, kernel: &str, rows: &[[u32; 4]], copies: &[Tensor]) -> Result<Launch> {
        let device: &Device = self.buffers[0].device();
        let (_, budget, _) = self.buffers[0].dims3()?;
        let mut words = rows.concat();
        for buffer in &self.buffers {
            let row_bytes = buffer.dim(2)? * buffer.dtype().size_in_bytes();
            words.extend(address_words(buffer)?);
            words.extend([row_bytes as u32, 0]);
        }
        let pointers = words.len();
        for copy in copies {
            words.extend(address_words(copy)?);
        }
        let words = Tensor::from_slice(&words, words.len(), device)?;
        let behind = |count: usize| -> Result<u64> {
            Ok(address(&words)? + (count * size_of::<u32>()) as u64)
        };
        let buffers = (self.buffers.len() / self.layers) as u32;
        let grid = [rows.len() as u32, self.heads as u32, buffers];
        let launch = Launch::new(kernel, grid, BLOCK)
            .tensor(&words)?
            .pointer(behind(4 * rows.len())?)
            .int(self.heads)
            .int(budget);
        match copies {
            [] => Ok(launch),
            _ => Ok(launch.pointer(behind(pointers)?)),
        }
    }
}
