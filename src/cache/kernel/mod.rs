//! Attention of the bounded cache on the CPU: plain slices in, plain slices out.
//!
//! Keys are stored unrotated and rotated to their positions on use, so that an eviction renumbers by changing positions only. KV
//! heads are never repeated for the query heads of their group. Sums are in f32 whatever the storage; what runs on which thread
//! never changes a result.
//!
//! - `element`: what keys and values are stored as
//! - `stage`: a KV head's keys rotated and turned over, its values widened, for many queries
//! - `few`: attention of a few queries (decode), which reads every key once
//! - `many`: attention of a chunk, in tiles
//! - `sums`: the probability that each key gets, summed over queries

mod element;
mod few;
mod many;
mod stage;
mod sums;

pub use element::Element;
pub use stage::Staged;

/// The keys and values of one layer, and where they stand.
#[derive(Clone, Copy)]
pub struct View<'a, T> {
    /// Not rotated, `[kv_heads, budget, row]`.
    pub keys: &'a [T],
    /// `[kv_heads, budget, row]`
    pub values: &'a [T],
    pub kv_heads: usize,
    pub budget: usize,
    pub head_dim: usize,
    /// Slots in use.
    pub len: usize,
    /// Rank in time of each slot in use, `[len]` for each kept set: one, or one per KV head.
    pub positions: &'a [&'a [u32]],
    /// What ranks turn by: the same for all KV heads, or one per KV head.
    pub turns: &'a [Turns<'a>],
}

/// Cosines and sines of the rotary embedding, `[ranks, head_dim / 2]` each.
#[derive(Clone, Copy)]
pub struct Turns<'a> {
    pub cos: &'a [f32],
    pub sin: &'a [f32],
}

impl Turns<'_> {
    /// Rotates `row` (`[head_dim]`, halves layout) to the position of `rank` and writes it to `out`.
    #[inline(always)]
    fn rotate(&self, row: &[f32], rank: u32, out: &mut [f32]) {
        let half = row.len() / 2;
        let at = rank as usize * half;
        let cos = &self.cos[at..][..half];
        let sin = &self.sin[at..][..half];
        let (a, b) = row.split_at(half);
        let (out_a, out_b) = out[..2 * half].split_at_mut(half);
        let (a, b) = (&a[..half], &b[..half]);
        for i in 0..half {
            out_a[i] = a[i] * cos[i] - b[i] * sin[i];
            out_b[i] = b[i] * cos[i] + a[i] * sin[i];
        }
    }
}

impl<T: Element> View<'_, T> {
    fn head<'b>(&self, buffer: &'b [T], head: usize, slots: std::ops::Range<usize>) -> &'b [T] {
        let (base, row) = (head * self.budget, T::row(self.head_dim));
        &buffer[(base + slots.start) * row..(base + slots.end) * row]
    }
}

impl<'a, T> View<'a, T> {
    fn positions_of(&self, head: usize) -> &'a [u32] {
        self.positions[head.min(self.positions.len() - 1)]
    }

    fn turns_of(&self, head: usize) -> Turns<'a> {
        self.turns[head.min(self.turns.len() - 1)]
    }
}

/// Rotated and scaled queries, grouped by the KV head they look at.
pub struct Queries {
    /// `[kv_heads, rows, head_dim]`; row `r` is query `r % tokens` of head `r / tokens` of the group.
    data: Vec<f32>,
    /// Query heads that share a KV head.
    group: usize,
    /// Position of each query, `[tokens]`.
    positions: Vec<u32>,
}

impl Queries {
    /// Rotates `raw` (`[heads, tokens, head_dim]`) to `positions` (`[tokens]`) and scales by `1 / sqrt(head_dim)`.
    pub fn new<T>(view: &View<T>, raw: &[f32], positions: Vec<u32>) -> Self {
        let width = view.head_dim;
        let scale = 1.0 / (width as f32).sqrt();
        let rows = raw.len() / width;
        let group = rows / positions.len() / view.kv_heads;
        let mut data = vec![0.0; raw.len()];
        for (r, (row, out)) in raw
            .chunks_exact(width)
            .zip(data.chunks_exact_mut(width))
            .enumerate()
        {
            let head = r / positions.len() / group;
            view.turns_of(head)
                .rotate(row, positions[r % positions.len()], out);
            out.iter_mut().for_each(|x| *x *= scale);
        }
        Self {
            data,
            group,
            positions,
        }
    }

    /// Rows of one KV head.
    fn rows(&self) -> usize {
        self.group * self.positions.len()
    }

    /// The newest `count` of each head, whose rows are `width` long.
    fn newest(&self, count: usize, width: usize) -> Self {
        let from = self.positions.len() - count;
        let heads = self.data.chunks_exact(self.positions.len() * width);
        Self {
            data: heads
                .flat_map(|head| &head[from * width..])
                .copied()
                .collect(),
            group: self.group,
            positions: self.positions[from..].to_vec(),
        }
    }

    /// Whether a row is of one of the newest `count` queries.
    fn is_newest(&self, row: usize, count: usize) -> bool {
        row % self.positions.len() + count >= self.positions.len()
    }

    fn position(&self, row: usize) -> u32 {
        self.positions[row % self.positions.len()]
    }

    /// The rows `range` of a KV head, `[range, head_dim]`.
    fn of(&self, head: usize, range: std::ops::Range<usize>, width: usize) -> &[f32] {
        let base = head * self.rows();
        &self.data[(base + range.start) * width..(base + range.end) * width]
    }
}

/// Where to add what slots get of the attention of some queries.
#[derive(Debug)]
pub struct Sums<'a> {
    /// Queries that count: so many of the newest, at least one.
    pub newest: usize,
    /// The probability of each slot, the sum over these queries of the mean over the heads that share the KV head, `[kv_heads, len]`.
    pub sums: &'a mut [f32],
}

/// Up to so many rows of a KV head read the keys as they lie; for more it pays to turn them over first.
const FEW_ROWS: usize = 16;

/// Causal attention of `queries` over every slot in use: `[heads, tokens, head_dim]`.
///
/// A query sees the slots whose position is not above its own. With `sums` the probability that each slot gets is added there.
pub fn attend<T: Element>(view: &View<T>, queries: &Queries, sums: Option<Sums>) -> Vec<f32> {
    if queries.rows() <= FEW_ROWS {
        return few::attend(view, queries, sums);
    }
    let staged = Staged::new(view, true);
    if let Some(Sums { newest, sums }) = sums {
        let counted = queries.newest(newest, view.head_dim);
        sums::add(view, &staged, &counted, sums);
    }
    many::attend(view, &staged, queries)
}

/// Adds the probability that each slot gets to `sums` (`[kv_heads, len]`): the sum over the queries of the mean over the group's heads.
pub fn add_sums<T: Element>(view: &View<T>, queries: &Queries, sums: &mut [f32]) {
    match queries.rows() <= FEW_ROWS {
        true => few::add_sums(view, queries, sums),
        false => sums::add(view, &Staged::new(view, false), queries, sums),
    }
}
