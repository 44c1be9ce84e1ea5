//! The input of a product, rounded to 8-bit integers once for all matrices that it is multiplied with.

use pulp::{Arch, NullaryFnOnce};
use rayon::prelude::*;

/// Numbers that share a scale, of weights as of inputs.
pub const GROUP: usize = 32;

/// Rows that a thread rounds at a time.
const ROWS: usize = 16;

/// The largest magnitude of an integer.
const MOST: f32 = 127.0;

/// 32 numbers: integers from -127 to 127 and a scale.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C, align(16))]
pub struct Group {
    pub integers: [[i8; GROUP / 2]; 2],
    pub scale: f32,
    /// The sum of the integers times the scale.
    pub total: f32,
    /// The sums of the integers of each half.
    pub sums: [i32; 2],
}

/// Rows of numbers in groups.
#[derive(Debug, Clone)]
pub struct Rounded {
    groups: Vec<Group>,
    /// Of a row.
    count: usize,
}

impl Rounded {
    /// Rounds `x`, `[rows, width]` with a width of whole groups, in the threads of the pool that it is called in.
    pub fn new(x: &[f32], width: usize) -> Self {
        let mut groups = vec![Group::default(); x.len() / GROUP];
        let arch = Arch::new();
        if x.len() <= ROWS * width {
            let out = &mut groups;
            arch.dispatch(Round { x, out });
        } else {
            let parts = groups.par_chunks_mut(ROWS * width / GROUP);
            let parts = parts.zip(x.par_chunks(ROWS * width));
            parts.for_each(|(out, x)| arch.dispatch(Round { x, out }));
        }
        Self {
            groups,
            count: width / GROUP,
        }
    }

    /// Memory of so many numbers, bytes.
    pub fn bytes(numbers: usize) -> usize {
        numbers.div_ceil(GROUP) * size_of::<Group>()
    }

    pub fn rows(&self) -> usize {
        self.groups.len() / self.count
    }

    /// The groups of a row.
    pub fn row(&self, row: usize) -> &[Group] {
        &self.groups[row * self.count..][..self.count]
    }
}

struct Round<'a> {
    x: &'a [f32],
    out: &'a mut [Group],
}

impl NullaryFnOnce for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for (x, out) in self.x.as_chunks().0.iter().zip(self.out) {
            round(x, out);
        }
    }
}

/// The nearest integers in units of a 127th of the largest magnitude. Where a number is none, neither is the scale.
#[inline(always)]
fn round(x: &[f32; GROUP], out: &mut Group) {
    // Compared as integers, NaN is the largest.
    let mut most = 0i32;
    for x in x {
        most = most.max((x.to_bits() & !(1 << 31)) as i32);
    }
    let most = f32::from_bits(most as u32);
    let scale = most / MOST;
    // The reciprocal of a number that is not normal may be infinite; all that is lost then is below 1e-36.
    let by = if scale.is_normal() { MOST / most } else { 0.0 };
    let mut rounded = [0i32; GROUP];
    for (rounded, x) in rounded.iter_mut().zip(x) {
        *rounded = (x * by).round_ties_even() as i32;
    }
    let halves = rounded.as_chunks::<{ GROUP / 2 }>().0;
    for ((rounded, integers), sum) in halves.iter().zip(&mut out.integers).zip(&mut out.sums) {
        *sum = rounded.iter().sum();
        for (integer, rounded) in integers.iter_mut().zip(rounded) {
            *integer = *rounded as i8;
        }
    }
    out.scale = to_11_bits(scale);
    out.total = to_11_bits(scale * (out.sums[0] + out.sums[1]) as f32);
}

/// With the precision of f16, as ggml keeps scales, and the range of f32: what is rounded alike agrees more closely. (The upper part of
/// a product split in two, T. J. Dekker, A floating-point technique for extending the available precision, 1971.)
#[inline(always)]
fn to_11_bits(x: f32) -> f32 {
    const SPLIT: f32 = ((1 << 13) + 1) as f32;
    let large = x * SPLIT;
    large - (large - x)
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    #[test]
    fn numbers_of_11_bits_are_those_of_f16() {
        for i in 0..100_000 {
            let x = (1.0 + i as f32 * 1e-5) * f32::powi(2.0, i % 20 - 10);
            for x in [x, -x] {
                let (got, nearest) = (to_11_bits(x), f16::from_f32(x).to_f32());
                assert_eq!(f16::from_f32(got).to_f32(), got, "{x}");
                assert!((got - x).abs() <= (nearest - x).abs(), "{x}: {got}");
            }
        }
        assert_eq!(to_11_bits(0.0), 0.0);
        // Where f16 has hardly a bit left.
        assert!((to_11_bits(1e-8) / 1e-8 - 1.0).abs() < 1.0 / 2048.0);
        for wrong in [f32::NAN, f32::INFINITY] {
            assert!(!to_11_bits(wrong).is_finite());
        }
    }
}
