//! All layers of a bounded cache, the order of a turn, and the counters.

use std::collections::BTreeMap;

use candle_core::{DType, Device};

use super::config::{CacheConfig, CacheError, Plan};
use super::layer::{LayerCache, LayerSnapshot};
use super::policy::Policy;
use super::rotary::RotaryTable;
use super::slots::{FrameId, Token};

/// What the cache must know of the decoder.
#[derive(Debug, Clone, Copy)]
pub struct CacheShape {
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Base of the rotary embedding.
    pub rope_theta: f64,
    /// Longest input the model was made for, tokens.
    pub max_positions: usize,
}

/// How the slots of the cache are used; tokens per layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheUsage {
    pub budget: usize,
    pub used: usize,
    pub prefix: usize,
    pub relevant: usize,
    pub recent: usize,
    /// Memory allocated for keys and values over all layers, bytes.
    pub bytes: usize,
    pub tokens_seen: u64,
    pub tokens_evicted: u64,
    pub compactions: u64,
}

/// A KV cache whose every layer holds at most `budget` tokens.
///
/// Order of a turn: [`Self::room`] slots at a time, [`Self::admit`] a sub-chunk and let every layer attend with it; after the
/// whole chunk, [`Self::reserve`] what the next step needs. Nothing is evicted before a chunk that fits has been attended to.
#[derive(Debug)]
pub struct BoundedCache {
    config: CacheConfig,
    shape: CacheShape,
    plan: Plan,
    policy: Box<dyn Policy>,
    layers: Vec<LayerCache>,
    rotary: RotaryTable,
    tokens_seen: u64,
    tokens_evicted: u64,
    compactions: u64,
}

/// A copy of the cache's whole state.
pub struct Snapshot {
    layers: Vec<LayerSnapshot>,
    tokens_seen: u64,
    tokens_evicted: u64,
    compactions: u64,
}

impl BoundedCache {
    /// Allocates the cache; `system_tokens` is the length of the system prompt's turn, which is never evicted.
    pub fn new(
        shape: CacheShape,
        config: &CacheConfig,
        system_tokens: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Self, CacheError> {
        let policy = config.policy.build(config)?;
        let plan = Plan::new(config, policy.as_ref(), system_tokens, shape.max_positions)?;
        let layers = (0..shape.layers)
            .map(|_| LayerCache::new(&shape, &plan, config.scope, dtype, device))
            .collect::<candle_core::Result<_>>()?;
        let rotary =
            RotaryTable::new(shape.head_dim, shape.rope_theta, plan.budget, dtype, device)?;
        Ok(Self {
            config: config.clone(),
            shape,
            plan,
            policy,
            layers,
            rotary,
            tokens_seen: 0,
            tokens_evicted: 0,
            compactions: 0,
        })
    }

    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    pub fn shape(&self) -> &CacheShape {
        &self.shape
    }

    pub fn policy_name(&self) -> &'static str {
        self.config.policy.name()
    }

    pub fn layers(&self) -> &[LayerCache] {
        &self.layers
    }

