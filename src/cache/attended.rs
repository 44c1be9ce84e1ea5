//! Which frames the newest tokens attend to: one pass over the keys when it is asked for, by the queries that were followed.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor};

use super::attention::{self, Asked};
use super::bounded::{reached, BoundedCache};
use super::config::CacheError;
use super::followed::Followed;
use super::layer::LayerCache;
use super::shared::Shared;
use super::slots::FrameId;

/// How much of the attention of some tokens went to which frame.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Attended {
    /// Probability that the image tokens of each frame got: the mean over queries, layers and heads. With what went to everything else it
    /// adds up to 1.
    pub frames: BTreeMap<FrameId, f32>,
    /// Queries that this is the mean of.
    pub queries: usize,
}

impl BoundedCache {
    /// Keeps the newest `limit` queries of every layer from now on; none are kept any more where it is 0.
    pub fn follow_queries(&mut self, limit: usize) {
        for layer in &mut self.layers {
            layer.followed = (limit > 0).then(|| Followed::new(limit));
        }
    }

    /// What the newest `count` tokens attend to among frames, as far as their queries are known; from now on none are kept.
    ///
    /// With A the causal softmax of each token over all keys that are cached now, it is the sum of A over the image tokens of a frame, its
    /// mean taken over the tokens and over the layers and heads that pictures reach. Where nothing was evicted behind the oldest of these
    /// tokens that is the attention by which the decoder went on; otherwise what the same queries find in what is left.
    pub fn attended(&mut self, count: usize) -> std::result::Result<Attended, CacheError> {
        let layers = &self.layers[..reached(&self.config, &self.shape)];
        let newest = layers.iter().map(|layer| layer.newest_queries(count));
        let newest = newest.collect::<Result<Vec<_>>>()?;
        let asked = layers.iter().zip(&newest);
        let asked = asked.filter_map(|(layer, newest)| {
            let newest = newest.as_ref()?;
            Some((layer, layer.asked_by(newest, &self.shared)))
        });
        let (layers, asked): (Vec<_>, Vec<_>) = asked.unzip();
        let count = asked.first().map_or(0, |asked| asked.positions.len());
        let mut attended = Attended {
            queries: count,
            ..Attended::default()
        };
        let share = 1.0 / (layers.len() * self.shape.kv_heads * count).max(1) as f32;
        for (layer, sums) in layers.iter().zip(attention::sums(&asked)?) {
            layer.add_frames(&sums, share, &mut attended.frames);
        }
        self.follow_queries(0);
        Ok(attended)
    }
}

/// Queries of tokens that follow one another.
struct Newest {
    /// `[heads, tokens, head_dim]`
    queries: Tensor,
    /// Tokens that have come behind them.
    behind: usize,
}

impl LayerCache {
    /// The newest `count` queries, or fewer where not all are known; none where none of them is.
    fn newest_queries(&self, count: usize) -> Result<Option<Newest>> {
        let Some(followed) = &self.followed else {
            return Ok(None);
        };
        let count = count.min(followed.limit()).min(self.len());
        let ring = self.ledger.ring();
        let (queries, behind) = match followed.steps() {
            0 => (followed.newest(count)?, 0),
            // What the kernels of steps have seen is not to be had: what is left is the query by which the first of them was chosen.
            steps if !ring.takes_answers() || ring.count() == 0 => {
                (followed.newest(1.min(count))?, steps)
            }
            _ => {
                let slots = ring.newest(count);
                let queries = self.store.queries();
                let slots = Tensor::from_slice(&slots, slots.len(), queries.device())?;
                (Some(queries.index_select(&slots, 1)?), 0)
            }
        };
        Ok(queries.map(|queries| Newest { queries, behind }))
    }

    /// The slots in use, to be scored by these queries.
    fn asked_by<'a>(&'a self, newest: &'a Newest, shared: &'a Shared) -> Asked<'a> {
        let count = newest.queries.dims()[1];
        let end = self.len().saturating_sub(newest.behind).max(count);
        let positions = (end - count..end).map(|position| position as u32);
        let in_use = self.in_use(shared);
        self.store
            .asked(&newest.queries, positions.collect(), in_use)
    }

    /// Adds what image tokens get of `sums` (`[kv_heads, len]`, by slot), times `share`, to their frames.
    fn add_frames(&self, sums: &[f32], share: f32, frames: &mut BTreeMap<FrameId, f32>) {
        let len = self.len();
        for (set, slots) in self.slot_maps().iter().enumerate() {
            for head in self.ledger.heads_of(set) {
                let sums = &sums[head * len..][..len];
                for (token, sum) in slots.tokens().iter().zip(sums) {
                    if let Some(frame) = token.mark.frame {
                        *frames.entry(frame).or_default() += sum * share;
                    }
                }
            }
        }
    }
}
