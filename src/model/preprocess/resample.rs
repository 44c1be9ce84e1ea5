//! Resizing of RGB bytes as torchvision does it on the CPU, which the published image processors rely on: the same bytes.
//!
//! Separable convolution, across first and then down, in fixed point with a rounding to whole grey levels after each pass.
//! Pillow, which older processors used, has finer weights and runs the passes of some sizes in the other order: mostly the same
//! bytes, else one or two levels off, and up to twenty where the order matters. tests/golden/README.md has the measurements.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use pulp::{Arch, NullaryFnOnce};

use super::picture::{Picture, PlanarRow, LANES};

/// The filters that image processors name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    Bilinear,
    Bicubic,
    Lanczos,
}

impl Filter {
    /// Half width of the filter, input pixels at scale 1.
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        let x = x.abs();
        if x >= self.support() {
            return 0.0;
        }
        match self {
            Self::Bilinear => 1.0 - x,
            // Cubic convolution with a = -1/2 (Keys, 1981).
            Self::Bicubic if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
            Self::Bicubic => ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0,
            Self::Lanczos => sinc(x) * sinc(x / 3.0),
        }
    }

    /// Of `from` values in a row that become `to` those that make the `i`-th: the first of them, and their weights, whose sum is 1.
    pub fn weights(self, from: usize, to: usize, i: usize) -> (usize, Vec<f64>) {
        let scale = from as f64 / to as f64;
        let stretch = scale.max(1.0);
        let support = self.support() * stretch;
        let centre = (i as f64 + 0.5) * scale;
        let start = (centre - support + 0.5).max(0.0) as usize;
        let end = ((centre + support + 0.5) as usize).min(from);
        let weights = (start..end)
            .map(|x| self.weight((x as f64 - centre + 0.5) * (1.0 / stretch)))
            .collect::<Vec<_>>();
        let sum = weights.iter().sum::<f64>();
        let weights = weights.iter().map(|weight| weight / sum);
        (start, weights.collect())
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let x = x * std::f64::consts::PI;
    x.sin() / x
}

/// Which input pixels make an output pixel, and with what weights, filled up with zeros to whole steps of [`LANES`].
#[derive(Debug)]
pub(super) struct Taps {
    pub start: usize,
    /// Weights that are not filled up.
    pub count: usize,
    pub weights: Vec<i32>,
}

impl Taps {
    /// The weighted sums of the three planes, rounded to bytes. One plain loop, which compilers turn into vector instructions;
    /// inlined, so that they are the caller's.
    #[inline(always)]
    fn apply(&self, row: &PlanarRow, bits: u32) -> [u8; 3] {
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
pub(super) struct Axis {
    /// Fractional bits of the weights.
    pub bits: u32,
    /// Of each wanted output pixel.
    pub taps: Vec<Taps>,
}

impl Axis {
    /// Of the pixels `part` of `to`.
    fn new(from: usize, to: usize, part: Range<usize>, filter: Filter) -> Self {
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
fn half(bits: u32) -> i32 {
    1 << (bits - 1)
}

#[inline(always)]
fn to_byte(sum: i32, bits: u32) -> u8 {
    (sum >> bits).clamp(0, 255) as u8
}

/// The part of a resized picture that is wanted, pixels from the left and from the top.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    pub across: Range<usize>,
    pub down: Range<usize>,
}

impl Window {
    /// All of a picture of a size (width, height).
    fn whole((width, height): (usize, usize)) -> Self {
        Self {
            across: 0..width,
            down: 0..height,
        }
    }
}

/// The weights between two sizes.
#[derive(Debug)]
pub(super) struct Plan {
    from: (usize, usize),
    to: (usize, usize),
    part: Window,
    pub across: Axis,
    pub down: Axis,
}

/// Resizes pictures with one filter, and remembers the weights of the sizes last used: a camera's never change.
#[derive(Debug)]
pub struct Resizer {
    filter: Filter,
    plans: Mutex<Vec<Arc<Plan>>>,
}

/// Sizes remembered: two steps each of two cameras.
const PLANS: usize = 4;

impl Resizer {
    pub fn new(filter: Filter) -> Self {
        Self {
            filter,
            plans: Mutex::default(),
        }
    }

    pub fn filter(&self) -> Filter {
        self.filter
    }

    /// `picture` at the size `to` (width, height) as packed RGB bytes.
    pub fn resize(&self, picture: &dyn Picture, to: (usize, usize)) -> Vec<u8> {
        self.resize_part(picture, to, Window::whole(to))
    }

    /// The weights between two whole pictures.
    pub(super) fn whole_plan(&self, from: (usize, usize), to: (usize, usize)) -> Arc<Plan> {
        self.plan(from, to, Window::whole(to))
    }

    /// The part of [`Self::resize`]'s result that lies in `part`, which alone is computed.
    pub fn resize_part(&self, picture: &dyn Picture, to: (usize, usize), part: Window) -> Vec<u8> {
        let plan = self.plan(picture.size(), to, part);
        let across = across(picture, &plan);
        if plan.down.taps.len() == plan.from.1 && plan.from.1 == to.1 {
            across
        } else {
            down(&across, &plan)
        }
    }

    fn plan(&self, from: (usize, usize), to: (usize, usize), part: Window) -> Arc<Plan> {
        // Weights stay usable whatever happened to another thread.
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = |plan: &&Arc<Plan>| (plan.from, plan.to) == (from, to) && plan.part == part;
        if let Some(plan) = plans.iter().find(wanted) {
            return plan.clone();
        }
        let plan = Arc::new(Plan {
            from,
            to,
            across: Axis::new(from.0, to.0, part.across.clone(), self.filter),
            down: Axis::new(from.1, to.1, part.down.clone(), self.filter),
            part,
        });
        if plans.len() == PLANS {
            plans.remove(0);
        }
        plans.push(plan.clone());
        plan
    }
}

/// Every row of the picture at the new width, packed.
fn across(picture: &dyn Picture, plan: &Plan) -> Vec<u8> {
    let (width, height) = plan.from;
    let wanted = plan.across.taps.len();
    let arch = Arch::new();
    let mut row = PlanarRow::new(width);
    let mut out = vec![0; height * wanted * 3];
    for (y, out) in out.chunks_exact_mut(wanted * 3).enumerate() {
        picture.read_row(y, &mut row);
        if wanted == width && width == plan.to.0 {
            out.iter_mut()
                .zip(row.packed(width))
                .for_each(|(to, from)| *to = from);
        } else {
            let (row, axis) = (&row, &plan.across);
            arch.dispatch(ResizeRow { row, axis, out });
        }
    }
    out
}

/// One row to its new width, packed, with the widest instructions that this machine has.
struct ResizeRow<'a> {
    row: &'a PlanarRow,
    axis: &'a Axis,
    out: &'a mut [u8],
}

impl NullaryFnOnce for ResizeRow<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Axis { bits, taps } = self.axis;
        for (pixel, taps) in self.out.as_chunks_mut().0.iter_mut().zip(taps) {
            *pixel = taps.apply(self.row, *bits);
        }
    }
}

