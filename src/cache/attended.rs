//! Which frames the tokens that were followed attended to.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor};

use super::attention::{self, Asked};
use super::bounded::{reached, BoundedCache};
use super::config::CacheError;
use super::followed::{Followed, Frames, Queries};
use super::layer::LayerCache;
use super::shared::Shared;
use super::slots::FrameId;

/// How much of the attention of some tokens went to which frame.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Attended {
    /// Probability that the image tokens of each frame got: the mean over tokens, layers and heads. With what went to everything else it
    /// adds up to 1.
    pub frames: BTreeMap<FrameId, f32>,
    /// Tokens that this is the mean of.
    pub tokens: usize,
}

impl BoundedCache {
    /// Follows what comes next: the last token of each chunk that is a question or a piece of an answer. Where the kernels of a device
    /// attend, no more than the newest `limit`; nothing any more where it is 0.
    pub fn follow(&mut self, limit: usize) {
        let on_device = self.shared.gpu.is_some();
        for layer in &mut self.layers {
            layer.followed = (limit > 0).then(|| match on_device {
                true => Followed::Queries(Queries::new(limit)),
                false => Followed::Frames(Frames::default()),
            });
        }
    }

    /// What the tokens attended to among frames that have been followed; from now on none are.
    ///
    /// With A the causal softmax of a token over all keys that are cached when it comes, it is the sum of A over the image tokens of a
    /// frame, its mean taken over the tokens and over the layers and heads that pictures reach: the attention by which the decoder went on.
    /// Where a device's kernels attend it is that of the newest `count` tokens, as far as their queries are known, over the keys that are
    /// cached now, which is the same where nothing was evicted in between.
    pub fn attended(&mut self, count: usize) -> std::result::Result<Attended, CacheError> {
        let reached = reached(&self.config, &self.shape);
        let frames = match self.shared.gpu {
            Some(_) => self.asked_again(reached, count)?,
            None => {
                let layers = self.layers[..reached].iter_mut();
                let noted = layers.filter_map(|layer| match layer.followed.take() {
                    Some(Followed::Frames(frames)) => Some(frames),
                    _ => None,
                });
                noted.collect()
            }
        };
        self.follow(0);
        let tokens = frames.first().map_or(0, |frames| frames.tokens);
        let share = 1.0 / (frames.len() * self.shape.kv_heads * tokens).max(1) as f32;
        let mut attended = Attended {
            tokens,
            ..Attended::default()
        };
        for (frame, sum) in frames.into_iter().flat_map(|frames| frames.sums) {
            *attended.frames.entry(frame).or_default() += sum * share;
        }
        Ok(attended)
    }

    /// What the newest `count` queries of each of the first `layers` layers find, in one pass over the keys.
    fn asked_again(&self, layers: usize, count: usize) -> Result<Vec<Frames>> {
        let layers = &self.layers[..layers];
        let newest = layers.iter().map(|layer| layer.newest_queries(count));
        let newest = newest.collect::<Result<Vec<_>>>()?;
        let asked = layers.iter().zip(&newest);
        let asked = asked.filter_map(|(layer, newest)| {
            let newest = newest.as_ref()?;
            Some((layer, layer.asked_by(newest, &self.shared)))
        });
        let (layers, asked): (Vec<_>, Vec<_>) = asked.unzip();
        let sums = attention::sums(&asked)?;
        let layers = layers.into_iter().zip(asked).zip(sums);
        let frames = layers.map(|((layer, asked), sums)| {
            let mut frames = Frames {
                tokens: asked.positions.len(),
                ..Frames::default()
            };
            for (slots, sums) in layer
                .slot_maps()
                .iter()
                .zip(layer.ledger.sums_per_set(&sums))
            {
                frames.add(slots, &sums);
            }
            frames
        });
        Ok(frames.collect())
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
        let Some(Followed::Queries(known)) = &self.followed else {
            return Ok(None);
        };
        let count = count.min(known.limit()).min(self.len());
        let ring = self.ledger.ring();
        let (queries, behind) = match known.steps() {
            0 => (known.newest(count)?, 0),
            // What the kernels of steps have seen is not to be had: what is left is the query by which the first of them was chosen.
            steps if !ring.takes_answers() || ring.count() == 0 => {
                (known.newest(1.min(count))?, steps)
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
}
