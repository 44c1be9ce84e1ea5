//! The store of one layer: keys, values and the ring of queries, allocated once, on the CPU or on another device.
//!
//! It does as the ledger says, and knows of tokens only what it is told. What is computed over the slots in use is attention
//! ([`Store::attend`]) and what policies value candidates by ([`Store::asked`], [`Store::compare`], [`Store::value_norms`]).

use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};

use super::attention::{Asked, Kernel, Past, Sums};
use super::axes::Axes;
use super::likeness::{directions, likeness, KeyMean};
use super::numbering::Places;
use super::queries::RingRun;
use super::rotary::RotaryTable;
use super::rows::{move_rows, SavedRows};
use super::shape::CacheShape;
use super::slots::{Move, SlotMap};
use super::storage::{KvBuffer, Storage};
use super::turns::LayerTurns;
use crate::gpu::Gpu;

/// One layer's buffers. A token's slot is the same in all of them.
#[derive(Debug)]
pub struct Store {
    /// Before rotation: a new position needs no new key, and no error builds up.
    keys: KvBuffer,
    values: KvBuffer,
    /// The ring, `[heads, capacity, head_dim]`, not rotated.
    queries: Tensor,
    /// What the ranks of each kept set turn by; empty where positions have one axis, for which all sets share a table, and where the tables
    /// lie in the memory of a GPU.
    tables: Vec<RotaryTable>,
    /// The number of the layer's first kept set among those of all layers.
    first_set: usize,
    /// Directions of the standing instruction's keys before rotation, `[kv_heads, tokens, head_dim]`, f32.
    standing: Option<Tensor>,
    /// What the keys of the stream are like; empty when the policy does not ask for it.
    mean: KeyMean,
    /// From the outermost to the innermost.
    marks: Vec<StoreMark>,
}

/// A store at the moment of a mark, as far as it has changed since.
#[derive(Debug)]
struct StoreMark {
    standing: Option<Tensor>,
    mean: KeyMean,
    /// Of keys and values.
    rows: Vec<SavedRows>,
    /// Of the ring.
    queries: Vec<SavedRows>,
}

/// How large the buffers of a store are.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    /// Slots for keys and values.
    pub budget: usize,
    /// Slots of the ring of queries.
    pub ring: usize,
    /// The number of the layer's first kept set among those of all layers.
    pub first_set: usize,
}

/// Queries, keys and values of tokens that follow one another, not rotated and contiguous.
#[derive(Debug, Clone)]
pub struct Chunk {
    /// `[heads, tokens, head_dim]`
    pub queries: Tensor,
    /// `[kv_heads, tokens, head_dim]`
    pub keys: Tensor,
    /// `[kv_heads, tokens, head_dim]`
    pub values: Tensor,
}

impl Chunk {
    /// `count` tokens from the `start`-th on.
    pub fn narrow(&self, start: usize, count: usize) -> Result<Self> {
        let piece = |x: &Tensor| x.narrow(1, start, count)?.contiguous();
        Ok(Self {
            queries: piece(&self.queries)?,
            keys: piece(&self.keys)?,
            values: piece(&self.values)?,
        })
    }
}

/// The slots in use, and how they are attended to.
pub struct InUse<'a> {
    /// Rank in time of each, for each kept set: one, or one per KV head.
    pub ranks: Vec<&'a [u32]>,
    /// What ranks turn by, where all kept sets share a table.
    pub table: Option<&'a RotaryTable>,
    /// What they turn by, where the tables lie in the memory of a GPU.
    pub turns: Option<LayerTurns<'a>>,
    pub kernel: Kernel,
    /// What runs the kernels of the device, if there are such.
    pub gpu: Option<&'a Arc<dyn Gpu>>,
}

/// How keys compare, by slot, `[kv_heads, len]`.
#[derive(Debug, Default)]
pub struct Compared {
    /// How much the unit of each is like the standing instruction, where there is one.
    pub standing: Option<Vec<f32>>,
    /// How unlike the mean of the stream each is.
    pub novelty: Option<Vec<f32>>,
}

