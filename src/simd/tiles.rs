//! The inner loops. Everything here is inlined into the caller's dispatch, so that it has the caller's vector instructions.

use pulp::Simd;

/// Columns of a tile, a whole number of two vectors on every machine: rows of staged numbers are filled up to it.
pub const COLUMNS: usize = 32;

/// Rows of a tile.
pub const ROWS: usize = 4;

/// Steps of a product that are written out one after the other, to spare the loop's own work.
const UNROLL: usize = 4;

/// `sum_k a[r][k] * b[k][column + c]` for `R` rows and the `V` vectors at `column`; `b` has rows of `stride` numbers.
#[inline(always)]
fn product<S: Simd, const R: usize, const V: usize>(
    simd: S,
    a: [&[f32]; R],
    b: &[f32],
    stride: usize,
    column: usize,
    mut sums: [[S::f32s; V]; R],
) -> [[S::f32s; V]; R] {
    let depth = a[0].len();
    let (b, rest) = b[..depth * stride].split_at(depth / UNROLL * UNROLL * stride);
    let whole = a.map(|row| row[..depth].as_chunks::<UNROLL>().0);
    let steps = whole[0].len();
    let whole = whole.map(|row| &row[..steps]);
    for (i, rows) in b.chunks_exact(UNROLL * stride).enumerate().take(steps) {
        for u in 0..UNROLL {
            let row = &rows[u * stride + column..];
            add_step(simd, from_rows(whole, |row| row[i][u]), row, &mut sums);
        }
    }
    for (k, row) in (steps * UNROLL..depth).zip(rest.chunks_exact(stride)) {
        add_step(simd, from_rows(a, |a| a[k]), &row[column..], &mut sums);
    }
    sums
}

#[inline(always)]
fn from_rows<A: Copy, const R: usize>(rows: [A; R], pick: impl Fn(A) -> f32) -> [f32; R] {
    let mut picked = [0.0; R];
    for r in 0..R {
        picked[r] = pick(rows[r]);
    }
    picked
}

/// Adds `a[r] * b` to the sums of each row, `b` being `V` vectors.
#[inline(always)]
fn add_step<S: Simd, const R: usize, const V: usize>(
    simd: S,
    a: [f32; R],
    b: &[f32],
    sums: &mut [[S::f32s; V]; R],
) {
    let (b, _) = S::as_simd_f32s(&b[..V * S::F32_LANES]);
    for r in 0..R {
        let x = simd.splat_f32s(a[r]);
        for v in 0..V {
            sums[r][v] = simd.mul_add_e_f32s(x, b[v], sums[r][v]);
        }
    }
}

/// `out[r] = a[r] * b`, or `out[r] += a[r] * b` if `add`, at the `V` vectors at `column`.
#[inline(always)]
fn columns<S: Simd, const R: usize, const V: usize>(
    simd: S,
    a: [&[f32]; R],
    (b, stride, column): (&[f32], usize, usize),
    out: &mut [f32],
    add: bool,
) {
    let width = V * S::F32_LANES;
    let mut sums = [[simd.splat_f32s(0.0); V]; R];
    if add {
        for (r, sums) in sums.iter_mut().enumerate() {
            let (old, _) = S::as_simd_f32s(&out[r * stride + column..][..width]);
            sums.copy_from_slice(old);
        }
    }
    let sums = product(simd, a, b, stride, column, sums);
    for (r, sums) in sums.iter().enumerate() {
        let (new, _) = S::as_mut_simd_f32s(&mut out[r * stride + column..][..width]);
        new.copy_from_slice(sums);
    }
}

/// `out[r] = a[r] * b`, or `out[r] += a[r] * b` if `add`, for the `R` rows `a` (`[depth]` each); `b` is `[depth, stride]` and the
/// rows of `out` are `[stride]`, a whole number of [`COLUMNS`].
#[inline(always)]
fn row_block<S: Simd, const R: usize>(
    simd: S,
    a: [&[f32]; R],
    b: &[f32],
    stride: usize,
    out: &mut [f32],
    add: bool,
) {
    let mut column = 0;
    // Wide vectors come with registers for twice as many sums.
    if S::F32_LANES >= 16 {
        while column + 4 * S::F32_LANES <= stride {
            columns::<S, R, 4>(simd, a, (b, stride, column), out, add);
            column += 4 * S::F32_LANES;
        }
    }
    while column < stride {
        columns::<S, R, 2>(simd, a, (b, stride, column), out, add);
        column += 2 * S::F32_LANES;
    }
}

/// `out = a * b`, or `out += a * b` if `add`: `a` is `[rows, a_stride]` of which the first `depth` columns count, `b` is
/// `[depth, stride]`, `out` is `[rows, stride]`, `stride` a whole number of [`COLUMNS`].
#[inline(always)]
pub fn matmul<S: Simd>(
    simd: S,
    (a, a_stride, depth): (&[f32], usize, usize),
    b: &[f32],
    stride: usize,
    out: &mut [f32],
    add: bool,
) {
    let row = |r: usize| &a[r * a_stride..][..depth];
    let rows = out.len() / stride;
    let mut r = 0;
    while r < rows {
        let out = &mut out[r * stride..];
        match rows - r {
            1 => row_block(simd, [row(r)], b, stride, out, add),
            2 => row_block(simd, [row(r), row(r + 1)], b, stride, out, add),
            3 => row_block(simd, [row(r), row(r + 1), row(r + 2)], b, stride, out, add),
            _ => {
                let a = [row(r), row(r + 1), row(r + 2), row(r + 3)];
                row_block(simd, a, b, stride, out, add)
            }
        }
        r += ROWS;
    }
}

/// The largest number of a row.
#[inline(always)]
pub fn largest(row: &[f32]) -> f32 {
    let (lanes, rest) = row.as_chunks::<16>();
    let mut most = [f32::NEG_INFINITY; 16];
    for lane in lanes {
        for i in 0..16 {
            most[i] = if lane[i] > most[i] { lane[i] } else { most[i] };
        }
    }
    most.iter()
        .chain(rest)
        .copied()
        .fold(f32::NEG_INFINITY, f32::max)
}

/// Replaces each x of a row by e^(x - most), and returns their sum.
#[inline(always)]
pub fn exp_row(row: &mut [f32], most: f32) -> f32 {
    let (lanes, rest) = row.as_chunks_mut::<16>();
    let mut sums = [0.0; 16];
    for lane in lanes {
        for i in 0..16 {
            lane[i] = exp(lane[i] - most);
            sums[i] += lane[i];
        }
    }
    let mut sum = sums.iter().sum::<f32>();
    for x in rest {
        *x = exp(*x - most);
        sum += *x;
    }
    sum
}

/// e^x for x of at most 0, to 2e-7 relative; 0 below -88.
///
/// x = n ln 2 + r with |r| of at most half a ln 2, e^r by its Taylor series to r^7, and 2^n put together from its bits.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    /// Adding it leaves the nearest whole number in the lowest bits: 1.5 * 2^23.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts, of which the first has few bits, so that n times it is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = if x > -88.0 { x } else { -88.0 };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    let mut series = 1.0 / 5040.0;
    for coefficient in [
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ] {
        series = series * r + coefficient;
    }
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    series * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_that_of_the_standard_library() {
        for i in 0..=87_000 {
            let x = -(i as f32) * 1e-3;
            let want = f64::from(x).exp();
            let off = (f64::from(exp(x)) - want).abs() / want;
            assert!(off < 2e-7, "exp({x}) is off by {off:e}");
        }
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-100.0), 0.0);
        assert_eq!(exp(0.0), 1.0);
    }
}
