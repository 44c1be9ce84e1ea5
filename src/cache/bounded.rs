//! All layers of a bounded cache, the order of a turn, and the counters.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};

use super::attention::Kernel;
use super::axes::{self, Axes};
use super::config::{CacheConfig, CacheError, Plan, Scope};
use super::evict::{compact_together, Workspace};
use super::layer::{LayerCache, LayerSlots, LayerSnapshot};
use super::policy::Policy;
use super::rope::{Rope, RopeAxes};
use super::rotary::{rotate, RotaryTable};
use super::slots::{FrameId, Mark, SlotMap, Token};

/// What the cache must know of the decoder.
#[derive(Debug, Clone, Copy)]
pub struct CacheShape {
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub rope: Rope,
    /// Longest input the model was made for, tokens.
    pub max_positions: usize,
}

/// What ranks turn by.
#[derive(Debug)]
pub enum Rotary {
    /// Positions have one axis: the same tables for all kept sets.
    ByRank {
        /// While nothing has been evicted: a token's position is its rank in time.
        plain: RotaryTable,
        /// Afterwards, if the policy sets the recent tokens apart from the relevant ones.
        apart: Option<RotaryTable>,
    },
    /// Positions have three axes: each kept set has a table of its own.
    BySet,
}

impl CacheShape {
    fn rotary(&self, plan: &Plan, dtype: DType, device: &Device) -> Rotary {
        if self.rope.axes != RopeAxes::One {
            return Rotary::BySet;
        }
        let table = |positions: Vec<usize>| {
            RotaryTable::new(&self.rope, self.head_dim, &positions, dtype, device)
        };
        Rotary::ByRank {
            plain: table((0..plan.budget).collect()),
            apart: plan.border().map(|border| {
                let apart = (border..plan.budget).map(|rank| rank + plan.gap);
                table((0..border).chain(apart).collect())
            }),
        }
    }

    /// What the tables of kept sets are put together from, where they have their own.
    fn axes(&self, plan: &Plan) -> Option<Axes> {
        match self.rope.axes {
            RopeAxes::One => None,
            RopeAxes::Sections(_) | RopeAxes::Interleaved(_) => {
                Some(Axes::new(&self.rope, self.head_dim, plan.gap))
            }
        }
    }
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
    /// Keys that queries have attended to, summed over layers: what attention has cost.
    pub keys_attended: u64,
    /// Rows that compactions have moved, summed over kept sets.
    pub rows_moved: u64,
}

/// What all layers share.
#[derive(Debug)]
pub struct Shared {
    pub(super) plan: Plan,
    pub(super) policy: Box<dyn Policy>,
    pub(super) rotary: Rotary,
    pub(super) kernel: Kernel,
    pub(super) protect_boundaries: usize,
}

/// A KV cache whose every layer holds at most `budget` tokens.
///
/// Order of a turn: [`Self::admit`] a chunk that is [`Self::admissible`] and let every layer attend with it ([`LayerSlots::attend`]); after the whole chunk,
/// [`Self::reserve`] what the next step needs. Nothing is evicted before a chunk that fits has been attended to.
#[derive(Debug)]
pub struct BoundedCache {
    config: CacheConfig,
    shape: CacheShape,
    shared: Shared,
    layers: Vec<LayerCache>,
    workspace: Workspace,
    /// Type of the activations, and where they are.
    dtype: DType,
    device: Device,
    tokens_seen: u64,
    /// Index of the first token of the newest unit.
    unit: u64,
}