/// Packed rows at the new height.
fn down(rgb: &[u8], plan: &Plan) -> Vec<u8> {
    let Axis { bits, taps } = &plan.down;
    let width = plan.across.taps.len() * 3;
    let mut out = vec![0; width * taps.len()];
    let mut sums = vec![0; width];
    for (taps, out) in taps.iter().zip(out.chunks_exact_mut(width)) {
        let rows = &rgb[taps.start * width..];
        let sums = sums.as_mut_slice();
        sums.fill(half(*bits));
        Arch::new().dispatch(AddRows { rows, taps, sums });
        out.iter_mut()
            .zip(sums)
            .for_each(|(to, sum)| *to = to_byte(*sum, *bits));
    }
    out
}

/// Adds the weighted sum of packed rows.
struct AddRows<'a> {
    rows: &'a [u8],
    taps: &'a Taps,
    sums: &'a mut [i32],
}

impl NullaryFnOnce for AddRows<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let weights = &self.taps.weights[..self.taps.count];
        for (row, &weight) in self.rows.chunks_exact(self.sums.len()).zip(weights) {
            for (sum, &value) in self.sums.iter_mut().zip(row) {
                *sum += i32::from(value) * weight;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::picture::{PackedRgb, MAX_SIDE};
    use super::*;

    fn resize(
        bytes: &[u8],
        (width, height): (usize, usize),
        to: (usize, usize),
        filter: Filter,
    ) -> Vec<u8> {
        let picture = PackedRgb {
            width,
            height,
            bytes,
        };
        Resizer::new(filter).resize(&picture, to)
    }

    #[test]
    fn a_flat_picture_stays_flat_at_any_size() {
        let flat = [10u8, 200, 77].repeat(20 * 14);
        for filter in [Filter::Bilinear, Filter::Bicubic, Filter::Lanczos] {
            for size in [(5, 3), (40, 28), (40, 5), (20, 14)] {
                let out = resize(&flat, (20, 14), size, filter);
                assert_eq!(out, [10u8, 200, 77].repeat(size.0 * size.1));
            }
        }
    }

    #[test]
    fn a_part_is_what_the_whole_has_there() {
        let bytes = (0..20 * 14 * 3).map(|i| (i * 7 % 251) as u8);
        let bytes = bytes.collect::<Vec<_>>();
        let picture = PackedRgb {
            width: 20,
            height: 14,
            bytes: &bytes,
        };
        let resizer = Resizer::new(Filter::Bicubic);
        for to in [(33, 9), (20, 14), (7, 14), (20, 30)] {
            let whole = resizer.resize(&picture, to);
            let part = Window {
                across: 2..to.0 - 1,
                down: 1..to.1 - 3,
            };
            let rows = part.down.clone().flat_map(|y| {
                let at = |x: usize| (y * to.0 + x) * 3;
                whole[at(part.across.start)..at(part.across.end)].to_vec()
            });
            let rows = rows.collect::<Vec<_>>();
            assert_eq!(resizer.resize_part(&picture, to, part), rows);
        }
    }

    #[test]
    fn halving_with_a_triangle_weighs_four_pixels() {
        let row: Vec<u8> = [0u8, 0, 80, 0, 0, 0, 0, 0]
            .iter()
            .flat_map(|&v| [v; 3])
            .collect();
        // The second output pixel is centred between inputs 2 and 3; its triangle of width 4 weighs 1, 3, 3, 1.
        let out = resize(&row, (8, 1), (4, 1), Filter::Bilinear);
        assert_eq!([out[0], out[3], out[6]], [11, 30, 0]);
    }

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