impl Store {
    /// Keys and values are stored as `storage`; `dtype` is the type of the activations.
    pub fn new(
        shape: &CacheShape,
        room: Room,
        (storage, dtype): (Storage, DType),
        device: &Device,
    ) -> Result<Self> {
        let (head_dim, budget) = (shape.head_dim, room.budget);
        let buffer = || KvBuffer::new(storage, (shape.kv_heads, budget, head_dim), device);
        Ok(Self {
            keys: buffer()?,
            values: buffer()?,
            // A ring of one that nothing reads stands in where no score is needed.
            queries: Tensor::zeros((shape.heads, room.ring.max(1), head_dim), dtype, device)?,
            tables: Vec::new(),
            first_set: room.first_set,
            standing: None,
            mean: KeyMean::default(),
            marks: Vec::new(),
        })
    }

    /// Before rotation, by slot.
    pub fn keys(&self) -> &KvBuffer {
        &self.keys
    }

    /// By slot.
    pub fn values(&self) -> &KvBuffer {
        &self.values
    }

    /// The ring of queries before rotation, `[heads, capacity, head_dim]`.
    pub fn queries(&self) -> &Tensor {
        &self.queries
    }

    /// Memory of keys and values, bytes.
    pub fn bytes(&self) -> usize {
        self.keys.bytes() + self.values.bytes()
    }

    /// Makes room for so many rotary tables in the memory of the host, one for each kept set, or for none.
    pub fn hold_tables(&mut self, count: usize, dtype: DType) -> Result<()> {
        let (_, budget, head_dim) = self.keys.dims()?;
        let device = self.queries.device();
        let table = || RotaryTable::empty(budget, head_dim, dtype, device);
        self.tables = std::iter::repeat_with(table).take(count).collect();
        Ok(())
    }

    /// The number of the layer's first kept set among those of all layers.
    pub fn first_set(&self) -> usize {
        self.first_set
    }

    /// What ranks turn by: the given table for all kept sets, or that of each.
    pub fn tables<'a>(&'a self, shared: Option<&'a RotaryTable>) -> Vec<&'a RotaryTable> {
        match shared {
            Some(table) => vec![table],
            None => self.tables.iter().collect(),
        }
    }

    /// Writes keys and values of a chunk to the slots from `start` on, and its queries to those of the ring.
    pub fn append(&mut self, chunk: &Chunk, start: usize, runs: &[RingRun]) -> Result<()> {
        self.keys.write(&chunk.keys, start)?;
        self.values.write(&chunk.values, start)?;
        for RingRun { from, slots } in runs {
            let queries = chunk.queries.narrow(1, *from, slots.len())?.contiguous()?;
            self.queries.slice_set(&queries, 1, slots.start)?;
        }
        Ok(())
    }

    /// Writes where tokens of kept set `set` stand into its table.
    pub fn place(&mut self, set: usize, places: &Places, axes: &mut Option<Axes>) -> Result<()> {
        match axes {
            Some(axes) => axes.write(self.first_set + set, self.tables.get_mut(set), places),
            None => Ok(()),
        }
    }

    fn past<'a>(&'a self, in_use: InUse<'a>) -> Past<'a> {
        Past {
            keys: &self.keys,
            values: &self.values,
            positions: in_use.ranks,
            rotary: self.tables(in_use.table),
            turns: in_use.turns,
            kernel: in_use.kernel,
            gpu: in_use.gpu,
        }
    }

    /// As [`Past::attend`] says.
    pub fn attend(
        &self,
        queries: &Tensor,
        positions: &[u32],
        in_use: InUse,
        sums: Option<Sums>,
    ) -> Result<Tensor> {
        self.past(in_use).attend(queries, positions, sums)
    }

