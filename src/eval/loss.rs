//! The loss of given tokens from hidden states, a few rows at a time: the logits of a whole text would not fit anywhere.

use candle_core::{CpuStorage, DType, Storage, Tensor};
use rayon::prelude::*;

use super::EvalError;
use crate::model::decoder::Decoder;

/// Rows whose logits exist at a time: enough for a product over the whole vocabulary to run at full speed.
pub const ROWS: usize = 64;

/// Lanes of the sums below; the compiler turns them into vector registers.
const LANES: usize = 16;

/// The negative log-likelihood, in nats, of `targets[i]` after `hidden[i]`; `hidden` is `[at least targets, hidden]`.
pub fn token_losses(
    decoder: &Decoder,
    hidden: &Tensor,
    targets: &[u32],
) -> Result<Vec<f32>, EvalError> {
    per_row(decoder, hidden, targets, |row, &target| {
        log_sum_exp(row) - row[target as usize]
    })
}

/// Whether `targets[i]` is what the model itself would have said after `hidden[i]`.
pub fn are_first_choices(
    decoder: &Decoder,
    hidden: &Tensor,
    targets: &[u32],
) -> Result<Vec<bool>, EvalError> {
    per_row(decoder, hidden, targets, |row, &target| {
        let logit = row[target as usize];
        row.iter().all(|&other| other <= logit)
    })
}

/// `value(logits of row i, targets[i])` for every target, `[targets]`.
fn per_row<T: Send>(
    decoder: &Decoder,
    hidden: &Tensor,
    targets: &[u32],
    value: impl Fn(&[f32], &u32) -> T + Sync,
) -> Result<Vec<T>, EvalError> {
    let mut values = Vec::with_capacity(targets.len());
    for (piece, targets) in targets.chunks(ROWS).enumerate() {
        let rows = hidden.narrow(0, piece * ROWS, targets.len())?;
        let logits = decoder.logits(&rows)?.to_dtype(DType::F32)?.contiguous()?;
        let vocabulary = logits.dim(1)?;
        let mut compute = |logits: &[f32]| {
            let rows = logits.par_chunks(vocabulary).zip(targets);
            values.par_extend(rows.map(|(row, target)| value(row, target)));
        };
        let (storage, layout) = logits.storage_and_layout();
        match (&*storage, layout.contiguous_offsets()) {
            (Storage::Cpu(CpuStorage::F32(all)), Some((from, to))) => compute(&all[from..to]),
            _ => {
                drop(storage);
                compute(&logits.flatten_all()?.to_vec1::<f32>()?);
            }
        }
    }
    Ok(values)
}

/// `ln(sum(exp(row)))`.
fn log_sum_exp(row: &[f32]) -> f32 {
    let mut tops = [f32::NEG_INFINITY; LANES];
    let (whole, rest) = row.as_chunks::<LANES>();
    for lanes in whole {
        for (top, &x) in tops.iter_mut().zip(lanes) {
            *top = if x > *top { x } else { *top };
        }
    }
    let top = tops
        .iter()
        .chain(rest)
        .copied()
        .fold(f32::NEG_INFINITY, f32::max);
    let mut sums = [0.0f32; LANES];
    for lanes in whole {
        for (sum, &x) in sums.iter_mut().zip(lanes) {
            *sum += exp(x - top);
        }
    }
    let rest = rest.iter().map(|&x| exp(x - top)).sum::<f32>();
    top + (sums.iter().sum::<f32>() + rest).ln()
}

/// `e^x` for `x` up to 0, to a relative error of 3e-7; without a call, so that loops over it become vector instructions.
fn exp(x: f32) -> f32 {
    /// Adding it rounds to a whole number, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // e^x = 2^whole * 2^part; below the smallest normal number the result is as good as zero.
    let t = (x * std::f32::consts::LOG2_E).max(-126.0);
    let rounded = t + ROUND;
    let part = (t - (rounded - ROUND)) * std::f32::consts::LN_2;
    // The Taylor series of e^part, |part| <= 0.35.
    let series = 1.0
        + part
            * (1.0
                + part
                    * (1.0 / 2.0
                        + part
                            * (1.0 / 6.0
                                + part
                                    * (1.0 / 24.0 + part * (1.0 / 120.0 + part * (1.0 / 720.0))))));
    f32::from_bits(rounded.to_bits().wrapping_add(127) << 23) * series
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_that_of_the_standard_library() {
        for i in 0..100_000 {
            let x = -80.0 * i as f32 / 100_000.0;
            let off = (f64::from(exp(x)) / f64::from(x).exp() - 1.0).abs();
            // The rounding of x * log2(e) grows with x.
            assert!(off < 3e-7 + 1e-7 * f64::from(-x), "{x}: off by {off}");
        }
        assert!(exp(-1e4) < 1e-30 && exp(f32::NEG_INFINITY) < 1e-30);
    }

    #[test]
    fn log_sum_exp_is_exact_for_any_length_and_offset() {
        for (len, offset) in [(1, 0.0), (15, 900.0), (16, -900.0), (1000, 30.0)] {
            let row = (0..len)
                .map(|i| offset + (i * 37 % 101) as f32 * 0.1)
                .collect::<Vec<_>>();
            let top = f64::from(offset) + 10.0;
            let sum = row.iter().map(|&x| (f64::from(x) - top).exp()).sum::<f64>();
            let off = f64::from(log_sum_exp(&row)) - (top + sum.ln());
            assert!(off.abs() < 2e-4, "{len}: off by {off}");
        }
    }
}
