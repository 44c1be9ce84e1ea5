//! Where kept tokens stand on three axes (M-RoPE, arXiv 2409.12191).
//!
//! Tokens are numbered anew as evictions thin them out, in the order of time: text moves on by one on every axis; what is left of an
//! image keeps its offsets from the image's first token, and behind it everything stands by the image's whole extent farther on,
//! however little is left of it. An image of which nothing is left takes no room. So a stream that fits into the budget has the
//! positions that the published models give it.
//!
//! Positions stay below the number of kept tokens as long as images are whole. Where they are thinned, what bounds them is the budget
//! times the largest extent of an image (and the plan's gap), which may be beyond the model's longest input.

use super::slots::{FrameId, Place, Token};

/// Numbers tokens one after the other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
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

/// Ranks of one kept set that follow one another, and where their tokens stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    pub first: usize,
    /// Time, height and width of each.
    pub at: Vec<[usize; 3]>,
    /// Rank from which on positions are the gap farther on.
    pub border: Option<usize>,
}

/// How far the tokens of one kept set have been numbered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Numbering {
    walk: Walk,
    /// Ranks that have a place.
    len: usize,
    border: Option<usize>,
}

impl Numbering {
    /// Before any token, of which those of rank `border` and above will stand the gap farther on.
    pub fn from_the_start(border: Option<usize>) -> Self {
        Self {
            border,
            ..Self::default()
        }
    }

    /// Before the first of its tokens, and with the same border.
    pub fn restarted(&self) -> Self {
        Self::from_the_start(self.border)
    }

    /// Numbers the next tokens, in the order of time.
    pub fn append(&mut self, tokens: &[Token]) -> Places {
        let first = self.len;
        self.len += tokens.len();
        Places {
            first,
            at: tokens.iter().map(|token| self.walk.step(token)).collect(),
            border: self.border,
        }
    }
}
