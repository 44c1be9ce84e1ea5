//! All layers of a bounded cache, the order of a turn, and the counters.
//!
//! - this file: the cache, its marks, and what of it a device has
//! - `room`: when its layers compact, and to how much

mod room;

use std::sync::Arc;

use candle_core::{DType, Device};

use super::attention::{in_kernels, Kernel};
use super::chunk::LayerSlots;
use super::compaction::Workspace;
use super::config::{CacheConfig, CacheError};
use super::device_memory::check_cache;
use super::layer::LayerCache;
use super::plan::Plan;
use super::shape::CacheShape;
use super::shared::{axes, Rotary, Shared};
use super::shares;
use super::slots::{Mark, Token};
use super::state::{LayerState, States};
use super::turns::TurnTables;
use crate::gpu::{self, Gpu};

pub(super) use room::reached;

/// A KV cache whose every layer holds at most `budget` tokens, and the states of the decoder's layers that keep no keys.
///
/// Order of a turn: [`Self::admit`] a chunk that is [`Self::admissible`] and let every layer attend with it ([`LayerSlots::attend`]); after the whole chunk,
/// [`Self::reserve`] what the next step needs. Nothing is evicted before a chunk that fits has been attended to.
///
/// Where that may fail in the middle, or is not to last, [`Self::mark`] comes first: [`Self::put_back`] goes back to it, to the bit.
#[derive(Debug)]
pub struct BoundedCache {
    pub(super) config: CacheConfig,
    pub(super) shape: CacheShape,
    pub(super) shared: Shared,
    pub(super) layers: Vec<LayerCache>,
    states: States,
    pub(super) workspace: Workspace,
    /// Type of the activations, and where they are.
    dtype: DType,
    device: Device,
    pub(super) tokens_seen: u64,
    /// Index of the first token of the newest unit.
    unit: u64,
    /// Resets, and ways back to a mark.
    undone: u64,
    /// From the outermost to the innermost; layers and states have as many.
    marks: Vec<CacheMark>,
}

/// How far a cache has come: while two of the same cache are equal, it holds the same tokens in the same slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Revision {
    tokens_seen: u64,
    /// Of all layers.
    compactions: u64,
    undone: u64,
}

