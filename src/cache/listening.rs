//! What is heard of a stream at some layers while it comes by, and a standing instruction's keys.

use candle_core::Tensor;

use super::bounded::BoundedCache;
use super::config::CacheError;
use super::followed::Followed;
use super::recall::{Heard, Listening};

/// Directions of a standing instruction's keys before rotation, of each layer `[kv_heads, tokens, head_dim]`, f32.
#[derive(Debug, Clone)]
pub struct Standing(Vec<Option<Tensor>>);

/// What has come by at each layer where somebody listens, and what has been followed there, who do not for a while.
#[derive(Debug)]
pub struct Paused(Vec<(Option<Listening>, Option<Followed>)>);

impl BoundedCache {
    /// The newest `tokens` keys, to be looked for as those of a standing instruction.
    pub fn newest_keys(&self, tokens: usize) -> Result<Standing, CacheError> {
        let layers = self.layers.iter();
        let keys = layers.map(|layer| layer.newest_directions(tokens));
        Ok(Standing(keys.collect::<candle_core::Result<_>>()?))
    }

    /// Gives the keys of a standing instruction to the policies that know of one. They leave with [`Self::reset`].
    pub fn look_for(&mut self, standing: Standing) {
        for (layer, keys) in self.layers.iter_mut().zip(standing.0) {
            layer.store.look_for(keys);
        }
    }

    /// Notes from now on what these layers are given; what was noted before is forgotten.
    pub fn listen(&mut self, layers: &[usize]) {
        for (i, layer) in self.layers.iter_mut().enumerate() {
            layer.heard = layers.contains(&i).then(Listening::default);
        }
    }

    /// What has come by since [`Self::listen`], by layer, and no more from now on. Layers that nothing has reached are left out (those
    /// that visual tokens are withdrawn from).
    pub fn heard(&mut self) -> Result<Vec<Heard>, CacheError> {
        let mut heard = Vec::new();
        for (i, layer) in self.layers.iter_mut().enumerate() {
            heard.extend(layer.end_listening(i)?);
        }
        Ok(heard)
    }

    /// Stops listening and following until [`Self::listen_on`] is given what has come by so far. In between marks may be put back.
    pub fn pause_listening(&mut self) -> Paused {
        let layers = self.layers.iter_mut();
        let paused = layers.map(|layer| (layer.heard.take(), layer.followed.take()));
        Paused(paused.collect())
    }

    /// Goes on listening and following. The newest tokens are those of when it was paused.
    pub fn listen_on(&mut self, paused: Paused) {
        for (layer, (heard, followed)) in self.layers.iter_mut().zip(paused.0) {
            layer.heard = heard;
            layer.followed = followed;
        }
    }
}
