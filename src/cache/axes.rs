//! Cosines and sines for positions on three axes (M-RoPE, arXiv 2409.12191), from which the table of a kept set is put together.

use std::sync::Arc;

use candle_core::Result;

use super::numbering::Places;
use super::rope::{Pair, Rope};
use super::rotary::{turns, RotaryTable};
use super::turns::{AnglesOnHost, TurnTables, TurnWriter};
use crate::gpu::Gpu;

/// Cosines and sines of all frequencies at positions from `first` on, made when they are first needed.
#[derive(Debug)]
struct Angles {
    first: usize,
    /// `[positions, head_dim / 2]`
    cos: Vec<f32>,
    /// `[positions, head_dim / 2]`
    sin: Vec<f32>,
}

/// Positions that are made at a time.
const STEP: usize = 64;

impl Angles {
    fn starting_at(first: usize) -> Self {
        Self {
            first,
            cos: Vec::new(),
            sin: Vec::new(),
        }
    }

    /// Makes the row of `position`, counted from `first`, and those before it.
    fn reach(&mut self, position: usize, pairs: &[Pair]) {
        let width = pairs.len();
        let have = self.cos.len() / width.max(1);
        if position < have {
            return;
        }
        let rows = (position + 1).next_multiple_of(STEP);
        self.cos.resize(rows * width, 0.0);
        self.sin.resize(rows * width, 0.0);
        for row in have..rows {
            let values = row * width..(row + 1) * width;
            let (cos, sin) = (&mut self.cos[values.clone()], &mut self.sin[values]);
            turns(self.first + row, pairs, cos, sin);
        }
    }

    fn on_host(&self) -> AnglesOnHost<'_> {
        AnglesOnHost {
            cos: &self.cos,
            sin: &self.sin,
        }
    }
}

/// What the tables of all kept sets are put together from, on three axes.
#[derive(Debug)]
pub struct Axes {
    pairs: Vec<Pair>,
    /// The axis that each pair of a head turns by.
    axis_of_pairs: Vec<usize>,
    plain: Angles,
    /// The same from the plan's gap on.
    apart: Angles,
    /// What writes the tables, where they lie in the memory of a GPU.
    writer: Option<TurnWriter>,
}

impl Axes {
    /// `gap` is that of the plan.
    pub fn new(rope: &Rope, head_dim: usize, gap: usize) -> Self {
        Self {
            pairs: rope.pairs(head_dim),
            axis_of_pairs: rope.axis_of_pairs(head_dim),
            plain: Angles::starting_at(0),
            apart: Angles::starting_at(gap),
            writer: None,
        }
    }

    /// The tables are from now on these, in the memory of a GPU.
    pub fn write_to(&mut self, tables: &TurnTables, gpu: &Arc<dyn Gpu>) -> Result<()> {
        self.writer = Some(TurnWriter::new(gpu, tables, &self.axis_of_pairs)?);
        Ok(())
    }

    /// Cosines and sines at a position on three axes, which is `apart` by the gap.
    fn compose(&mut self, place: [usize; 3], apart: bool, cos: &mut [f32], sin: &mut [f32]) {
        let angles = match apart {
            true => &mut self.apart,
            false => &mut self.plain,
        };
        let [time, height, width] = place;
        angles.reach(time.max(height).max(width), &self.pairs);
        let pairs = self.axis_of_pairs.len();
        if time == height && height == width {
            let row = time * pairs..(time + 1) * pairs;
            cos.copy_from_slice(&angles.cos[row.clone()]);
            sin.copy_from_slice(&angles.sin[row]);
            return;
        }
        for (pair, &axis) in self.axis_of_pairs.iter().enumerate() {
            let at = place[axis] * pairs + pair;
            cos[pair] = angles.cos[at];
            sin[pair] = angles.sin[at];
        }
    }

    /// Writes the rows of ranks into the table of a kept set, whose row `r` turns to the position of the token with rank `r`: into
    /// `table`, or in the memory of a GPU with the next [`Self::flush`], where it is that of number `set` of all kept sets.
    pub fn write(
        &mut self,
        set: usize,
        table: Option<&mut RotaryTable>,
        places: &Places,
    ) -> Result<()> {
        let apart = |rank: usize| places.border.is_some_and(|border| rank >= border);
        if let Some(writer) = &mut self.writer {
            for (rank, &at) in (places.first..).zip(&places.at) {
                writer.place((set, rank), at, apart(rank));
            }
            return Ok(());
        }
        let Some(table) = table else { return Ok(()) };
        table.write(places.first, places.at.len(), |i, cos, sin| {
            self.compose(places.at[i], apart(places.first + i), cos, sin);
        })
    }

    /// Writes what is still to be written in the memory of a GPU.
    pub fn flush(&mut self) -> Result<()> {
        let Some(writer) = &mut self.writer else {
            return Ok(());
        };
        let needs = writer.needs();
        if !writer.holds(needs) {
            for (angles, need) in [&mut self.plain, &mut self.apart].into_iter().zip(needs) {
                // More than is needed now: what grows token by token is not to be uploaded for each.
                if need > 0 {
                    angles.reach(need.next_power_of_two() - 1, &self.pairs);
                }
            }
            writer.take_angles([self.plain.on_host(), self.apart.on_host()])?;
        }
        writer.write()
    }
}
