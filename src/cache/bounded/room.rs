//! Room for what comes: when layers compact, and to how much.

use super::BoundedCache;
use crate::cache::compaction::{compact, compact_together};
use crate::cache::config::{CacheConfig, CacheError, Scope};
use crate::cache::layer::LayerCache;
use crate::cache::shape::CacheShape;
use crate::cache::slots::Mark;

impl BoundedCache {
    /// Compacts where fewer slots are free than `next` needs (at most `slack` can be asked for).
    pub fn reserve(&mut self, next: usize) -> Result<(), CacheError> {
        if !self.shared.policy.evicts() {
            return Ok(());
        }
        let plan = &self.shared.plan;
        self.compact_for(next.min(plan.slack), plan.relevant)
    }

    /// Makes room for `next` tokens in one compaction, where [`Self::reserve`] would leave some of it to further ones: relevant tokens
    /// leave for it, recent ones stay, so that no more than `slack + relevant` can be asked for. As `reserve` where recent tokens
    /// stand apart from the relevant ones.
    pub fn make_room(&mut self, next: usize) -> Result<(), CacheError> {
        let plan = &self.shared.plan;
        if next <= plan.slack || plan.gap > 0 || !self.shared.policy.evicts() {
            return self.reserve(next);
        }
        let next = next.min(plan.slack + plan.relevant);
        self.compact_for(next, plan.slack + plan.relevant - next)
    }

    /// Compacts where fewer slots are free than `next` needs, to `relevant` relevant tokens; `relevant + next <= plan.relevant + plan.slack`.
    fn compact_for(&mut self, next: usize, relevant: usize) -> Result<(), CacheError> {
        if self.shared.policy.scope() == Scope::Model {
            return self.compact_together_for(next, relevant);
        }
        let budget = self.shared.plan.budget;
        let layers = self.layers.iter_mut();
        let due = layers.filter(|layer| budget - layer.len() < next);
        let mut due = due.collect::<Vec<_>>();
        if !due.is_empty() {
            compact(&mut due, relevant, &self.shared, &mut self.workspace)?;
        }
        Ok(())
    }

    /// How many of the next tokens (`marks` says what they are) can go through all layers at once, at least 1 of any. Layers with one
    /// kept set together have to compact together, between two forward passes: if need be, they do it here. The others compact as a
    /// chunk comes.
    pub fn admissible(&mut self, marks: &[Mark]) -> Result<usize, CacheError> {
        if self.shared.policy.scope() != Scope::Model {
            return Ok(marks.len());
        }
        let (reached, others) = self.layers.split_at_mut(reached(&self.config, &self.shape));
        let takes: [fn(&Mark) -> bool; 2] = [|_| true, Mark::is_text];
        let mut count = marks.len();
        for (layers, takes) in [reached, others].into_iter().zip(takes) {
            let room = |layers: &[LayerCache]| {
                let used = layers.first().map(LayerCache::len);
                used.map(|used| self.shared.plan.budget - used)
            };
            if room(layers) == Some(0) && marks.first().is_some_and(takes) {
                let relevant = self.shared.plan.relevant;
                let mut layers = layers.iter_mut().collect::<Vec<_>>();
                compact_together(&mut layers, relevant, &self.shared, &mut self.workspace)?;
            }
            let taken = (0..).zip(marks).filter(|(_, mark)| takes(mark));
            let beyond = room(layers).and_then(|room| taken.map(|(i, _)| i).nth(room));
            count = count.min(beyond.unwrap_or(count));
        }
        Ok(count)
    }

    /// The same for layers that share one kept set: all of them, or those that visual tokens reach and those that they do not.
    fn compact_together_for(&mut self, next: usize, relevant: usize) -> Result<(), CacheError> {
        let (reached, others) = self.layers.split_at_mut(reached(&self.config, &self.shape));
        for layers in [reached, others] {
            let used = layers.first().map_or(0, LayerCache::len);
            if self.shared.plan.budget - used < next {
                let mut layers = layers.iter_mut().collect::<Vec<_>>();
                compact_together(&mut layers, relevant, &self.shared, &mut self.workspace)?;
            }
        }
        Ok(())
    }
}

/// Layers that visual tokens reach.
pub(in crate::cache) fn reached(config: &CacheConfig, shape: &CacheShape) -> usize {
    match config.withdraw_layer {
        0 => shape.layers,
        layer => layer,
    }
}
