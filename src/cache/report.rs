//! What can be seen of a cache: how full it is, what it holds, where it stands and how it scores.

use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::{DType, Tensor};

use super::bounded::{reached, BoundedCache};
use super::config::CacheError;
use super::host;
use super::layer::LayerCache;
use super::marks::Counts;
use super::numbering;
use super::rotary::{rotate, RotaryTable};
use super::scores::slot_scores;
use super::slots::{FrameId, SlotMap};

/// How the slots of the cache are used; tokens per layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheUsage {
    pub budget: usize,
    pub used: usize,
    pub prefix: usize,
    pub relevant: usize,
    pub recent: usize,
    /// Memory of keys and values over all layers, and of the states of layers that keep none, bytes.
    pub bytes: usize,
    /// That of the states, bytes.
    pub state_bytes: usize,
    pub tokens_seen: u64,
    pub tokens_evicted: u64,
    pub compactions: u64,
    /// Keys that queries have attended to, summed over layers: what attention has cost.
    pub keys_attended: u64,
    /// Rows that compactions have moved, summed over kept sets.
    pub rows_moved: u64,
}

/// Which tokens of the stream a cache keeps.
#[derive(Debug, Clone, Default)]
pub struct Retained {
    /// Of every kept set, sorted.
    indices: Vec<u64>,
    sets: usize,
}

impl Retained {
    /// The share of these tokens that is kept, over all kept sets; 0 of none.
    pub fn share(&self, tokens: Range<u64>) -> f32 {
        let before = |index| self.indices.partition_point(|&kept| kept < index);
        let all = self.sets as u64 * (tokens.end.saturating_sub(tokens.start));
        let kept = before(tokens.end).saturating_sub(before(tokens.start));
        kept as f32 / all.max(1) as f32
    }
}

impl BoundedCache {
    /// What is kept, by the layers that every token reaches.
    pub fn retained(&self) -> Retained {
        let layers = &self.layers[..reached(&self.config, &self.shape)];
        let sets = layers.iter().flat_map(LayerCache::slot_maps);
        let kept = sets
            .clone()
            .flat_map(|set| set.tokens().iter().map(|token| token.index));
        let mut indices = kept.collect::<Vec<_>>();
        indices.sort_unstable();
        Retained {
            indices,
            sets: sets.count(),
        }
    }

    /// The score of every token in each kept set of a layer, in the order of time, as the policy's evidence defines it; empty
    /// lists when the policy needs none.
    pub fn scores(&self, layer: usize) -> Result<Vec<Vec<f32>>, CacheError> {
        let layer = &self.layers[layer];
        let mut order = Vec::new();
        let scores = slot_scores(std::slice::from_ref(layer), &self.shared)?.concat();
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
        let layer = &self.layers[layer];
        if let Some(turns) = layer.in_use(&self.shared).turns {
            let (_, len, _) = keys.dims3()?;
            let sets = (0..layer.slot_maps().len()).map(|set| {
                let first = turns.first_row + set * turns.stride;
                let rows = |table: &Tensor| host::floats(&table.narrow(0, first, len)?);
                RotaryTable::of(rows(turns.cos)?, rows(turns.sin)?, len, keys.device())
            });
            let sets = sets.collect::<candle_core::Result<Vec<_>>>()?;
            return Ok(rotate(
                &sets.iter().collect::<Vec<_>>(),
                &keys,
                &[&positions],
            )?);
        }
        Ok(rotate(&layer.rotary(&self.shared), &keys, &[&positions])?)
    }

    /// Where the tokens of each kept set of a layer stand, in the order of time: time, height and width, which are one and the same
    /// where positions have one axis.
    pub fn positions(&self, layer: usize) -> Vec<Vec<[usize; 3]>> {
        let plan = &self.shared.plan;
        let three = self.shape.has_axes();
        let positions = |set: &SlotMap| {
            let places: Vec<_> = match three {
                true => numbering::positions(&set.by_time()).collect(),
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

    fn sets(&self) -> impl Iterator<Item = &SlotMap> {
        self.layers.iter().flat_map(LayerCache::slot_maps)
    }

    pub fn usage(&self) -> CacheUsage {
        let count = self.sets().count().max(1);
        let mean = |f: fn(&SlotMap) -> usize| self.sets().map(f).sum::<usize>() / count;
        let used = mean(SlotMap::len);
        let relevant = mean(SlotMap::relevant);
        let prefix = self.shared.plan.prefix.min(used);
        let counts = self.layers.iter().map(|layer| layer.ledger.counts());
        let sum = |f: fn(&Counts) -> u64| counts.clone().map(f).sum();
        let state_bytes = self.state_bytes() as usize;
        CacheUsage {
            budget: self.shared.plan.budget,
            used,
            prefix,
            relevant,
            recent: used.saturating_sub(prefix + relevant),
            bytes: self.layers.iter().map(LayerCache::bytes).sum::<usize>() + state_bytes,
            state_bytes,
            tokens_seen: self.tokens_seen,
            tokens_evicted: self.tokens_seen - self.len() as u64,
            compactions: self.layers[0].ledger.counts().compactions,
            keys_attended: sum(|counts| counts.attended),
            rows_moved: sum(|counts| counts.moved),
        }
    }

    /// Slots that hold image tokens, mean over all kept sets.
    pub fn image_tokens(&self) -> usize {
        let count = self.sets().count().max(1);
        self.sets().map(SlotMap::image_tokens).sum::<usize>() / count
    }

    /// Slots that hold what came with the frames of each of so many cameras, for each kept set, `[sets][cameras]`.
    pub fn camera_slots(&self, cameras: usize) -> Vec<Vec<usize>> {
        let count = |set: &SlotMap| {
            let mut slots = vec![0; cameras];
            for camera in set.tokens().iter().filter_map(|token| token.mark.camera) {
                if let Some(count) = slots.get_mut(usize::from(camera)) {
                    *count += 1;
                }
            }
            slots
        };
        self.sets().map(count).collect()
    }

    /// For each frame still in the cache, how many of its tokens are kept, mean over all kept sets.
    ///
    /// Layers that visual tokens do not reach are not counted.
    pub fn retained_frames(&self) -> BTreeMap<FrameId, f64> {
        let layers = &self.layers[..reached(&self.config, &self.shape)];
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
