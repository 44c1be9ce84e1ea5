//! Attention of a few queries: the keys are read once, part by part, and the parts' softmaxes put together at the end
//! (Flash-Decoding; the online softmax of arXiv 1805.02867).

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::many::mask;
use super::stage::{pad_rows, BLOCK};
use super::{Element, Queries, Sums, View};
use crate::simd::tiles::{exp, exp_row, largest, matmul, COLUMNS};
use crate::simd::{dot_products, MAX_ROWS};

/// Slots of a part. Fixed, so that the number of threads changes no sum.
const PART: usize = BLOCK;

/// What one part of a KV head's slots adds to each row.
struct Part {
    /// Unnormalised probabilities, `[rows, PART]`.
    weights: Vec<f32>,
    /// Largest logit, `[rows]`.
    most: Vec<f32>,
    /// Sum of the weights, `[rows]`.
    norm: Vec<f32>,
    /// Weighted sum of the values, `[rows, width]`; empty if none are wanted.
    sums: Vec<f32>,
}

/// As [`super::attend`] says.
pub fn attend<T: Element>(view: &View<T>, queries: &Queries, sums: Option<Sums>) -> Vec<f32> {
    in_parts(view, queries, true, sums)
}

/// As [`super::add_sums`] says; values are not read.
pub fn add_sums<T: Element>(view: &View<T>, queries: &Queries, sums: &mut [f32]) {
    let newest = queries.positions.len();
    in_parts(view, queries, false, Some(Sums { newest, sums }));
}

/// Both: what attention gives, zeros without `values`, and the probabilities of the slots.
fn in_parts<T: Element>(
    view: &View<T>,
    queries: &Queries,
    values: bool,
    mut sums: Option<Sums>,
) -> Vec<f32> {
    let count = view.len.div_ceil(PART);
    let parts = (0..view.kv_heads * count)
        .into_par_iter()
        .map(|i| {
            let from = i % count * PART;
            Arch::new().dispatch(OnePart {
                view,
                queries,
                values,
                head: i / count,
                slots: from..(from + PART).min(view.len),
            })
        })
        .collect::<Vec<_>>();
    let (rows, width) = (queries.rows(), view.head_dim);
    let mut out = vec![0.0; view.kv_heads * rows * width];
    for (head, parts) in parts.chunks_exact(count).enumerate() {
        for row in 0..rows {
            let most = parts
                .iter()
                .fold(f32::NEG_INFINITY, |most, part| most.max(part.most[row]));
            let shares = parts.iter().map(|part| exp(part.most[row] - most));
            let norm = shares
                .clone()
                .zip(parts)
                .map(|(share, part)| share * part.norm[row])
                .sum::<f32>();
            let out = &mut out[(head * rows + row) * width..][..width];
            for (p, (share, part)) in shares.zip(parts).enumerate() {
                let scale = share / norm;
                let stride = part.sums.len() / rows;
                for (out, sum) in out.iter_mut().zip(&part.sums[row * stride..]) {
                    *out += sum * scale;
                }
                let wanted = sums
                    .as_mut()
                    .filter(|wanted| queries.is_newest(row, wanted.newest));
                if let Some(Sums { sums, .. }) = wanted {
                    let from = head * view.len + p * PART;
                    let to = (from + PART).min((head + 1) * view.len);
                    let scale = scale / queries.group as f32;
                    for (sum, weight) in sums[from..to].iter_mut().zip(&part.weights[row * PART..])
                    {
                        *sum += weight * scale;
                    }
                }
            }
        }
    }
    out
}

struct OnePart<'a, T> {
    view: &'a View<'a, T>,
    queries: &'a Queries,
    values: bool,
    head: usize,
    slots: std::ops::Range<usize>,
}

impl<T: Element> WithSimd for OnePart<'_, T> {
    type Output = Part;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Part {
        let Self {
            view,
            queries,
            values,
            head,
            slots,
        } = self;
        let (rows, width) = (queries.rows(), view.head_dim);
        let positions = &view.positions_of(head)[slots.clone()];
        let turns = view.turns_of(head);
        let q = queries.of(head, 0..rows, width);
        let mut scratch = Vec::new();
        let keys = T::widen(
            view.head(view.keys, head, slots.clone()),
            width,
            &mut scratch,
        );
        // All keys first: reading them goes at the memory's pace, and they stay close until the products are done.
        let mut rotated = vec![0.0; keys.len()];
        for (j, out) in rotated.chunks_exact_mut(width).enumerate() {
            turns.rotate(&keys[j * width..][..width], positions[j], out);
        }
        let mut weights = vec![0.0; rows * PART];
        for (weights, q) in weights
            .chunks_mut(MAX_ROWS * PART)
            .zip(q.chunks(MAX_ROWS * width))
        {
            let mut outs = weights.chunks_exact_mut(PART).collect::<Vec<_>>();
            dot_products(simd, q, &rotated, width, &mut outs);
        }
        let seen = (0..rows)
            .map(|row| queries.position(row))
            .collect::<Vec<_>>();
        mask(&mut weights, positions, &seen);
        let mut most = vec![f32::NEG_INFINITY; rows];
        let mut norm = vec![0.0; rows];
        for (r, weights) in weights.chunks_exact_mut(PART).enumerate() {
            most[r] = largest(weights);
            if most[r] == f32::NEG_INFINITY {
                weights.fill(0.0);
            } else {
                norm[r] = exp_row(weights, most[r]);
            }
        }
        if !values {
            return Part {
                weights,
                most,
                norm,
                sums: Vec::new(),
            };
        }
        let values = T::widen(
            view.head(view.values, head, slots.clone()),
            width,
            &mut scratch,
        );
        let padded = width.next_multiple_of(COLUMNS);
        let mut staged = Vec::new();
        let values = if padded == width {
            values
        } else {
            staged.resize(slots.len() * padded, 0.0);
            pad_rows(values, width, &mut staged, padded);
            &staged
        };
        let mut sums = vec![0.0; rows * padded];
        matmul(
            simd,
            (&weights, PART, slots.len()),
            values,
            padded,
            &mut sums,
            false,
        );
        Part {
            weights,
            most,
            norm,
            sums,
        }
    }
}
