//! Keys, values and slots of one decoder layer.

use candle_core::{bail, DType, Device, Result, Tensor};

use super::attention::Past;
use super::axes::SetTable;
use super::bounded::Shared;
use super::config::Scope;
use super::evict::Workspace;
use super::journal::LayerMark;
use super::likeness::{directions, KeyMean};
use super::policy::Evidence;
use super::queries::{QueryRing, QuerySource};
use super::recall::Chunks;
use super::rotary::RotaryTable;
use super::shape::{CacheShape, Rotary};
use super::slots::{SlotMap, Token};

/// One layer's buffers, allocated once. A token's slot is the same in all of them.
#[derive(Debug)]
pub struct LayerCache {
    /// Keys before rotation, `[kv_heads, budget, head_dim]`: a new position needs no new key, and no error builds up.
    pub(super) keys: Tensor,
    /// `[kv_heads, budget, head_dim]`
    pub(super) values: Tensor,
    pub(super) queries: QueryRing,
    /// Directions of the standing instruction's keys before rotation, `[kv_heads, tokens, head_dim]`, f32.
    pub(super) standing: Option<Tensor>,
    /// What the keys of the stream are like; empty when the policy does not ask for it.
    pub(super) mean: KeyMean,
    /// Attention of all queries so far, `[kv_heads, budget]`; empty when the policy does not ask for it.
    pub(super) history: Vec<f32>,
    /// One kept set for the layer, or one per KV head; all of one length.
    pub(super) sets: Vec<SlotMap>,
    /// What the ranks of each set turn by; empty where positions have one axis, for which all sets share a table.
    pub(super) tables: Vec<SetTable>,
    pub(super) compactions: u64,
    /// Keys that queries have attended to.
    pub(super) attended: u64,
    /// Rows that compactions have moved.
    pub(super) moved: u64,
    /// What came by since somebody began to listen.
    pub(super) heard: Option<Chunks>,
    /// From the outermost to the innermost.
    pub(super) marks: Vec<LayerMark>,
}

impl LayerCache {
    pub(super) fn new(
        shape: &CacheShape,
        shared: &Shared,
        storage: DType,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let budget = shared.plan.budget;
        let buffer = || Tensor::zeros((shape.kv_heads, budget, shape.head_dim), storage, device);
        let sets = match shared.policy.scope() {
            Scope::KvHead => shape.kv_heads,
            Scope::Auto | Scope::Layer | Scope::Model => 1,
        };
        let (source, queries, history) = match shared.policy.evidence() {
            Evidence::Window {
                source, queries, ..
            } => (source, queries.min(budget), 0),
            Evidence::Age => (QuerySource::Stream, 0, 0),
            Evidence::History { .. } => (QuerySource::Stream, 0, shape.kv_heads * budget),
        };
        let window = (shared.plan.window, queries, source);
        let table = || SetTable::new(budget, shape.head_dim, dtype, device);
        Ok(Self {
            keys: buffer()?,
            values: buffer()?,
            queries: QueryRing::new(shape.heads, window, shape.head_dim, dtype, device)?,
            standing: None,
            mean: KeyMean::default(),
            history: vec![0.0; history],
            sets: vec![SlotMap::with_capacity(budget); sets],
            tables: match shared.rotary {
                Rotary::ByRank { .. } => Vec::new(),
                Rotary::BySet => std::iter::repeat_with(table).take(sets).collect(),
            },
            compactions: 0,
            attended: 0,
            moved: 0,
            heard: None,
            marks: Vec::new(),
        })
    }

    /// Slots in use.
    pub fn len(&self) -> usize {
        self.sets[0].len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The kept sets, each in the order of time: one for the layer, or one per KV head.
    pub fn sets(&self) -> impl Iterator<Item = Vec<Token>> + Clone + '_ {
        self.sets.iter().map(SlotMap::by_time)
    }

    pub(super) fn slot_maps(&self) -> &[SlotMap] {
        &self.sets
    }

    /// The KV heads whose rows stand where kept set `set` says.
    pub(super) fn heads_of(&self, set: usize) -> Result<std::ops::Range<usize>> {
        Ok(match self.sets.len() {
            1 => 0..self.keys.dim(0)?,
            _ => set..set + 1,
        })
    }

    /// The keys in use before rotation, in the order of time, `[kv_heads, len, head_dim]`.
    pub fn raw_keys(&self) -> Result<Tensor> {
        let mut order = Vec::new();
        let heads = (0..self.keys.dim(0)?)
            .map(|head| {
                self.sets[head.min(self.sets.len() - 1)].order(&mut order);
                let index = Tensor::from_slice(&order, order.len(), self.keys.device())?;
                self.keys.get(head)?.index_select(&index, 0)
            })
            .collect::<Result<Vec<_>>>()?;
        Tensor::stack(&heads, 0)
    }

    pub(super) fn past<'a>(&'a self, shared: &'a Shared) -> Past<'a> {
        Past {
            keys: &self.keys,
            values: &self.values,
            positions: self.sets.iter().map(SlotMap::positions).collect(),
            rotary: self.rotary(shared),
            kernel: shared.kernel,
        }
    }

    /// What the keys and queries of the layer are rotated by at this moment: a table for all kept sets, or one for each.
    pub(super) fn rotary<'a>(&'a self, shared: &'a Shared) -> Vec<&'a RotaryTable> {
        match &shared.rotary {
            Rotary::ByRank {
                apart: Some(apart), ..
            } if self.sets[0].relevant() > 0 => vec![apart],
            Rotary::ByRank { plain, .. } => vec![plain],
            Rotary::BySet => self.tables.iter().map(|set| &set.table).collect(),
        }
    }