/// A copy of the cache's whole state, but for the standing instruction.
pub struct Snapshot {
    layers: Vec<LayerSnapshot>,
    tokens_seen: u64,
    unit: u64,
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
        if config.withdraw_layer >= shape.layers {
            return Err(CacheError::Parameter {
                name: "withdraw_layer",
                value: config.withdraw_layer.to_string(),
                expected: format!("less than {}, the number of layers", shape.layers),
            });
        }
        let shared = Shared {
            rotary: shape.rotary(&plan, dtype, device),
            plan,
            policy,
            kernel: config.kernel,
            protect_boundaries: config.protect_boundaries,
        };
        let storage = config.storage.dtype(dtype);
        let layers = (0..shape.layers)
            .map(|_| LayerCache::new(&shape, &shared, storage, dtype, device))
            .collect::<candle_core::Result<_>>()?;
        Ok(Self {
            config: config.clone(),
            shape,
            shared,
            layers,
            workspace: Workspace::new(shape.axes(&plan)),
            dtype,
            device: device.clone(),
            tokens_seen: 0,
            unit: 0,
        })
    }

    pub fn plan(&self) -> &Plan {
        &self.shared.plan
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

    /// Slots in use of the first layer, which no other exceeds.
    pub fn len(&self) -> usize {
        self.layers[0].len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The longest turn that can be attended to as a whole before any of it may be evicted, tokens.
    pub fn longest_turn(&self) -> usize {
        let plan = &self.shared.plan;
        match self.shared.policy.evicts() {
            true => plan.longest_turn(),
            false => plan.budget - self.len(),
        }
    }

    /// Numbers the tokens of a chunk.
    ///
    /// Fails with [`CacheError::Full`] when the policy never evicts and they do not fit.
    pub fn admit(&mut self, marks: &[Mark]) -> Result<Vec<Token>, CacheError> {
        let free = self.shared.plan.budget - self.len();
        if !self.shared.policy.evicts() && marks.len() > free {
            return Err(CacheError::Full {
                used: self.len(),
                budget: self.shared.plan.budget,
                needed: marks.len(),
            });
        }
        let tokens = marks
            .iter()
            .zip(self.tokens_seen..)
            .map(|(&mark, index)| {
                if mark.starts_unit {
                    self.unit = index;
                }
                Token {
                    index,
                    unit: self.unit,
                    mark,
                }
            })
            .collect();
        self.tokens_seen += marks.len() as u64;
        Ok(tokens)
    }

    /// One layer, to attend to.
    pub fn layer(&mut self, layer: usize) -> LayerSlots<'_> {
        LayerSlots {
            layer: &mut self.layers[layer],
            shared: &self.shared,
            workspace: &mut self.workspace,
        }
    }

    /// True for the first layer that visual tokens do not reach.
    pub fn withdraws_at(&self, layer: usize) -> bool {
        layer > 0 && layer == self.config.withdraw_layer
    }

    /// Compacts where fewer slots are free than `next` needs (at most `slack` can be asked for).
    pub fn reserve(&mut self, next: usize) -> Result<(), CacheError> {
        if !self.shared.policy.evicts() {
            return Ok(());
        }
        let next = next.min(self.shared.plan.slack);
        if self.shared.policy.scope() == Scope::Model {
            return self.reserve_together(next);
        }
        for i in 0..self.layers.len() {
            self.layer(i).reserve(next)?;
        }
        Ok(())
    }

    /// How many of the next `wanted` tokens can go through all layers at once, at least 1. Layers with one kept set together have to
    /// compact together, between two forward passes: if need be, they do it here. The others compact as a chunk comes.
    pub fn admissible(&mut self, wanted: usize) -> Result<usize, CacheError> {
        if self.shared.policy.scope() != Scope::Model {
            return Ok(wanted);
        }
        self.reserve_together(1)?;
        Ok(wanted.min(self.shared.plan.budget - self.len()))
    }

    /// [`Self::reserve`] for layers that share one kept set: all of them, or those that visual tokens reach and those that
    /// they do not.
    fn reserve_together(&mut self, next: usize) -> Result<(), CacheError> {
        let reached = match self.config.withdraw_layer {
            0 => self.layers.len(),
            layer => layer,
        };
        let (reached, others) = self.layers.split_at_mut(reached);
        for layers in [reached, others] {
            let used = layers.first().map_or(0, LayerCache::len);
            if self.shared.plan.budget - used < next {
                compact_together(layers, &self.shared, &mut self.workspace)?;
            }
        }
        Ok(())
    }

    /// The score of every token in each kept set of a layer, in the order of time, as the policy's evidence defines it; empty
    /// lists when the policy needs none.
    pub fn scores(&self, layer: usize) -> Result<Vec<Vec<f32>>, CacheError> {
        let layer = &self.layers[layer];
        let mut order = Vec::new();
        let scores = layer.slot_scores(&self.shared)?;
        Ok(layer
            .slot_maps()
            .iter()
            .zip(scores)
            .map(|(set, scores)| {
                set.order(&mut order);
                let slots = order.iter().take(scores.len());
                slots.map(|&slot| scores[slot as usize]).collect()
            })
            .collect())
    }

    /// The keys of a layer as attention sees them: rotated to their positions, in the order of time, `[kv_heads, len, head_dim]`.
    pub fn rotated_keys(&self, layer: usize) -> Result<Tensor, CacheError> {
        let keys = self.layers[layer].raw_keys()?.to_dtype(DType::F32)?;
        let positions = (0..keys.dim(1)? as u32).collect::<Vec<_>>();
        let tables = self.layers[layer].rotary(&self.shared);
        Ok(rotate(&tables, &keys, &[&positions])?)
    }

    /// Where the tokens of each kept set of a layer stand, in the order of time: time, height and width, which are one and the same
    /// where positions have one axis.
    pub fn positions(&self, layer: usize) -> Vec<Vec<[usize; 3]>> {
        let plan = &self.shared.plan;
        let three = self.shape.rope.axes != RopeAxes::One;
        let positions = |set: &SlotMap| {
            let places: Vec<_> = match three {
                true => axes::positions(&set.by_time()).collect(),
                false => (0..set.len()).map(|rank| [rank; 3]).collect(),
            };
            let border = plan.border().filter(|_| set.relevant() > 0);
            let gap = |rank| match border {
                Some(border) if rank >= border => plan.gap,
                _ => 0,
            };
            let places = places.into_iter().enumerate();
            places
                .map(|(rank, place)| place.map(|position| position + gap(rank)))
                .collect()
        };
        let sets = self.layers[layer].slot_maps();
        sets.iter().map(positions).collect()
    }

    /// Takes the newest `tokens` keys as those of a standing instruction, which policies that know of one look for. They stay
    /// through [`Self::restore`] and leave with [`Self::reset`].
    pub fn capture_standing(&mut self, tokens: usize) -> Result<(), CacheError> {
        for layer in &mut self.layers {
            layer.capture_standing(tokens)?;
        }
        Ok(())
    }

    /// Forgets everything; the memory stays allocated. `system_tokens` as in [`Self::new`].
    pub fn reset(&mut self, system_tokens: usize) -> Result<(), CacheError> {
        let plan = Plan::new(
            &self.config,
            self.shared.policy.as_ref(),
            system_tokens,
            self.shape.max_positions,
        )?;
        if plan != self.shared.plan {
            // The relevant tokens end elsewhere.
            self.shared.rotary = self.shape.rotary(&plan, self.dtype, &self.device);
            self.workspace.axes = self.shape.axes(&plan);
            self.shared.plan = plan;
        }
        for layer in &mut self.layers {
            layer.clear(&self.shared)?;
        }
        self.tokens_seen = 0;
        self.unit = 0;
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
            unit: self.unit,
        })
    }

    /// Puts a state of this cache back; the plan must not have changed in between.
    pub fn restore(&mut self, saved: &Snapshot) -> Result<(), CacheError> {
        for (layer, saved) in self.layers.iter_mut().zip(&saved.layers) {
            layer.restore(saved, &self.shared, &mut self.workspace)?;
        }
        self.tokens_seen = saved.tokens_seen;
        self.unit = saved.unit;
        Ok(())
    }

    fn sets(&self) -> impl Iterator<Item = &SlotMap> {
        self.layers.iter().flat_map(LayerCache::slot_maps)
    }

    pub fn usage(&self) -> CacheUsage {
        let count = self.sets().count().max(1);
        let mean = |f: fn(&SlotMap) -> usize| self.sets().map(f).sum::<usize>() / count;
        let used = mean(SlotMap::len);
        let relevant = mean(SlotMap::relevant);
        let prefix = self.shared.plan.prefix.min(used);
        let sum = |f: fn(&LayerCache) -> u64| self.layers.iter().map(f).sum();
        CacheUsage {
            budget: self.shared.plan.budget,
            used,
            prefix,
            relevant,
            recent: used.saturating_sub(prefix + relevant),
            bytes: self.layers.iter().map(LayerCache::bytes).sum(),
            tokens_seen: self.tokens_seen,
            tokens_evicted: self.tokens_seen - self.len() as u64,
            compactions: self.layers[0].compactions,
            keys_attended: sum(|layer| layer.attended),
            rows_moved: sum(|layer| layer.moved),
        }
    }

    /// For each frame still in the cache, how many of its tokens are kept, mean over all kept sets.
    ///
    /// Layers that visual tokens do not reach are not counted.
    pub fn retained_frames(&self) -> BTreeMap<FrameId, f64> {
        let layers = match self.config.withdraw_layer {
            0 => &self.layers[..],
            reached => &self.layers[..reached],
        };
        let mut counts = BTreeMap::new();
        let mut sets = 0;
        for set in layers.iter().flat_map(LayerCache::slot_maps) {
            set.count_frames(&mut counts);
            sets += 1;
        }
        let sets = sets.max(1) as f64;
        counts
            .into_iter()
            .map(|(frame, count)| (frame, count as f64 / sets))
            .collect()
    }
}
