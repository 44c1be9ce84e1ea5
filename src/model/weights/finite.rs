//! Weights that are no numbers: a model with one of them answers with the same token for ever.

use candle_core::quantized::GgmlDType;
use candle_core::{bail, Result};

/// The numbers that are still numbers as another type.
#[derive(Debug, Clone, Copy)]
pub struct Range {
    /// Bits of the largest one as f32; those of larger numbers are larger, and those of NaN larger still.
    largest: u32,
    /// Of what.
    name: &'static str,
}

pub const F32: Range = Range::up_to(f32::MAX, "f32");
/// From 65520 on f16 rounds to infinity.
pub const F16: Range = Range::below(65520.0, "f16");
/// From halfway between the largest bf16 and the next power of two on it rounds to infinity.
pub const BF16: Range = Range::below(f32::from_bits(0x7f7f_8000), "bf16");
/// The scales of blocks are f16, and for the coarsest a sixteenth of the largest number.
pub const BLOCKS: Range = Range::below(16.0 * 65520.0, "quantised blocks");

/// Of floats and of blocks alike, whatever becomes of them.
const NOT_FINITE: &str = "NaN or infinity is among its numbers, expected finite ones only";

const SIGN: u32 = 1 << 31;

impl Range {
    const fn up_to(largest: f32, name: &'static str) -> Self {
        Self {
            largest: largest.to_bits(),
            name,
        }
    }

    const fn below(border: f32, name: &'static str) -> Self {
        Self {
            largest: border.to_bits() - 1,
            name,
        }
    }

    /// Fails if one of `numbers` is not within the range.
    pub fn check(self, numbers: &[f32]) -> Result<()> {
        // Compared as signed integers, for which every processor has instructions.
        let magnitude = |x: &f32| (x.to_bits() & !SIGN) as i32;
        let most = numbers.iter().map(magnitude).fold(0, i32::max);
        if most <= self.largest as i32 {
            return Ok(());
        }
        let wrong = numbers.iter().find(|x| magnitude(x) == most);
        let wrong = wrong.copied().unwrap_or(f32::NAN);
        match wrong.is_finite() {
            true => bail!(
                "{wrong} is among its numbers, which {} cannot hold; expected a wider type",
                self.name
            ),
            false => bail!("{NOT_FINITE}"),
        }
    }
}

/// Fails if the scale of a block is not finite. `bytes` are whole blocks.
pub fn check_blocks(format: GgmlDType, bytes: &[u8]) -> Result<()> {
    // Where in a block its scales lie, which are f16.
    let scales: &[usize] = match format {
        GgmlDType::Q4_0 | GgmlDType::Q5_0 | GgmlDType::Q8_0 => &[0],
        GgmlDType::Q4_1 | GgmlDType::Q5_1 | GgmlDType::Q4K | GgmlDType::Q5K => &[0, 2],
        GgmlDType::Q2K => &[80, 82],
        GgmlDType::Q3K => &[108],
        GgmlDType::Q6K => &[208],
        _ => &[],
    };
    const EXPONENT: u16 = 0x7c00;
    for block in bytes.chunks_exact(format.type_size()) {
        for &at in scales {
            let bits = u16::from_le_bytes([block[at], block[at + 1]]);
            if bits & EXPONENT == EXPONENT {
                bail!("{NOT_FINITE}");
            }
        }
    }
    Ok(())
}