    /// Appends a chunk that fits into the free slots and attends to the whole cache with it.
    fn attend(
        &mut self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        tokens: &[Token],
        shared: &Shared,
        work: &mut Workspace,
    ) -> Result<Tensor> {
        let start = self.len();
        self.before_writing(start..start + tokens.len())?;
        self.keys
            .slice_set(&k.to_dtype(self.keys.dtype())?, 1, start)?;
        self.values
            .slice_set(&v.to_dtype(self.values.dtype())?, 1, start)?;
        for set in &mut self.sets {
            set.append(tokens);
        }
        if let Some(axes) = &mut work.axes {
            for table in &mut self.tables {
                table.append(tokens, axes)?;
            }
        }
        let (heads, marks) = (q.dim(0)?, &mut self.marks);
        self.queries.push(q, tokens, &mut |ring, slots| {
            marks.iter_mut().try_for_each(|mark| {
                let slots = slots.clone().map(|slot| slot as u32);
                mark.queries.save((0, 0..heads), &[ring], slots)
            })
        })?;
        let len = self.len();
        self.attended += (tokens.len() * len) as u64;
        let positions = (start as u32..len as u32).collect::<Vec<_>>();
        match shared.policy.evidence() {
            Evidence::History { decay } => {
                let mut sums = vec![0.0; self.keys.dim(0)? * len];
                let out = self.past(shared).attend(q, &positions, Some(&mut sums))?;
                self.remember(&sums, start, decay);
                Ok(out)
            }
            Evidence::Age | Evidence::Window { .. } => {
                self.past(shared).attend(q, &positions, None)
            }
        }
    }

    /// Adds the sums of one step (`[kv_heads, len]`) to the history; the slots from `start` on are new.
    fn remember(&mut self, sums: &[f32], start: usize, decay: f32) {
        self.before_remembering();
        let len = self.len();
        let budget = self.history.len() / (sums.len() / len);
        for (history, sums) in self
            .history
            .chunks_exact_mut(budget)
            .zip(sums.chunks_exact(len))
        {
            history[start..len].fill(0.0);
            for (history, sum) in history.iter_mut().zip(sums) {
                *history = *history * decay + sum;
            }
        }
    }

    /// Directions of the newest `count` keys before rotation, `[kv_heads, count, head_dim]`, f32; `None` if there are none.
    pub(super) fn newest_directions(&self, count: usize) -> Result<Option<Tensor>> {
        let count = count.min(self.len());
        if count == 0 {
            return Ok(None);
        }
        let newest = self.raw_keys()?.narrow(1, self.len() - count, count)?;
        directions(&newest).map(Some)
    }

    /// Forgets everything; `shared` may differ from the one before in all but the budget.
    pub(super) fn clear(&mut self, shared: &Shared) {
        self.before_eviction();
        self.sets.iter_mut().for_each(SlotMap::clear);
        self.tables.iter_mut().for_each(SetTable::clear);
        self.queries.empty(shared.plan.window);
        self.standing = None;
        self.mean = KeyMean::default();
        (self.compactions, self.attended, self.moved) = (0, 0, 0);
    }

    /// Memory of keys and values, bytes.
    pub fn bytes(&self) -> usize {
        [&self.keys, &self.values]
            .iter()
            .map(|t| t.elem_count() * t.dtype().size_in_bytes())
            .sum()
    }
}

/// A layer at work: its cache, and what it shares with the others.
pub struct LayerSlots<'a> {
    pub(super) layer: &'a mut LayerCache,
    pub(super) shared: &'a Shared,
    pub(super) workspace: &'a mut Workspace,
}

impl LayerSlots<'_> {
    /// Appends a chunk and attends to the whole cache with it; a chunk longer than the free slots goes in pieces, with a
    /// compaction before each that would not fit.
    ///
    /// `q` is `[heads, tokens, head_dim]`, `k` and `v` are `[kv_heads, tokens, head_dim]`, none rotated and all contiguous.
    /// Returns `[tokens, heads * head_dim]`.
    pub fn attend(
        &mut self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        tokens: &[Token],
    ) -> Result<Tensor> {
        self.layer.hear(q, k);
        let mut pieces = Vec::new();
        let mut start = 0;
        while start < tokens.len() {
            if self.layer.len() == self.shared.plan.budget {
                if self.shared.policy.scope() == Scope::Model {
                    bail!(
                        "a chunk of {} tokens is longer than the free slots, which all layers have to make together",
                        tokens.len()
                    )
                }
                let relevant = self.shared.plan.relevant;
                self.layer.compact(relevant, self.shared, self.workspace)?;
            }
            let left = tokens.len() - start;
            let count = left.min(self.shared.plan.budget - self.layer.len());
            // A sum that fades with each query cannot be taken over several at once.
            let count = match self.shared.policy.evidence() {
                Evidence::History { decay } if decay < 1.0 => 1,
                _ => count,
            };
            let taken = &tokens[start..start + count];
            let (layer, shared, work) = (&mut *self.layer, self.shared, &mut *self.workspace);
            let out = if count == tokens.len() {
                layer.attend(q, k, v, taken, shared, work)?
            } else {
                let piece = |x: &Tensor| x.narrow(1, start, count)?.contiguous();
                layer.attend(&piece(q)?, &piece(k)?, &piece(v)?, taken, shared, work)?
            };
            pieces.push(out);
            start += count;
        }
        Tensor::cat(&pieces, 1)?.transpose(0, 1)?.flatten_from(1)
    }

    /// Compacts if fewer slots are free than `next` needs, to so many relevant tokens.
    pub(super) fn reserve(&mut self, next: usize, relevant: usize) -> Result<()> {
        if self.shared.plan.budget - self.layer.len() < next {
            self.layer.compact(relevant, self.shared, self.workspace)?;
        }
        Ok(())
    }
}
