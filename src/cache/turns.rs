//! Rotary tables on three axes in the memory of a GPU: those of all kept sets of all layers, whose rows a kernel puts together.
//!
//! The host says where tokens stand, 16 bytes for each; it does not make the rows. However many layers have something to say, it is
//! one upload and one launch.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};

use crate::gpu::{Gpu, Launch};

/// Rows that a block of `write_turns` writes: `TURN_ROWS` in kernels/turns.cu.
const ROWS: usize = 8;
const BLOCK: u32 = 128;

/// The tables, those of one kept set after the other.
#[derive(Debug, Clone)]
pub struct TurnTables {
    /// `[sets * budget, head_dim / 2]`, f32.
    pub cos: Tensor,
    pub sin: Tensor,
    budget: usize,
}

/// The tables of one layer.
#[derive(Debug, Clone, Copy)]
pub struct LayerTurns<'a> {
    pub cos: &'a Tensor,
    pub sin: &'a Tensor,
    /// The first row of the layer's first kept set.
    pub first_row: usize,
    /// Rows from one KV head's table to the next; 0 where they share one.
    pub stride: usize,
}

impl TurnTables {
    /// Tables of `sets` kept sets that turn nothing anywhere yet.
    pub fn new(sets: usize, budget: usize, head_dim: usize, device: &Device) -> Result<Self> {
        let table = || Tensor::zeros((sets * budget, head_dim / 2), DType::F32, device);
        Ok(Self {
            cos: table()?,
            sin: table()?,
            budget,
        })
    }

    /// Those of a layer with `sets` kept sets, the first of which is number `first_set` of all.
    pub fn of_layer(&self, first_set: usize, sets: usize) -> LayerTurns<'_> {
        LayerTurns {
            cos: &self.cos,
            sin: &self.sin,
            first_row: first_set * self.budget,
            stride: if sets > 1 { self.budget } else { 0 },
        }
    }
}

/// Where the token of a rank of a kept set stands.
#[derive(Debug, Clone, Copy)]
struct Row {
    to: u32,
    /// Time, height and width.
    at: [u32; 3],
    /// By the plan's gap farther on.
    apart: bool,
}

/// What the rows of tables are put together from: cosines and sines by position, `[positions, head_dim / 2]` each.
pub struct AnglesOnHost<'a> {
    pub cos: &'a [f32],
    pub sin: &'a [f32],
}

/// Writes tables.
#[derive(Debug)]
pub struct TurnWriter {
    gpu: Arc<dyn Gpu>,
    tables: TurnTables,
    /// The axis that each pair of a head turns by, u32.
    axes: Tensor,
    /// Cosines and sines of positions, then of those that stand apart.
    angles: Option<[Tensor; 2]>,
    /// Positions of each kind that `angles` has.
    held: [usize; 2],
    waiting: Vec<Row>,
}

impl TurnWriter {
    pub fn new(gpu: &Arc<dyn Gpu>, tables: &TurnTables, axis_of_pairs: &[usize]) -> Result<Self> {
        let axes = axis_of_pairs.iter().map(|&axis| axis as u32);
        let axes = axes.collect::<Vec<_>>();
        Ok(Self {
            gpu: gpu.clone(),
            axes: Tensor::from_slice(&axes, axes.len(), tables.cos.device())?,
            tables: tables.clone(),
            angles: None,
            held: [0; 2],
            waiting: Vec::new(),
        })
    }

    /// The token of rank `rank` of kept set `set` (of all) stands there, from the next [`Self::write`] on. Of a rank this is said once
    /// in between.
    pub fn place(&mut self, (set, rank): (usize, usize), at: [usize; 3], apart: bool) {
        self.waiting.push(Row {
            to: (set * self.tables.budget + rank) as u32,
            at: at.map(|position| position as u32),
            apart,
        });
    }

    /// Positions that the rows that wait need, of those that do not stand apart and of those that do.
    pub fn needs(&self) -> [usize; 2] {
        let mut needs = [0; 2];
        for row in &self.waiting {
            let need = &mut needs[usize::from(row.apart)];
            let [time, height, width] = row.at;
            *need = (*need).max(time.max(height).max(width) as usize + 1);
        }
        needs
    }

    /// Whether there are angles of so many positions.
    pub fn holds(&self, needs: [usize; 2]) -> bool {
        self.angles.is_some()
            && needs
                .iter()
                .zip(self.held)
                .all(|(&need, held)| need <= held)
    }

    /// Takes other angles: those of positions, and of those that stand apart.
    pub fn take_angles(&mut self, of: [AnglesOnHost; 2]) -> Result<()> {
        let half = self.axes.elem_count();
        self.held = [0, 1].map(|kind| of[kind].cos.len() / half.max(1));
        let [plain, apart] = of;
        let tensor = |plain: &[f32], apart: &[f32]| {
            let values = [plain, apart].concat();
            let shape = (values.len() / half.max(1), half);
            Tensor::from_vec(values, shape, self.tables.cos.device())
        };
        self.angles = Some([tensor(plain.cos, apart.cos)?, tensor(plain.sin, apart.sin)?]);
        Ok(())
    }

    /// Writes the rows that wait, for which there are angles.
    pub fn write(&mut self) -> Result<()> {
        let Some([cos, sin]) = self.angles.as_ref().filter(|_| !self.waiting.is_empty()) else {
            return Ok(());
        };
        let first_apart = self.held[0] as u32;
        let count = self.waiting.len();
        let words = self.waiting.drain(..).flat_map(|row| {
            let first = if row.apart { first_apart } else { 0 };
            let [time, height, width] = row.at.map(|position| first + position);
            [row.to, time, height, width]
        });
        let words = Tensor::from_vec(words.collect(), 4 * count, cos.device())?;
        let launch = Launch::new("write_turns", [count.div_ceil(ROWS) as u32, 1, 1], BLOCK)
            .tensor(&words)?
            .int(count)
            .tensor(cos)?
            .tensor(sin)?
            .tensor(&self.axes)?
            .int(self.axes.elem_count())
            .tensor(&self.tables.cos)?
            .tensor(&self.tables.sin)?;
        // Safety: the arguments are those of `write_turns` in kernels/turns.cu.
        unsafe { self.gpu.launch(launch) }
    }
}