/// What the cache itself notes at a mark.
#[derive(Debug, Clone, Copy)]
struct CacheMark {
    plan: Plan,
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
                expected: format!(
                    "less than {}, the number of layers that keep keys",
                    shape.layers
                ),
            });
        }
        let shared = Shared {
            rotary: Rotary::new(&shape, &plan, dtype, device),
            plan,
            policy,
            kernel: config.kernel,
            gpu: gpu::of(device),
            protect_boundaries: config.protect_boundaries,
            camera_shares: shares::of_weights(&config.camera_shares),
        };
        let storage = config.storage.of(dtype);
        let bytes = (shape.slot_bytes(storage), shape.states.bytes(dtype));
        check_cache(config.budget, bytes, device)?;
        let layers = (0..shape.layers)
            .map(|index| LayerCache::new(index, &shape, &shared, (storage, dtype), device))
            .collect::<candle_core::Result<_>>()?;
        let mut cache = Self {
            config: config.clone(),
            shape,
            shared,
            layers,
            states: States::new(&shape.states, dtype, device)?,
            workspace: Workspace::new(axes(&shape, &plan)),
            dtype,
            device: device.clone(),
            tokens_seen: 0,
            unit: 0,
            undone: 0,
            marks: Vec::new(),
        };
        cache.lay_out_turns()?;
        Ok(cache)
    }

    pub fn revision(&self) -> Revision {
        let layers = self.layers.iter();
        Revision {
            tokens_seen: self.tokens_seen,
            compactions: layers.map(|layer| layer.ledger.counts().compactions).sum(),
            undone: self.undone,
        }
    }

    /// The same, with what it holds, attended to by another kernel.
    pub fn with_kernel(mut self, kernel: Kernel) -> Result<Self, CacheError> {
        self.config.kernel = kernel;
        self.shared.kernel = kernel;
        self.lay_out_turns()?;
        Ok(self)
    }

    /// Attends in other kernels than the device's own, or in none; eager attention goes on in candle's operations.
    pub fn run_on(&mut self, gpu: Option<Arc<dyn Gpu>>) -> Result<(), CacheError> {
        self.shared.gpu = gpu;
        Ok(self.lay_out_turns()?)
    }

    /// Sees to rotary tables where attention looks for them, if kept sets have their own: in the memory of a GPU whose kernels attend,
    /// else in the stores.
    fn lay_out_turns(&mut self) -> candle_core::Result<()> {
        if !self.shape.has_axes() {
            return Ok(());
        }
        let storage = self.config.storage.of(self.dtype);
        let (kernel, head_dim) = (self.shared.kernel, self.shape.head_dim);
        let gpu = self.shared.gpu.as_ref();
        let gpu = gpu.filter(|_| in_kernels(kernel, self.dtype, storage, head_dim));
        let sets = self.layers[0].slot_maps().len();
        let tables = gpu.map(|_| {
            let sets = self.layers.len() * sets;
            TurnTables::new(sets, self.shared.plan.budget, head_dim, &self.device)
        });
        self.shared.rotary = Rotary::BySet(tables.transpose()?);
        self.begin_axes()?;
        let on_host = match self.shared.rotary.on_gpu() {
            Some(_) => 0,
            None => sets,
        };
        for layer in &mut self.layers {
            layer.store.hold_tables(on_host, self.dtype)?;
            let places = layer.ledger.places();
            layer.place(&places, &mut self.workspace.axes)?;
        }
        self.workspace.write_turns()
    }

    /// Has what tables are put together from begin anew, for the plan as it is.
    fn begin_axes(&mut self) -> candle_core::Result<()> {
        let mut axes = axes(&self.shape, &self.shared.plan);
        let on_gpu = self.shared.gpu.as_ref().zip(self.shared.rotary.on_gpu());
        if let (Some(axes), Some((gpu, tables))) = (&mut axes, on_gpu) {
            axes.write_to(tables, gpu)?;
        }
        self.workspace.axes = axes;
        Ok(())
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

    /// Of the layers that keep no keys, in their order.
    pub fn states(&self) -> &[LayerState] {
        self.states.layers()
    }

    /// Memory of those, bytes.
    pub fn state_bytes(&self) -> u64 {
        self.shape.states.bytes(self.dtype)
    }

    /// Slots in use of the first layer. Behind `withdraw_layer` there may be fewer, or more when this one has just been compacted.
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

    /// The state of one layer that keeps no keys, counted among those.
    pub fn state(&mut self, layer: usize) -> &mut LayerState {
        self.states.layer(layer)
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

    /// Forgets everything; the memory stays allocated. `system_tokens` as in [`Self::new`].
    pub fn reset(&mut self, system_tokens: usize) -> Result<(), CacheError> {
        let plan = Plan::new(
            &self.config,
            self.shared.policy.as_ref(),
            system_tokens,
            self.shape.max_positions,
        )?;
        self.set_plan(plan)?;
        for layer in &mut self.layers {
            layer.clear(&self.shared);
        }
        self.states.clear();
        self.tokens_seen = 0;
        self.unit = 0;
        self.undone += 1;
        Ok(())
    }

    fn set_plan(&mut self, plan: Plan) -> candle_core::Result<()> {
        if plan == self.shared.plan {
            return Ok(());
        }
        // The relevant tokens end elsewhere. Tables of kept sets stay where they are, as kernels know them.
        self.shared.plan = plan;
        if !self.shape.has_axes() {
            self.shared.rotary = Rotary::new(&self.shape, &plan, self.dtype, &self.device);
        }
        self.begin_axes()
    }

    /// Sets a mark, within those that are set. What it costs is what changes until it is let go, not what the cache holds.
    pub fn mark(&mut self) {
        self.marks.push(CacheMark {
            plan: self.shared.plan,
            tokens_seen: self.tokens_seen,
            unit: self.unit,
        });
        self.layers.iter_mut().for_each(LayerCache::mark);
        self.states.mark();
    }

    /// Goes back to the innermost mark, which stays set; without one nothing happens. Nobody listens any more.
    ///
    /// Where a device fails, all counts and kept sets are those of the mark, and what could not be put back are contents of rows.
    pub fn put_back(&mut self) -> Result<(), CacheError> {
        let Some(&mark) = self.marks.last() else {
            return Ok(());
        };
        let mut outcome = self.set_plan(mark.plan);
        self.tokens_seen = mark.tokens_seen;
        self.unit = mark.unit;
        self.undone += 1;
        self.states.put_back();
        for layer in &mut self.layers {
            outcome = outcome.and(layer.put_back(&mut self.workspace.axes));
        }
        Ok(outcome.and(self.workspace.write_turns())?)
    }

    /// Forgets the innermost mark: what has happened since then stays, unless an outer one is put back.
    pub fn let_go(&mut self) {
        self.marks.pop();
        self.layers.iter_mut().for_each(LayerCache::let_go);
        self.states.let_go();
    }
}
