//! Attention on a bounded cache in f64, written for plainness.

use super::Stored;

/// Turns of the rotary embedding, `[ranks, head_dim / 2]` for each table.
pub struct Turns {
    pub cos: Vec<f32>,
    pub sin: Vec<f32>,
}

impl Turns {
    /// As many tables as asked for, each with frequencies of its own.
    pub fn new(tables: usize, ranks: usize, head_dim: usize) -> Self {
        let half = head_dim / 2;
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        for table in 0..tables {
            for rank in 0..ranks {
                for i in 0..half {
                    let frequency = 1e4f64.powf(-(i as f64) / half as f64);
                    let angle = (rank + 3 * table) as f64 * frequency;
                    cos.push(angle.cos() as f32);
                    sin.push(angle.sin() as f32);
                }
            }
        }
        Self { cos, sin }
    }

    /// `x` turned by row `row` of all tables' rows.
    pub fn rotate(&self, x: &[f64], row: usize) -> Vec<f64> {
        let half = x.len() / 2;
        let mut out = vec![0.0; x.len()];
        for i in 0..half {
            let cos = f64::from(self.cos[row * half + i]);
            let sin = f64::from(self.sin[row * half + i]);
            out[i] = x[i] * cos - x[half + i] * sin;
            out[half + i] = x[half + i] * cos + x[i] * sin;
        }
        out
    }
}

/// The cache of a layer.
pub struct Cache<'a> {
    pub keys: &'a Stored,
    pub values: &'a Stored,
    pub budget: usize,
    pub head_dim: usize,
    pub len: usize,
    /// `[sets, budget]`, one set or one per KV head.
    pub ranks: &'a [u32],
    /// One table or one per KV head, of `budget` rows each.
    pub turns: &'a Turns,
}

impl Cache<'_> {
    fn row(&self, buffer: &Stored, head: usize, slot: usize) -> Vec<f64> {
        let start = (head * self.budget + slot) * self.head_dim;
        (start..start + self.head_dim)
            .map(|i| buffer.get(i))
            .collect()
    }

    pub fn rank(&self, head: usize, slot: usize) -> u32 {
        let sets = self.ranks.len() / self.budget;
        self.ranks[head.min(sets - 1) * self.budget + slot]
    }

    /// `x` turned to a rank of a KV head.
    fn rotate(&self, x: &[f64], head: usize, rank: u32) -> Vec<f64> {
        let tables = self.turns.cos.len() / (self.budget * self.head_dim / 2);
        let table = head.min(tables - 1);
        self.turns.rotate(x, table * self.budget + rank as usize)
    }

    /// Logits of a raw query at a position to every slot in use, minus infinity where it does not see one.
    pub fn logits(&self, query: &[f64], head: usize, position: u32) -> Vec<f64> {
        let query = self.rotate(query, head, position);
        let logit = |slot| {
            let rank = self.rank(head, slot);
            if rank > position {
                return f64::NEG_INFINITY;
            }
            let key = self.rotate(&self.row(self.keys, head, slot), head, rank);
            let product = key.iter().zip(&query).map(|(a, b)| a * b).sum::<f64>();
            product / (self.head_dim as f64).sqrt()
        };
        (0..self.len).map(logit).collect()
    }

    /// Attention with the probabilities of all slots in use.
    pub fn mix(&self, probabilities: &[f64], head: usize) -> Vec<f64> {
        let mut out = vec![0.0; self.head_dim];
        for (slot, p) in probabilities.iter().enumerate() {
            let value = self.row(self.values, head, slot);
            out.iter_mut()
                .zip(&value)
                .for_each(|(out, v)| *out += p * v);
        }
        out
    }
}

pub fn softmax(logits: &[f64]) -> Vec<f64> {
    let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let shares = logits.iter().map(|l| (l - top).exp()).collect::<Vec<_>>();
    let sum = shares.iter().sum::<f64>();
    shares.iter().map(|share| share / sum).collect()
}
