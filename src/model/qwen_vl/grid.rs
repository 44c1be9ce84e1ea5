//! The grid of a picture's patches: their order, where each stands, and the windows that attention is kept within.
//!
//! The processor gives the patches square by square, the squares row by row: the patches of a square are those that become one token.

use candle_core::{Device, Result, Tensor};

use super::Measures;

/// A picture in patches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    /// Patches down and across, multiples of `merge`.
    pub height: usize,
    pub width: usize,
    /// Side of a square, patches.
    pub merge: usize,
}

/// Squares in the order of windows.
#[derive(Debug, Clone)]
pub struct Windows {
    /// The square, counted row by row, that stands at each place.
    pub squares: Vec<u32>,
    /// Patches of each window.
    pub lengths: Vec<usize>,
}

impl Grid {
    /// Squares down and across.
    pub fn squares(&self) -> (usize, usize) {
        (self.height / self.merge, self.width / self.merge)
    }

    /// Tokens that the picture becomes.
    pub fn tokens(&self) -> usize {
        let (down, across) = self.squares();
        down * across
    }

    pub fn patches(&self) -> usize {
        self.height * self.width
    }

    /// Row and column of each patch, in the processor's order.
    pub fn places(&self) -> impl Iterator<Item = (usize, usize)> {
        let Self { merge, .. } = *self;
        let (_, across) = self.squares();
        (0..self.tokens()).flat_map(move |square| {
            let (row, column) = (square / across * merge, square % across * merge);
            (0..merge * merge).map(move |i| (row + i / merge, column + i % merge))
        })
    }

    /// The squares window by window, each window (of at most `side` squares down and across) row by row.
    pub fn windows(&self, side: usize) -> Windows {
        let (down, across) = self.squares();
        let mut windows = Windows {
            squares: Vec::with_capacity(self.tokens()),
            lengths: Vec::new(),
        };
        for top in (0..down).step_by(side) {
            for left in (0..across).step_by(side) {
                let before = windows.squares.len();
                for row in top..(top + side).min(down) {
                    let columns = left..(left + side).min(across);
                    let squares = columns.map(|column| (row * across + column) as u32);
                    windows.squares.extend(squares);
                }
                let squares = windows.squares.len() - before;
                windows.lengths.push(squares * self.merge.pow(2));
            }
        }
        windows
    }
}

impl Windows {
    /// Where each square, counted row by row, stands.
    pub fn inverse(&self) -> Vec<u32> {
        let mut inverse = vec![0; self.squares.len()];
        for (place, &square) in (0u32..).zip(&self.squares) {
            inverse[square as usize] = place;
        }
        inverse
    }
}

/// Cosines and sines of the patches' rotary embedding: the first half of a head's pairs turns by the row, the other by the column.
#[derive(Debug, Clone)]
pub struct Angles {
    /// `[patches, head_dim / 2]`, f32.
    pub cos: Tensor,
    /// `[patches, head_dim / 2]`, f32.
    pub sin: Tensor,
}

impl Angles {
    /// Of patches at these rows and columns.
    pub fn new(
        measures: &Measures,
        places: impl Iterator<Item = (usize, usize)>,
        device: &Device,
    ) -> Result<Self> {
        let each = measures.head_dim() / 4;
        let frequency = |i: usize| measures.theta.powf(-(i as f64) / each as f64);
        let frequencies = (0..each).map(frequency).collect::<Vec<_>>();
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        for (row, column) in places {
            for position in [row, column] {
                for frequency in &frequencies {
                    let angle = position as f64 * frequency;
                    cos.push(angle.cos() as f32);
                    sin.push(angle.sin() as f32);
                }
            }
        }
        let shape = (cos.len() / (2 * each), 2 * each);
        Ok(Self {
            cos: Tensor::from_vec(cos, shape, device)?,
            sin: Tensor::from_vec(sin, shape, device)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_come_square_by_square_and_windows_end_at_the_border() {
        let grid = Grid {
            height: 4,
            width: 6,
            merge: 2,
        };
        let places = grid.places().take(8).collect::<Vec<_>>();
        assert_eq!(places[..4], [(0, 0), (0, 1), (1, 0), (1, 1)]);
        assert_eq!(places[4..], [(0, 2), (0, 3), (1, 2), (1, 3)]);
        let windows = grid.windows(2);
        assert_eq!(windows.squares, [0, 1, 3, 4, 2, 5]);
        assert_eq!(windows.lengths, [16, 8]);
        assert_eq!(windows.inverse(), [0, 1, 4, 2, 3, 5]);
    }
}
