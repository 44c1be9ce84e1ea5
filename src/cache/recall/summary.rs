//! Keys of a unit by their direction before rotation, held small; those of a question, which are held against them.

use std::ops::Range;

use candle_core::{DType, Result, Tensor};
use half::f16;
use half::slice::HalfFloatSliceExt;

use super::heard::Heard;
use crate::cache::likeness::directions;

/// Lanes of the sums below; the compiler turns them into vector registers.
const LANES: usize = 16;

/// The directions of all keys of a unit in some layers, f16.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// `[layers * kv_heads, tokens, head_dim]`
    values: Box<[f16]>,
    heads: usize,
    head_dim: usize,
}

impl Summary {
    /// Of the keys of `tokens` among those that were heard, by layers that have heard the same tokens. Empty where nothing was.
    pub fn of(heard: &[Heard], tokens: Range<usize>) -> Result<Self> {
        let mut values = Vec::new();
        let (mut heads, mut head_dim) = (0, 0);
        for layer in heard {
            let keys = layer.keys.narrow(1, tokens.start, tokens.len())?;
            values.extend(flat(&directions(&keys)?)?.into_iter().map(f16::from_f32));
            heads += keys.dim(0)?;
            head_dim = keys.dim(2)?;
        }
        Ok(Self {
            values: values.into(),
            heads,
            head_dim,
        })
    }

    /// Of several units of the same layers, one behind the other.
    pub fn joined(parts: &[Self]) -> Self {
        let first = parts.iter().find(|part| part.heads > 0);
        let (heads, head_dim) = first.map_or((0, 0), |part| (part.heads, part.head_dim));
        let rows = |head| parts.iter().flat_map(move |part| part.rows(head));
        Self {
            values: (0..heads).flat_map(rows).copied().collect(),
            heads,
            head_dim,
        }
    }

    /// Memory of the directions, bytes.
    pub fn bytes(&self) -> usize {
        std::mem::size_of_val::<[f16]>(&self.values)
    }

    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Directions of one layer's KV head, `[tokens, head_dim]`.
    fn rows(&self, head: usize) -> &[f16] {
        let rows = self.values.len() / self.heads.max(1);
        &self.values[head * rows..][..rows]
    }

    /// The mean direction of each layer's KV heads, one behind the other and of length 1 as a whole, `[layers * kv_heads * head_dim]`.
    pub fn mean(&self) -> Box<[f32]> {
        let mut mean = vec![0.0; self.heads * self.head_dim];
        for (head, mean) in mean.chunks_exact_mut(self.head_dim.max(1)).enumerate() {
            for row in self.rows(head).chunks_exact(self.head_dim) {
                for (mean, value) in mean.iter_mut().zip(row) {
                    *mean += value.to_f32();
                }
            }
        }
        let length = dot(&mean, &mean).sqrt().max(1e-12);
        mean.into_iter().map(|x| x / length).collect()
    }
}

/// Which of a question's vectors are held against keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Its own keys: what is like it.
    Keys,
    /// Its queries: what it attends to.
    Queries,
}

impl Side {
    pub const ALL: [Self; 2] = [Self::Keys, Self::Queries];

    /// As parameters name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Keys => "keys",
            Self::Queries => "queries",
        }
    }
}

/// The directions of a question's keys or queries in some layers.
#[derive(Debug, Clone)]
pub struct Probe {
    pub side: Side,
    /// `[layers * kv_heads, heads of the group * tokens, head_dim]`; of keys each group has one head.
    values: Vec<f32>,
    /// Layers times KV heads.
    heads: usize,
    tokens: usize,
    head_dim: usize,
}

impl Probe {
    /// Of all tokens that were heard.
    pub fn of(heard: &[Heard], side: Side) -> Result<Self> {
        let tokens = heard.first().map_or(Ok(0), |layer| layer.keys.dim(1))?;
        Self::of_tokens(heard, 0..tokens, side)
    }

    /// Of some of the tokens that were heard.
    pub fn of_tokens(heard: &[Heard], tokens: Range<usize>, side: Side) -> Result<Self> {
        let mut values = Vec::new();
        let (mut heads, mut head_dim) = (0, 0);
        for layer in heard {
            let vectors = match side {
                Side::Keys => &layer.keys,
                Side::Queries => &layer.queries,
            };
            let vectors = vectors.narrow(1, tokens.start, tokens.len())?;
            // The heads that share a KV head stand one behind the other.
            values.extend(flat(&directions(&vectors)?)?);
            heads += layer.keys.dim(0)?;
            head_dim = layer.keys.dim(2)?;
        }
        let tokens = tokens.len();
        Ok(Self {
            side,
            values,
            heads,
            tokens,
            head_dim,
        })
    }

    /// How well each of the question's tokens is matched by its others, `[tokens]`: what it takes to be matched by something that does not
    /// say it. 0 where there are no others.
    pub fn own(&self) -> Vec<f32> {
        let mut sums = vec![0.0; self.tokens];
        let group = (self.values.len() / self.heads.max(1)).max(1);
        for words in self.values.chunks_exact(group) {
            let words = words.chunks_exact(self.head_dim).enumerate();
            for (i, word) in words.clone() {
                let others = words
                    .clone()
                    .filter(|(j, _)| j % self.tokens != i % self.tokens);
                let best = others.map(|(_, other)| dot(word, other)).reduce(f32::max);
                sums[i % self.tokens] += best.unwrap_or(0.0);
            }
        }
        let vectors = self.values.len() / (self.tokens * self.head_dim).max(1);
        sums.iter().map(|sum| sum / vectors.max(1) as f32).collect()
    }

    /// How well each of the question's tokens is matched in a unit, `[tokens]`: over the layers and heads the mean of
    /// `max_{j in unit} cos(x_i, k_j)` (MaxSim of ColBERT, arXiv 2004.12832, on keys or queries x). -1 where the unit has no such keys.
    pub fn matches(&self, unit: &Summary) -> Vec<f32> {
        let fits = unit.heads == self.heads && unit.head_dim == self.head_dim;
        if unit.is_empty() || self.values.is_empty() || !fits {
            return vec![-1.0; self.tokens];
        }
        let mut sums = vec![0.0; self.tokens];
        let mut keys = Vec::new();
        let group = self.values.len() / self.heads;
        for (head, words) in self.values.chunks_exact(group).enumerate() {
            let rows = unit.rows(head);
            keys.resize(rows.len(), 0.0);
            rows.convert_to_f32_slice(&mut keys);
            for (i, word) in words.chunks_exact(self.head_dim).enumerate() {
                let cosines = keys.chunks_exact(self.head_dim).map(|key| dot(word, key));
                sums[i % self.tokens] += cosines.fold(f32::NEG_INFINITY, f32::max);
            }
        }
        let vectors = self.values.len() / (self.tokens * self.head_dim);
        sums.iter().map(|sum| sum / vectors as f32).collect()
    }
}

/// The sum of the products; the order of the additions depends on the length alone.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0.0f32; LANES];
    for (a, b) in a.iter().zip(b) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += a * b;
        }
    }
    let rest = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>();
    sums.iter().sum::<f32>() + rest
}

fn flat(x: &Tensor) -> Result<Vec<f32>> {
    x.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}
