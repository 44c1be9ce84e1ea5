//! Keys, values and slots of one decoder layer.

use candle_core::{DType, Device, Result, Tensor};

use super::bounded::CacheShape;
use super::compact::{gather_to_front, KeptRows};
use super::config::{Plan, Scope};
use super::policy::{Candidates, Policy};
use super::queries::QueryRing;
use super::rotary::RotaryTable;
use super::score::{attention, window_scores};
use super::slots::{SlotMap, Token};

/// One layer's buffers, allocated once. A token's slot is the same in all of them.
#[derive(Debug)]
pub struct LayerCache {
    /// Keys before rotation, `[kv_heads, budget, head_dim]`: renumbering starts from these, so that no error builds up.
    raw_keys: Tensor,
    /// The same keys rotated to their slot index, `[kv_heads, budget, head_dim]`.
    keys: Tensor,
    /// `[kv_heads, budget, head_dim]`
    values: Tensor,
    queries: QueryRing,
    /// One kept set for the layer, or one per KV head; all of one length.
    sets: Vec<SlotMap>,
    scope: Scope,
    scores_needed: bool,
}

/// A copy of a layer's state, as long as the tokens it held.
pub struct LayerSnapshot {
    raw_keys: Tensor,
    values: Tensor,
    queries: QueryRing,
    sets: Vec<SlotMap>,
}

impl LayerCache {
    pub(super) fn new(
        shape: &CacheShape,
        plan: &Plan,
        scope: Scope,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let buffer = || Tensor::zeros((shape.kv_heads, plan.budget, shape.head_dim), dtype, device);
        let sets = match scope {
            Scope::Layer => 1,
            Scope::KvHead => shape.kv_heads,
        };
        Ok(Self {
            raw_keys: buffer()?,
            keys: buffer()?,
            values: buffer()?,
            queries: QueryRing::new(shape.heads, plan.window, shape.head_dim, dtype, device)?,
            sets: vec![SlotMap::with_capacity(plan.budget); sets],
            scope,
            scores_needed: plan.window > 0,
        })
    }

