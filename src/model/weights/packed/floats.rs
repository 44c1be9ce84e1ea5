//! 8-bit floats with a scale for all of them, for a row, a part of a row or a rectangle.

use std::ops::Range;

use super::{Entry, Parts, Scheme, FLOATS};
use crate::model::weights::mapped::Shard;

/// `[rows, width]` floats in E4M3, each times the scale of the block that it is in.
pub struct Floats {
    pub dims: [usize; 2],
    pub bytes: Entry,
    pub scales: Entry,
    /// Rows and columns of a block; the last ones of a matrix may be smaller.
    block: (usize, usize),
}

/// The values of E4M3 as `F8_E4M3` of safetensors has it: 4 bits of exponent with bias 7, no infinities, and NaN where all bits but the
/// sign are set (<https://arxiv.org/abs/2209.05433>, table 1).
const E4M3: [f32; 256] = {
    let mut values = [0f32; 256];
    let mut bits = 0;
    while bits < 256 {
        let (exponent, mantissa) = (bits >> 3 & 15, bits & 7);
        let magnitude = match (exponent, mantissa) {
            (15, 7) => f32::NAN,
            (0, _) => mantissa as f32 / 512.0,
            _ => f32::from_bits(((exponent + 120) << 23 | mantissa << 20) as u32),
        };
        values[bits] = if bits >> 7 == 1 {
            -magnitude
        } else {
            magnitude
        };
        bits += 1;
    }
    values
};

impl Floats {
    pub fn of(main: &Entry, parts: &mut Parts, scheme: &Scheme) -> Result<Self, String> {
        let [rows, width] = *main.dims.as_slice() else {
            return Err(format!("its shape is {:?}, expected two sides", main.dims));
        };
        if rows == 0 || width == 0 {
            return Err(format!(
                "its shape is {:?}, expected no side of 0",
                main.dims
            ));
        }
        let scales = match parts.find("weight_scale_inv") {
            Some(scales) => scales,
            None => parts.need("weight_scale")?,
        };
        scales.expect_dims(&scales.dims, &FLOATS)?;
        let block = scheme.of_floats((rows, width), &scales.dims);
        Ok(Self {
            dims: [rows, width],
            bytes: main.clone(),
            block: block.map_err(|what| format!("{}: {what}", scales.stored))?,
            scales,
        })
    }

    pub fn open<'a>(&'a self, shards: &'a [Shard]) -> Result<Opened<'a>, String> {
        Ok(Opened {
            bytes: self.bytes.in_shard(shards),
            width: self.dims[1],
            scales: self.scales.numbers(shards)?,
            block: self.block,
        })
    }
}

pub struct Opened<'a> {
    bytes: &'a [u8],
    width: usize,
    /// Row by row of blocks.
    scales: Vec<f32>,
    block: (usize, usize),
}

impl Opened<'_> {
    /// These rows, one after the other.
    pub fn widen(&self, rows: Range<usize>, wide: &mut [f32]) {
        let across = self.width.div_ceil(self.block.1);
        for (row, wide) in rows.zip(wide.chunks_mut(self.width)) {
            let bytes = &self.bytes[row * self.width..][..self.width];
            let scales = &self.scales[row / self.block.0 * across..][..across];
            let blocks = bytes
                .chunks(self.block.1)
                .zip(wide.chunks_mut(self.block.1));
            for ((bytes, wide), scale) in blocks.zip(scales) {
                for (wide, &byte) in wide.iter_mut().zip(bytes) {
                    *wide = E4M3[byte as usize] * scale;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_values_are_those_of_the_format() {
        for (bits, value) in [
            (0x00, 0.0),
            (0x01, 2f32.powi(-9)),
            (0x07, 7.0 * 2f32.powi(-9)),
            (0x08, 2f32.powi(-6)),
            (0x38, 1.0),
            (0x3c, 1.5),
            (0x7e, 448.0),
            (0xfe, -448.0),
            (0x80, -0.0),
        ] {
            assert_eq!(E4M3[bits].to_bits(), f32::to_bits(value), "{bits:#x}");
        }
        let nan = (0..256).filter(|&bits| E4M3[bits].is_nan());
        assert_eq!(nan.collect::<Vec<_>>(), [0x7f, 0xff]);
    }
}
