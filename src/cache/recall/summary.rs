//! Keys of a unit by their direction before rotation, held small; those of a question, which are held against them.

use std::ops::Range;

use candle_core::{DType, Result, Tensor};
use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::heard::Heard;
use crate::cache::likeness::directions;
use crate::simd::{dot, many_products};

/// Units that are compared with a question at a time: their keys, widened, stay in the processor's nearest memory.
const BLOCK: usize = 64;

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

    /// How well each of the question's tokens is matched in each of some units, `[units][tokens]`: over the layers and heads the mean of
    /// `max_{j in unit} cos(x_i, k_j)` (MaxSim of ColBERT, arXiv 2004.12832, on keys or queries x). -1 where the unit has no such keys.
    pub fn matches(&self, units: &[&Summary]) -> Vec<Vec<f32>> {
        let blocks = units.par_chunks(BLOCK).map(|units| self.of_block(units));
        blocks.collect::<Vec<_>>().concat()
    }

    fn of_block(&self, units: &[&Summary]) -> Vec<Vec<f32>> {
        let fits = |unit: &Summary| {
            let keys = !unit.is_empty() && !self.values.is_empty();
            keys && unit.heads == self.heads && unit.head_dim == self.head_dim
        };
        let mut matches = vec![vec![-1.0; self.tokens]; units.len()];
        let pairs = matches.iter_mut().zip(units);
        let mut fitting = pairs
            .filter(|(_, unit)| fits(unit))
            .map(|(sums, unit)| {
                sums.fill(0.0);
                (sums, *unit)
            })
            .collect::<Vec<_>>();
        if fitting.is_empty() {
            return matches;
        }
        let group = self.values.len() / self.heads;
        let vectors = group / self.head_dim;
        let (mut keys, mut cosines) = (Vec::new(), Vec::new());
        let mut best = vec![0.0; vectors];
        for (head, words) in self.values.chunks_exact(group).enumerate() {
            keys.clear();
            for (_, unit) in &fitting {
                let rows = unit.rows(head);
                let start = keys.len();
                keys.resize(start + rows.len(), 0.0);
                rows.convert_to_f32_slice(&mut keys[start..]);
            }
            cosines.resize(keys.len() / self.head_dim * vectors, 0.0);
            many_products(&keys, words, self.head_dim, &mut cosines);
            let mut rest = cosines.chunks_exact(vectors);
            for (sums, unit) in &mut fitting {
                best.fill(f32::NEG_INFINITY);
                for cosines in rest.by_ref().take(unit.rows(head).len() / self.head_dim) {
                    for (best, cosine) in best.iter_mut().zip(cosines) {
                        *best = best.max(*cosine);
                    }
                }
                for (i, best) in best.iter().enumerate() {
                    sums[i % self.tokens] += best;
                }
            }
        }
        let of_token = (self.values.len() / (self.tokens * self.head_dim)) as f32;
        for (sums, _) in fitting {
            sums.iter_mut().for_each(|sum| *sum /= of_token);
        }
        matches
    }
}

fn flat(x: &Tensor) -> Result<Vec<f32>> {
    x.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}