    /// Slots in use.
    pub fn len(&self) -> usize {
        self.sets[0].tokens().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The kept sets in slot order: one for the layer, or one per KV head.
    pub fn sets(&self) -> impl Iterator<Item = &[Token]> + Clone {
        self.sets.iter().map(SlotMap::tokens)
    }

    pub(super) fn slot_maps(&self) -> &[SlotMap] {
        &self.sets
    }

    /// The rotated keys in use, `[kv_heads, len, head_dim]`.
    pub fn keys(&self) -> Result<Tensor> {
        self.keys.narrow(1, 0, self.len())
    }

    /// The keys in use before rotation, `[kv_heads, len, head_dim]`.
    pub fn raw_keys(&self) -> Result<Tensor> {
        self.raw_keys.narrow(1, 0, self.len())
    }

    /// Appends a chunk and attends to the whole cache with it.
    ///
    /// `q` is `[heads, tokens, head_dim]`, `k` and `v` are `[kv_heads, tokens, head_dim]`, none rotated and all contiguous;
    /// the caller has seen to the room. Returns `[tokens, heads * head_dim]`.
    pub fn attend(
        &mut self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        tokens: &[Token],
        rotary: &RotaryTable,
    ) -> Result<Tensor> {
        let start = self.len();
        self.raw_keys.slice_set(k, 1, start)?;
        self.keys.slice_set(&rotary.rotate(k, start)?, 1, start)?;
        self.values.slice_set(v, 1, start)?;
        for set in &mut self.sets {
            set.append(tokens);
        }
        if self.scores_needed {
            self.queries.push(q)?;
        }
        let len = self.len();
        attention(
            &rotary.rotate(q, start)?,
            &self.keys.narrow(1, 0, len)?,
            &self.values.narrow(1, 0, len)?,
        )
    }

    /// The score of every slot in each kept set (see [`window_scores`]); empty lists when the policy needs none.
    pub fn scores(&self, rotary: &RotaryTable) -> Result<Vec<Vec<f32>>> {
        if !self.scores_needed || self.queries.count() == 0 {
            return Ok(vec![Vec::new(); self.sets.len()]);
        }
        window_scores(&self.queries, &self.keys()?, rotary, self.scope)
    }

    /// Keeps the prefix, the newest tokens and the candidates that `policy` values most; renumbers what is left.
    pub(super) fn compact(
        &mut self,
        plan: &Plan,
        policy: &dyn Policy,
        rotary: &RotaryTable,
    ) -> Result<()> {
        let scores = self.scores(rotary)?;
        let kept: KeptRows = self
            .sets
            .iter()
            .zip(&scores)
            .map(|(set, scores)| kept_rows(set.tokens(), scores, plan, policy))
            .collect();
        gather_to_front(&self.raw_keys, &kept)?;
        gather_to_front(&self.values, &kept)?;
        for (set, rows) in self.sets.iter_mut().zip(&kept) {
            set.compact(rows, plan.relevant);
        }
        self.rotate_all(rotary)
    }

    fn rotate_all(&mut self, rotary: &RotaryTable) -> Result<()> {
        let rotated = rotary.rotate(&self.raw_keys()?.contiguous()?, 0)?;
        self.keys.slice_set(&rotated, 1, 0)
    }

    /// Forgets everything; `plan` may differ from the one before in all but the budget.
    pub(super) fn clear(&mut self, plan: &Plan) -> Result<()> {
        self.sets.iter_mut().for_each(SlotMap::clear);
        self.queries = self.queries.emptied(plan.window)?;
        Ok(())
    }

    pub(super) fn snapshot(&self) -> Result<LayerSnapshot> {
        let copy = |buffer: &Tensor| buffer.narrow(1, 0, self.len().max(1))?.force_contiguous();
        Ok(LayerSnapshot {
            raw_keys: copy(&self.raw_keys)?,
            values: copy(&self.values)?,
            queries: self.queries.deep_copy()?,
            sets: self.sets.clone(),
        })
    }

    pub(super) fn restore(&mut self, saved: LayerSnapshot, rotary: &RotaryTable) -> Result<()> {
        self.raw_keys.slice_set(&saved.raw_keys, 1, 0)?;
        self.values.slice_set(&saved.values, 1, 0)?;
        self.queries = saved.queries;
        self.sets = saved.sets;
        if self.is_empty() {
            return Ok(());
        }
        self.rotate_all(rotary)
    }

    /// Memory of keys, values and queries, bytes.
    pub fn bytes(&self) -> usize {
        [&self.raw_keys, &self.keys, &self.values]
            .iter()
            .map(|t| t.elem_count() * t.dtype().size_in_bytes())
            .sum()
    }
}

/// The slots that one kept set keeps, ascending: prefix, the most valued candidates, recent.
fn kept_rows(tokens: &[Token], scores: &[f32], plan: &Plan, policy: &dyn Policy) -> Vec<u32> {
    let len = tokens.len();
    let candidates = plan.prefix..len - plan.recent;
    let mut rows = (0..plan.prefix as u32).collect::<Vec<_>>();
    if plan.relevant > 0 {
        let indices = tokens[candidates.clone()]
            .iter()
            .map(|token| token.index)
            .collect::<Vec<_>>();
        let mut values = vec![0.0; indices.len()];
        policy.values(
            &Candidates {
                scores: scores.get(candidates.clone()).unwrap_or_default(),
                indices: &indices,
                newest: tokens[len - 1].index,
            },
            &mut values,
        );
        let mut order = candidates.collect::<Vec<_>>();
        // Highest value first; of equal values the newer, that is the higher slot.
        order.sort_unstable_by(|&a, &b| {
            values[b - plan.prefix]
                .total_cmp(&values[a - plan.prefix])
                .then(b.cmp(&a))
        });
        order.truncate(plan.relevant);
        order.sort_unstable();
        rows.extend(order.into_iter().map(|slot| slot as u32));
    }
    rows.extend((len - plan.recent) as u32..len as u32);
    rows
}
