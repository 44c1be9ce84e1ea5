//! Positions on three axes (M-RoPE, arXiv 2409.12191): where kept tokens stand, and the rotary table of one kept set.
//!
//! Tokens are numbered anew as evictions thin them out, in the order of time: text moves on by one on every axis; what is left of an
//! image keeps its offsets from the image's first token, and behind it everything stands by the image's whole extent farther on,
//! however little is left of it. An image of which nothing is left takes no room. So a stream that fits into the budget has the
//! positions that the published models give it.
//!
//! Positions stay below the number of kept tokens as long as images are whole. Where they are thinned, what bounds them is the budget
//! times the largest extent of an image (and the plan's gap), which may be beyond the model's longest input.

use candle_core::{DType, Device, Result};

use super::rope::{Pair, Rope};
use super::rotary::{turns, RotaryTable};
use super::slots::{FrameId, Place, Token};

/// Numbers tokens one after the other.
#[derive(Debug, Clone, Copy, Default)]
struct Walk {
    /// Position of the next token, if it belongs to no image that has begun.
    next: usize,
    /// The image that the last token belongs to, and the position of its first token.
    image: Option<(Option<FrameId>, usize)>,
}

impl Walk {
    /// Time, height and width of the next token.
    fn step(&mut self, token: &Token) -> [usize; 3] {
        let Place { offset, extent } = token.mark.place;
        if extent == 0 {
            let position = self.next;
            *self = Self {
                next: position + 1,
                image: None,
            };
            return [position; 3];
        }
        let base = match self.image {
            Some((frame, base)) if frame == token.mark.frame => base,
            _ => self.next,
        };
        *self = Self {
            next: base + usize::from(extent),
            image: Some((token.mark.frame, base)),
        };
        offset.map(|offset| base + usize::from(offset))
    }
}

/// Time, height and width of `tokens`, which are all that is kept, in the order of time.
pub fn positions(tokens: &[Token]) -> impl Iterator<Item = [usize; 3]> + '_ {
    let mut walk = Walk::default();
    tokens.iter().map(move |token| walk.step(token))
}

/// Cosines and sines of all frequencies at positions from `first` on, made when they are first needed.
#[derive(Debug)]
struct Angles {
    first: usize,
    /// `[positions, head_dim / 2]`
    cos: Vec<f32>,
    /// `[positions, head_dim / 2]`
    sin: Vec<f32>,
}

/// Positions that are made at a time.
const STEP: usize = 64;

impl Angles {
    fn starting_at(first: usize) -> Self {
        Self {
            first,
            cos: Vec::new(),
            sin: Vec::new(),
        }
    }

    /// Makes the row of `position`, counted from `first`, and those before it.
    fn reach(&mut self, position: usize, pairs: &[Pair]) {
        let width = pairs.len();
        let have = self.cos.len() / width.max(1);
        if position < have {
            return;
        }
        let rows = (position + 1).next_multiple_of(STEP);
        self.cos.resize(rows * width, 0.0);
        self.sin.resize(rows * width, 0.0);
        for row in have..rows {
            let values = row * width..(row + 1) * width;
            let (cos, sin) = (&mut self.cos[values.clone()], &mut self.sin[values]);
            turns(self.first + row, pairs, cos, sin);
        }
    }
}

/// What the tables of all kept sets are put together from.
#[derive(Debug)]
pub struct Axes {
    pairs: Vec<Pair>,
    /// The axis that each pair of a head turns by.
    axis_of_pairs: Vec<usize>,
    plain: Angles,
    /// The same from the plan's gap on.
    apart: Angles,
}

impl Axes {
    /// `gap` is that of the plan.
    pub fn new(rope: &Rope, head_dim: usize, gap: usize) -> Self {
        Self {
            pairs: rope.pairs(head_dim),
            axis_of_pairs: rope.axis_of_pairs(head_dim),
            plain: Angles::starting_at(0),
            apart: Angles::starting_at(gap),
        }
    }

    /// Cosines and sines at a position on three axes, which is `apart` by the gap.
    fn compose(&mut self, place: [usize; 3], apart: bool, cos: &mut [f32], sin: &mut [f32]) {
        let angles = match apart {
            true => &mut self.apart,
            false => &mut self.plain,
        };
        let [time, height, width] = place;
        angles.reach(time.max(height).max(width), &self.pairs);
        let pairs = self.axis_of_pairs.len();
        if time == height && height == width {
            let row = time * pairs..(time + 1) * pairs;
            cos.copy_from_slice(&angles.cos[row.clone()]);
            sin.copy_from_slice(&angles.sin[row]);
            return;
        }
        for (pair, &axis) in self.axis_of_pairs.iter().enumerate() {
            let at = place[axis] * pairs + pair;
            cos[pair] = angles.cos[at];
            sin[pair] = angles.sin[at];
        }
    }
}

/// The rotary table of one kept set: row `r` turns to the position of the token with rank `r`.
#[derive(Debug)]
pub struct SetTable {
    pub table: RotaryTable,
    walk: Walk,
    /// Ranks that have a row.
    len: usize,
    /// Rank from which on positions are the gap farther on.
    border: Option<usize>,
}

impl SetTable {
    pub fn new(budget: usize, head_dim: usize, dtype: DType, device: &Device) -> Self {
        Self {
            table: RotaryTable::empty(budget, head_dim, dtype, device),
            walk: Walk::default(),
            len: 0,
            border: None,
        }
    }

    /// Takes the next tokens, in the order of time.
    pub fn append(&mut self, tokens: &[Token], axes: &mut Axes) -> Result<()> {
        let Self {
            table,
            walk,
            len,
            border,
        } = self;
        table.write(*len, tokens.len(), |i, cos, sin| {
            let apart = border.is_some_and(|border| *len + i >= border);
            axes.compose(walk.step(&tokens[i]), apart, cos, sin);
        })?;
        *len += tokens.len();
        Ok(())
    }

    /// Begins anew with `tokens`, in the order of time; those of rank `border` and above stand the gap farther on.
    pub fn restart(
        &mut self,
        tokens: &[Token],
        border: Option<usize>,
        axes: &mut Axes,
    ) -> Result<()> {
        self.clear();
        self.border = border;
        self.append(tokens, axes)
    }

    pub fn clear(&mut self) {
        self.walk = Walk::default();
        self.len = 0;
        self.border = None;
    }
}
