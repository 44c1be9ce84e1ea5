//! Products of rows with vector instructions, which the cache and the model share.
//!
//! [`dot_products`] and [`dot`] are inlined into the caller's dispatch, so that they have the caller's instructions.
//!
//! - this file: products of rows
//! - `tiles`: products of tiles, softmax of a row

pub mod tiles;

use gemm::Parallelism;
use pulp::Simd;

/// `out = a * b^T` for `a` of `[rows, width]`, `b` of `[columns, width]` and `out` of `[rows, columns]`, in the threads of the pool that it
/// is called in, whose number does not change a result.
///
/// This is candle's own product without what it asks the system each time, how many cores there are.
pub fn many_products(a: &[f32], b: &[f32], width: usize, out: &mut [f32]) {
    products_of_many(a, b, width, out, false);
}

/// As [`many_products`], but `out += a * b^T`.
pub fn add_many_products(a: &[f32], b: &[f32], width: usize, out: &mut [f32]) {
    products_of_many(a, b, width, out, true);
}

fn products_of_many(a: &[f32], b: &[f32], width: usize, out: &mut [f32], add: bool) {
    let (rows, columns) = match width {
        0 => (0, 0),
        width => (a.len() / width, b.len() / width),
    };
    assert!(out.len() == rows * columns, "a product of other shapes");
    let parallelism = match rayon::current_num_threads() {
        1 => Parallelism::None,
        threads => Parallelism::Rayon(threads),
    };
    // SAFETY: a, b and out hold the rows, columns and widths that the strides walk over, whole rows each; out is borrowed alone.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            width,
            out.as_mut_ptr(),
            1,
            columns as isize,
            add,
            a.as_ptr(),
            1,
            width as isize,
            b.as_ptr(),
            width as isize,
            1,
            if add { 1.0f32 } else { 0.0 },
            1.0f32,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// Lanes of the sums of [`dot`]; the compiler turns them into vector registers.
const LANES: usize = 16;

/// The sum of the products; the order of the additions depends on the length alone.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0.0f32; LANES];
    for (a, b) in a.iter().zip(b) {
        for i in 0..LANES {
            sums[i] += a[i] * b[i];
        }
    }
    let rest = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>();
    sums.iter().sum::<f32>() + rest
}

/// Rows of `x` that [`dot_products`] takes at most.
pub const MAX_ROWS: usize = 8;

/// The dot products of the rows `x` (`[rows, width]`, at most [`MAX_ROWS`]) with the rows of `weights` (`[outputs, width]`), into
/// `outs`: for each row of `x`, `[outputs]`. A sum's order of additions depends on the width alone.
#[inline(always)]
pub fn dot_products<S: Simd>(
    simd: S,
    x: &[f32],
    weights: &[f32],
    width: usize,
    outs: &mut [&mut [f32]],
) {
    // As many sums at a time as there are registers for: enough that an addition need not wait for the one before.
    match outs.len() {
        1 => run::<S, 1, 8>(simd, x, weights, width, outs),
        2 => run::<S, 2, 4>(simd, x, weights, width, outs),
        3 => run::<S, 3, 2>(simd, x, weights, width, outs),
        4 => run::<S, 4, 2>(simd, x, weights, width, outs),
        5 => run::<S, 5, 1>(simd, x, weights, width, outs),
        6 => run::<S, 6, 1>(simd, x, weights, width, outs),
        7 => run::<S, 7, 1>(simd, x, weights, width, outs),
        _ => run::<S, MAX_ROWS, 1>(simd, x, weights, width, outs),
    }
}

/// `ROWS` rows of `x` with `WEIGHTS` rows of the weights at a time.
#[inline(always)]
fn run<S: Simd, const ROWS: usize, const WEIGHTS: usize>(
    simd: S,
    x: &[f32],
    weights: &[f32],
    width: usize,
    outs: &mut [&mut [f32]],
) {
    let x: [&[f32]; ROWS] = std::array::from_fn(|row| &x[row * width..][..width]);
    let outputs = weights.len() / width;
    let whole = outputs - outputs % WEIGHTS;
    for first in (0..whole).step_by(WEIGHTS) {
        let weights: [&[f32]; WEIGHTS] =
            std::array::from_fn(|i| &weights[(first + i) * width..][..width]);
        for (out, sums) in outs.iter_mut().zip(dots(simd, x, weights)) {
            out[first..first + WEIGHTS].copy_from_slice(&sums);
        }
    }
    for output in whole..outputs {
        let weight = &weights[output * width..][..width];
        for (out, [sum]) in outs.iter_mut().zip(dots(simd, x, [weight])) {
            out[output] = sum;
        }
    }
}

/// The products of every row of `x` with every row of `weights`, all of one length. A sum's order of additions depends on that
/// length alone.
#[inline(always)]
fn dots<S: Simd, const ROWS: usize, const WEIGHTS: usize>(
    simd: S,
    x: [&[f32]; ROWS],
    weights: [&[f32]; WEIGHTS],
) -> [[f32; WEIGHTS]; ROWS] {
    // Loops and no closures: these would not become part of the caller, and with it lose its instructions.
    let (head, tail) = S::as_simd_f32s(x[0]);
    let steps = head.len();
    let mut heads = [head; ROWS];
    for row in 1..ROWS {
        heads[row] = &S::as_simd_f32s(x[row]).0[..steps];
    }
    let mut weight_heads = [head; WEIGHTS];
    for i in 0..WEIGHTS {
        weight_heads[i] = &S::as_simd_f32s(weights[i]).0[..steps];
    }
    let mut sums = [[simd.splat_f32s(0.0); WEIGHTS]; ROWS];
    for step in 0..steps {
        for i in 0..WEIGHTS {
            let weight = weight_heads[i][step];
            for row in 0..ROWS {
                sums[row][i] = simd.mul_add_e_f32s(heads[row][step], weight, sums[row][i]);
            }
        }
    }
    if !tail.is_empty() {
        let end = x[0].len() - tail.len();
        for i in 0..WEIGHTS {
            let weight = simd.partial_load_f32s(&weights[i][end..]);
            for row in 0..ROWS {
                let value = simd.partial_load_f32s(&x[row][end..]);
                sums[row][i] = simd.mul_add_e_f32s(value, weight, sums[row][i]);
            }
        }
    }
    let mut totals = [[0.0; WEIGHTS]; ROWS];
    for row in 0..ROWS {
        for i in 0..WEIGHTS {
            totals[row][i] = simd.reduce_sum_f32s(sums[row][i]);
        }
    }
    totals
}