    /// Slots in use per layer.
    pub fn len(&self) -> usize {
        self.layers[0].len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The longest turn that can be attended to as a whole before any of it may be evicted, tokens.
    pub fn longest_turn(&self) -> usize {
        if self.policy.evicts() {
            self.plan.recent
        } else {
            self.plan.budget - self.len()
        }
    }

    /// Free slots for the next sub-chunk, after a compaction if there were none.
    ///
    /// Fails with [`CacheError::Full`] when the policy never evicts.
    pub fn room(&mut self, needed: usize) -> Result<usize, CacheError> {
        let free = self.plan.budget - self.len();
        if !self.policy.evicts() && needed > free {
            return Err(CacheError::Full {
                used: self.len(),
                budget: self.plan.budget,
                needed,
            });
        }
        if free == 0 {
            self.compact()?;
        }
        Ok(self.plan.budget - self.len())
    }

    /// Numbers the tokens of a sub-chunk; `frames` says which frame each of them shows.
    pub fn admit(&mut self, frames: &[Option<FrameId>]) -> Vec<Token> {
        let tokens = frames
            .iter()
            .zip(self.tokens_seen..)
            .map(|(&frame, index)| Token { index, frame })
            .collect();
        self.tokens_seen += frames.len() as u64;
        tokens
    }

    /// One layer and the rotary table it needs.
    pub fn layer(&mut self, layer: usize) -> (&mut LayerCache, &RotaryTable) {
        (&mut self.layers[layer], &self.rotary)
    }

    /// Compacts if fewer slots are free than `next` needs (at most `slack` can be asked for).
    pub fn reserve(&mut self, next: usize) -> Result<(), CacheError> {
        let free = self.plan.budget - self.len();
        if self.policy.evicts() && free < next.min(self.plan.slack) {
            self.compact()?;
        }
        Ok(())
    }

    fn compact(&mut self) -> Result<(), CacheError> {
        let evicted = self.len() - self.plan.keep();
        for layer in &mut self.layers {
            layer.compact(&self.plan, self.policy.as_ref(), &self.rotary)?;
        }
        self.tokens_evicted += evicted as u64;
        self.compactions += 1;
        Ok(())
    }

    /// Forgets everything; the memory stays allocated. `system_tokens` as in [`Self::new`].
    pub fn reset(&mut self, system_tokens: usize) -> Result<(), CacheError> {
        self.plan = Plan::new(
            &self.config,
            self.policy.as_ref(),
            system_tokens,
            self.shape.max_positions,
        )?;
        for layer in &mut self.layers {
            layer.clear(&self.plan)?;
        }
        self.tokens_seen = 0;
        self.tokens_evicted = 0;
        self.compactions = 0;
        Ok(())
    }

    /// Copies the state, to be put back by [`Self::restore`].
    pub fn snapshot(&self) -> Result<Snapshot, CacheError> {
        Ok(Snapshot {
            layers: self
                .layers
                .iter()
                .map(LayerCache::snapshot)
                .collect::<candle_core::Result<_>>()?,
            tokens_seen: self.tokens_seen,
            tokens_evicted: self.tokens_evicted,
            compactions: self.compactions,
        })
    }

    /// Puts a state of this cache back; the plan must not have changed in between.
    pub fn restore(&mut self, saved: Snapshot) -> Result<(), CacheError> {
        for (layer, saved) in self.layers.iter_mut().zip(saved.layers) {
            layer.restore(saved, &self.rotary)?;
        }
        self.tokens_seen = saved.tokens_seen;
        self.tokens_evicted = saved.tokens_evicted;
        self.compactions = saved.compactions;
        Ok(())
    }

    pub fn usage(&self) -> CacheUsage {
        let used = self.len();
        let sets = || self.layers.iter().flat_map(LayerCache::slot_maps);
        let prefix = self.plan.prefix.min(used);
        let relevant = sets().map(|set| set.relevant()).sum::<usize>() / sets().count().max(1);
        CacheUsage {
            budget: self.plan.budget,
            used,
            prefix,
            relevant,
            recent: used - prefix - relevant,
            bytes: self.layers.iter().map(LayerCache::bytes).sum(),
            tokens_seen: self.tokens_seen,
            tokens_evicted: self.tokens_evicted,
            compactions: self.compactions,
        }
    }

    /// For each frame still in the cache, the share of its `frame_tokens` slots over all kept sets that is kept, 0 to 1.
    pub fn retained_frames(&self, frame_tokens: usize) -> BTreeMap<FrameId, f64> {
        let mut counts = BTreeMap::new();
        let mut sets = 0;
        for set in self.layers.iter().flat_map(LayerCache::slot_maps) {
            set.count_frames(&mut counts);
            sets += 1;
        }
        let whole = (sets * frame_tokens).max(1) as f64;
        counts
            .into_iter()
            .map(|(frame, count)| (frame, count as f64 / whole))
            .collect()
    }
}
