//! Keys and queries before rotation as they come by, for what is to be known of tokens beyond what the cache keeps of them.
//!
//! Nothing is noted unless somebody listens, and what is noted are the tensors that attention was given: no copies.

use candle_core::Tensor;

use crate::cache::bounded::BoundedCache;
use crate::cache::config::CacheError;
use crate::cache::layer::LayerCache;

/// What one layer was given while somebody listened, before rotation.
#[derive(Debug, Clone)]
pub struct Heard {
    pub layer: usize,
    /// `[heads, tokens, head_dim]`
    pub queries: Tensor,
    /// `[kv_heads, tokens, head_dim]`
    pub keys: Tensor,
}

/// The chunks that came by, queries and keys of each.
pub type Chunks = Vec<[Tensor; 2]>;

impl BoundedCache {
    /// Notes from now on what these layers are given; what was noted before is forgotten.
    pub fn listen(&mut self, layers: &[usize]) {
        for (i, layer) in self.layers.iter_mut().enumerate() {
            layer.heard = layers.contains(&i).then(Vec::new);
        }
    }

    /// What has come by since [`Self::listen`], by layer, and no more from now on. Layers that nothing has reached are left out (those
    /// that visual tokens are withdrawn from).
    pub fn heard(&mut self) -> Result<Vec<Heard>, CacheError> {
        let layers = self.layers.iter_mut().enumerate();
        let chunks = layers.filter_map(|(i, layer)| Some((i, layer.heard.take()?)));
        let chunks = chunks.filter(|(_, chunks)| !chunks.is_empty());
        let heard = chunks.map(|(layer, chunks)| {
            let whole = |which: usize| {
                let parts = chunks.iter().map(|chunk| &chunk[which]);
                Tensor::cat(&parts.collect::<Vec<_>>(), 1)
            };
            Ok(Heard {
                layer,
                queries: whole(0)?,
                keys: whole(1)?,
            })
        });
        heard.collect()
    }
}

impl LayerCache {
    /// `q` is `[heads, tokens, head_dim]`, `k` is `[kv_heads, tokens, head_dim]`.
    pub(in crate::cache) fn hear(&mut self, q: &Tensor, k: &Tensor) {
        if let Some(heard) = &mut self.heard {
            heard.push([q.clone(), k.clone()]);
        }
    }
}
