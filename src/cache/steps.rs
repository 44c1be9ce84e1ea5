//! Steps: tokens that a device's own kernels append and attend with, one at a time. What the kernels must know of the layers, and how
//! the ledgers follow.
//!
//! The kernels write keys, values and queries where the ledger would have them: at the next slot, whose rank is its number, and at the
//! ring's cursor.

use candle_core::{Result, Tensor};

use super::bounded::BoundedCache;
use super::config::CacheError;
use super::layer::LayerCache;
use super::ledger::Part;
use super::policy::Evidence;
use super::rotary::RotaryTable;
use super::shared::Rotary;
use super::slots::{Mark, Token};
use super::storage::KvBuffer;

/// A layer as the kernels of a step find it.
#[derive(Debug)]
pub struct StepLayer<'a> {
    /// Before rotation.
    pub keys: &'a KvBuffer,
    pub values: &'a KvBuffer,
    /// The ring of queries before rotation, `[heads, capacity, head_dim]`.
    pub queries: &'a Tensor,
    /// Slots in use.
    pub len: usize,
    /// Slot of the ring that the next query goes to.
    pub cursor: usize,
    /// Queries that the ring turns through; 0 where it takes none of an answer.
    pub window: usize,
    /// Rank in time of each slot in use, for each kept set: one, or one per KV head.
    pub ranks: Vec<&'a [u32]>,
    /// Attention of all queries so far, `[kv_heads, budget]`; empty when the policy does not ask for it.
    pub history: &'a [f32],
    /// The first row of its rotary tables, see [`StepTurns`].
    pub first_row: usize,
}

/// How the rotary tables of all layers lie behind one another. Row `first_row + head * stride + rank` is what the key of that rank and
/// KV head turns by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepTurns {
    /// All rows.
    pub rows: usize,
    /// Rows from one KV head's table to the next; 0 where they share one.
    pub stride: usize,
    /// They change with what the cache holds, not only with its plan.
    pub change: bool,
}

impl BoundedCache {
    /// Where the policy adds up the attention of every query: what the sum is multiplied with before each.
    pub fn history_decay(&self) -> Option<f32> {
        match self.shared.policy.evidence() {
            Evidence::History { decay } => Some(decay),
            Evidence::Age | Evidence::Window { .. } => None,
        }
    }

    /// Takes note of the history of attention of all layers, which steps have added up: for each layer `[kv_heads, budget]`.
    pub fn note_histories<'a>(&mut self, layers: impl Iterator<Item = &'a [f32]>) {
        let budget = self.shared.plan.budget;
        for (layer, history) in self.layers.iter_mut().zip(layers) {
            layer.ledger.note_history(history.chunks_exact(budget));
        }
    }

    /// The layers, for answers: text that belongs to no instruction.
    pub fn step_layers(&self) -> impl Iterator<Item = StepLayer<'_>> {
        let turns = self.step_turns();
        let sets = self.layers[0].ledger.sets().len();
        self.layers.iter().enumerate().map(move |(index, layer)| {
            let ring = layer.ledger.ring();
            StepLayer {
                keys: layer.store.keys(),
                values: layer.store.values(),
                queries: layer.store.queries(),
                len: layer.len(),
                cursor: ring.cursor(),
                window: if ring.takes_answers() {
                    ring.window()
                } else {
                    0
                },
                ranks: layer.ledger.ranks(),
                history: layer.ledger.histories(),
                first_row: match (&self.shared.rotary, turns.change) {
                    (_, true) => index * sets * self.shared.plan.budget,
                    (Rotary::ByRank { apart: Some(_), .. }, _) if layer.ledger.has_relevant() => {
                        self.shared.plan.budget
                    }
                    _ => 0,
                },
            }
        })
    }

    pub fn step_turns(&self) -> StepTurns {
        let budget = self.shared.plan.budget;
        let sets = self.layers[0].ledger.sets().len();
        match &self.shared.rotary {
            Rotary::ByRank { .. } => StepTurns {
                // The second table comes and goes with the plan.
                rows: 2 * budget,
                stride: 0,
                change: false,
            },
            Rotary::BySet(_) => StepTurns {
                rows: self.layers.len() * sets * budget,
                stride: if sets > 1 { budget } else { 0 },
                change: true,
            },
        }
    }

    /// The tables of all layers, cosines and sines (`[rows, head_dim / 2]`, f32), where the cache keeps them on the device.
    pub fn turn_tables(&self) -> Option<[&Tensor; 2]> {
        let tables = self.shared.rotary.on_gpu();
        tables.map(|tables| [&tables.cos, &tables.sin])
    }

    /// Writes the tables of all layers to `cos` and `sin` (`[rows, head_dim / 2]`, f32), which are those of [`Self::turn_tables`] where
    /// there are such, with the rows of the ranks that text will have that comes next.
    pub fn write_step_turns(&mut self, cos: &Tensor, sin: &Tensor) -> Result<()> {
        let budget = self.shared.plan.budget;
        let Rotary::ByRank { plain, apart } = &self.shared.rotary else {
            for layer in &mut self.layers {
                layer.place_ahead(budget, &mut self.workspace.axes)?;
            }
            return self.workspace.write_turns();
        };
        let tables = [Some(plain), apart.as_deref()].into_iter().flatten();
        let tables = tables.collect::<Vec<&RotaryTable>>();
        let halves: [fn(&RotaryTable) -> &[f32]; 2] =
            [|table| table.host().0, |table| table.host().1];
        for (tensor, half) in [cos, sin].into_iter().zip(halves) {
            let rows = tables.iter().flat_map(|table| half(table)).copied();
            let rows = rows.collect::<Vec<_>>();
            let shape = (tables.len() * budget, rows.len() / (tables.len() * budget));
            tensor.slice_set(&Tensor::from_vec(rows, shape, tensor.device())?, 0, 0)?;
        }
        Ok(())
    }

    /// Sees to what marks want back of the rings, whose queries steps are about to overwrite.
    pub fn before_step(&mut self) -> Result<()> {
        self.layers.iter_mut().try_for_each(LayerCache::save_ring)
    }

    /// Takes note of a token that a step has appended to every layer.
    pub fn note_step(&mut self, mark: Mark) -> std::result::Result<(), CacheError> {
        let tokens = self.admit(&[mark])?;
        for layer in &mut self.layers {
            layer.note_step(&tokens);
        }
        Ok(())
    }
}

impl LayerCache {
    /// Writes where text would stand that comes next, up to the end of the free slots, where positions have three axes.
    fn place_ahead(&mut self, budget: usize, axes: &mut Option<super::axes::Axes>) -> Result<()> {
        let text = Token {
            index: 0,
            unit: 0,
            mark: Mark::default(),
        };
        let next = self.ledger.next(&vec![text; budget - self.len()]);
        self.place(&next.places, axes)
    }

    fn save_ring(&mut self) -> Result<()> {
        let window = self.ledger.ring().window() as u32;
        self.save(Part::Ring, 0..window)
    }
}
