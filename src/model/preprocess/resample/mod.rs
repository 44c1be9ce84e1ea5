//! Resizing of RGB bytes as torchvision does it on the CPU, which the published image processors rely on: the same bytes.
//!
//! Separable convolution, across first and then down, in fixed point with a rounding to whole grey levels after each pass.
//! Pillow, which older processors used, has finer weights and runs the passes of some sizes in the other order: mostly the same
//! bytes, else one or two levels off, and up to twenty where the order matters. tests/golden/README.md has the measurements.
//!
//! - this file: the two passes
//! - `filter`: the filters
//! - `fixed`: the weights of a pass in fixed point

mod filter;
mod fixed;

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use pulp::{Arch, NullaryFnOnce};

use super::picture::{Picture, PlanarRow};
use fixed::{half, to_byte};

pub use filter::Filter;
pub(super) use fixed::{Axis, Taps};

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
    use super::*;
    use crate::model::preprocess::picture::PackedRgb;

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
}