    /// The slots in use, to be scored by the first of `queries` (`[heads, capacity, head_dim]`, not rotated), which stand at `positions`
    /// ([`sums`](super::attention::sums)).
    pub fn asked<'a>(
        &'a self,
        queries: &'a Tensor,
        positions: Vec<u32>,
        in_use: InUse<'a>,
    ) -> Asked<'a> {
        Asked {
            past: self.past(in_use),
            queries,
            positions,
        }
    }

    /// Compares the keys in use with those of the standing instruction, with the mean of the stream, or with both, as it is asked for. The
    /// mean takes in the keys that have come since the last time.
    ///
    /// `sets` are the layer's kept sets.
    pub fn compare(
        &mut self,
        sets: &[SlotMap],
        (standing, novelty): (bool, bool),
        budget: usize,
    ) -> Result<Compared> {
        let mut compared = Compared::default();
        let standing = self.standing.as_ref().filter(|_| standing);
        if standing.is_none() && !novelty {
            return Ok(compared);
        }
        let keys = directions(&self.keys.first(sets[0].len())?)?;
        if let Some(standing) = standing {
            compared.standing = Some(likeness(standing, &keys, sets)?);
        }
        if novelty {
            self.mean.update(&keys, sets, budget)?;
            compared.novelty = Some(flat(&self.mean.novelty(&keys)?)?);
        }
        Ok(compared)
    }

    /// L2 norms of the values in the first `len` slots, `[kv_heads, len]`.
    pub fn value_norms(&self, len: usize) -> Result<Vec<f32>> {
        let values = self.values.first(len)?;
        flat(&values.to_dtype(DType::F32)?.sqr()?.sum(2)?.sqrt()?)
    }

    /// Takes the keys of a standing instruction, `[kv_heads, tokens, head_dim]`, f32, at length 1.
    pub fn look_for(&mut self, standing: Option<Tensor>) {
        self.standing = standing;
    }

    /// The buffers whose rows are moved together, by slot.
    pub fn buffers(&self) -> [&Tensor; 2] {
        [self.keys.rows(), self.values.rows()]
    }

    /// Moves keys and values of the KV heads `heads`, one row after the other.
    pub fn move_rows(&mut self, heads: Range<usize>, moves: &[Move]) -> Result<()> {
        let mut buffers = self.buffers().into_iter();
        buffers.try_for_each(|buffer| move_rows(buffer, heads.clone(), moves))
    }

    /// Forgets what it knows of the stream; what stands in the buffers is not read before it is overwritten.
    pub fn clear(&mut self) {
        self.standing = None;
        self.mean = KeyMean::default();
    }

    /// Sets a mark, within those that are set.
    pub fn mark(&mut self) {
        self.marks.push(StoreMark {
            standing: self.standing.clone(),
            mean: self.mean.clone(),
            rows: Vec::new(),
            queries: Vec::new(),
        });
    }

    /// Saves keys and values of the KV heads `heads` in `slots` for a mark, counted from the outermost.
    pub fn save_rows(&mut self, mark: usize, heads: Range<usize>, slots: &[u32]) -> Result<()> {
        let saved = SavedRows::take(&self.buffers(), heads, slots)?;
        self.note_saved(mark, saved);
        Ok(())
    }

    /// Takes rows of keys and values that were saved for a mark, counted from the outermost.
    pub fn note_saved(&mut self, mark: usize, rows: SavedRows) {
        self.marks[mark].rows.push(rows);
    }

    /// Saves queries in `slots` of the ring for a mark, counted from the outermost.
    pub fn save_queries(&mut self, mark: usize, slots: &[u32]) -> Result<()> {
        let saved = SavedRows::take(&[&self.queries], 0..self.queries.dim(0)?, slots)?;
        self.marks[mark].queries.push(saved);
        Ok(())
    }

    /// Puts back what has been saved under the innermost mark, which stays set.
    pub fn put_back(&mut self) -> Result<()> {
        let Some(mark) = self.marks.last_mut() else {
            return Ok(());
        };
        self.standing.clone_from(&mark.standing);
        self.mean = mark.mean.clone();
        let put_back = |saved: &mut Vec<SavedRows>, buffers: &[&Tensor]| {
            let mut saved = saved.drain(..);
            saved.try_for_each(|rows| rows.put_back(buffers))
        };
        let queries = put_back(&mut mark.queries, &[&self.queries]);
        queries.and(put_back(
            &mut mark.rows,
            &[self.keys.rows(), self.values.rows()],
        ))
    }

    /// Forgets the innermost mark.
    pub fn let_go(&mut self) {
        self.marks.pop();
    }
}

/// The elements of a tensor of f32.
fn flat(x: &Tensor) -> Result<Vec<f32>> {
    x.flatten_all()?.to_vec1::<f32>()
}
