//! The weights of a pass in fixed point, and the sums that they make.

use std::ops::Range;

use super::Filter;
use crate::model::preprocess::picture::{PlanarRow, LANES};

/// Which input pixels make an output pixel, and with what weights, filled up with zeros to whole steps of [`LANES`].
#[derive(Debug)]
pub struct Taps {
    pub start: usize,
    /// Weights that are not filled up.
    pub count: usize,
    pub weights: Vec<i32>,
}

impl Taps {
    /// The weighted sums of the three planes, rounded to bytes. One plain loop, which compilers turn into vector instructions;
    /// inlined, so that they are the caller's.
    #[inline(always)]
    pub fn apply(&self, row: &PlanarRow, bits: u32) -> [u8; 3] {
        let weights = self.weights.as_slice();
        let red = &row.red[self.start..][..weights.len()];
        let green = &row.green[self.start..][..weights.len()];
        let blue = &row.blue[self.start..][..weights.len()];
        let mut sums = [half(bits); 3];
        for i in 0..weights.len() {
            sums[0] += red[i] * weights[i];
            sums[1] += green[i] * weights[i];
            sums[2] += blue[i] * weights[i];
        }
        sums.map(|sum| to_byte(sum, bits))
    }
}

/// The longest side of a resized picture all of whose pixels are looked at for the sake of a part of them.
const LONGEST: usize = 1 << 20;

/// The weights of one pass.
#[derive(Debug)]
pub struct Axis {
    /// Fractional bits of the weights.
    pub bits: u32,
    /// Of each wanted output pixel.
    pub taps: Vec<Taps>,
}

impl Axis {
    /// Of the pixels `part` of `to`.
    pub fn new(from: usize, to: usize, part: Range<usize>, filter: Filter) -> Self {
        let weights_of = |i: usize| filter.weights(from, to, i);
        // The fixed point is that of all pixels, but for a side that no processor asks for: there it is that of the part.
        let all = match to <= LONGEST {
            true => 0..to,
            false => part.clone(),
        };
        let largest = all.flat_map(|i| weights_of(i).1).fold(0.0, f64::max);
        let bits = fraction_bits(largest);
        let taps = part.map(weights_of).map(|(start, weights)| {
            let fixed = weights.iter();
            let fixed = fixed.map(|weight| (weight * f64::from(1 << bits)).round() as i32);
            let fill = weights.len().next_multiple_of(LANES) - weights.len();
            Taps {
                start,
                count: weights.len(),
                weights: fixed.chain(std::iter::repeat_n(0, fill)).collect(),
            }
        });
        Self {
            bits,
            taps: taps.collect(),
        }
    }
}

/// With how many fractional bits the largest weight still fits into 16 bits with a sign; at most 22, which sums of bytes leave room for.
fn fraction_bits(largest: f64) -> u32 {
    let fits = |bits: &u32| ((largest * f64::from(1 << bits) + 0.5) as i32) < 1 << 15;
    (1..=22).take_while(fits).last().unwrap_or(1)
}

/// What turns cutting off `bits` into rounding.
#[inline(always)]
pub fn half(bits: u32) -> i32 {
    1 << (bits - 1)
}

#[inline(always)]
pub fn to_byte(sum: i32, bits: u32) -> u8 {
    (sum >> bits).clamp(0, 255) as u8
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::preprocess::picture::MAX_SIDE;

    proptest! {
        /// Six weights for each pixel of the longer side, and as many as fill up a step for each that is made.
        #[test]
        fn a_plan_takes_memory_by_the_sides_alone(
            from in 1..=MAX_SIDE,
            to in prop_oneof![1usize..5000, Just(usize::MAX >> 20)],
            start: prop::sample::Index,
            filter in prop::sample::select(vec![Filter::Bilinear, Filter::Bicubic, Filter::Lanczos]),
        ) {
            let part = match to < 5000 {
                true => 0..to,
                false => {
                    let start = start.index(to - 400);
                    start..start + 400
                }
            };
            let wanted = part.len();
            let axis = Axis::new(from, to, part, filter);
            let weights = axis.taps.iter().map(|taps| taps.weights.len()).sum::<usize>();
            prop_assert!(weights <= 6 * from.max(wanted) + (LANES + 2) * wanted, "{weights} weights");
        }
    }
}
