//! The ring of the last raw queries of a layer, from which scores are computed at a compaction.

use candle_core::{DType, Device, Result, Tensor};

/// The newest `window` queries before rotation, overwritten in place.
#[derive(Debug, Clone)]
pub struct QueryRing {
    /// `[heads, window, head_dim]`, not rotated; in ring order.
    raw: Tensor,
    window: usize,
    /// Queries held, at most `window`.
    count: usize,
    /// Ring slot of the next query.
    cursor: usize,
}

impl QueryRing {
    pub fn new(
        heads: usize,
        window: usize,
        head_dim: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        Ok(Self {
            // A ring of one that nothing reads stands in where no score is needed.
            raw: Tensor::zeros((heads, window.max(1), head_dim), dtype, device)?,
            window,
            count: 0,
            cursor: 0,
        })
    }

    /// Takes the newest of the queries `q` (`[heads, tokens, head_dim]`, not rotated).
    pub fn push(&mut self, q: &Tensor) -> Result<()> {
        let tokens = q.dim(1)?;
        let taken = tokens.min(self.window);
        let mut from = tokens - taken;
        while from < tokens {
            let run = (self.window - self.cursor).min(tokens - from);
            self.raw
                .slice_set(&q.narrow(1, from, run)?.contiguous()?, 1, self.cursor)?;
            from += run;
            self.cursor = (self.cursor + run) % self.window;
        }
        self.count = (self.count + taken).min(self.window);
        Ok(())
    }

    pub fn count(&self) -> usize {
        self.count
    }

    /// The queries held, `[heads, count, head_dim]`, in ring order.
    pub fn raw(&self) -> Result<Tensor> {
        self.raw.narrow(1, 0, self.count)?.contiguous()
    }

    /// Slot index of each query's own key in ring order, when `len` slots are in use.
    pub fn positions(&self, len: usize) -> Vec<u32> {
        (0..self.count)
            .map(|slot| {
                let age = (self.cursor + self.window - 1 - slot) % self.window;
                (len - 1 - age) as u32
            })
            .collect()
    }

    /// An empty ring of `window` queries, in the same memory if the window is unchanged.
    pub fn emptied(&self, window: usize) -> Result<Self> {
        if window == self.window {
            return Ok(Self {
                count: 0,
                cursor: 0,
                ..self.clone()
            });
        }
        let (heads, _, head_dim) = self.raw.dims3()?;
        Self::new(heads, window, head_dim, self.raw.dtype(), self.raw.device())
    }

    /// A copy that shares no memory with this one.
    pub fn deep_copy(&self) -> Result<Self> {
        Ok(Self {
            raw: self.raw.force_contiguous()?,
            ..self.clone()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_queries_are_held_with_their_positions_whatever_the_chunks() {
        for chunks in [vec![9], vec![2, 1, 3, 3], vec![4, 5], vec![1; 9]] {
            let mut ring = QueryRing::new(1, 4, 1, DType::F32, &Device::Cpu).unwrap();
            let mut next = 0;
            for chunk in chunks {
                let q = (next..next + chunk).map(|i| i as f32).collect::<Vec<_>>();
                ring.push(&Tensor::from_vec(q, (1, chunk, 1), &Device::Cpu).unwrap())
                    .unwrap();
                next += chunk;
            }
            let raw = ring.raw().unwrap().flatten_all().unwrap();
            let mut held = raw
                .to_vec1::<f32>()
                .unwrap()
                .into_iter()
                .zip(ring.positions(9))
                .collect::<Vec<_>>();
            held.sort_by_key(|&(_, position)| position);
            assert_eq!(held, [(5., 5), (6., 6), (7., 7), (8., 8)]);
        }
    }
}
